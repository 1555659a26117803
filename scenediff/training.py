"""The training loop: any denoiser and forward model, any source of observations, on accelerate."""

from __future__ import annotations

import itertools
import json
import logging
import math
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, reduce
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm import tqdm

from scenediff.cuda_graphs import RecordedGradients
from scenediff.forward import Denoiser, ForwardModel
from scenediff.losses import LossWeights, Regularizer, TrainingBatch, forward_model_loss, random_drop
from scenediff.muon import Muon

logger = logging.getLogger(__name__)

AGREE_EVERY = 16  # steps; asking the main process for the time waits for the device


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to train.

    Attributes:
        minutes: wall-clock length of the whole schedule; the learning rate falls to zero at its end.
        max_steps: stops earlier than `minutes`, if positive.
        batch_size: signals in a step, of each process.
        learning_rate: peak of the one-cycle schedule.
        warmup_steps: steps of linear warm-up.
        weight_decay: AdamW's and `Muon`'s.
        matrix_rate: what `Muon` trains learns at this multiple of the learning rate.
        clip: largest gradient norm.
        ema_decay: of the averaged weights, which are the ones to keep.
        context_dropout: share of elements that train without context.
        pretrained_rate: what already knows something learns at this share of the learning rate.
        mixed_precision: "bf16" or "no"; without a GPU always "no", as most processors only emulate bf16.
        cuda_graphs: record the step once and replay it, on CUDA devices.
        log_every: steps between log lines.
        save_every_minutes: between checkpoints.
        seed: of everything random.
    """

    minutes: float = 20.0
    max_steps: int = 0
    batch_size: int = 128
    learning_rate: float = 6e-4
    warmup_steps: int = 300
    weight_decay: float = 0.01
    matrix_rate: float = 3.0
    clip: float = 1.0
    ema_decay: float = 0.999
    context_dropout: float = 0.1
    pretrained_rate: float = 0.1
    mixed_precision: str = "bf16"
    cuda_graphs: bool = True
    log_every: int = 50
    save_every_minutes: float = 5.0
    seed: int = 0


class Objective(nn.Module):
    """What `train` trains: called with a batch and what `draw` drew for it, it returns terms to add up."""

    def draw(self, batch: Any, context_dropout: float, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Everything random about a step, on the generator's device."""
        raise NotImplementedError


class TrainingStep(Objective):
    """Denoiser, forward model and the method's objective (see `forward_model_loss`).

    Args:
        denoiser, forward_model: the model; those of them that are modules are trained.
        scheduler: its noise schedule.
        weights: of the objective's terms.
        regularizers: further terms.
    """

    def __init__(
        self, denoiser: Denoiser, forward_model: ForwardModel, scheduler: DDPMScheduler, weights: LossWeights,
        regularizers: Sequence[Regularizer] = (),
    ):
        super().__init__()
        self.denoiser, self.forward_model = denoiser, forward_model
        self.scheduler, self.weights, self.regularizers = scheduler, weights, tuple(regularizers)

    def draw(
        self, batch: TrainingBatch, context_dropout: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Timesteps, noise and dropped contexts."""
        target = batch.target.image
        count, levels = len(target), self.scheduler.config.num_train_timesteps
        timesteps = torch.randint(levels, (count,), generator=generator, device=target.device)
        noise = torch.randn(target.shape, generator=generator, device=target.device)
        return timesteps, noise, random_drop(count, context_dropout, generator, target.device)

    def forward(
        self, batch: TrainingBatch, timesteps: Tensor, noise: Tensor, drop: Tensor
    ) -> dict[str, Tensor]:
        return forward_model_loss(
            self.denoiser, self.forward_model, self.scheduler, batch, timesteps, noise,
            drop=drop, weights=self.weights, regularizers=self.regularizers,
        )


def train(
    model: Objective,
    next_batch: Callable[[torch.Generator], Any],
    config: TrainConfig,
    output: Path,
    *,
    pretrained: Collection[nn.Parameter] = (),
    matrices: Collection[nn.Parameter] = (),
    resume: bool = False,
    on_save: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Trains and keeps checkpoints; the model holds the averaged weights when it returns.

    Started in several processes (`accelerate launch`), each trains on batches of its own and all take the
    same steps. They stay connected: the script's last line should be
    `accelerate.PartialState().destroy_process_group()`, without which PyTorch may abort a process that exits.

    Args:
        model: what to train, in place.
        next_batch: draws a batch on the model's device from a generator of that device.
        config: lengths and rates.
        output: folder of logs (TensorBoard, `log.jsonl`) and of the resumable state.
        pretrained: parameters that learn at `config.pretrained_rate` of the rate.
        matrices: parameters that `Muon` trains, weights within the network; AdamW trains all others.
        resume: go on from the state in `output`, clock included.
        on_save: called with the step, while the averaged weights are in the model, at every save and the end.

    Returns:
        figures of the run: steps, elements, seconds, elements a second.
    """
    precision = config.mixed_precision if torch.cuda.is_available() else "no"
    accelerator = Accelerator(mixed_precision=precision, log_with=_trackers(), project_dir=str(output))
    accelerator.init_trackers("training")
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # "evaluation" only leaves out the wrapper of several processes, which no recording of a step could hold
    step_module = accelerator.prepare_model(model, evaluation_mode=True)
    optimizers = [
        accelerator.prepare_optimizer(optimizer)
        for optimizer in _optimizers(trainable, pretrained, matrices, config, accelerator.device)
    ]
    broadcast(list(model.state_dict().values()))  # before the average, which starts from what is there
    ema = EMAModel(trainable, decay=config.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
    clock = Clock()
    accelerator.register_for_checkpointing(ema, clock)
    if resume:
        accelerator.load_state(str(output / "state"))
    ema.to(accelerator.device)  # a loaded average lies on the CPU
    generator = torch.Generator(accelerator.device).manual_seed(
        config.seed + 7919 * clock.steps + accelerator.process_index
    )
    log = RunLog(output, config, accelerator)
    gradients = _gradient_step(accelerator, step_module, trainable, config)
    clock.start()
    seconds = last_save = _main_seconds(clock, accelerator)
    progress = tqdm(total=100, unit="%", desc="training", disable=not accelerator.is_main_process)
    while (done := _fraction(seconds, clock.steps, config)) < 1:
        rate = config.learning_rate * learning_rate_factor(done, clock.steps, config.warmup_steps)
        for group in itertools.chain.from_iterable(optimizer.param_groups for optimizer in optimizers):
            group["lr"] = rate * group["share"]
        batch = next_batch(generator)
        terms = gradients(batch, *model.draw(batch, config.context_dropout, generator))
        for optimizer in optimizers:
            optimizer.step()
        ema.step(trainable)
        clock.tick(config.batch_size * accelerator.num_processes)
        log.add(terms, clock)
        progress.update(int(100 * done) - progress.n)
        seconds = _agreed_seconds(seconds, clock, accelerator)
        if seconds - last_save > 60 * config.save_every_minutes:
            last_save = seconds
            _save(accelerator, ema, trainable, output, clock.steps, on_save)
    progress.close()
    _save(accelerator, ema, trainable, output, clock.steps, on_save)
    ema.copy_to(trainable)
    for tracker in accelerator.trackers:  # `end_training` would part the processes, which may go on
        tracker.finish()
    return clock.figures()


def _optimizers(
    trainable: Sequence[nn.Parameter], pretrained: Collection[nn.Parameter],
    matrices: Collection[nn.Parameter], config: TrainConfig, device: torch.device,
) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the matrices that are trained, if there are any."""
    wanted = {id(parameter) for parameter in matrices}
    chosen = [parameter for parameter in trainable if id(parameter) in wanted]
    others = [parameter for parameter in trainable if id(parameter) not in wanted]
    rate, decay = config.learning_rate, config.weight_decay
    adamw = torch.optim.AdamW(
        _parameter_groups(others, pretrained, config), lr=rate, betas=(0.9, 0.99), weight_decay=decay,
        fused=device.type == "cuda",
    )
    if not chosen:
        return [adamw]
    groups = _parameter_groups(chosen, pretrained, config, config.matrix_rate)
    return [adamw, Muon(groups, lr=rate, weight_decay=decay)]


def _parameter_groups(
    trainable: Sequence[nn.Parameter], pretrained: Collection[nn.Parameter], config: TrainConfig,
    factor: float = 1.0,
) -> list[dict[str, Any]]:
    slow = {id(parameter) for parameter in pretrained}
    shares = {False: factor, True: factor * config.pretrained_rate}
    groups = [
        {"params": [p for p in trainable if (id(p) in slow) == is_slow], "share": share}
        for is_slow, share in shares.items()
    ]
    return [group for group in groups if group["params"]]


def learning_rate_factor(done: float, steps: int, warmup_steps: int) -> float:
    """Linear warm-up, then a cosine to zero over the fraction of the run that is done."""
    return min(1.0, (steps + 1) / max(1, warmup_steps)) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Clock:
    """Steps, elements and seconds of a run, over restarts."""

    def __init__(self) -> None:
        self.steps, self.elements, self._before, self._started = 0, 0, 0.0, time.perf_counter()

    def start(self) -> None:
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._started

    def tick(self, elements: int) -> None:
        self.steps += 1
        self.elements += elements

    def figures(self) -> dict[str, float]:
        return {
            "steps": self.steps, "elements": self.elements, "seconds": round(self.seconds, 1),
            "elements_per_second": round(self.elements / max(self.seconds, 1e-9), 1),
        }

    def state_dict(self) -> dict[str, float]:
        return {"steps": self.steps, "elements": self.elements, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.steps, self.elements = int(state["steps"]), int(state["elements"])
        self._before = state["seconds"]


class RunLog:
    """Averages the terms between log lines and writes them to `log.jsonl` and the trackers."""

    def __init__(self, output: Path, config: TrainConfig, accelerator: Accelerator):
        self.every, self.accelerator, self.path = config.log_every, accelerator, output / "log.jsonl"
        self.sums: dict[str, Tensor] = {}
        self.count, self.mark = 0, (0, 0.0)
        if accelerator.is_main_process:
            output.mkdir(parents=True, exist_ok=True)
            (output / "train_config.json").write_text(json.dumps(asdict(config), indent=1))

    def add(self, terms: dict[str, Tensor], clock: Clock) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
        self.count += 1
        if clock.steps % self.every:
            return
        line = {name: round(float(value) / self.count, 6) for name, value in self.sums.items()}
        elements, seconds = clock.elements, clock.seconds
        line["elements_per_second"] = round((elements - self.mark[0]) / max(seconds - self.mark[1], 1e-9), 1)
        self.sums, self.count, self.mark = {}, 0, (elements, seconds)
        self.accelerator.log(line, step=clock.steps)
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": clock.steps, "seconds": round(seconds, 1), **line}) + "\n")


def _gradient_step(
    accelerator: Accelerator, step_module: nn.Module, trainable: list[nn.Parameter], config: TrainConfig
) -> Callable[..., dict[str, Tensor]]:
    """A function of a batch and what is random that leaves clipped gradients and returns the terms."""

    def gradients(batch: Any, *randoms: Tensor) -> dict[str, Tensor]:
        for parameter in trainable:
            parameter.grad = None
        with fastest_convolutions():
            with accelerator.autocast():
                terms = step_module(batch, *randoms)
                loss = sum(terms.values())
            accelerator.backward(loss)
        return {name: value.detach() for name, value in {**terms, "loss": loss}.items()}

    recorded = config.cuda_graphs and accelerator.device.type == "cuda"
    compute = RecordedGradients(gradients, trainable) if recorded else gradients

    def clipped(batch: Any, *randoms: Tensor) -> dict[str, Tensor]:
        terms = compute(batch, *randoms)
        if accelerator.num_processes > 1:
            _average_gradients(trainable)
        norm = accelerator.clip_grad_norm_(trainable, config.clip)
        for parameter in trainable:  # one bad batch makes the norm, so every gradient, NaN: it must not count
            if parameter.grad is not None:
                parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
        return {**terms, "gradient_norm": norm.detach()}

    return clipped


def fastest_convolutions() -> AbstractContextManager[None]:
    """On a GPU, tries the ways to compute each new shape of convolution and takes the fastest then on."""
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        enabled=cudnn.enabled, benchmark=True, deterministic=cudnn.deterministic, allow_tf32=cudnn.allow_tf32
    )


def _average_gradients(trainable: Sequence[nn.Parameter]) -> None:
    """Each gradient becomes its mean over the processes, in one exchange."""
    gradients = [parameter.grad for parameter in trainable if parameter.grad is not None]
    mean = reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
    for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _agreed_seconds(seconds: float, clock: Clock, accelerator: Accelerator) -> float:
    """The clock's time, or the main process's of a while ago: processes must stop at the same step."""
    if accelerator.num_processes > 1 and clock.steps % AGREE_EVERY:
        return seconds
    return _main_seconds(clock, accelerator)


def _main_seconds(clock: Clock, accelerator: Accelerator) -> float:
    """The main process's time, as the learning rate depends on it in all of them."""
    if accelerator.num_processes == 1:
        return clock.seconds
    now = torch.tensor(clock.seconds, dtype=torch.float64, device=accelerator.device)
    return float(broadcast(now))


def _fraction(seconds: float, steps: int, config: TrainConfig) -> float:
    by_time = seconds / (60 * config.minutes)
    return max(by_time, steps / config.max_steps) if config.max_steps > 0 else by_time


def _save(accelerator, ema: EMAModel, trainable, output: Path, steps: int, on_save) -> None:
    accelerator.wait_for_everyone()
    accelerator.save_state(str(output / "state"), safe_serialization=False)
    if on_save is not None and accelerator.is_main_process:
        ema.store(trainable)
        ema.copy_to(trainable)
        on_save(steps)
        ema.restore(trainable)


def _trackers() -> str | None:
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        logger.warning("no TensorBoard logs: install scenediff[train] to have them")
        return None
    return "tensorboard"
