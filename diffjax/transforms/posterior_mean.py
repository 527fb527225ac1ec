"""Inverse problems by correcting the denoiser: E[x0 | x] becomes an estimate of E[x0 | x, y].

For a linear measurement y = A x0 + sigma_y n, and with p(x0 | x) taken for a Gaussian of mean
x0(x), the denoiser's estimate, and covariance C, the mean given y too is Kalman's

    x0(x, y) = x0(x) + C A^T (A C A^T + sigma_y^2 I)^-1 (y - A x0(x))

The methods differ in C. Tweedie's second formula gives it exactly, C = (sigma^2 / alpha) J with J
the Jacobian of the denoiser, whose products with vectors cost a backward pass each; so some spare
them. C stands in two places, outside and within the inverse:

| method  | C outside              | C within the inverse                          | source     |
| ------- | ---------------------- | --------------------------------------------- | ---------- |
| mmps    | (sigma^2 / alpha) J^T  | the same, by conjugate gradients              | 2405.13712 |
| tmpd    | (sigma^2 / alpha) J^T  | the same, A C A^T by the diagonal of row sums | 2310.06721 |
| pigdm   | (sigma^2 / alpha) J^T  | that of data N(0, sigma_data^2 I)             | ICLR 2023  |
| diffpir | sigma^2 / (l alpha^2)  | the same; l is its regularization             | 2305.08995 |
| ddnm    | any number             | the same, and sigma_y = 0                     | 2212.00490 |

The first three need a backward pass through the denoiser, the last two do not. mmps is exact
where p(x0 | x) is Gaussian: for Gaussian data.

Each is a function from a denoiser to a denoiser. y may hold one measurement for each sample, or
one for all with a first axis of 1.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from diffjax.core.levels import NoiseLevel, expand, expand_level
from diffjax.core.parameterizations import Denoiser, map_x0
from diffjax.transforms.estimates import x0_of
from diffjax.transforms.linear import Operator, adjoint, conjugate_gradients, residual, ridge

# (y - A x0, x0, level, v -> C v) -> A^T (A C A^T + sigma_y^2 I)^-1 (y - A x0), in the shape of x0
Weigh = Callable[[Array, Array, NoiseLevel, Callable[[Array], Array]], Array]


def mmps(
    denoise: Denoiser,
    operator: Operator,
    y: Array,
    *,
    sigma_y: ArrayLike,
    max_iterations: int = 5,
) -> Denoiser:
    """Moment matching posterior sampling: C is the exact posterior covariance of x0 given x.

    The system is solved by conjugate gradients with one backward pass in each iteration. For
    Gaussian data it is exact once there are as many iterations as measurements. The Jacobian of a
    network is not quite symmetric, and few iterations are robust against that.
    Source: Rozet et al., Learning diffusion priors from observations by expectation maximization,
    arXiv:2405.13712, the section on moment matching posterior sampling.

    Args:
      denoise: (x, level) -> estimate of x0, differentiable.
      operator: A, a linear function [B, ...] -> [B, ...].
      y: the measurement, in the shape of A x0, or with 1 in place of B.
      sigma_y: standard deviation of its noise, positive, a number or [B]; may be traced.
      max_iterations: of conjugate gradients.

    >>> keep_first = lambda x: x[:, :1]
    >>> blind = lambda x, level: level.alpha * x / (level.alpha**2 + level.sigma**2)  # N(0, I)
    >>> informed = mmps(blind, keep_first, jnp.array([[2.0]]), sigma_y=1.0)
    >>> informed(jnp.zeros((1, 2)), NoiseLevel(*jnp.array([0.5, 0.6, 0.8]))).round(2).tolist()
    [[0.7799999713897705, 0.0]]
    """
    check_positive("mmps", sigma_y)

    def weigh(difference, x0, level, covariance):
        transpose = adjoint(operator, x0)
        variance = expand(jnp.asarray(sigma_y), difference) ** 2
        predicted = lambda v: operator(covariance(transpose(v))) + variance * v
        solved = conjugate_gradients(predicted, difference, max_iterations=max_iterations)
        return transpose(solved)

    return _corrected(denoise, operator, y, weigh)


def tmpd(denoise: Denoiser, operator: Operator, y: Array, *, sigma_y: ArrayLike) -> Denoiser:
    """Tweedie moment projected diffusion: A C A^T by a diagonal matrix with the same row sums.

    One backward pass more than without it. Exact for Gaussian data where A C A^T is diagonal, such
    as masks of independent pixels; rough where the rows of A have both signs, since the sums then
    cancel (those below 0 count as 0).
    Source: Boys et al., Tweedie moment projected diffusions, arXiv:2310.06721.

    Arguments as for `mmps`.
    """
    check_positive("tmpd", sigma_y)

    def weigh(difference, x0, level, covariance):
        transpose = adjoint(operator, x0)
        sums = operator(covariance(transpose(jnp.ones_like(difference))))
        variance = expand(jnp.asarray(sigma_y), difference) ** 2
        return transpose(difference / (jnp.maximum(sums, 0.0) + variance))

    return _corrected(denoise, operator, y, weigh)


def pigdm(
    denoise: Denoiser,
    operator: Operator,
    y: Array,
    *,
    sigma_y: ArrayLike = 0.0,
    sigma_data: ArrayLike = 1.0,
    max_iterations: int = 50,
) -> Denoiser:
    """Pseudoinverse-guided diffusion: within the inverse, C as for data N(0, sigma_data^2 I).

        x0 + (sigma^2 / alpha) J^T A^T (r^2 A A^T + sigma_y^2 I)^-1 (y - A x0)
        r^2 = sigma^2 sigma_data^2 / (alpha^2 sigma_data^2 + sigma^2)

    Without noise (sigma_y = 0) the inverse is the pseudoinverse of A. The estimate is corrected
    for x0 and for eps alike, as Tweedie's formula asks; the paper's algorithm for DDIM leaves eps
    as it was.
    Source: Song et al., Pseudoinverse-guided diffusion models for inverse problems, ICLR 2023,
    Section 3.

    Args:
      denoise, operator, y: as for `mmps`.
      sigma_y: standard deviation of the noise in y, from 0, a number or [B].
      sigma_data: standard deviation of the data.
      max_iterations: of conjugate gradients, which a `Spectral` operator does without.
    """

    def weigh(difference, x0, level, covariance):
        return ridge(
            operator, difference, x0,
            scale=isotropic_variance(level, sigma_data),
            ridge=expand(jnp.asarray(sigma_y), x0) ** 2,
            max_iterations=max_iterations,
        )  # fmt: skip

    return _corrected(denoise, operator, y, weigh)


def diffpir(
    denoise: Denoiser,
    operator: Operator,
    y: Array,
    *,
    sigma_y: ArrayLike,
    regularization: ArrayLike = 1.0,
    max_iterations: int = 50,
) -> Denoiser:
    """DiffPIR, plug-and-play restoration: the nearest estimate that explains the measurement.

        argmin_u |y - A u|^2 + rho |u - x0|^2,    rho = regularization sigma_y^2 alpha^2 / sigma^2

    The paper's sampler keeps a share zeta of the noise fresh: `renoise(fresh=zeta)`.
    Source: Zhu et al., arXiv:2305.08995, Algorithm 1.

    Args:
      denoise, operator, y: as for `mmps`; nothing is differentiated.
      sigma_y: standard deviation of the noise in y, from 0, a number or [B].
      regularization: the paper's lambda, which takes 1 to 25; trust in the denoiser.
      max_iterations: of conjugate gradients, which a `Spectral` operator does without.
    """

    def correct(x0: Array, level: NoiseLevel) -> Array:
        level = expand_level(level, x0)
        variance = expand(jnp.asarray(sigma_y), x0) ** 2
        # at sigma = 0 the estimate is certain; a finite weight keeps 0 * infinity away
        noise = jnp.maximum(jnp.square(level.sigma), 1e-20)
        rho = regularization * variance * jnp.square(level.alpha) / noise
        difference = residual(operator, y, x0)
        return x0 + ridge(operator, difference, x0, ridge=rho, max_iterations=max_iterations)

    return lambda x, level: map_x0(lambda x0: correct(x0, level), denoise(x, level))


def ddnm(denoise: Denoiser, operator: Operator, y: Array, *, max_iterations: int = 50) -> Denoiser:
    """Null-space method: what a noise-free measurement determines is taken from it.

        x0 + A^+ (y - A x0) = A^+ y + (I - A^+ A) x0

    The denoiser fills the null space of A alone. For noisy measurements see `ddnm_plus`.
    Source: Wang et al., arXiv:2212.00490, Algorithm 1.

    Args:
      denoise, operator, y: as for `mmps`; nothing is differentiated.
      max_iterations: of conjugate gradients, which a `Spectral` operator does without.
    """
    return diffpir(denoise, operator, y, sigma_y=0.0, max_iterations=max_iterations)


def linearise(denoise: Denoiser, x: Array, level: NoiseLevel):
    """The estimate of x0 at x, and the products of its posterior covariance with vectors.

    Args:
      denoise: differentiable.
      x: [B, ...] at `level`.
      level: leaves scalar or [B].

    Returns:
      x0 [B, ...]; v -> (sigma^2 / alpha) J^T v, which is 0 at zero signal; and what the denoiser
      returned, which holds more than x0 where it learned a variance.
    """

    def estimate(x):
        result = denoise(x, level)
        return x0_of(result), result

    x0, pull_back, result = jax.vjp(estimate, x, has_aux=True)
    wide = expand_level(level, x)
    # double where: at zero signal x says nothing of x0, and J / alpha is 0 / 0
    signal = wide.alpha > 0
    factor = jnp.square(wide.sigma) / jnp.where(signal, wide.alpha, 1.0)
    factor = jnp.where(signal, factor, 0.0)
    return x0, lambda v: factor * pull_back(v)[0], result


def isotropic_variance(level: NoiseLevel, sigma_data: ArrayLike) -> Array:
    """Variance of x0 given x for data N(0, sigma_data^2 I), in the shape of the level.

    sigma^2 sigma_data^2 / (alpha^2 sigma_data^2 + sigma^2)
    """
    total = jnp.square(level.alpha * sigma_data) + jnp.square(level.sigma)
    return jnp.square(level.sigma * sigma_data) / total


def check_positive(method: str, sigma_y: ArrayLike) -> None:
    """Refuse a method that divides by the noise of the measurement where there is none.

    Raises:
      ValueError: sigma_y is not positive; traced values pass.
    """
    if not isinstance(sigma_y, Tracer) and not np.all(np.asarray(sigma_y) > 0):
        raise ValueError(
            f"sigma_y is {sigma_y}; {method} needs noise > 0. For exact measurements there are "
            "pigdm and ddnm."
        )


def _corrected(denoise: Denoiser, operator: Operator, y: Array, weigh: Weigh) -> Denoiser:
    """x0 + (sigma^2 / alpha) J^T weigh(y - A x0): the gradient of a Gaussian log-likelihood."""

    def corrected(x: Array, level: NoiseLevel) -> Array:
        x0, covariance, result = linearise(denoise, x, level)
        difference = residual(operator, y, x0)
        shift = covariance(weigh(difference, x0, expand_level(level, x), covariance))
        return map_x0(lambda x0: x0 + shift, result)

    return corrected
