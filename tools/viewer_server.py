"""viser's server, kept to this machine: no statistics script in its page and no tunnel to the outside."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import tempfile
from pathlib import Path
from typing import Any

import viser
from viser import infra

logger = logging.getLogger(__name__)

# the script that loads Google's, and the one after it that calls it
_STATISTICS = re.compile(r"<script[^>]*googletagmanager[^>]*>\s*</script>\s*<script>.*?</script>", re.DOTALL)


def local_server(host: str, port: int, label: str) -> viser.ViserServer:
    """A running server.

    Args:
        host: address to listen at. port: the first one to try.
        label: above the controls.
    """
    usual = infra.WebsockServer
    try:
        # a ViserServer has no option for its page
        infra.WebsockServer = _PrivateServer  # type: ignore[misc, assignment]
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its address, whatever it is told
            server = viser.ViserServer(host=host, port=port, label=label, verbose=False)
    finally:
        infra.WebsockServer = usual  # type: ignore[misc]
    server.request_share_url = _no_tunnel  # type: ignore[method-assign]
    return server


class _PrivateServer(infra.WebsockServer):
    """Serves viser's page without the statistics."""

    def __init__(self, *, http_server_root: Path, **options: Any) -> None:
        self._page = tempfile.TemporaryDirectory(prefix="scenediff-view-")  # as long as the server lives
        for entry in http_server_root.iterdir():
            (Path(self._page.name) / entry.name).symlink_to(entry)
        index = Path(self._page.name) / "index.html"
        text = _STATISTICS.sub("", index.read_text(encoding="utf-8"))
        index.unlink()
        index.write_text(text, encoding="utf-8")
        super().__init__(http_server_root=Path(self._page.name), **options)

    def stop(self) -> None:
        super().stop()
        self._page.cleanup()


def _no_tunnel(verbose: bool = True) -> None:
    """What a visitor gets who asks for a public address."""
    logger.warning("a visitor asked for a public address: refused, use --host to let others in")
