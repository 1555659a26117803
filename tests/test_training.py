"""The training loop on a toy: it learns, logs, stops, keeps averaged weights and goes on where it stopped."""

from __future__ import annotations

import copy
import json
import math
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy_models import COVARIANCE, ROWS, linear_batch, new_linear_step, train_toy

from scenediff.losses import TrainingBatch
from scenediff.muon import TYPICAL_STEP
from scenediff.training import Clock, TrainConfig, learning_rate_factor

CONFIG = TrainConfig(
    minutes=1.0,
    max_steps=60,
    batch_size=64,
    learning_rate=3e-3,
    warmup_steps=5,
    ema_decay=0.9,
    mixed_precision="no",
    log_every=10,
)


def log_lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_loss_falls_and_is_logged(tmp_path: Path) -> None:
    figures = train_toy(new_linear_step(), linear_batch, replace(CONFIG, max_steps=200), tmp_path)
    lines = log_lines(tmp_path)
    assert [line["step"] for line in lines] == list(range(10, 201, 10))
    # What the context can't explain stays: the deterministic branch's error is the target's variance given it
    prior = ROWS["target"] @ COVARIANCE @ ROWS["target"].T
    across = ROWS["target"] @ COVARIANCE @ ROWS["context"].T
    known = across @ across.T / (ROWS["context"] @ COVARIANCE @ ROWS["context"].T)
    least = 0.7 * float((prior - 0.9 * known).diagonal().mean())  # 0.7 is the weight, 0.9 keep their context
    assert lines[0]["deterministic"] > 1.5 * least
    reached = sum(line["deterministic"] for line in lines[-5:]) / 5
    assert reached == pytest.approx(least, rel=0.1)  # 5 * 640 elements: a standard error of 3 %
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    for line in lines:
        assert line["loss"] == pytest.approx(line["target"] + line["novel"] + line["deterministic"], abs=3e-6)
        assert line["gradient_norm"] > 0
    assert lines[-1]["seconds"] >= lines[0]["seconds"]
    assert figures["steps"] == 200
    assert figures["elements"] == 200 * 64
    assert json.loads((tmp_path / "train_config.json").read_text())["max_steps"] == 200


def test_the_clock_ends_training_too(tmp_path: Path) -> None:
    figures = train_toy(new_linear_step(), linear_batch, replace(CONFIG, minutes=0.01, max_steps=0), tmp_path)
    assert 0.6 <= figures["seconds"] < 5
    assert figures["steps"] > 5


def test_the_model_ends_with_averaged_weights(tmp_path: Path) -> None:
    """Recomputed from every step's weights: w <- d w + (1 - d) p, with diffusers' warm-up of d."""
    step = new_linear_step()
    weights = [copy.deepcopy(step.denoiser.network.state_dict())]

    def batches(count: int, generator: torch.Generator) -> TrainingBatch:
        weights.append(copy.deepcopy(step.denoiser.network.state_dict()))  # as the step before left them
        return linear_batch(count, generator)

    saved: list[tuple[int, dict[str, Tensor]]] = []
    train_toy(
        step,
        batches,
        replace(CONFIG, max_steps=20),
        tmp_path,
        on_save=lambda steps: saved.append((steps, copy.deepcopy(step.denoiser.network.state_dict()))),
    )
    last = torch.load(tmp_path / "state" / "pytorch_model.bin", weights_only=True)
    weights.append({name.removeprefix("denoiser.network."): value for name, value in last.items()})
    average = weights[0]
    for count, current in enumerate(weights[2:], start=1):
        decay = 0.0 if count == 1 else min(0.9, 1 - (1 + count - 1) ** -0.75)
        average = {name: decay * average[name] + (1 - decay) * current[name] for name in average}
    final = step.denoiser.network.state_dict()
    for name, value in average.items():
        assert torch.allclose(final[name], value, atol=1e-6), name
        assert not torch.allclose(final[name], weights[-1][name], atol=1e-6), name
    assert [steps for steps, _ in saved] == [20]
    assert all(torch.equal(saved[0][1][name], final[name]) for name in final)


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """A run that dies after its save at step 20 resumes with weights, moments, averages, steps and clock."""

    class PowerCutError(Exception):
        pass

    first = new_linear_step()
    calls = 0

    def dying(count: int, generator: torch.Generator) -> TrainingBatch:
        nonlocal calls
        calls += 1
        if calls > 20:
            raise PowerCutError
        return linear_batch(count, generator)

    with pytest.raises(PowerCutError):
        train_toy(first, dying, replace(CONFIG, save_every_minutes=0.0), tmp_path)
    state = tmp_path / "state"
    kept = torch.load(state / "pytorch_model.bin", weights_only=True)
    clock = torch.load(state / "custom_checkpoint_1.pkl", weights_only=False)
    assert clock["steps"] == 20
    assert clock["elements"] == 20 * 64
    moments = torch.load(state / "optimizer.bin", weights_only=True)["state"]
    assert all(entry["step"] == 20 for entry in moments.values())

    second = new_linear_step()
    torch.nn.init.zeros_(second.denoiser.network[0].weight)  # so that only the state can bring it back
    met: list[Tensor] = []

    def watching(count: int, generator: torch.Generator) -> TrainingBatch:
        met.append(second.denoiser.network[0].weight.detach().clone())
        return linear_batch(count, generator)

    figures = train_toy(second, watching, CONFIG, tmp_path, resume=True)
    assert torch.equal(met[0], kept["denoiser.network.0.weight"])
    assert len(met) == 40  # of the 60
    assert figures["steps"] == 60
    assert figures["elements"] == 60 * 64
    assert figures["seconds"] >= round(clock["seconds"], 1)
    moments = torch.load(state / "optimizer.bin", weights_only=True)["state"]
    assert all(entry["step"] == 60 for entry in moments.values())
    average = torch.load(state / "custom_checkpoint_0.pkl", weights_only=False)
    assert average["optimization_step"] == 60
    assert [line["step"] for line in log_lines(tmp_path)] == [10, 20, 30, 40, 50, 60]


def test_a_resumed_run_sees_other_batches(tmp_path: Path) -> None:
    drawn: list[Tensor] = []

    def batches(count: int, generator: torch.Generator) -> TrainingBatch:
        batch = linear_batch(count, generator)
        drawn.append(batch.target.image)
        return batch

    train_toy(new_linear_step(), batches, replace(CONFIG, max_steps=3), tmp_path)
    train_toy(new_linear_step(), batches, replace(CONFIG, max_steps=6), tmp_path, resume=True)
    assert len(drawn) == 6
    assert not any(torch.equal(drawn[index], drawn[index + 3]) for index in range(3))


def test_equal_seeds_train_equally(tmp_path: Path) -> None:
    finals = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        step = new_linear_step()
        train_toy(step, linear_batch, replace(CONFIG, max_steps=5, seed=seed), tmp_path)
        finals.append(step.denoiser.network[0].weight.detach().clone())
    assert torch.equal(finals[0], finals[1])
    assert not torch.equal(finals[0], finals[2])


def test_a_bad_batch_does_not_spoil_the_weights(tmp_path: Path) -> None:
    calls = 0

    def batches(count: int, generator: torch.Generator) -> TrainingBatch:
        nonlocal calls
        calls += 1
        batch = linear_batch(count, generator)
        if calls == 5:
            batch.target.image[0] = float("nan")
        return batch

    step = new_linear_step()
    train_toy(step, batches, replace(CONFIG, max_steps=10), tmp_path)
    assert all(parameter.isfinite().all() for parameter in step.parameters())


def test_dropout_hides_the_context(tmp_path: Path) -> None:
    """With every context dropped, the weights that read it only decay."""
    step = new_linear_step()
    train_toy(step, linear_batch, replace(CONFIG, context_dropout=1.0), tmp_path)
    unused = step.denoiser.network[0].weight[:, :2]  # of the context and of "context is here"
    fresh = new_linear_step_weights()
    assert torch.allclose(unused, fresh[:, :2] * weight_decay_factor(CONFIG), atol=2e-3)
    assert not torch.allclose(step.denoiser.network[0].weight[:, 2:], fresh[:, 2:], atol=2e-3)


def new_linear_step_weights() -> Tensor:
    torch.manual_seed(0)
    return new_linear_step().denoiser.network[0].weight.detach()


TWO_PROCESSES = """
import json, sys, time
from dataclasses import replace
from pathlib import Path
import torch
from accelerate import PartialState
from test_training import CONFIG
from toy_models import linear_batch, new_linear_step
from scenediff.training import Clock, _average_gradients, train

state = PartialState(cpu=True)
if state.process_index:  # as if this process had been kept waiting: its clock runs ahead
    start = Clock.start
    Clock.start = lambda clock: start(clock) or time.sleep(0.5)
torch.manual_seed(state.process_index)
step = new_linear_step()  # every process starts from other weights
seen = []
def batches(generator):
    seen.append(linear_batch(32, generator))
    return seen[-1]
figures = train(step, batches, replace(CONFIG, max_steps=20, batch_size=32), Path(sys.argv[1]))
weight = torch.nn.Parameter(torch.zeros(3))
weight.grad = torch.arange(3.0) * (state.process_index + 1)
_average_gradients([weight, torch.nn.Parameter(torch.zeros(1))])
answer = {"weights": [p.sum().item() for p in step.parameters()], "first": float(seen[0].target.image.sum()),
          "mean": weight.grad.tolist(), "elements": figures["elements"]}
Path(sys.argv[1], f"{state.process_index}.json").write_text(json.dumps(answer))
state.destroy_process_group()  # an exchange's own thread may outlive the interpreter otherwise, and abort
"""


def test_two_processes_take_the_same_steps_on_batches_of_their_own(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
    }  # fmt: skip
    running = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path)], env={**common, "RANK": rank, "LOCAL_RANK": rank}
        )
        for rank in ("0", "1")
    ]
    assert [process.wait(120) for process in running] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["weights"] == second["weights"]
    assert first["first"] != second["first"]
    assert first["mean"] == second["mean"] == [0, 1.5, 3]
    assert first["elements"] == second["elements"] == 2 * 20 * 32


def test_pretrained_parameters_learn_at_their_share_of_the_rate(tmp_path: Path) -> None:
    """Adam's first step is as long as the rate, whatever the gradient."""
    config = replace(CONFIG, max_steps=1, warmup_steps=0, pretrained_rate=0.1, weight_decay=0.0)
    step = new_linear_step()
    first, last = step.denoiser.network[0].weight, step.denoiser.network[4].weight
    before = first.detach().clone(), last.detach().clone()
    train_toy(step, linear_batch, config, tmp_path, pretrained=[first])
    state = torch.load(tmp_path / "state" / "pytorch_model.bin", weights_only=True)
    moved = [
        (state[f"denoiser.network.{index}.weight"] - value).abs().max()
        for index, value in zip((0, 4), before, strict=True)
    ]
    assert moved[0] == pytest.approx(0.1 * config.learning_rate, rel=1e-3)
    assert moved[1] == pytest.approx(config.learning_rate, rel=1e-3)


def test_matrices_take_orthogonal_steps_and_keep_their_momentum(tmp_path: Path) -> None:
    config = replace(
        CONFIG, max_steps=1, warmup_steps=0, pretrained_rate=0.5, matrix_rate=2.0, weight_decay=0.0
    )
    step = new_linear_step()
    first, middle = (step.denoiser.network[index].weight for index in (0, 2))
    biases = step.denoiser.network[2].bias
    before = middle.detach().clone(), biases.detach().clone()
    train_toy(step, linear_batch, config, tmp_path, matrices=[first, middle], pretrained=[middle])
    state = torch.load(tmp_path / "state" / "pytorch_model.bin", weights_only=True)
    moved = state["denoiser.network.2.weight"] - before[0]
    size = 0.5 * 2.0 * config.learning_rate * TYPICAL_STEP * max(middle.shape) ** 0.5
    values = torch.linalg.svdvals(moved / size)
    assert values.max() < 1.25
    assert values[:8].min() > 0.6  # so many directions have a gradient worth the name
    # a bias is no matrix: AdamW's first step
    bias = (state["denoiser.network.2.bias"] - before[1]).abs().max()
    assert bias == pytest.approx(config.learning_rate, rel=1e-3)

    train_toy(
        step, linear_batch, replace(config, max_steps=2), tmp_path, matrices=[first, middle],
        pretrained=[middle], resume=True,
    )
    momenta = torch.load(tmp_path / "state" / "optimizer_1.bin", weights_only=True)["state"]
    assert {entry["momentum"].shape for entry in momenta.values()} == {first.shape, middle.shape}


def weight_decay_factor(config: TrainConfig) -> float:
    return (1 - config.learning_rate * config.weight_decay) ** config.max_steps


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    assert learning_rate_factor(0.0, 0, 100) == pytest.approx(0.01)
    assert learning_rate_factor(0.0, 99, 100) == 1
    assert learning_rate_factor(0.5, 1000, 100) == pytest.approx(0.5)
    assert learning_rate_factor(0.25, 1000, 100) == pytest.approx(0.5 + math.sqrt(0.5) / 2)
    assert learning_rate_factor(1.0, 1000, 100) == pytest.approx(0, abs=1e-12)
    assert learning_rate_factor(1.3, 1000, 0) == pytest.approx(0, abs=1e-12)


def test_the_clock_goes_on_after_a_restart() -> None:
    first = Clock()
    first.tick(5)
    first.tick(7)
    state = first.state_dict()
    second = Clock()
    second.load_state_dict({**state, "seconds": 100.0})
    second.start()
    assert (second.steps, second.elements) == (2, 12)
    assert 100 <= second.seconds < 101
