"""A run as one HTML page that needs no network: photo, models to turn, videos, depth, uncertainty, and facts.

Everything is embedded, as browsers let no page read files beside it. The page forbids itself any connection.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from scenediff.scene import Scene
from scenediff.tools.mesh import NamedCamera, vertical_fov
from scenediff.tools.report import color_depth, load_depth_png
from scenediff.tools.run_folder import Run, SampleFiles
from scenediff.tools.video import to_pixels

PARTS = Path(__file__).with_name("report_page")
MEGABYTES = 100  # of models, together: more makes a page slow to open
SAMPLE_FACTS = {
    "seed": "seed", "steps": "steps", "guidance_scale": "guidance scale",
    "temperature": "temperature", "scheduler": "scheduler",
    "baked_psnr_db": "drawn frame against the field, dB",
}  # fmt: skip


@dataclass(frozen=True)
class _View:
    """How the photo's camera sees a model: vertical angle in degrees, height / width, distance in metres."""

    fov_degrees: float
    shape: float
    focus: float


def write_html_report(run: Run, path: str | Path, *, max_megabytes: float = MEGABYTES) -> None:
    """Writes the page.

    Args:
        max_megabytes: of all samples' models; those that don't fit are named instead of shown.

    Raises:
        RunError: a sample's file is missing.
        SceneError: the first sample's scene can't be read.
    """
    first = Scene.load(run.samples[0].file("scene"))
    height, width = first.photo_size
    fov = math.degrees(vertical_fov(NamedCamera(first.photo_cameras, first.photo_size)))
    name = run.record.get("photo", {}).get("file") or run.folder.name
    page = Template((PARTS / "page.html").read_text())
    text = page.substitute(
        title=html.escape(f"{name}: {_count(len(run.samples))}"),
        summary="Each is a whole 3D scene that could have given the photo. Drag to turn, scroll to zoom.",
        style=(PARTS / "style.css").read_text(),
        viewer=_viewer_script(),
        pictures=_pictures(run, first.photo[0]),
        samples="\n".join(_samples(run, fov, height / width, max_megabytes * 1e6)),
        facts=_facts(run.record),
        licences="\n\n".join(
            html.escape((PARTS / f"model-viewer.{part}").read_text()) for part in ("NOTICE", "LICENSE")
        ),
        script=(PARTS / "page.js").read_text(),
    )
    Path(path).write_text(text, encoding="utf-8")


def data_uri(data: bytes, kind: str) -> str:
    """A file as an address."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _viewer_script() -> str:
    script = (PARTS / "model-viewer-umd.min.js").read_text(encoding="utf-8")
    script = script.rpartition("//# sourceMappingURL")[0]
    return script.replace("</script", "<\\/script")


def _pictures(run: Run, photo: Tensor) -> str:
    figures = [_figure(_jpeg(photo), "The photo", "photo")]
    path = run.folder / "uncertainty.png"
    if path.is_file():
        note = "Where the samples disagree: bright is where they differ most"
        figures.append(_figure(data_uri(path.read_bytes(), "image/png"), note, "uncertainty"))
    return "\n".join(figures)


def _samples(run: Run, fov: float, shape: float, max_bytes: float) -> Iterable[str]:
    """Each sample's part of the page, in order."""
    for index, sample in enumerate(run.samples):
        depth = load_depth_png(sample.file("depth"))
        known = depth[depth > 0]
        focus = known.median().item() if len(known) else 1.0
        size = sample.file("mesh").stat().st_size
        fits = size <= max_bytes
        max_bytes -= size if fits else 0
        model = _model(sample, index, _View(fov, shape, focus)) if fits else _left_out(sample, size)
        video = data_uri(sample.file("video").read_bytes(), "video/mp4")
        facts = ", ".join(
            f"{name} {html.escape(_text(sample.record[key]))}" for key, name in SAMPLE_FACTS.items()
            if sample.record.get(key) is not None
        )  # fmt: skip
        yield (
            f'<article class="sample"><h2>Sample {index}</h2><p>{facts}</p>{model}<div class="row">'
            f'<figure><video src="{video}" controls loop muted playsinline></video></figure>'
            f"{_depth_figure(depth)}</div></article>"
        )


def _model(sample: SampleFiles, index: int, view: _View) -> str:
    """The viewer with the camera where the photo's was: the world's origin, looking along -Z."""
    source = data_uri(sample.model(), "model/gltf-binary")
    name = f"sample_{index:02d}"
    return (
        f'<model-viewer id="{name}" src="{source}" alt="3D model of sample {index}" camera-controls '
        f'interaction-prompt="none" loading="lazy" touch-action="pan-y" tone-mapping="neutral" '
        f'style="aspect-ratio: {1 / view.shape:.4f}" camera-target="0m 0m -{view.focus:.4f}m" '
        f'camera-orbit="0deg 90deg {view.focus:.4f}m" field-of-view="{view.fov_degrees:.3f}deg" '
        f'min-camera-orbit="-80deg 30deg {view.focus / 20:.4f}m" '
        f'max-camera-orbit="80deg 150deg {4 * view.focus:.4f}m" '
        f'min-field-of-view="5deg" max-field-of-view="{max(view.fov_degrees, 60):.3f}deg"></model-viewer>'
        f'<button data-model="{name}" data-does="home">Photo\'s view</button>'
        f'<button data-model="{name}" data-does="download">Download GLB</button>'
    )


def _left_out(sample: SampleFiles, size: int) -> str:
    path = f"{sample.folder.name}/{sample.file('mesh').name}"
    return f"<p>The model ({size / 1e6:.0f} MB) is too large for this page: see {html.escape(path)}</p>"


def _depth_figure(depth: Tensor) -> str:
    known = depth > 0
    if not known.any():
        return "<figure><figcaption>No depth is known</figcaption></figure>"
    near, far = depth[known].quantile(0.02).item(), depth[known].quantile(0.98).item()
    picture = torch.where(known, color_depth(depth, near, far), -1.0)
    return _figure(_jpeg(picture), f"Depth, {near:.2f} m (yellow) to {far:.2f} m", "depth")


def _figure(source: str, caption: str, kind: str) -> str:
    return (
        f'<figure class="{kind}"><img src="{source}" alt="{html.escape(caption)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _facts(record: Mapping[str, Any]) -> str:
    """Tables of how the run was made."""
    tables = {
        "Run": {key: record.get(key) for key in ("checkpoint", "device", "seed")},
        "Photo": record.get("photo", {}),
        "Seconds": record.get("timings_seconds", {}),
        "Versions": record.get("versions", {}),
    }
    return "\n".join(_table(title, values) for title, values in tables.items() if values)


def _table(title: str, values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(str(name).replace('_', ' '))}</th><td>{html.escape(_text(value))}</td></tr>"
        for name, value in values.items()
    )
    return f"<div><h2>{title}</h2><table>{rows}</table></div>"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _jpeg(image: Tensor) -> str:
    """A picture (3, H, W) in [-1, 1] as an address."""
    stream = io.BytesIO()
    Image.fromarray(to_pixels(image)).save(stream, "JPEG", quality=92)
    return data_uri(stream.getvalue(), "image/jpeg")


def _count(samples: int) -> str:
    return "one scene" if samples == 1 else f"{samples} scenes"
