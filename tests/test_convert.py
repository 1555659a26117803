"""Released checkpoints: what is written is what was read; whatever is wrong is named and nothing written."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_dit import ENCODER, FIELD, POSED_ENCODER
from torch import Tensor

import scenediff
from scenediff.cli import main
from scenediff.dit_pipeline import DitPipeline, build_denoiser
from scenediff.networks.dit import DitConfig
from scenediff.tools.convert import ConvertError, constants, convert, layout

CONFIG = {
    "size": 16, "near": 0.5, "far": 4.0, "background": [0.2, 0.5, 0.8], "use_abs_pose": False,
    "settings": {"n_coarse": 10, "n_fine": 6, "n_coarse_coarse": 7, "n_coarse_fine": 0, "n_feats_out": 4},
    "dit": {"depth": 2, "hidden": 16, "heads": 2, "patch": 2, "out_channels": 8},
    "field": {"hidden": 8, "blocks": 5, "combine_after": 3, "features": 8},
    "sampler": {"steps": 2, "guidance": 2.0, "temperature": 0.85, "dynamic_threshold": 0.95},
}  # fmt: skip


def released(encoder: DitConfig = ENCODER, seed: int = 0) -> dict[str, Tensor]:
    """Random weights in the released layout; the stem has the published number of channels."""
    torch.manual_seed(seed)
    denoiser = build_denoiser(replace(encoder, stem=64), FIELD)
    weights = {name: torch.randn(shape) * 0.1 for name, shape in layout(denoiser).items()}
    fixed = {name: value.clone() for name, value in constants(FIELD).items()}
    return weights | fixed | {"model.enc.pos_embed": torch.zeros(1, 4, 16)}


def archive(tmp_path: Path, **changes: object) -> Path:
    """A torch archive as released, with things beside the weights."""
    extra = {"perceptual_loss.vgg.0.weight": torch.zeros(3), "betas": torch.zeros(1000)}
    content = {
        "step": 7, "model": released(seed=1) | extra, "opt": {"state": {}, "param_groups": [{"lr": 2e-5}]},
        "ema": {f"ema_model.{name}": value for name, value in (released() | extra).items()}
        | {"initted": torch.tensor(True), "step": torch.tensor(7)},
        "scaler": {"scale": 1.0}, "version": "1",
    }  # fmt: skip
    path = tmp_path / "model.pt"
    torch.save(content | changes, path)
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "model.json"
    path.write_text(json.dumps(CONFIG))
    return path


def written(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "weights.safetensors")


def test_averaged_weights_are_converted(tmp_path: Path, config: Path) -> None:
    convert(archive(tmp_path), tmp_path / "out", config)
    weights, source = written(tmp_path / "out"), released()
    assert torch.equal(weights["encoder.blocks.1.qkv.weight"], source["model.enc.blocks.1.attn.qkv.weight"])
    assert torch.equal(weights["encoder.label"], source["model.enc.y_embedder.embedding_table.weight"][0])
    whole = source["model.pixelNeRF_joint.mlp_fine.lin_in.weight"]
    parts = [weights[f"renderer.fine.{name}.weight"] for name in ("position", "feature")]
    assert torch.equal(torch.cat(parts, dim=1), whole)
    pipeline = scenediff.load(tmp_path / "out")
    assert isinstance(pipeline, DitPipeline)
    assert pipeline.renderer.config == FIELD
    assert pipeline.denoiser.config == replace(ENCODER, stem=64)
    assert pipeline.defaults.guidance_scale == 2.0
    loaded = pipeline.denoiser.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


def test_the_last_weights_and_other_files_are_converted(tmp_path: Path, config: Path) -> None:
    convert(archive(tmp_path), tmp_path / "last", config, weights="model")
    name = "renderer.coarse.blocks.0.first.weight"
    theirs = "model.pixelNeRF_joint.mlp.blocks.0.fc_0.weight"
    assert torch.equal(written(tmp_path / "last")[name], released(seed=1)[theirs])
    save_file(released(), tmp_path / "plain.safetensors")
    torch.save(released(), tmp_path / "plain.pt")
    torch.save(released(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for file in ("plain.safetensors", "plain.pt", "old.pt"):
        convert(tmp_path / file, tmp_path / file.replace(".", "_"), config)
        assert torch.equal(written(tmp_path / file.replace(".", "_"))[name], released()[theirs])


def test_weights_keep_their_precision(tmp_path: Path, config: Path) -> None:
    save_file({name: value.half() for name, value in released().items()}, tmp_path / "half.safetensors")
    convert(tmp_path / "half.safetensors", tmp_path / "out", config)
    assert {value.dtype for value in written(tmp_path / "out").values()} == {torch.float16}
    assert scenediff.load(tmp_path / "out").denoiser.encoder.label.dtype == torch.float32


def test_posed_models_are_converted(tmp_path: Path, config: Path) -> None:
    config.write_text(json.dumps(CONFIG | {"use_abs_pose": True}))
    save_file(released(POSED_ENCODER), tmp_path / "posed.safetensors")
    convert(tmp_path / "posed.safetensors", tmp_path / "out", config)
    assert "encoder.pose.0.weight" in written(tmp_path / "out")


class Malice:
    def __reduce__(self) -> tuple:
        return os.system, ("exit 3",)


def broken_files(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Files and what must be said about them."""
    good = archive(tmp_path)
    files = {"cut.pt": good.read_bytes()[:-2000], "text.pt": b"hello, this is no checkpoint", "empty.pt": b""}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    save_file(released(), tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-10])
    torch.save({"model": released(), "code": Malice()}, tmp_path / "code.pt")
    torch.save({"model": released()}, tmp_path / "last.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"state": {"weight": 3}}, tmp_path / "none.pt")
    said = {
        "cut.pt": "truncated torch archive", "text.pt": "neither a torch archive nor a safetensors file",
        "empty.pt": "neither a torch archive", "cut.safetensors": "truncated or damaged safetensors file",
        "code.pt": "refused, as its pickle holds more than tensors", "absent.pt": "can't be read",
        "last.pt": "has no 'ema' weights; --weights model takes the others",
        "list.pt": "holds a list, expected named tensors", "none.pt": "has no tensors named model.enc",
    }  # fmt: skip
    return {name: (tmp_path / name, message) for name, message in said.items()}


def test_broken_files_are_refused(tmp_path: Path, config: Path) -> None:
    for name, (path, message) in broken_files(tmp_path).items():
        with pytest.raises(ConvertError, match=message) as caught:
            convert(path, tmp_path / "out", config)
        assert str(path) in str(caught.value), name
        assert "\n" not in str(caught.value), name
    assert not (tmp_path / "out").exists()


def test_tensors_that_do_not_fit_are_listed(tmp_path: Path, config: Path) -> None:
    weights = released()
    weights["model.enc.head.weight"] = weights.pop("model.enc.cnn_refine.weight")
    weights["model.enc.conv1.weight"] = torch.zeros(64, 3, 5, 5)
    save_file(weights, tmp_path / "odd.safetensors")
    with pytest.raises(ConvertError) as caught:
        convert(tmp_path / "odd.safetensors", tmp_path / "out", config)
    message = str(caught.value)
    assert "odd.safetensors: does not fit" in message
    assert "1 missing: model.enc.cnn_refine.weight [8, 72, 3, 3]" in message
    assert "1 unexpected: model.enc.head.weight" in message
    assert "1 misshapen: model.enc.conv1.weight is [64, 3, 5, 5], expected [64, 3, 7, 7]" in message


def test_another_size_than_the_configuration_says_is_refused(tmp_path: Path, config: Path) -> None:
    save_file(released(), tmp_path / "tiny.safetensors")
    with pytest.raises(ConvertError, match=r"not fit the published sizes \(RealEstate10K; --config FILE"):
        convert(tmp_path / "tiny.safetensors", tmp_path / "out")
    config.write_text(json.dumps(CONFIG | {"background": [0.0, 0.0, 0.0]}))
    with pytest.raises(ConvertError, match=r"model\.renderer\.backgrd_color is \[0\.2"):
        convert(tmp_path / "tiny.safetensors", tmp_path / "out", config)
    config.write_text(json.dumps(CONFIG | {"use_abs_pose": True}))
    with pytest.raises(ConvertError, match=r"8 missing: model\.enc\.pose_mlp\.0\.weight \[16, 156\]"):
        convert(tmp_path / "tiny.safetensors", tmp_path / "out", config)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"near": 9.0}, "near and far must satisfy"),
        ({"dit": {}}, "has no entry 'out_channels'"),
        ({"settings": CONFIG["settings"] | {"use_viewdir": True}}, "settings.use_viewdir is True"),
        ({"sampler": CONFIG["sampler"] | {"objective": "noise"}}, "objective must be 'x0', got 'noise'"),
        ({"field": CONFIG["field"] | {"features": 9}}, "must be equal, got 8 and 9"),
    ],
)
def test_bad_configurations_are_refused(tmp_path: Path, config: Path, change: dict, message: str) -> None:
    config.write_text(json.dumps(CONFIG | change))
    save_file(released(), tmp_path / "tiny.safetensors")
    with pytest.raises(ConvertError, match=message) as caught:
        convert(tmp_path / "tiny.safetensors", tmp_path / "out", config)
    assert str(config) in str(caught.value)


def test_the_command_converts_or_writes_nothing(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["convert", str(archive(tmp_path)), "-o", str(out), "--config", str(config)]
    assert main(command) == 0
    assert {path.name for path in out.iterdir()} == {"config.json", "weights.safetensors"}
    assert main(command) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    (tmp_path / "cut.pt").write_bytes((tmp_path / "model.pt").read_bytes()[:1000])
    bad = ["convert", str(tmp_path / "cut.pt"), "-o", str(tmp_path / "no"), "--config", str(config)]
    capsys.readouterr()
    assert main(bad) == 2
    assert "cut.pt: a truncated torch archive" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
