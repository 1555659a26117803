"""`scenediff invert` and `scenediff eval inversion`: what they write, what they refuse."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_cli import fails, left_in
from tiny_inversion import SIZES, generator_file, pictures, tiny_generator, tiny_inversion

from scenediff.cli import main
from scenediff.forward import Observation
from scenediff.renderers.stylegan2 import Generator, GeneratorConfig, patch_view, to_public
from scenediff.tools.evaluate_inversion import (
    InversionTrials,
    Outcome,
    distribution_figures,
    evaluate_inversion,
    invert_patches,
    patch_figures,
    patch_mask,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_inversion().save(folder)
    return folder


@pytest.fixture
def patch(tmp_path):
    path = tmp_path / "patch.png"
    Image.fromarray(pictures(1)[0].permute(1, 2, 0).numpy()).crop((0, 0, 6, 5)).save(path)
    return path


def test_what_it_writes(model, patch, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["invert", patch, "-o", out, "-n", "3", "--checkpoint", model, "--top", "2", "--left", "9"]
    assert main([str(argument) for argument in command]) == 0
    names = {"run.json", "grid.png", "variation.png", "latents.safetensors"}
    pictures_of_all = {f"{kind}_{index:02d}.png" for kind in ("image", "patch") for index in range(3)}
    assert left_in(out) == names | pictures_of_all
    saved = load_file(out / "latents.safetensors")
    assert saved["w_plus"].shape == (3, SIZES.num_latents, SIZES.style_dim)
    assert saved["top"].tolist() == [2, 2, 2]
    record = json.loads((out / "run.json").read_text())
    assert record["patch"] == {"file": "patch.png", "size": [5, 6], "top": 2, "left": 9}
    assert len(record["samples"]) == 3
    with Image.open(out / "image_00.png") as image, Image.open(out / "patch_00.png") as shown:
        assert image.size == (16, 16)
        assert shown.tobytes() == image.crop((9, 2, 15, 7)).tobytes()
    fails(capsys, command, "not empty")
    assert main([str(argument) for argument in [*command, "--overwrite"]]) == 0


def test_optimisation_needs_no_model(patch, tmp_path):
    generator, out = generator_file(tmp_path / "g.pt"), tmp_path / "out"
    command = ["invert", patch, "-o", out, "-n", "1", "--method", "optimise", "--steps", "2", "--generator",
               generator]  # fmt: skip
    assert main([str(argument) for argument in command]) == 0
    assert "variation.png" not in left_in(out)
    assert "image_00.png" in left_in(out)


def test_a_fine_tuned_generator_takes_the_models_place(model, patch, tmp_path):
    generator = generator_file(tmp_path / "g.pt", seed=5)
    for name, more in (("own", []), ("other", ["--generator", str(generator)])):
        command = ["invert", str(patch), "-o", str(tmp_path / name), "-n", "1", "--checkpoint", str(model)]
        assert main([*command, *more]) == 0
    own, other = ((tmp_path / name / "image_00.png").read_bytes() for name in ("own", "other"))
    assert own != other


def test_what_it_refuses(model, patch, tmp_path, capsys):
    """One clear line each, and nothing written."""
    Image.new("RGB", (17, 4)).save(tmp_path / "wide.png")
    (tmp_path / "text.png").write_text("no picture")
    sizes = GeneratorConfig(32, 12, 2, (16, 16, 8, 8))
    torch.save({"g_ema": to_public(Generator(sizes))}, tmp_path / "large.pt")
    weights = to_public(tiny_generator())
    weights["conv1.conv.weight"] = weights["conv1.conv.weight"] * torch.nan
    torch.save({"g_ema": weights}, tmp_path / "nan.pt")
    torch.save({"g_ema": {}, "code": Image.new}, tmp_path / "code.pt")
    before = left_in(tmp_path)

    def refuses(words, *more, source=patch):
        command = ["invert", source, "-o", tmp_path / "out", "--checkpoint", model, *more]
        fails(capsys, command, *words)
        assert left_in(tmp_path) == before

    refuses(["at most the generator's 16x16 pixels", "17x4"], source=tmp_path / "wide.png")
    refuses(["text.png", "no readable image"], source=tmp_path / "text.png")
    refuses(["absent.png"], source=tmp_path / "absent.png")
    refuses(["top must lie in [0, 11]", "12"], "--top", "12")
    refuses(["32x32 pixels", "16x16 pixels"], "--generator", tmp_path / "large.pt")
    refuses(["nan.pt", "not finite"], "--generator", tmp_path / "nan.pt")
    refuses(["code.pt", "could run code"], "--generator", tmp_path / "code.pt")
    refuses(["nowhere", "no such checkpoint"], "--checkpoint", tmp_path / "nowhere")
    refuses(["--num-samples", "0"], "-n", "0")
    refuses(["--top", "-1"], "--top", "-1")


# --- evaluation ----------------------------------------------------------------------------------


def test_masks_and_figures_of_a_known_outcome():
    """Samples that differ by +-1 grey level inside and +-8 outside, 2 grey levels off the truth inside."""
    view = patch_view(3, 4, (5, 6), 2)
    mask = patch_mask(view, 16)
    assert mask.sum() == 2 * 30
    assert mask[:, :, 3:8, 4:10].all()
    truth = torch.zeros(2, 3, 16, 16)
    level = torch.where(mask, 1.0, 8.0) / 127.5
    offset = torch.where(mask, 2.0, 0.0) / 127.5
    samples = torch.stack([(offset + sign * level).expand(-1, 3, -1, -1) for sign in (1, -1)])
    known = Observation(truth[:, :, 3:8, 4:10], view)
    figures = patch_figures(Outcome(truth, known, truth + offset, samples))
    assert figures["std_ratio_outside_inside"] == pytest.approx(8.0, rel=1e-5)
    assert figures["std_inside"] == pytest.approx(2**0.5, rel=1e-5)  # of two values, with Bessel's correction
    errors = torch.tensor([3.0, 1.0]) / 255
    assert figures["patch_psnr_db"] == pytest.approx(float((-20 * errors.log10()).mean()), rel=1e-5)
    assert figures["patch_psnr_deterministic_db"] == pytest.approx(42.11, abs=0.01)


def test_evaluation(tmp_path):
    pipeline = tiny_inversion()
    trials = InversionTrials(6, 3, 2, distribution=0, optimised=1, optimiser_steps=2)
    figures = evaluate_inversion(pipeline, trials, pictures(), tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == figures
    assert left_in(tmp_path) == {"metrics.json", "pictures_generated.png", "pictures_renders.png"}
    wanted = {"patch_psnr_db", "std_ratio_outside_inside", "speedup_over_optimisation"}
    assert wanted | {"renders_patch_psnr_db"} <= set(figures)
    assert figures["optimisation_steps"] <= 2
    images = pictures()[:3].float() / 127.5 - 1
    again = invert_patches(pipeline, images, trials, torch.Generator().manual_seed(0))
    assert again.samples.shape == (2, 3, 3, 16, 16)
    assert not torch.equal(again.samples[0], again.samples[1])


def test_distances_between_distributions():
    """The generator's own images are nearest to others of its own."""
    trials = InversionTrials(6, 3, 2, distribution=24)
    figures = distribution_figures(tiny_inversion(), trials, torch.Generator().manual_seed(0))
    name = "fd_stage_"
    assert 0 < figures[name + "generator"] < figures[name + "deterministic"]
    assert figures["distance_ratio_to_baseline"] == pytest.approx(
        figures[name + "sample"] / figures[name + "deterministic"]
    )


def test_the_evaluation_command(model, capsys):
    few = {"patch": 6, "patches": 2, "samples": 2, "steps": 1, "distribution": 0, "optimised": 0}
    options = [text for name, value in few.items() for text in (f"--{name}", str(value))]
    command = ["eval", "inversion", "--checkpoint", str(model), "--no-real"]
    assert main([*command, *options]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["patch_pixels"] == 6
    fails(capsys, [*command, "--patch", "17"], "at most", "16", "17")
