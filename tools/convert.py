"""Released checkpoints of the full-size model, turned into checkpoint folders of this package.

Archives are read with `weights_only=True`, so no code in them can run. Every name and shape is compared with
what the configuration makes of the model before anything is written.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from scenediff.dit_pipeline import DitSampling, build_denoiser, write_checkpoint
from scenediff.networks.dit import DitConfig
from scenediff.networks.dit_denoiser import DitDenoiser
from scenediff.renderers.volume_field import VolumeConfig

Weights = Literal["ema", "model"]
EMA_PREFIX = "ema_model."
LABELS = 1001  # rows of the released table of labels, of which the first is used
LISTED = 8  # names that an error lists of each kind

FIELDS = {
    "renderer.coarse.": "model.pixelNeRF_joint.mlp.",
    "renderer.fine.": "model.pixelNeRF_joint.mlp_fine.",
    "renderer.deterministic.": "model.pixelNeRF_joint_coarse.mlp.",
}
UNUSED_FIELD = "model.pixelNeRF_joint_coarse.mlp_fine."  # shaped as the others
ENCODER = ("encoder.", "model.enc.")
MODULES = {  # this package's names of layers and the released ones
    "context_stem": "conv1", "target_stem": "general_conv1", "patches": "x_embedder.proj",
    "time.0": "t_embedder.mlp.0", "time.2": "t_embedder.mlp.2", "pose.0": "pose_mlp.0",
    "pose.2": "pose_mlp.2", "fuse.0": "fuse_mlp.0", "fuse.2": "fuse_mlp.2", "skip": "cnn_skip",
    "head": "cnn_refine", "final.linear": "final_layer.linear",
    "final.modulation": "final_layer.adaLN_modulation.1",
}
BLOCK_MODULES = {
    "modulation": "adaLN_modulation.1", "qkv": "attn.qkv", "projection": "attn.proj", "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
FIELD_MODULES = {"time.0": "time_mlp.1", "time.2": "time_mlp.3", "output": "lin_out_feats"}
FIELD_BLOCK_MODULES = {"first": "fc_0", "second": "fc_1", "modulation": "mlp.1"}


class ConvertError(ValueError):
    """A checkpoint or a configuration that can't be converted; one line that names the file."""


@dataclass(frozen=True)
class ReleasedModel:
    """What a released configuration says about the model."""

    encoder: DitConfig
    field: VolumeConfig
    sampling: DitSampling


RE10K = ReleasedModel(DitConfig(), VolumeConfig(), DitSampling())
CO3D = ReleasedModel(DitConfig(absolute_poses=True), VolumeConfig(near=0.5, far=40.0), DitSampling())


def convert(
    checkpoint: str | Path, folder: str | Path, config: str | Path | None = None, weights: Weights = "ema"
) -> ReleasedModel:
    """Writes a checkpoint folder that `scenediff.load` opens.

    Args:
        checkpoint: a torch archive, or a safetensors file of the same names.
        folder: where to write; made if need be.
        config: JSON with the sizes; without it those of the published models, for RealEstate10K or, if the
            checkpoint has layers for poses, for CO3D.
        weights: which weights of a torch archive to take, the averaged ones ("ema") or the last ("model").

    Raises:
        ConvertError: a file is missing, broken, holds code, or the two contradict each other.
    """
    path = Path(checkpoint)
    tensors = relevant(read_weights(path, weights))
    if config is not None:
        model, source = read_released_config(Path(config)), str(config)
    else:
        posed = any(name.startswith("model.enc.pose_mlp.") for name in tensors)
        model = CO3D if posed else RE10K
        source = f"the published sizes ({'CO3D' if posed else 'RealEstate10K'}; --config FILE for others)"
    with torch.device("meta"):
        denoiser = build_denoiser(model.encoder, model.field)
    check(tensors, denoiser, path, source)
    write_checkpoint(Path(folder), own_weights(tensors, denoiser), model.encoder, model.field, model.sampling)
    return model


def read_weights(path: Path, weights: Weights = "ema") -> dict[str, Tensor]:
    """The tensors of a checkpoint under their released names."""
    return _choose(read_archive(path), path, weights)


def read_archive(path: Path) -> Any:
    """What a torch archive or a safetensors file holds; code in it can't run.

    Raises:
        ConvertError: the file is missing, broken, of another kind, or holds code.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise ConvertError(f"{path}: can't be read ({error.strerror})") from error
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        return _read_torch(path, zipped=start[:1] == b"P")
    if start[8:9] == b"{":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ConvertError(f"{path}: a truncated or damaged safetensors file ({error})") from error
    raise ConvertError(f"{path}: neither a torch archive nor a safetensors file")


def _read_torch(path: Path, *, zipped: bool) -> Any:
    if zipped and not zipfile.is_zipfile(path):
        raise ConvertError(f"{path}: a truncated torch archive (its directory, at the end, is missing)")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"{found[1]} " if found else ""
        raise ConvertError(
            f"{path}: refused, as its pickle holds more than tensors and plain values ({what}could run code)"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConvertError(f"{path}: a truncated or damaged torch archive ({reason})") from error


def _choose(archive: Any, path: Path, weights: Weights) -> dict[str, Tensor]:
    """The wanted weights of a released archive, or those of a plain dictionary of tensors."""
    if not isinstance(archive, Mapping):
        raise ConvertError(f"{path}: holds a {type(archive).__name__}, expected named tensors")
    chosen: Any = archive
    prefix = ""
    if isinstance(archive.get("model"), Mapping) or isinstance(archive.get("ema"), Mapping):
        chosen, prefix = archive.get(weights), EMA_PREFIX if weights == "ema" else ""
        if not isinstance(chosen, Mapping):
            other = "model" if weights == "ema" else "ema"
            raise ConvertError(f"{path}: has no {weights!r} weights; --weights {other} takes the others")
    tensors = {
        name.removeprefix(prefix): value for name, value in chosen.items()
        if isinstance(name, str) and isinstance(value, Tensor) and name.startswith(prefix)
    }
    if not tensors:
        raise ConvertError(f"{path}: has no tensors named {prefix}model.enc.* and so on")
    return tensors


def relevant(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the loss's network, the schedule (names without a dot) and positions, which are recomputed."""
    return {
        name: value for name, value in tensors.items()
        if "." in name and "perceptual_loss" not in name.split(".") and name != "model.enc.pos_embed"
    }


def layout(denoiser: DitDenoiser) -> dict[str, tuple[int, ...]]:
    """Released names and shapes of a model; but for `relevant`'s exceptions and `constants`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, value in denoiser.state_dict().items():
        shape = tuple(value.shape)
        if name == "encoder.label":
            shape = (LABELS, *shape)
        if name.endswith((".position.weight", ".feature.weight")):  # one layer, split between them
            width, positions = denoiser.renderer.coarse.position.weight.shape
            shape = (width, positions + denoiser.renderer.config.map_channels)
        shapes[released_name(name)] = shape
    width = denoiser.renderer.config.width
    example = FIELDS["renderer.deterministic."]
    shapes |= {
        UNUSED_FIELD + name.removeprefix(example): shape for name, shape in shapes.items()
        if name.startswith(example)
    }
    for place in (*FIELDS.values(), UNUSED_FIELD):
        shapes |= {f"{place}lin_out.weight": (4, width), f"{place}lin_out.bias": (4,)}
    return shapes


def released_name(name: str) -> str:
    """The released name of one of `DitDenoiser`'s parameters."""
    if name == "encoder.label":
        return "model.enc.y_embedder.embedding_table.weight"
    if name.startswith(ENCODER[0]):
        place, own, modules, block_modules = ENCODER[1], ENCODER[0], MODULES, BLOCK_MODULES
    else:
        own = next(prefix for prefix in FIELDS if name.startswith(prefix))
        place, modules, block_modules = FIELDS[own], FIELD_MODULES, FIELD_BLOCK_MODULES
    layer, kind = name.removeprefix(own).rsplit(".", 1)
    if layer in ("position", "feature"):
        return f"{place}lin_in.{kind}"
    block = re.fullmatch(r"(blocks\.\d+\.)(.+)", layer)
    theirs = f"{block[1]}{block_modules[block[2]]}" if block else modules[layer]
    return f"{place}{theirs}.{kind}"


def constants(config: VolumeConfig) -> dict[str, Tensor]:
    """What the released files keep beside the weights, though the configuration fixes it."""
    frequencies = config.frequency * 2.0 ** torch.arange(config.octaves).repeat_interleave(2)
    phases = torch.tensor([0.0, torch.pi / 2]).repeat(config.octaves)
    background = torch.tensor(config.background)
    places = ("pixelNeRF_joint", "pixelNeRF_joint_coarse")
    return {
        **{f"model.{place}.pos_enc._freqs": frequencies[None, :, None] for place in places},
        **{f"model.{place}.pos_enc._phases": phases[None, :, None] for place in places},
        **{f"model.{name}.backgrd_color": background for name in ("renderer", "renderer_coarse")},
    }


def check(tensors: Mapping[str, Tensor], denoiser: DitDenoiser, path: Path, source: str) -> None:
    """Raises `ConvertError` unless names, shapes and constants are what the configuration makes of them."""
    wanted = layout(denoiser)
    fixed = constants(denoiser.renderer.config)
    missing = [f"{name} {list(shape)}" for name, shape in wanted.items() if name not in tensors]
    unexpected = [name for name in tensors if name not in wanted and name not in fixed]
    shapes = wanted | {name: tuple(value.shape) for name, value in fixed.items()}
    misshapen = [
        f"{name} is {list(value.shape)}, expected {list(shapes[name])}" for name, value in tensors.items()
        if name in shapes and tuple(value.shape) != shapes[name]
    ]
    lists = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    complaints = [f"{len(names)} {kind}: {_shortened(names)}" for kind, names in lists.items() if names]
    complaints += [
        f"{name} is {tensors[name].flatten().tolist()}, expected {value.flatten().tolist()}"
        for name, value in fixed.items()
        if not misshapen and name in tensors and not _equal_in_half(tensors[name], value)
    ]
    if complaints:
        raise ConvertError(f"{path}: does not fit {source}: {'; '.join(complaints)}")


def _equal_in_half(found: Tensor, wanted: Tensor) -> bool:
    """Whether constants agree up to the rounding of the shortest type that files come in, bfloat16."""
    return torch.allclose(found.float(), wanted, rtol=2**-8, atol=1e-6)


def _shortened(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def own_weights(tensors: Mapping[str, Tensor], denoiser: DitDenoiser) -> dict[str, Tensor]:
    """The weights under this package's names, in the precision that they came in."""
    positions = denoiser.renderer.coarse.position.weight.shape[1]
    weights = {}
    for name in denoiser.state_dict():
        value = tensors[released_name(name)]
        if name == "encoder.label":
            value = value[0]
        elif name.endswith(".position.weight"):
            value = value[:, :positions]
        elif name.endswith(".feature.weight"):
            value = value[:, positions:]
        weights[name] = value.clone(memory_format=torch.contiguous_format)
    return weights


def read_released_config(path: Path) -> ReleasedModel:
    """The sizes and settings in a JSON file of the goldens' form."""
    try:
        config = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConvertError(f"{path}: not a readable configuration ({error})") from error
    try:
        _refuse_variants(config)
        return _parse(config)
    except KeyError as error:
        raise ConvertError(f"{path}: has no entry {error}") from error
    except (TypeError, ValueError) as error:
        raise ConvertError(f"{path}: {error}") from error


def _refuse_variants(config: Mapping[str, Any]) -> None:
    """Complains about what the published models leave switched off, or always do."""
    settings, sampler, field = config["settings"], config["sampler"], config["field"]
    for name in ("use_viewdir", "self_condition", "lindisp", "n_coarse_fine"):
        if settings.get(name):
            raise ValueError(f"settings.{name} is {settings[name]!r}, which is not supported")
    wanted = {"schedule": "cosine", "objective": "x0", "eta": 0.0, "timesteps": 1000}
    for name, value in wanted.items():
        if sampler.get(name, value) != value:
            raise ValueError(f"sampler.{name} must be {value!r}, got {sampler[name]!r}")
    if config["dit"]["out_channels"] != field["features"]:
        sizes = f"{config['dit']['out_channels']} and {field['features']}"
        raise ValueError(f"dit.out_channels and field.features must be equal, got {sizes}")


def _parse(config: Mapping[str, Any]) -> ReleasedModel:
    dit, field, settings, sampler = (config[name] for name in ("dit", "field", "settings", "sampler"))
    encoder = DitConfig(
        width=dit["hidden"], depth=dit["depth"], heads=dit["heads"], patch=dit["patch"],
        channels=dit["out_channels"], target_inputs=7 + settings["n_feats_out"],
        absolute_poses=config["use_abs_pose"],
    )
    volume = VolumeConfig(
        width=field["hidden"], map_channels=field["features"], view_blocks=field["combine_after"],
        joint_blocks=field["blocks"] - field["combine_after"], feature_channels=settings["n_feats_out"],
        near=config["near"], far=config["far"], background=tuple(config["background"]),
        coarse=settings["n_coarse"], fine=settings["n_fine"], context_samples=settings["n_coarse_coarse"],
    )
    sampling = DitSampling(
        steps=sampler["steps"], guidance_scale=sampler["guidance"], temperature=sampler["temperature"],
        threshold=sampler["dynamic_threshold"], size=config["size"],
    )
    return ReleasedModel(encoder, volume, sampling)
