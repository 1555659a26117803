"""What `scenediff sample` has written for one photo: its record and where each sample's files are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORD = "run.json"


class RunError(ValueError):
    """A folder that is no run, or lacks files; the message names the place and what is wrong."""


@dataclass(frozen=True)
class SampleFiles:
    """One sample.

    Attributes:
        folder: where its files are. record: what run.json says of it (seed, steps, ...).
    """

    folder: Path
    record: dict[str, Any]

    def file(self, kind: str) -> Path:
        """The file of an output ("scene", "mesh", "points", "depth", "video").

        Raises:
            RunError: the run has not written it, or it is gone.
        """
        name = self.record.get("files", {}).get(kind)
        path = self.folder / str(name)
        if name is None or not path.is_file():
            raise RunError(f"{self.folder} has no {kind}: sample again, or restore {path.name}")
        return path

    def model(self) -> bytes:
        """The mesh's file as it is.

        Raises:
            RunError: it is missing or no binary glTF.
        """
        path = self.file("mesh")
        data = path.read_bytes()
        if not data.startswith(b"glTF"):
            raise RunError(f"{path}: not a GLB file")
        return data


@dataclass(frozen=True)
class Run:
    """One photo's samples, in order, and run.json as it is."""

    folder: Path
    record: dict[str, Any]
    samples: tuple[SampleFiles, ...]


def load_run(folder: str | Path) -> Run:
    """Reads run.json.

    Raises:
        RunError: the folder is missing, no run, a run of several photos, or its record can't be read.
    """
    folder = Path(folder)
    path = folder / RECORD
    if not path.is_file():
        photos = sorted(entry.parent.name for entry in folder.glob(f"*/{RECORD}"))
        if photos:
            raise RunError(f"{folder} holds several photos: name one of {', '.join(photos)} in it")
        raise RunError(f"{path} does not exist: expected a folder that `scenediff sample` has written")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        samples = tuple(SampleFiles(folder / entry["folder"], entry) for entry in record["samples"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: can't be read as a run's record ({error!r})") from error
    if not samples:
        raise RunError(f"{path}: the run has no samples")
    return Run(folder, record, samples)
