"""nerfstudio's method `scenediff`: a sampled scene in nerfstudio's viewer and camera-path renderer.

nerfstudio imports this module through the entry point `nerfstudio.method_configs`; nothing else does.

    scenediff export SCENE --format nerfstudio -o DATA
    ns-train scenediff --data DATA
    ns-render camera-path --load-config outputs/.../config.yml --camera-path-filename DATA/camera_path.json

Nothing is learned: the one step of "training" measures how well the scene draws a picture of the data set,
and leaves the configuration and the checkpoint that nerfstudio's other commands start from.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.configs.base_config import MachineConfig
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.dataparsers.nerfstudio_dataparser import Nerfstudio, NerfstudioDataParserConfig
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification
from torch import Tensor
from torch.nn import Parameter

from scenediff.renderers.baked import bake
from scenediff.renderers.cameras import z_up_to_pytorch3d
from scenediff.scene import Scene
from scenediff.tools.camera_path_files import without_dataparser
from scenediff.tools.film import invented, mark_invented
from scenediff.tools.nerfstudio_dataset import SCENE_FILE


@dataclass
class SceneDataParserConfig(NerfstudioDataParserConfig):
    """A folder that `scenediff export --format nerfstudio` has written."""

    _target: type = field(default_factory=lambda: SceneDataParser)
    center_method: Any = "none"
    """Where the world's origin goes; none keeps it at the photo's camera."""
    auto_scale_poses: bool = False
    """Whether to scale the world; without it lengths are metres."""


class SceneDataParser(Nerfstudio):
    """nerfstudio's own parser; it also tells where the scene is."""

    def _generate_dataparser_outputs(self, split: str = "train") -> DataparserOutputs:
        outputs = super()._generate_dataparser_outputs(split)
        data = Path(self.config.data)
        folder = data.parent if data.suffix == ".json" else data
        outputs.metadata |= {
            "scene_file": folder / SCENE_FILE, "world": outputs.dataparser_transform,
            "world_scale": outputs.dataparser_scale,
        }
        return outputs


@dataclass
class SceneModelConfig(ModelConfig):
    """How a scene is drawn."""

    _target: type = field(default_factory=lambda: SceneModel)
    short_side: int = 128
    """Shorter side of the key views that frames are drawn from, pixels; ignored for the radiance field."""
    draw_field: bool = False
    """Draw every frame with the radiance field itself: exact, and seconds a frame without a GPU."""


class SceneModel(Model):
    """Draws a sampled scene; it has no parameters."""

    config: SceneModelConfig

    def populate_modules(self) -> None:
        super().populate_modules()
        metadata = self.kwargs["metadata"]
        self._world, self._scale = metadata["world"], float(metadata["world_scale"])
        self._scene = Scene.load(metadata["scene_file"], device=self.kwargs.get("device", "cpu"))
        self._baked = bake(self._scene, short_side=self.config.short_side)
        self._one_at_a_time = threading.Lock()  # the viewer draws while training goes on

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        return {}

    @torch.no_grad()
    def get_outputs_for_camera(
        self, camera: Cameras, obb_box: OrientedBox | None = None
    ) -> dict[str, Tensor]:
        """Pictures (height, width, channels): rgb in [0, 1], depth in the world's unit, accumulation, and
        the picture with all that the photo did not see in magenta."""
        camera = camera.reshape((1,)).to("cpu")
        size = int(camera.height[0, 0]), int(camera.width[0, 0])
        matrices = without_dataparser(camera.camera_to_worlds, self._world, self._scale)
        focal, principal = torch.cat([camera.fx, camera.fy], 1), torch.cat([camera.cx, camera.cy], 1)
        # paths from files come in double precision
        view = z_up_to_pytorch3d(matrices.float(), focal.float(), principal.float(), size)
        with self._one_at_a_time:
            if self.config.draw_field:
                shot: Any = self._scene.render(view.to(self.device), size)
            else:
                shot = self._baked.render(view, size)
            marked = mark_invented(shot.image.cpu(), invented(self._baked, view, shot))
        pictures = {
            "rgb": (shot.image + 1) / 2, "depth": shot.depth * self._scale, "accumulation": shot.opacity,
            "invented": (marked + 1) / 2,
        }
        return {name: value[0].permute(1, 2, 0).to(self.device) for name, value in pictures.items()}

    def get_outputs(self, ray_bundle: Any) -> dict[str, Tensor]:
        if not isinstance(ray_bundle, Cameras):
            raise NotImplementedError("scenes are drawn from cameras, got a bundle of rays")
        return self.get_outputs_for_camera(ray_bundle)

    def get_loss_dict(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor], metrics_dict: Any = None
    ) -> dict[str, Tensor]:
        error = (outputs["rgb"] - batch["image"].to(self.device)[..., :3]).square().mean()
        # the empty parameter that every model has: something for the trainer to go back to
        return {"mean_squared_error": error + self.device_indicator_param.sum()}

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        truth = batch["image"].to(self.device)[..., :3]
        error = (outputs["rgb"] - truth).square().mean().clamp(min=1e-10)
        return {"psnr": float(-10 * error.log10())}, {"img": torch.cat([truth, outputs["rgb"]], dim=1)}


method = MethodSpecification(
    config=TrainerConfig(
        method_name="scenediff",
        max_num_iterations=1,
        steps_per_save=1,
        steps_per_eval_batch=0,
        steps_per_eval_image=0,
        steps_per_eval_all_images=0,
        pipeline=VanillaPipelineConfig(
            # "gpu" means the device that is used; "cpu" would pin memory, which needs a GPU
            datamanager=FullImageDatamanagerConfig(dataparser=SceneDataParserConfig(), cache_images="gpu"),
            model=SceneModelConfig(enable_collider=False),
        ),
        optimizers={},
        machine=MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu"),
        vis="viewer",
    ),
    description="A 3D scene that scenediff has sampled from a photo; nothing is trained.",
)
