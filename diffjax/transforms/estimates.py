"""Several estimates of x0 from one x: what guidance combines.

Every guidance compares what is said of the same x under different conditions. Its builders take a
denoiser for each, which is all that is needed:

    denoise = classifier_free(conditional, unconditional, guidance_scale=3.0)

The functions here call the denoisers together, so that a network runs once on a batch of twice the
size instead of twice, and so that each is asked once however often a nested guidance uses it:

    estimates = in_one_call(make, {"labels": y}, {"labels": null})
    denoise = guide(estimates, partial(classifier_free, guidance_scale=3.0))

Solvers that guide on their own (`cfg_plus_plus`, `apg_momentum`) take such `estimates` in the
place of the denoiser.
"""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import Denoiser, LearnedVariance

# (x, level) -> one estimate of x0 for each condition
Estimates = Callable[[Array, NoiseLevel], tuple[Any, ...]]


def one_by_one(*denoisers: Denoiser) -> Estimates:
    """The estimates of several denoisers, each called once.

    >>> one_by_one(lambda x, level: x, lambda x, level: 2.0 * x)(1.0, None)
    (1.0, 2.0)
    """
    return lambda x, level: tuple(denoise(x, level) for denoise in denoisers)


def in_one_call(make: Callable[..., Denoiser], *conditions: dict[str, Any]) -> Estimates:
    """The estimates of one network under several conditions, by one call on a larger batch.

    Args:
      make: conditioning -> denoiser, such as `partial(make_denoiser, apply, params, eps)`.
      *conditions: keyword arguments of `make`, trees of arrays [B, ...], all of the same
        structure and shapes; they are joined along the batch.

    Raises:
      ValueError: the conditions differ in structure or shapes.

    >>> make = lambda labels: lambda x, level: labels * x
    >>> estimates = in_one_call(make, {"labels": jnp.ones(2)}, {"labels": jnp.zeros(2)})
    >>> estimates(jnp.full(2, 5.0), NoiseLevel(*jnp.ones(3)))
    (Array([5., 5.], dtype=float32), Array([0., 0.], dtype=float32))
    """
    _check_alike(conditions)
    count = len(conditions)
    denoise = make(**jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *conditions))

    def estimates(x: Array, level: NoiseLevel) -> tuple[Any, ...]:
        repeat = lambda leaf: jnp.concatenate([leaf] * count) if jnp.ndim(leaf) else leaf
        joined = denoise(repeat(x), jax.tree.map(repeat, level))
        size = x.shape[0]
        cut = lambda i: jax.tree.map(lambda leaf: leaf[i * size : (i + 1) * size], joined)
        return tuple(cut(i) for i in range(count))

    return estimates


def guide(
    estimates: Estimates, guidance: Callable[..., Denoiser], *, elsewhere: Sequence[Denoiser] = ()
) -> Denoiser:
    """Apply a guidance to estimates that were made together.

    Args:
      estimates: see `one_by_one` and `in_one_call`.
      guidance: a function from one denoiser for each estimate to the guided one, such as
        `partial(classifier_free, guidance_scale=3.0)`. It may nest several transforms.
      elsewhere: the denoisers, each by itself, for guidances that ask for estimates at another x
        or level too, as `blur_guidance` does; without them there are none.

    >>> both = one_by_one(lambda x, level: 3.0 * x, lambda x, level: x)
    >>> guide(both, lambda a, b: lambda x, level: a(x, level) - b(x, level))(1.0, None)
    2.0
    """

    def guided(x: Array, level: NoiseLevel) -> Any:
        found = zip_longest(estimates(x, level), elsewhere)
        return guidance(*(_known(each, x, level, other) for each, other in found))(x, level)

    return guided


def x0_of(estimate: Any) -> Array:
    """The estimate of x0 alone, without a learned variance."""
    return estimate.x0 if isinstance(estimate, LearnedVariance) else estimate


def pair(estimates: Any) -> tuple[Any, Array]:
    """The conditional estimate and the unconditional x0, for solvers that guide on their own.

    Raises:
      TypeError: there is only one estimate.
      ValueError: there are more than two.
    """
    if isinstance(estimates, LearnedVariance) or not isinstance(estimates, tuple):
        raise TypeError(
            "This solver guides by itself: in the place of the denoiser it takes the estimates of "
            "two conditions, one_by_one(conditional, unconditional) or in_one_call(...)."
        )
    if len(estimates) != 2:
        raise ValueError(
            f"There are {len(estimates)} estimates; this guidance takes two, the conditional and "
            "the unconditional one."
        )
    return estimates[0], x0_of(estimates[1])


def _known(
    estimate: Any, at_x: Array, at_level: NoiseLevel, otherwise: Denoiser | None
) -> Denoiser:
    def denoise(x: Array, level: NoiseLevel) -> Any:
        if x is at_x and level is at_level:
            return estimate
        if otherwise is None:
            raise ValueError(
                "This guidance asks for an estimate at another x or level than it was given; "
                "give guide(...) the denoisers too, as elsewhere=[...]."
            )
        return otherwise(x, level)

    return denoise


def _check_alike(conditions: tuple[dict[str, Any], ...]) -> None:
    shapes = [jax.tree.map(jnp.shape, condition) for condition in conditions]
    if not shapes or any(each != shapes[0] for each in shapes):
        raise ValueError(
            f"The shapes of the conditions are {shapes}; give at least one condition, and all of "
            "them the same entries and shapes [B, ...]."
        )
