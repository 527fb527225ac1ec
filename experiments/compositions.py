"""Several conditions at once on the command line, each with its weight.

    --prompt "a red circle AND a blue square:0.8"
    --labels "3 AND 8"

A weight stands behind a colon and is 1 where there is none; a negative one leads away. The
composition is x0 = nothing + sum_i weight_i (x0_i - nothing), with nothing the estimate without a
condition; every guidance takes it for the conditional estimate. Classifier-free with the scale s
thus leans by s weight_i towards each condition.
Source: Composable Diffusion, arXiv:2206.01714, Eq. 11.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jax import Array

import diffjax as dj
from diffjax.core.conditioning import Condition, Conditioning, told_nothing
from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import Denoiser
from diffjax.transforms.estimates import Estimates

WEIGHT = re.compile(r"(.*?)\s*:\s*([+-]?(?:\d+\.?\d*|\.\d+))", flags=re.DOTALL)


class Composition(NamedTuple):
    """Conditions as they were given, and their weights; None for one condition as it stands."""

    parts: tuple[str, ...]
    weights: tuple[float, ...] | None = None


def read_composition(text: str) -> Composition:
    """Split a text at each AND.

    Raises:
      ValueError: a part is empty.

    >>> read_composition("a red circle AND a blue square:0.8")
    Composition(parts=('a red circle', 'a blue square'), weights=(1.0, 0.8))
    """
    parts = [part.strip() for part in re.split(r"\bAND\b", text)]
    if len(parts) == 1:
        return Composition((text,))
    found = [match.groups() if (match := WEIGHT.fullmatch(part)) else (part, 1) for part in parts]
    if not all(part for part, _ in found):
        raise ValueError(f"{text!r} has an AND without a condition on each side.")
    conditions, weights = zip(*found)
    return Composition(conditions, tuple(map(float, weights)))


def with_and_without(
    make: Callable[..., Denoiser],
    conditioning: Conditioning,
    nulls: Sequence[Condition],
    weights: Sequence[float] | None,
) -> Estimates:
    """The estimates under a condition, or the composition of several, and under none: one call.

    Args:
      make: conditioning -> denoiser.
      conditioning: arrays [B, ...]; those of the first of the nulls [B, K, ...] where K conditions
        are composed.
      nulls: what the network is told where it is told nothing.
      weights: of the composition; None for a single condition.
    """
    if weights is None:
        return dj.in_one_call(make, conditioning, told_nothing(conditioning, nulls))
    parts = [
        {name: rows[:, i] if name in nulls[0].null else rows for name, rows in conditioning.items()}
        for i in range(len(weights))
    ]
    estimates = dj.in_one_call(make, *parts, told_nothing(parts[0], nulls))

    def compose(*each: Denoiser) -> Denoiser:
        return dj.composed(each[-1], each[:-1], guidance_scales=weights)

    def both(x: Array, level: NoiseLevel) -> tuple:
        found = estimates(x, level)
        return dj.guide(lambda *_: found, compose)(x, level), found[-1]

    return both


def with_condition(
    make: Callable[..., Denoiser],
    conditioning: Conditioning,
    nulls: Sequence[Condition],
    weights: Sequence[float] | None,
) -> Denoiser:
    """The first of `with_and_without` alone."""
    if weights is None:
        return make(**conditioning)
    both = with_and_without(make, conditioning, nulls, weights)
    return lambda x, level: both(x, level)[0]
