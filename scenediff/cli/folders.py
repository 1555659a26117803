"""Outputs that are there whole or not at all: written beside their place and moved there at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scenediff.cli.errors import UserError


@contextmanager
def output_folder(folder: Path, *, overwrite: bool, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends well.

    Args:
        folder: the place; it may exist if it is empty.
        overwrite: whether a folder with content is replaced.
        is_ours: whether a folder with content was written by the same command; others are never replaced.

    Raises:
        UserError: the folder has content, or it can't be written.
    """
    folder = Path(os.path.abspath(folder))
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name another output folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise UserError(f"{folder} is not empty: name another output folder or add --overwrite")
        if not is_ours(folder):
            raise UserError(f"{folder} has files that scenediff did not write: name another output folder")
    with _created_parents(folder.parent):
        partial = _make_partial(folder)
        try:
            yield partial
            _make_readable(partial)
            _take_place(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def output_file(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary file name, of the same suffix, that takes the place of `path` when the block ends well."""
    with output_files([path], overwrite=overwrite) as partial:
        yield partial


@contextmanager
def output_files(paths: Sequence[Path], *, overwrite: bool) -> Iterator[Path]:
    """A temporary place for the first of several files of one folder, which the others are written beside.

    All of them take their places when the block ends well.
    """
    paths = [Path(os.path.abspath(path)) for path in paths]
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path} is a folder: name a file")
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists: name another output file or add --overwrite")
    with _created_parents(paths[0].parent):
        partial = _make_partial(paths[0])
        try:
            yield partial / paths[0].name
            _make_readable(partial)
            for path in paths:
                os.replace(partial / path.name, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _created_parents(folder: Path) -> Iterator[None]:
    """Creates missing parents and removes them again if the block fails."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} can't be written ({error.strerror}): name another output") from error
    try:
        yield
    except BaseException:
        for parent in missing:  # the deepest first; rmdir leaves what others have filled meanwhile
            try:
                parent.rmdir()
            except OSError:
                break
        raise


def _make_partial(place: Path) -> Path:
    try:
        partial = Path(tempfile.mkdtemp(prefix=f".{place.name}.partial-", dir=place.parent))
        partial.chmod(0o777 & ~_umask())  # mkdtemp's are private
    except OSError as error:
        raise UserError(f"{place.parent} can't be written ({error.strerror}): name another output") from error
    return partial


def _make_readable(folder: Path) -> None:
    """Usual permissions for every file: some writers make theirs private."""
    mode = 0o666 & ~_umask()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _take_place(partial: Path, folder: Path) -> None:
    """Replaces `folder`; the old one goes only after the new one is in place."""
    if not folder.exists():
        os.rename(partial, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old-", dir=folder.parent))
    os.rename(folder, old / folder.name)
    os.rename(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def check_run_folder(folder: Path, *, resume: bool) -> None:
    """Raises a user error for a folder that a training run can neither begin in nor, to resume, go on in."""
    if resume:
        check_interrupted(folder)
    else:
        check_new_folder(folder)


def check_interrupted(folder: Path) -> None:
    """Raises a user error for a folder without a training run to go on with."""
    if not (folder / "state").is_dir():
        raise UserError(f"--resume: {folder} holds no interrupted run")


def check_new_folder(folder: Path) -> None:
    """Raises a user error for a run's folder that holds something."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name another output folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: name another folder")
