"""The interface that every application shares: signals, views, observations and forward models.

A *signal* (a radiance field, a motion field, a latent code) is never observed. A *forward model* turns it
into what a *view* of it shows, differentiably; an *observation* is an image together with its view. The
training loss (`losses.py`) and the sampler (`sampling.py`) speak only this language: what a signal or a view
is made of is the business of the forward model and the denoiser (Tewari et al. 2023, arXiv:2306.11719,
Sec. 3).

Images are floating-point, (batch, channels, *size), in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

Signal = Any
View = Any


@dataclass(frozen=True)
class Observation:
    """An image and the view that it shows.

    Attributes:
        image: (batch, channels, *size) in [-1, 1].
        view: how it was taken, as the forward model understands it (a camera, a patch position, a time).
    """

    image: Tensor
    view: View


@runtime_checkable
class ForwardModel(Protocol):
    """A differentiable map from a signal to its observations."""

    def render(self, signal: Signal, view: View) -> Tensor:
        """What `view` shows of `signal`: (batch, channels, *size) in [-1, 1], differentiable in `signal`."""
        ...


@dataclass(frozen=True)
class EncodedContext:
    """What a denoiser knows before any noise is removed; it stays the same over the denoising steps.

    Attributes:
        signal: the deterministic branch's signal: one average guess from the context alone.
        image: that signal rendered at the target view, (batch, channels, *size).
        extras: whatever else the denoiser wants to keep.
    """

    signal: Signal
    image: Tensor
    extras: Any = None


@runtime_checkable
class Denoiser(Protocol):
    """A network that turns a noisy target observation and its context into an estimate of the signal."""

    def encode(
        self, context: Sequence[Observation], target_view: View, drop: Tensor | None = None
    ) -> EncodedContext:
        """Digests the context; called once for a target view, not once for a denoising step.

        Args:
            context: observations of the same signals, one or more.
            target_view: the view whose observation will be denoised.
            drop: (batch,) bool, the elements whose context is hidden (classifier-free guidance).
        """
        ...

    def denoise(self, noisy: Tensor, timesteps: Tensor, context: EncodedContext, target_view: View) -> Signal:
        """The signal whose rendering at `target_view` is the estimate of the clean target.

        Args:
            noisy: (batch, channels, *size) the target observation's image at noise level `timesteps`.
            timesteps: (batch,) integer steps of the training schedule.
            context: what `encode` returned for the same batch and target view.
            target_view: the view of the noisy observation.
        """
        ...


@runtime_checkable
class SelfConditionedDenoiser(Denoiser, Protocol):
    """A denoiser that starts from its estimate of the step before (Chen et al. 2022, arXiv:2208.04202)."""

    def with_estimate(self, context: EncodedContext, signal: Signal) -> EncodedContext:
        """The context, with what `denoise` returned for it in the step before, without its gradients."""
        ...


@runtime_checkable
class RememberingDenoiser(Denoiser, Protocol):
    """A denoiser that knows more of a target that it has finished than the observation shows."""

    def finished(self, signal: Signal, observation: Observation) -> Observation:
        """The observation as context of the same signals' next targets.

        Args:
            signal: what `denoise` returned last. observation: the clean target that it led to.
        """
        ...


@runtime_checkable
class PairedDenoiser(Denoiser, Protocol):
    """A denoiser that runs with and without its context in one batch, which guidance then needs only once."""

    def encode_pair(self, context: Sequence[Observation], target_view: View) -> tuple[EncodedContext, View]:
        """What `encode` returns for a batch of twice the size, and the view of that batch.

        The first half of the batch has its context, the second half has the same context hidden.
        """
        ...

    def first_of_pair(self, signal: Signal) -> Signal:
        """The first half of the batch of a signal."""
        ...
