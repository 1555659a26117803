"""What a run tells about itself: run.json and the lines on the screen."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scenediff.datasets.images import Photo


class Timings:
    """Seconds of each stage, in the order in which they ran."""

    def __init__(self, seconds: Mapping[str, float] | None = None):
        self.seconds = dict(seconds or {})

    def add(self, stages: Mapping[str, float]) -> None:
        """Adds seconds to stages."""
        for name, value in stages.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures a block."""
        start = time.perf_counter()
        yield
        self.add({name: time.perf_counter() - start})

    def rounded(self) -> dict[str, float]:
        """To hundredths."""
        return {name: round(value, 2) for name, value in self.seconds.items()}


@contextmanager
def progress_bar(stage: str) -> Iterator[Callable[..., None]]:
    """A bar on stderr, where that is a terminal; driven by calls with (done, total, what is being done)."""
    from tqdm import tqdm

    with tqdm(desc=stage, disable=None) as bar:
        one_at_a_time = threading.Lock()  # several threads tell how far they are

        def update(done: int, total: int, doing: str = "") -> None:
            with one_at_a_time:
                bar.total = total
                bar.set_postfix_str(doing, refresh=False)
                bar.update(max(0, done - bar.n))
                bar.refresh()

        yield update


def describe_fov(photo: Photo) -> str:
    """The field of view and where it comes from, for the user."""
    source = {
        "--fov": "from --fov",
        "exif": "from the file's EXIF data",
        "default": "the default, as the file does not tell (--fov sets it)",
    }[photo.fov_source]
    return f"field of view of the shorter side {photo.fov_degrees:.1f} degrees, {source}"


def describe_photo(photo: Photo) -> dict[str, Any]:
    """A photo and its camera, for run.json."""
    return {
        "file": photo.path.name if photo.path else None,
        "original_size": list(photo.original_size),
        "crop_top_left_height_width": list(photo.crop),
        "size": list(photo.size),
        "fov_degrees_shorter_side": round(photo.fov_degrees, 4),
        "fov_source": photo.fov_source,
        "notices": list(photo.notices),
    }


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from importlib.metadata import version

    import pytorch3d

    names = ("scenediff", "torch", "diffusers", "numpy")
    return {name: version(name) for name in names} | {"pytorch3d": pytorch3d.__version__}
