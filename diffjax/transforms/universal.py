"""Universal guidance: by any differentiable loss on x0, with no model of noisy data.

    forward_guidance     the gradient of loss(denoise(x)) with respect to x, through the denoiser
    backward_guidance    gradient descent on loss(x0) with respect to the estimate itself
    renoising            walks every step several times (`resampling`): self-recurrence

Each is a transform of its own; the paper nests all three:

    denoise = backward_guidance(forward_guidance(denoise, loss, strength=1.0), loss)
    sample(key, x, denoise, renoising(ddim()), revisited(levels, jump_length=1))

A loss knows no "off at 1": its strength counts from 0, off.
Source: arXiv:2302.07121, Algorithm 1.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from diffjax.core.levels import NoiseLevel, expand
from diffjax.core.parameterizations import Denoiser, map_x0
from diffjax.core.samples import mean_each
from diffjax.transforms.classifier import score_gain, total
from diffjax.transforms.estimates import x0_of
from diffjax.transforms.guidance import Scale, scale_at

# x0 [B, ...] -> [B], small where x0 is as wanted
Loss = Callable[[Array], Array]


def forward_guidance(denoise: Denoiser, loss: Loss, *, strength: Scale = 1.0) -> Denoiser:
    """Lean against the gradient of a loss on the estimate, taken through the denoiser.

        x0 = denoise(x) - strength (sigma^2 / alpha) grad_x loss(denoise(x))

    This is classifier guidance with log p(y | x) = -loss(denoise(x)). A strength of 0 is off.
    Source: arXiv:2302.07121, Eq. 6; its s(t) sqrt(1 - alpha_t) on the noise is this on x0.

    Args:
      denoise: differentiable in x.
      loss: x0 [B, ...] -> [B].
      strength: a number, [B], or a function from the level to one; may be traced.

    >>> guided = forward_guidance(lambda x, level: x, lambda x0: 0.5 * (x0**2).sum(-1))
    >>> guided(jnp.ones((1, 2)), NoiseLevel(*jnp.array([0.5, 1.0, 0.5])))
    Array([[0.75, 0.75]], dtype=float32)
    """

    def guided(x: Array, level: NoiseLevel) -> Any:
        def objective(x: Array) -> tuple[Array, Any]:
            estimate = denoise(x, level)
            return total(loss(x0_of(estimate)), x, "loss"), estimate

        gradient, estimate = jax.grad(objective, has_aux=True)(x)
        push = scale_at(strength, level, x) * gradient
        return map_x0(lambda x0: x0 - expand(score_gain(level), x) * push, estimate)

    return guided


def backward_guidance(
    denoise: Denoiser, loss: Loss, *, num_steps: int = 10, step_size: Scale = 0.1
) -> Denoiser:
    """Move the estimate down the loss, without a gradient of the denoiser.

        x0 <- x0 - step_size grad loss(x0),    num_steps times

    A step size of 0 is off. Source: arXiv:2302.07121, Eqs. 7-9, which reads the same on the noise.

    Args:
      denoise: the denoiser.
      loss: x0 [B, ...] -> [B].
      num_steps: of gradient descent.
      step_size: a number, [B], or a function from the level to one; may be traced.

    >>> loss = lambda x0: 0.5 * (x0**2).sum(-1)
    >>> guided = backward_guidance(lambda x, level: x, loss, num_steps=1, step_size=0.5)
    >>> guided(jnp.ones((1, 2)), None)
    Array([[0.5, 0.5]], dtype=float32)
    """

    def guided(x: Array, level: NoiseLevel) -> Any:
        size = scale_at(step_size, level, x)
        slope = jax.grad(lambda x0: total(loss(x0), x0, "loss"))

        def descend(x0: Array) -> Array:
            return lax.fori_loop(0, num_steps, lambda _, x0: x0 - size * slope(x0), x0)

        return map_x0(descend, denoise(x, level))

    return guided


def match_statistics(statistics: Callable[[Array], Array], wanted: ArrayLike) -> Loss:
    """The squared distance of statistics of x0 from wanted ones: a loss for style and the like.

        loss = mean (statistics(x0) - wanted)^2

    Args:
      statistics: x0 [B, ...] -> [B, F], such as `patch_statistics` or an image embedding.
      wanted: [F] or [B, F].
    """

    def loss(x0: Array) -> Array:
        return mean_each((statistics(x0) - wanted) ** 2)

    return loss


def patch_statistics(x: Array, *, size: int = 3) -> Array:
    """Mean and covariance of the patches of an image: its texture, wherever things are.

    Args:
      x: [B, *spatial, C].
      size: pixels of a patch along every spatial axis.

    Returns:
      [B, F + F^2] with F = size^axes C.

    Raises:
      ValueError: an image without spatial axes, or smaller than a patch.

    >>> patch_statistics(jnp.ones((2, 8, 8, 1)), size=2).shape
    (2, 20)
    """
    axes = range(1, x.ndim - 1)
    if x.ndim < 3 or not 1 <= size <= min(x.shape[1:-1]):
        raise ValueError(
            f"x has the shape {x.shape} and a patch {size} pixels a side; needed are images "
            "[B, *spatial, C] that hold it."
        )
    for axis in axes:
        # the patch moves into the channels, an axis at a time
        stop = x.shape[axis] - size + 1
        shifted = [lax.slice_in_dim(x, i, i + stop, axis=axis) for i in range(size)]
        x = jnp.concatenate(shifted, axis=-1)
    patches = x.reshape(x.shape[0], -1, x.shape[-1])
    mean = patches.mean(axis=1, keepdims=True)
    centred = patches - mean
    covariance = jnp.einsum("bnf,bng->bfg", centred, centred) / patches.shape[1]
    return jnp.concatenate([mean[:, 0], covariance.reshape(x.shape[0], -1)], axis=1)
