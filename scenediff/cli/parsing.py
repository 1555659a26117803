"""Options out of dataclasses, by tyro; its boxed messages become one line."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import TypeVar

import tyro

from scenediff.cli.errors import UserError

Config = TypeVar("Config")


def parse(config: type[Config], arguments: Sequence[str], prog: str) -> Config | None:
    """The options of one command; None when only help was asked for and printed.

    Raises:
        UserError: an option is missing, unknown or has a wrong value.
    """
    complaints = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaints):
            return tyro.cli(config, args=list(arguments), prog=prog, config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as stop:
        if not stop.code:
            return None
        raise UserError(f"{_first_paragraph(complaints.getvalue())} (see {prog} --help)") from None


def _first_paragraph(box: str) -> str:
    """The text of tyro's box up to its first rule, on one line."""
    words: list[str] = []
    for line in box.splitlines():
        text = line.strip("│ ")
        if text.startswith("──"):
            break
        if not line.startswith(("╭", "╰")):
            words.extend(text.split())
    return " ".join(words).partition(" Got errors:")[0] or "wrong options"
