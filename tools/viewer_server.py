"""viser's server, kept to this machine: no statistics script in its page and no tunnel to the outside.

A defect of its page is mended on the way: it logs errors, as the corners of splats' quads lack a coordinate.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import viser
from viser import infra

logger = logging.getLogger(__name__)

# the script that loads Google's, and the one after it that calls it
_STATISTICS = re.compile(r"<script[^>]*googletagmanager[^>]*>\s*</script>\s*<script>.*?</script>", re.DOTALL)

_FLAT_QUAD = "new Float32Array([-2,-2,2,-2,2,2,-2,2]),2)"
_QUAD = "new Float32Array([-2,-2,0,2,-2,0,2,2,0,-2,2,0]),3)"


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
    """Serves a copy of viser's page, mended and without the statistics."""

    def __init__(self, *, http_server_root: Path, **options: Any) -> None:
        self._page = tempfile.TemporaryDirectory(prefix="scenediff-view-")  # as long as the server lives
        page = Path(self._page.name)
        shutil.copytree(http_server_root, page, dirs_exist_ok=True)
        index = page / "index.html"
        index.write_text(_STATISTICS.sub("", index.read_text(encoding="utf-8")), encoding="utf-8")
        for script in (page / "assets").glob("index*.js"):
            text = script.read_text(encoding="utf-8")
            script.write_text(text.replace(_FLAT_QUAD, _QUAD), encoding="utf-8")
        super().__init__(http_server_root=page, **options)

    def stop(self) -> None:
        super().stop()
        self._page.cleanup()


def _no_tunnel(verbose: bool = True) -> None:
    """What a visitor gets who asks for a public address."""
    logger.warning("a visitor asked for a public address: refused, use --host to let others in")
