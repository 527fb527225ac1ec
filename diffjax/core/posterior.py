"""Exact posteriors: what is left of a Gaussian mixture once part of it, or a measurement, is known.

With data from sum_k w_k N(m_k, C_k) and the measurement

    y = A x0 + n,    n ~ N(0, R),

the data given y is a mixture again, of

    S_k = A C_k A^T + R,    G_k = C_k A^T S_k^-1
    means        m_k + G_k (y - A m_k)
    covariances  C_k - G_k A C_k
    weights      w_k N(y; A m_k, S_k), normalised

so everything of `diffjax.core.exact` applies to it: its draws are posterior samples, its moments
their mean and covariance, and its denoiser is E[x0 | x, y], what a perfect conditional network
would return. This is the yardstick of inpainting and of every solver of inverse problems.

Source: Bishop, Pattern Recognition and Machine Learning, 2006, Eqs. 2.113-2.117, by component.
"""

from typing import Any

import numpy as np
from jax.typing import ArrayLike

from diffjax.core.exact import Mixture

# a measurement whose predicted covariance is worse conditioned than this carries no information
SMALLEST_RATIO = 1e-12


def condition(
    distribution: Mixture, operator: ArrayLike, measurement: ArrayLike, noise: ArrayLike = 0.0
) -> Mixture:
    """The mixture of x0 given a linear measurement y = A x0 + n, n ~ N(0, noise).

    Made in float64 on the host, so the arguments are concrete numbers, not traced ones.

    Args:
      distribution: of x0, K components in D dimensions.
      operator: A, [M, D].
      measurement: y, [M].
      noise: covariance of n: a number, [M] its diagonal, or [M, M]; 0 is an exact measurement.

    Returns:
      The posterior, K components in D dimensions.

    Raises:
      ValueError: for shapes that do not fit, or an exact measurement of a direction in which a
        component does not vary: then no noise explains a y that differs from it.

    >>> from diffjax.core.exact import gaussian, moments
    >>> mean, covariance = moments(condition(gaussian([0.0], 1.0), [[1.0]], [2.0], noise=1.0))
    >>> mean.round(4).tolist(), covariance.round(4).tolist()
    ([1.0], [[0.5]])
    """
    matrix, y, covariance = _check(distribution, operator, measurement, noise)
    log_weights, means, covariances = [], [], []
    for k, mean in enumerate(np.asarray(distribution.means)):
        prior = _component_covariance(distribution, k)
        spread = matrix @ prior @ matrix.T + covariance
        _check_spread(spread, k)
        residual = y - matrix @ mean
        gain = np.linalg.solve(spread, matrix @ prior).T
        means.append(mean + gain @ residual)
        covariances.append(prior - gain @ matrix @ prior)
        distance = residual @ np.linalg.solve(spread, residual)
        log_evidence = -0.5 * (distance + np.linalg.slogdet(spread)[1])
        log_weights.append(distribution.log_weights[k] + log_evidence)
    return _assemble(distribution, np.array(log_weights), np.array(means), np.array(covariances))


def fill(distribution: Mixture, values: ArrayLike, mask: ArrayLike) -> Mixture:
    """The mixture of x0 given some of its coordinates exactly: what inpainting should draw from.

    Args:
      distribution: of x0, K components in D dimensions.
      values: [D], of which those are used where the mask is 0.
      mask: [D], 1 where a coordinate is missing and 0 where it is known.

    Returns:
      The posterior of all D coordinates; the known ones do not vary.

    Raises:
      ValueError: shapes that do not fit, a mask of other numbers; and as of `condition`.

    >>> from diffjax.core.exact import gaussian, moments
    >>> square = gaussian([0.0, 0.0], [[1.0, 0.5], [0.5, 1.0]])
    >>> moments(fill(square, [2.0, 0.0], [0, 1]))[0].round(4).tolist()
    [2.0, 1.0]
    """
    values, mask = np.ravel(np.asarray(values, np.float64)), np.ravel(np.asarray(mask))
    dims = distribution.means.shape[1]
    if values.shape != (dims,) or mask.shape != (dims,) or not np.all((mask == 0) | (mask == 1)):
        raise ValueError(
            f"values has shape {values.shape} and mask {mask.shape}; both must be [{dims}], the "
            "mask of zeros (known) and ones (missing)."
        )
    known = mask == 0
    if not known.any():
        return distribution
    return condition(distribution, np.eye(dims)[known], values[known])


def _check(distribution, operator, measurement, noise) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, y and the covariance of the noise as float64 matrices that fit."""
    matrix, y = np.asarray(operator, np.float64), np.asarray(measurement, np.float64)
    covariance = np.asarray(noise, np.float64)
    dims = distribution.means.shape[1]
    if matrix.ndim != 2 or matrix.shape[1] != dims or y.shape != matrix.shape[:1]:
        raise ValueError(
            f"operator has shape {matrix.shape} and measurement {y.shape}; they must be "
            f"[M, {dims}] and [M]."
        )
    size = len(y)
    if covariance.shape not in [(), (size,), (size, size)]:
        raise ValueError(
            f"noise has shape {covariance.shape}; it must be a number, [{size}] or "
            f"[{size}, {size}]."
        )
    if covariance.ndim < 2:
        covariance = np.diag(np.broadcast_to(covariance, size))
    return matrix, y, covariance


def _component_covariance(distribution: Mixture, k: int) -> np.ndarray:
    dims = distribution.means.shape[1]
    variances = np.broadcast_to(np.asarray(distribution.variances[k], np.float64), dims)
    if distribution.axes is None:
        return np.diag(variances)
    axes = np.asarray(distribution.axes[k], np.float64)
    return (axes * variances) @ axes.T


def _check_spread(spread: np.ndarray, k: int) -> None:
    eigenvalues = np.linalg.eigvalsh(spread)
    if eigenvalues[0] <= SMALLEST_RATIO * max(eigenvalues[-1], 0.0):
        raise ValueError(
            f"Component {k} does not vary in a direction that is measured without noise, so it "
            "fits no other value there. Give noise > 0."
        )


def _assemble(distribution: Mixture, log_weights, means, covariances) -> Mixture:
    log_weights = log_weights - log_weights.max()
    log_weights = log_weights - np.log(np.sum(np.exp(log_weights)))
    variances, axes = np.asarray(distribution.variances), distribution.axes
    # points stay points, whatever is measured of them
    if np.any(variances > 0):
        variances, axes = np.linalg.eigh(covariances)
    arrays: Any = (log_weights, means, np.maximum(variances, 0.0), axes)
    return Mixture(*arrays)
