"""`scenediff report`: a run as one HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from scenediff.cli.errors import UserError, user_errors
from scenediff.cli.folders import output_file
from scenediff.cli.options import check_at_least, say


@dataclass(frozen=True)
class Report:
    """Writes one HTML page that shows a run, in any browser and without a network.

    It holds the photo, every sample as a model to turn and as a video, its depth, where the samples disagree,
    and how all was made.
    """

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """What `scenediff sample` has written for one photo."""
    output: Annotated[
        Path | None,
        tyro.conf.arg(aliases=["-o"], metavar="FILE.html", help_behavior_hint="(default: report.html in it)"),
    ] = None
    """Page to write."""
    max_megabytes: float = 100.0
    """Of all 3D models together; those that don't fit are left out of the page."""
    overwrite: bool = False
    """Replace an existing page."""

    def run(self) -> None:
        """Checks everything, then writes."""
        check_at_least("--max-megabytes", self.max_megabytes, 0)
        output = self.output or self.run_folder / "report.html"
        if output.suffix.lower() not in (".html", ".htm"):
            raise UserError(f"{output} must end in .html")
        with user_errors():
            from scenediff.tools.html_report import write_html_report
            from scenediff.tools.run_folder import load_run

            run = load_run(self.run_folder)
        # it reads the run's files all the way through: what it complains about is one of them
        with output_file(output, overwrite=self.overwrite) as file, user_errors():
            write_html_report(run, file, max_megabytes=self.max_megabytes)
        say(f"wrote {output}")
