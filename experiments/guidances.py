"""Guidances by name: how two estimates are combined, and what the weaker one is.

classifier_free                             a row of GUIDANCES, as it stands
apg(parallel=0.2, threshold=5.0)            the same with other arguments
autoguidance(checkpoint=1000)               away from an earlier checkpoint of a run
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike

import diffjax as dj
from choices import build
from diffjax.core.parameterizations import Denoiser


class Guidance(NamedTuple):
    """One guidance, without its scale.

    Attributes:
      combine: (better, weaker, guidance_scale=...) -> denoiser.
      solver: (solver, guidance_scale=...) -> solver that is given both estimates, for guidances
        that need more than estimates; `combine` is not used then.
      weaker: what the better estimate is compared with: the network told nothing
        ("unconditional"), with the weights of an earlier "checkpoint", with "identity_attention",
        or the same denoiser, asked otherwise ("itself"). For "attention_map" it is no denoiser but
        the attention that each place receives, (x, level) -> [B, *coarse].
      checkpoint: its step.
      most: the largest scale that there is.
    """

    combine: Callable[..., Denoiser] = dj.classifier_free
    solver: Callable[..., dj.Solver] | None = None
    weaker: str = "unconditional"
    checkpoint: int | None = None
    most: float = float("inf")

    @property
    def may_be_off(self) -> bool:
        """Whether its scale counts from 1, where there is no guidance."""
        return self.most > 1.0


class Guides(NamedTuple):
    """Weights beside those of the run: of an earlier checkpoint of it, of a classifier."""

    weaker: Any = None
    classifier: Any = None


def rescaled(*, amount: float = 0.7) -> Guidance:
    """Classifier-free, with the spread of the conditional estimate."""

    def combine(better: Denoiser, weaker: Denoiser, *, guidance_scale: ArrayLike) -> Denoiser:
        guided = dj.classifier_free(better, weaker, guidance_scale=guidance_scale)
        return dj.rescaled(guided, better, amount=amount)

    return Guidance(combine)


def apg(*, parallel: float = 0.0, threshold: float = jnp.inf) -> Guidance:
    """Adaptive projected guidance."""
    return Guidance(partial(dj.apg, parallel=parallel, threshold=threshold))


def apg_momentum(
    *, momentum: float = -0.5, parallel: float = 0.0, threshold: float = jnp.inf
) -> Guidance:
    """Adaptive projected guidance with a memory of the steps before."""
    settings = {"momentum": momentum, "parallel": parallel, "threshold": threshold}
    return Guidance(solver=partial(dj.apg_momentum, **settings))


def autoguidance(*, checkpoint: int | None = None) -> Guidance:
    """Away from a worse network: a run as it was at an earlier checkpoint, or another model."""
    return Guidance(dj.autoguidance, weaker="checkpoint", checkpoint=checkpoint)


def blurred(*, std: float = 1.0, radius: int = 4) -> Guidance:
    """Away from the estimate of a blurred x: self-attention guidance without its mask."""

    def combine(better: Denoiser, _, *, guidance_scale: ArrayLike) -> Denoiser:
        return dj.blur_guidance(better, guidance_scale=guidance_scale, std=std, radius=radius)

    return Guidance(combine, weaker="itself")


def self_attention(*, threshold: float = 1.0, std: float = 1.0, radius: int = 4) -> Guidance:
    """Away from the estimate of an x that is blurred where the network attends most."""
    settings = {"threshold": threshold, "std": std, "radius": radius}

    def combine(better: Denoiser, attention: Any, *, guidance_scale: ArrayLike) -> Denoiser:
        return dj.blur_guidance(
            better, attention=attention, guidance_scale=guidance_scale, **settings
        )

    return Guidance(combine, weaker="attention_map")


GUIDANCES: dict[str, Callable[..., Guidance]] = {
    "classifier_free": lambda: Guidance(),
    "rescaled": rescaled,
    "apg": apg,
    "apg_momentum": apg_momentum,
    "cfg_zero_star": lambda: Guidance(dj.cfg_zero_star),
    "cfg_plus_plus": lambda: Guidance(solver=dj.cfg_plus_plus, most=1.0),
    "autoguidance": autoguidance,
    "perturbed_attention": lambda: Guidance(dj.autoguidance, weaker="identity_attention"),
    "self_attention": self_attention,
    "blurred": blurred,
}


def read_guidance(
    text: str, scale: float, interval: tuple[float, float] | None = None
) -> Guidance | None:
    """The guidance that settings name; None where it is off.

    Raises:
      ValueError: there is none of that name, its scale is out of range, or it is a solver's and
        asked for in an interval.
    """
    guidance = build("guidance", text, GUIDANCES)
    if not guidance.may_be_off and not 0.0 <= scale <= guidance.most:
        ends = f"from 0 to {guidance.most:g}; it is {scale:g}."
        raise ValueError(f"--guidance {text} takes a --guidance-scale {ends}")
    if guidance.solver is None:
        return None if scale == 1.0 else guidance
    if interval is not None:
        raise ValueError(f"--guidance {text} changes the solver; it has no interval.")
    return guidance


def check_interval(interval: tuple[float, float] | None) -> None:
    """Refuse ends of an interval of guidance that are none."""
    low, high = interval or (0.0, 1.0)
    if not 0.0 <= low <= high:
        raise ValueError(
            f"guidance_interval is {low} {high}; needed is 0 <= low <= high, in sigma / alpha."
        )
