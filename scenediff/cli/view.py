"""`scenediff view`: a run in the browser."""

from __future__ import annotations

import socket
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from scenediff.cli.errors import UserError, user_errors
from scenediff.cli.options import say


@dataclass(frozen=True)
class View:
    """Shows a run in the browser: its samples to walk through, where they differ, and their files.

    Only this machine can see it, unless --host says otherwise. Ctrl-C ends it.
    """

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """What `scenediff sample` has written for one photo."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 lets everybody in the network in."""
    port: int = 8080
    """Port; if it is taken, the next free one."""

    def run(self) -> None:
        """Serves until it is interrupted."""
        if not 1 <= self.port <= 65535:
            raise UserError(f"--port must be from 1 to 65535, got {self.port}")
        check_host(self.host)
        with user_errors():
            from scenediff.tools.run_folder import load_run

            try:
                from scenediff.tools.viewer import Viewer
            except ModuleNotFoundError as error:
                raise UserError(
                    f"the viewer needs {error.name}: pip install 'scenediff[view]'"
                ) from error

            viewer = Viewer(load_run(self.run_folder), self.host, self.port)
        try:
            say(f"open http://{self.host}:{viewer.server.get_port()} in a browser; Ctrl-C ends")
            while True:
                time.sleep(1)
        except KeyboardInterrupt:  # the usual way to end it
            say("")
        finally:
            viewer.stop()


def check_host(host: str) -> None:
    """Raises a user error for an address that this machine does not have."""
    try:
        with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
            probe.bind((host, 0))
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: this machine can't listen there ({error})") from error
