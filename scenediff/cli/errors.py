"""What a user did wrong, as opposed to what the program did wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A wrong input; the message is one line that says what was given and what to do."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns the complaints of libraries about their inputs into user errors.

    It goes around checks and loading, not around the work itself: what fails there is a defect, and its
    traceback is wanted.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(one_line(error)) from error


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
