"""Editing: sampling that starts from data.

    image_to_image       noise x0 part of the way, denoise it anew (SDEdit)
    edit_by_inversion    walk x0 to its noise with one denoiser, back with another
    denoise_noisy        take noisy data for what it is, a noised x0, and go on from its level

Each is a few lines around `sample`, for any solver and with any denoiser: guided, tiled, clipped.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffjax.core.arguments import concrete_values
from diffjax.core.keys import fold_in_each, normal_each
from diffjax.core.levels import NoiseLevel, add_noise
from diffjax.core.parameterizations import Denoiser
from diffjax.core.sampling import Solver, per_sample, sample
from diffjax.core.schedules import Schedule
from diffjax.core.sigma_grids import karras_ratios, levels_at

START_NOISE = 2**30  # what the keys of the start are folded with; `sample` folds numbers of steps


def tail(levels: NoiseLevel, strength: float) -> NoiseLevel:
    """The last part of a grid: of N steps the last int(strength N).

    Args:
      levels: [N + 1] grid, noise first.
      strength: in (0, 1]; 1 is the whole grid.

    Raises:
      ValueError: strength is out of range, or so small that no step is left.

    >>> levels = NoiseLevel(*jnp.linspace(1.0, 0.0, 5)[None].repeat(3, 0))
    >>> tail(levels, 0.5).t.tolist()
    [0.5, 0.25, 0.0]
    """
    length = len(levels.t) - 1
    # 0.58 x 50 is 28.999...
    steps = int(strength * length + 1e-6)
    if not 0.0 < strength <= 1.0 or steps < 1:
        raise ValueError(
            f"strength is {strength}; it must be in (0, 1] and leave at least one of the grid's "
            f"{length} steps."
        )
    return jax.tree.map(lambda leaf: leaf[length - steps :], levels)


def image_to_image(
    key: Array,
    x0: Array,
    denoise: Denoiser,
    solver: Solver,
    levels: NoiseLevel,
    *,
    strength: float = 0.6,
) -> Array:
    """SDEdit: noise data to a level in the middle of the grid and sample from there.

    What the noise hides is drawn anew, under the denoiser's condition; what it leaves is kept.
    Source: arXiv:2108.01073, Algorithm 1.

    Args:
      key: one key, or [B] keys, one for each sample.
      x0: [B, ...] clean data: a picture, a sketch, a collage.
      denoise, solver, levels: as in `sample`.
      strength: share of the grid that is walked, in (0, 1]: see `tail`.

    Returns:
      [B, ...] at the last level, float32.

    >>> from diffjax.core import grids, sampling, schedules
    >>> levels = schedules.cosine()(grids.trailing(10))
    >>> solver = sampling.stateless(lambda keys, x, denoise, current, next_: denoise(x, current))
    >>> x0 = jnp.ones((2, 3))
    >>> image_to_image(jax.random.key(0), x0, lambda x, level: 0 * x, solver, levels).shape
    (2, 3)
    """
    require_floats("x0", x0)
    levels = tail(levels, strength)
    keys = per_sample(key, x0.shape[0])
    noise = normal_each(fold_in_each(keys, START_NOISE), x0.shape[1:])
    first = jax.tree.map(lambda leaf: leaf[0], levels)
    return sample(keys, add_noise(x0, noise, first), denoise, solver, levels)


def edit_by_inversion(
    key: Array,
    x0: Array,
    source: Denoiser,
    target: Denoiser,
    levels: NoiseLevel,
    *,
    inversion: Solver,
    solver: Solver,
    strength: float = 1.0,
) -> Array:
    """Edit data by its own noise: up with the old condition, down with the new one.

    With `target` the same as `source` the data comes back, up to the error of the steps. What the
    noise of x0 says beside the condition (place, slant, colours) stays.
    Source: DDIM, arXiv:2010.02502, Section 4.3; editing by it: arXiv:2110.02711, Section 4.

    Args:
      key: as in `sample`; deterministic solvers do not use it.
      x0: [B, ...] clean data.
      source: a denoiser for the data as it is. Guidance (other than a scale of 1) makes the
        inversion inexact.
      target: a denoiser for the data as it is wanted.
      levels: [N + 1] grid, noise first.
      inversion: a solver that walks up, `ddim_inversion()`.
      solver: a deterministic solver that walks down, `ddim()`.
      strength: share of the grid that is walked, in (0, 1]: see `tail`.

    Returns:
      [B, ...] at the last level, float32.
    """
    require_floats("x0", x0)
    levels = tail(levels, strength)
    rising = jax.tree.map(lambda leaf: leaf[::-1], levels)
    noise = sample(key, x0, source, inversion, rising)
    return sample(key, noise, target, solver, levels)


def denoise_noisy(
    key: Array,
    y: Array,
    denoise: Denoiser,
    solver: Solver,
    schedule: Schedule,
    noise_std: ArrayLike,
    *,
    num_steps: int = 20,
) -> Array:
    """Remove the noise of y = x0 + noise_std eps, by sampling from the level that y is at.

        x = alpha y    at the level with sigma / alpha = noise_std

    is x0 noised to that level, so that a stochastic solver draws from p(x0 | y) and the denoiser
    itself, called once on x, returns its mean, the estimate of least squared error.

    Args:
      key: one key, or [B] keys, one for each sample.
      y: [B, ...] noisy data, in the units of x0.
      denoise, solver: as in `sample`.
      schedule: that the denoiser was trained on.
      noise_std: a number, may be traced: see `estimate_noise_std`.
      num_steps: of the walk from there to clean data, on Karras' grid.

    Returns:
      [B, ...] float32.
    """
    require_floats("y", y)
    levels = noisy_levels(schedule, noise_std, num_steps)
    return sample(key, levels.alpha[0] * y, denoise, solver, levels)


def noisy_levels(schedule: Schedule, noise_std: ArrayLike, num_steps: int = 20) -> NoiseLevel:
    """The grid [num_steps + 1] from the level with sigma / alpha = noise_std to clean data.

    Ratios are spaced as in EDM (arXiv:2206.00364, Eq. 5), from noise_std to a hundredth of it.

    Args:
      schedule: of the levels.
      noise_std: of the noise on unscaled data, positive.
      num_steps: at least 1.

    Raises:
      ValueError: noise_std is not one positive number.

    >>> from diffjax.core.schedules import cosine
    >>> levels = noisy_levels(cosine(), 0.5, num_steps=2)
    >>> (levels.sigma / levels.alpha).round(3)
    Array([0.5  , 0.005, 0.   ], dtype=float32)
    """
    values = concrete_values(noise_std)
    if jnp.ndim(noise_std) or (values is not None and not values > 0):
        raise ValueError(
            f"noise_std is {noise_std}; needed is one positive number, of all samples. Samples of "
            "several noises are denoised one group after the other."
        )
    return levels_at(schedule, jnp.asarray(noise_std) * karras_ratios(num_steps, 0.01, 1.0))


def require_floats(name: str, x: Array) -> None:
    """Refuse pictures as bytes where data in the range of the denoiser are needed.

    Raises:
      TypeError: x holds integers.
    """
    if not jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating):
        raise TypeError(
            f"{name} holds {jnp.asarray(x).dtype}; needed are floats in the range that the "
            "denoiser was trained on, such as images / 127.5 - 1 of bytes."
        )


def estimate_noise_std(y: Array) -> Array:
    """Estimate the standard deviation of white noise in each image: [B].

        median |d| / 0.6745,    d = the differences of neighbours along every spatial axis,
                                    normalised to keep the variance of white noise

    Smooth parts of a picture leave nothing in d, so noise is what is left; edges are outliers,
    which the median leaves out. Pictures that are full of detail are taken for noisy.
    Source: Donoho and Johnstone, Ideal spatial adaptation by wavelet shrinkage, 1994, Section 4.

    Args:
      y: [B, *spatial, C].

    Raises:
      ValueError: no spatial axis, or one of a single pixel.

    >>> y = 0.3 * jax.random.normal(jax.random.key(0), (1, 64, 64, 1))
    >>> estimate_noise_std(y).round(1)
    Array([0.3], dtype=float32)
    """
    if y.ndim < 3 or min(y.shape[1:-1]) < 2:
        raise ValueError(
            f"y has the shape {y.shape}; needed is [B, *spatial, C] with at least two pixels along "
            "every spatial axis."
        )
    detail = y
    for axis in range(1, y.ndim - 1):
        pairs = y.shape[axis] // 2
        # neighbours that share no pixel with the next pair: the finest Haar wavelets
        even, odd = (
            jax.lax.slice_in_dim(detail, start, 2 * pairs, stride=2, axis=axis) for start in (0, 1)
        )
        detail = (even - odd) / np.sqrt(2.0)
    return jnp.median(jnp.abs(detail).reshape(y.shape[0], -1), axis=1) / 0.6745
