"""`scenediff doctor`: what is wrong with a 3D file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from scenediff.cli.errors import user_errors
from scenediff.cli.options import say, say_json

MARKS = {"fine": "ok", "note": "note", "problem": "PROBLEM"}


@dataclass(frozen=True)
class Doctor:
    """Tells of a GLB, glTF, OBJ or PLY file, from any program, what becomes of it in Blender.

    Whether it shows colour, which way is up, its size in metres, its holes, and what to do about each.
    """

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """The file."""
    json: bool = False
    """Print one line of JSON instead."""

    def run(self) -> None:
        """Prints the findings."""
        with user_errors():
            from scenediff.tools.doctor import as_record, examine

            findings = examine(self.file)
        if self.json:
            say_json(as_record(findings))
            return
        for finding in findings:
            say(f"{MARKS[finding.verdict]:<8}{finding.topic:<10}{finding.text}")
            if finding.advice:
                say(f"{'':<18}-> {finding.advice}")
