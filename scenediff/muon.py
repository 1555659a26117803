"""An optimizer for the matrices within a network: steps of equal size in every direction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# of an odd quintic polynomial that, applied five times, brings singular values in (0, 1] close to 1
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
TYPICAL_STEP = 0.2  # root mean square of an AdamW step in units of the learning rate


class Muon(Optimizer):
    """Momentum whose direction is made orthogonal (Jordan et al. 2024, "Muon: an optimizer for hidden
    layers in neural networks").

    Gradients of a layer lie mostly in few directions; a step along the nearest orthogonal matrix learns
    the rare ones as fast. Convolutions are matrices of (outputs, inputs times positions). Steps are scaled as
    large as AdamW's (Liu et al. 2025, arXiv:2502.16982, Eq. 4), so that one learning rate suits both.

    Args:
        parameters: of at least two dimensions.
        lr: learning rate.
        momentum: of the gradients, Nesterov's.
        weight_decay: as AdamW's.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], lr: float = 1e-3,
        momentum: float = 0.95, weight_decay: float = 0.01,
    ):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            flat = [tuple(parameter.shape) for parameter in group["params"] if parameter.ndim < 2]
            if flat:
                raise ValueError(f"matrices are wanted, got parameters of shapes {flat[:3]}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.flatten(1).shape].append(parameter)
            for parameters in by_shape.values():
                self._step(parameters, group)
        return loss

    def _step(self, parameters: Sequence[nn.Parameter], group: dict[str, Any]) -> None:
        """Of parameters with gradients, whose matrices have one shape."""
        gradients = [cast(Tensor, parameter.grad).flatten(1).float() for parameter in parameters]
        momenta = [self._momentum(parameter) for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch.stack(torch._foreach_lerp(gradients, momenta, group["momentum"]))
        size = TYPICAL_STEP * max(ahead.shape[1:]) ** 0.5
        steps = orthogonalised(ahead).float() * (group["lr"] * size)  # (parameters, rows, columns)
        for parameter, step in zip(parameters, steps, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step.view(parameter.shape))

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter.flatten(1), dtype=torch.float32)
        return state["momentum"]


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices (batch, rows, columns) with about the same singular vectors, and values between 0.7 and 1.2.

    Newton-Schulz iterations of a quintic polynomial, in bfloat16 on a GPU.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide.bfloat16() if wide.is_cuda else wide
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-12)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(b * gram, gram, gram, alpha=c) @ x
    return x if wide is matrices else x.mT
