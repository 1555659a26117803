"""The page of a run: in headless Chromium, from a file, with every connection forbidden; and bad runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from browser import chromium, needs_chromium
from tiny_run import write_tiny_run

from scenediff.tools.html_report import PARTS, write_html_report
from scenediff.tools.run_folder import RunError, load_run

LOADED = "[...document.querySelectorAll('model-viewer')].every(model => model.loaded)"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_run(tmp_path_factory.mktemp("run") / "out")


@pytest.fixture(scope="module")
def page_file(run_folder: Path) -> Path:
    path = run_folder.with_name("report.html")
    write_html_report(load_run(run_folder), path)
    return path


@needs_chromium
def test_the_page_in_a_browser(page_file: Path, run_folder: Path, tmp_path: Path) -> None:
    with chromium(tmp_path / "profile", (560, 420)) as page:
        page.open(page_file.as_uri())
        assert page.run("document.querySelectorAll('model-viewer').length") == 2
        for index in (1, 0):
            page.place(f"#sample_{index:02d}")
            page.until(f"document.querySelector('#sample_{index:02d}').loaded")
        page.until(LOADED)
        page.until("[...document.images].every(image => image.complete && image.naturalWidth > 10)")
        page.until("[...document.querySelectorAll('video')].every(video => video.videoWidth > 10)")

        before = page.settled("#sample_00")
        place = page.place("#sample_00")
        scroll = page.run("scrollY")
        x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2 - scroll
        page.drag((x, y), (x + 60, y))
        turned = page.settled("#sample_00")
        assert np.abs(turned.astype(int) - before).mean() > 3  # grey levels: it turned
        page.run("document.querySelector('[data-model=sample_00][data-does=home]').click()")
        back = page.settled("#sample_00")
        assert np.abs(back.astype(int) - before).mean() < 1

        page.download_to(tmp_path / "downloads")
        page.run("document.querySelector('[data-model=sample_01][data-does=download]').click()")
        data = page.downloaded(tmp_path / "downloads", "sample_01.glb")
        assert data == (run_folder / "sample_01/mesh.glb").read_bytes()
        page.run("1")  # takes in what came meanwhile
        assert page.errors == []
        assert {address.partition(":")[0] for address in page.requests} <= {"file", "data", "blob"}


def test_the_photos_view_is_where_the_model_starts(page_file: Path, run_folder: Path) -> None:
    """The camera stands `focus` metres from a target that lies `focus` metres ahead of the world's origin."""
    text = page_file.read_text()
    targets = re.findall(r'camera-target="0m 0m -([\d.]+)m"', text)
    orbits = re.findall(r'camera-orbit="0deg 90deg ([\d.]+)m"', text)
    assert len(targets) == 2
    assert targets == orbits[: len(targets)]
    angle = float(re.search(r'field-of-view="([\d.]+)deg"', text)[1])
    fov = json.loads((run_folder / "run.json").read_text())["photo"]["fov_degrees_shorter_side"]
    assert angle == pytest.approx(fov, abs=0.01)  # the photo is wider than high


def test_the_page_tells_how_the_run_was_made(page_file: Path, run_folder: Path) -> None:
    text, record = page_file.read_text(), json.loads((run_folder / "run.json").read_text())
    for sample in record["samples"]:
        assert f"seed {sample['seed']}, steps {sample['steps']}" in text
    for name, version in record["versions"].items():
        assert f"<th>{name}</th><td>{version}</td>" in text
    for name, seconds in record["timings_seconds"].items():
        assert f"<th>{name}</th><td>{seconds:g}</td>" in text
    assert text.count("data:video/mp4") == 2
    assert 'class="uncertainty"' in text
    assert "photo.png: 2 scenes" in text
    assert "Apache License" in text
    assert "The MIT License" in text


def test_names_from_outside_are_escaped(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    record = json.loads((run_folder / "run.json").read_text())
    record["photo"]["file"] = "<script>alert(1)</script>$style.png"
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    write_html_report(load_run(tmp_path / "run"), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;$style.png" in text


def test_models_beyond_the_limit_are_named_instead(run_folder: Path, tmp_path: Path) -> None:
    sizes = [(run_folder / f"sample_{n:02d}/mesh.glb").stat().st_size for n in (0, 1)]
    write_html_report(load_run(run_folder), tmp_path / "page.html", max_megabytes=(sizes[0] + 100) / 1e6)
    text = (tmp_path / "page.html").read_text()
    assert text.count("data:model/gltf-binary") == 1
    assert "see sample_01/mesh.glb" in text


def test_the_bundled_viewer_has_its_licences() -> None:
    assert "Apache License" in (PARTS / "model-viewer.LICENSE").read_text()
    notice = (PARTS / "model-viewer.NOTICE").read_text()
    assert all(f"---- {name} ----" in notice for name in ("three", "lit", "monogrid-gainmap-js", "fflate"))
    assert b"</script" not in (PARTS / "model-viewer-umd.min.js").read_bytes()


def test_runs_that_are_none(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"run\.json does not exist"):
        load_run(tmp_path)
    (tmp_path / "several").mkdir()
    shutil.copytree(run_folder, tmp_path / "several/coffee")
    with pytest.raises(RunError, match="holds several photos: name one of coffee"):
        load_run(tmp_path / "several")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunError, match="can't be read as a run's record"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text('{"samples": []}')
    with pytest.raises(RunError, match="no samples"):
        load_run(tmp_path)


def test_a_missing_file_is_named(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run/sample_01/video.mp4").unlink()
    with pytest.raises(RunError, match=r"sample_01 has no video: .* restore video\.mp4"):
        write_html_report(load_run(tmp_path / "run"), tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
