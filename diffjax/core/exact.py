"""Closed forms: data distributions for which everything about diffusion is known.

All of them are Gaussian mixtures. One component is a Gaussian, components without variance are a
finite data set. At a level, data from

    p(x0) = sum_k w_k N(x0; mean_k, C_k)

has again a mixture as its density,

    p(x) = sum_k w_k N(x; alpha mean_k, alpha^2 C_k + sigma^2 I),

and the posterior mean of x0, which is what a perfect denoiser returns, is

    E[x0 | x] = sum_k r_k (mean_k + alpha C_k (alpha^2 C_k + sigma^2 I)^-1 (x - alpha mean_k))

with r_k the posterior weights of the components. Every C_k is kept as its eigenvectors ("axes")
and eigenvalues ("variances"), so that no level needs a matrix to be inverted.

Samples may have any shape [B, ...]; they are flattened to [B, D].
Source: the Gaussian posterior; for data sets also arXiv:2206.00364, Appendix B.3.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.special import log_ndtr, logsumexp, ndtr
from jax.typing import ArrayLike

from diffjax.core.levels import NoiseLevel, expand, safe_sqrt
from diffjax.core.parameterizations import Denoiser
from diffjax.core.sampling import per_sample


class Mixture(NamedTuple):
    """A mixture of K Gaussians in D dimensions, made by `gaussian`, `mixture` or `dataset`.

    Attributes:
      log_weights: [K] logarithms of the weights, which sum to 1.
      means: [K, D].
      variances: [K, D] along the axes of each component, or [K, 1] when it is the same along all.
      axes: [K, D, D], axis j of component k in column axes[k, :, j]; None for coordinate axes.

    The arrays are NumPy's, float64, and take the dtype of x when they meet it.
    """

    log_weights: Array
    means: Array
    variances: Array
    axes: Array | None


def gaussian(mean: ArrayLike, covariance: ArrayLike) -> Mixture:
    """The Gaussian N(mean, covariance), as a mixture of one.

    Args:
      mean: [D].
      covariance: [D, D]; or [D], a diagonal; or a number, the same variance everywhere.

    >>> denoise = denoiser(gaussian([0.0, 0.0], 1.0))
    >>> level = NoiseLevel(jnp.array(0.5), jnp.array(0.6), jnp.array(0.8))
    >>> denoise(jnp.ones((1, 2)), level)
    Array([[0.6, 0.6]], dtype=float32)
    """
    covariance = np.atleast_1d(np.asarray(covariance, np.float64))
    return _mixture("gaussian", np.ones(1), np.asarray(mean)[None], covariance[None])


def mixture(weights: ArrayLike, means: ArrayLike, covariances: ArrayLike) -> Mixture:
    """The Gaussian mixture sum_k weights_k N(means_k, covariances_k).

    Made in float64 on the host, so the arguments are concrete numbers, not traced ones.

    Args:
      weights: [K], positive, with the sum 1.
      means: [K, D].
      covariances: [K, D, D]; or [K], a variance that is the same in all directions.

    Raises:
      ValueError: for shapes that do not fit, weights that are none, indefinite covariances.

    >>> two_modes = mixture([0.5, 0.5], [[-1.0], [1.0]], [0.01, 0.01])
    """
    covariances = np.asarray(covariances, np.float64)
    if covariances.ndim == 1:
        covariances = covariances[:, None]
    elif covariances.ndim != 3:
        raise ValueError(f"covariances has shape {covariances.shape}; it must be [K] or [K, D, D].")
    return _mixture("mixture", weights, means, covariances)


def dataset(points: ArrayLike) -> Mixture:
    """The distribution that draws each of N points with probability 1 / N.

    Its denoiser is what a network of unlimited size would learn from these points: it returns
    their average under softmax(-|x - alpha points|^2 / (2 sigma^2)).

    Args:
      points: [N, ...].

    >>> denoise = denoiser(dataset([[-1.0], [1.0]]))
    >>> denoise(jnp.ones((1, 1)), NoiseLevel(jnp.array(0.1), jnp.array(1.0), jnp.array(0.1)))
    Array([[1.]], dtype=float32)
    """
    points = np.asarray(points, np.float64)
    points = points.reshape(len(points), -1)
    weights = np.full(len(points), 1.0 / len(points))
    return _mixture("dataset", weights, points, np.zeros((len(points), 1)))


def moments(distribution: Mixture) -> tuple[Array, Array]:
    """Mean [D] and covariance [D, D] of a mixture.

    Args:
      distribution: K components in D dimensions.
    """
    weights = jnp.exp(jnp.asarray(distribution.log_weights))
    means = jnp.asarray(distribution.means)
    mean = weights @ means
    centred = means - mean
    within = jax.vmap(jnp.diag)(jnp.broadcast_to(distribution.variances, means.shape))
    if distribution.axes is not None:
        axes = jnp.asarray(distribution.axes)
        within = axes @ within @ axes.mT
    between = jnp.einsum("k,kd,ke->de", weights, centred, centred)
    return mean, jnp.einsum("k,kde->de", weights, within) + between


def marginal(distribution: Mixture, level: NoiseLevel) -> Mixture:
    """The distribution of x = alpha x0 + sigma eps at one level: a mixture again.

    The leaves of the level are scalar.
    """
    return distribution._replace(
        means=level.alpha * distribution.means,
        variances=level.alpha**2 * distribution.variances + level.sigma**2,
    )


def draw(key: Array, distribution: Mixture, num_samples: int) -> Array:
    """Independent samples of a mixture.

    Args:
      key: one key, or [num_samples] keys.
      distribution: K components in D dimensions.
      num_samples: B.

    Returns:
      [B, D] float32 (float64 under x64).

    >>> draw(jax.random.key(0), gaussian([0.0, 0.0], 1.0), 4).shape
    (4, 2)
    """
    log_weights, means, variances, axes = jax.tree.map(jnp.asarray, distribution)

    def one(key):
        choose, noise = jax.random.split(key)
        k = jax.random.categorical(choose, log_weights)
        offset = jnp.sqrt(variances[k]) * jax.random.normal(noise, means.shape[1:], means.dtype)
        return means[k] + (offset if axes is None else axes[k] @ offset)

    return jax.vmap(one)(per_sample(key, num_samples))


def denoiser(distribution: Mixture) -> Denoiser:
    """The perfect denoiser of a mixture, (x, level) -> E[x0 | x].

    Valid at every level: at alpha = 0 it returns the mean of the data, at sigma = 0, where x is
    clean, x / alpha. For a large data set pass the mixture through `jit` as an argument, or it is
    compiled in as a constant.

    Args:
      distribution: of the clean data.

    Returns:
      (x [B, ...], level with leaves scalar or [B]) -> [B, ...]; it raises ValueError where x has
      other than D numbers a sample.
    """

    def denoise(x: Array, level: NoiseLevel) -> Array:
        # double where: without noise the variances may be 0, and gradients NaN
        clean = jnp.asarray(level.sigma) <= 0
        noisy = level._replace(sigma=jnp.where(clean, 1.0, level.sigma))
        mix, flat, alpha, sigma = _prepare(distribution, x, noisy)
        offset, variance = _offsets(mix, flat, alpha, sigma)
        weights = jax.nn.softmax(_log_joint(mix, offset, variance), axis=-1)
        # E[x0 | x, component] = mean + gain offset
        gain = alpha * mix.variances / variance
        moved = _average(weights, _from_axes(mix, gain * offset))
        estimate = (weights @ mix.means + moved).reshape(x.shape)
        clean = expand(clean, x)
        return jnp.where(clean, x / jnp.where(clean, expand(level.alpha, x), 1.0), estimate)

    return denoise


def coordinatewise(denoise: Denoiser) -> Denoiser:
    """Apply a denoiser of one-dimensional data to every coordinate of x on its own.

    The denoiser of data whose coordinates are independent and all distributed alike.

    Args:
      denoise: of x [n, 1] and levels with leaves scalar or [n].
    """

    def each(x: Array, level: NoiseLevel) -> Array:
        size = math.prod(x.shape[1:])
        repeat = lambda leaf: jnp.repeat(leaf, size) if jnp.ndim(leaf) else leaf
        return denoise(x.reshape(-1, 1), jax.tree.map(repeat, level)).reshape(x.shape)

    return each


def log_likelihood(distribution: Mixture, x: Array, level: NoiseLevel) -> Array:
    """Log-density of noisy data at a level, in nats: [B].

    Args:
      distribution: the distribution of the clean data.
      x: [B, ...] data at the level.
      level: leaves scalar or [B]. At sigma = 0 the components need variance in all directions.
    """
    mix, flat, alpha, sigma = _prepare(distribution, x, level)
    dims = flat.shape[-1]
    joint = _log_joint(mix, *_offsets(mix, flat, alpha, sigma))
    return logsumexp(joint, axis=-1) - 0.5 * dims * math.log(2.0 * math.pi)


def score(distribution: Mixture, x: Array, level: NoiseLevel) -> Array:
    """Gradient of `log_likelihood` with respect to x: [B, ...]. Arguments as there."""
    mix, flat, alpha, sigma = _prepare(distribution, x, level)
    offset, variance = _offsets(mix, flat, alpha, sigma)
    weights = jax.nn.softmax(_log_joint(mix, offset, variance), axis=-1)
    pull = _average(weights, _from_axes(mix, -offset / variance))
    return pull.reshape(x.shape)


def posterior_weights(distribution: Mixture, x: Array, level: NoiseLevel) -> Array:
    """Probability of each component given noisy data at a level: [B, K]. Arguments as above."""
    mix, flat, alpha, sigma = _prepare(distribution, x, level)
    return jax.nn.softmax(_log_joint(mix, *_offsets(mix, flat, alpha, sigma)), axis=-1)


def probability_flow(
    distribution: Mixture, x: Array, current: NoiseLevel, next_: NoiseLevel
) -> Array:
    """Where the probability-flow ODE carries x from one level to another, exactly.

    It is what deterministic samplers (DDIM, Heun, DPM-Solver, ...) converge to. Known for

    - one component: along each of its axes, distances from the mean scale as the standard
      deviation does;
    - one dimension: the flow keeps the order of points, hence the distribution function,
      F_next(y) = F_current(x). With D = 1 every coordinate of x is carried on its own.

    Differentiable in all arguments.

    Args:
      distribution: one component, or one dimension.
      x: [B, ...] data at `current`.
      current, next_: scalar leaves, in either order.

    Returns:
      [B, ...] data at `next_`.

    Raises:
      ValueError: several components in several dimensions.
    """
    num_components, dims = distribution.means.shape
    mix = _in_dtype(distribution, x)
    start, end = marginal(mix, current), marginal(mix, next_)
    if dims == 1:
        return _match_distribution_functions(start, end, x)
    if num_components == 1:
        _, flat, _, _ = _prepare(distribution, x, current)
        offset = _to_axes(mix, flat[:, None] - start.means)
        ratio = safe_sqrt(end.variances) / safe_sqrt(start.variances)
        moved = _from_axes(mix, offset * jnp.where(start.variances > 0, ratio, 0.0))
        return (end.means + moved[:, 0]).reshape(x.shape)
    raise ValueError(
        f"probability_flow: the mixture has {num_components} components in {dims} dimensions; "
        "the flow is known for one component or for one dimension."
    )


def _match_distribution_functions(start: Mixture, end: Mixture, x: Array) -> Array:
    """Solve F_end(y) = F_start(x) for y, by bisection to the last digit."""

    def standardised(mix, values):
        return (values[..., None] - mix.means[:, 0]) / safe_sqrt(mix.variances)[:, 0]

    at_x = standardised(start, x)
    # compare logarithms, from the nearer tail: F on the left, 1 - F on the right
    weights = jnp.exp(start.log_weights)
    tail = jnp.where(jnp.sum(weights * ndtr(at_x), axis=-1) < 0.5, 1.0, -1.0)

    def log_tail(z):
        return logsumexp(start.log_weights + log_ndtr(tail[..., None] * z), axis=-1)

    wanted = log_tail(at_x)

    def excess(y):
        return tail * (log_tail(standardised(end, y)) - wanted)

    def bisect(function, _):
        def halve(_, bracket):
            low, high = bracket
            middle = 0.5 * (low + high)
            below = function(middle) < 0
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

        # each component alone would move x to one of these points; the mixture moves it between
        ends = end.means[:, 0] + safe_sqrt(end.variances)[:, 0] * at_x
        bracket = jnp.min(ends, axis=-1), jnp.max(ends, axis=-1)
        low, high = lax.fori_loop(0, jnp.finfo(x.dtype).nmant + 8, halve, bracket)
        return 0.5 * (low + high)

    # the gradient is that of the equation, not of the bisection
    return lax.custom_root(excess, x, bisect, lambda slope, y: y / slope(jnp.ones_like(y)))


def _mixture(name: str, weights, means, covariances: np.ndarray) -> Mixture:
    weights, means = np.asarray(weights, np.float64), np.asarray(means, np.float64)
    if means.ndim != 2 or 0 in means.shape or weights.shape != means.shape[:1]:
        raise ValueError(
            f"{name}: weights has shape {weights.shape} and means {means.shape}; "
            "they must be [K] and [K, D]."
        )
    if np.any(weights <= 0) or abs(weights.sum() - 1.0) > 1e-6:
        raise ValueError(f"{name}: the weights must be positive with sum 1, not {weights.sum():g}.")
    num_components, dims = means.shape
    shapes = [(num_components, *rest) for rest in [(1,), (dims,), (dims, dims)]]
    if covariances.shape not in shapes:
        raise ValueError(f"{name}: covariances of shape {covariances.shape} do not fit the means.")
    variances, axes = covariances, None
    if covariances.ndim == 3:
        variances, axes = np.linalg.eigh(covariances)
        if not np.allclose(covariances, np.swapaxes(covariances, 1, 2)):
            raise ValueError(f"{name}: a covariance is not symmetric.")
    if np.any(variances < -1e-9 * np.abs(variances).max()):
        raise ValueError(f"{name}: a covariance has the negative eigenvalue {variances.min():g}.")
    arrays: Any = (np.log(weights), means, np.maximum(variances, 0.0), axes)
    return Mixture(*arrays)


def _in_dtype(distribution: Mixture, x: Array) -> Mixture:
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), distribution)


def _prepare(distribution: Mixture, x: Array, level: NoiseLevel):
    """The mixture in x's dtype, x as [B, D], alpha and sigma as [B or 1, 1, 1]."""
    dims = distribution.means.shape[1]
    flat = x.reshape(x.shape[0], -1)
    if flat.shape[1] != dims:
        raise ValueError(
            f"x of shape {x.shape} has {flat.shape[1]} numbers a sample; the distribution has "
            f"{dims} dimensions. (Independent coordinates: coordinatewise.)"
        )
    alpha, sigma = (jnp.reshape(leaf, (-1, 1, 1)) for leaf in (level.alpha, level.sigma))
    return _in_dtype(distribution, x), flat, alpha, sigma


def _offsets(mix: Mixture, flat: Array, alpha: Array, sigma: Array) -> tuple[Array, Array]:
    """x - alpha mean_k along the axes of each component, [B, K, D], and the variances there."""
    offset = _to_axes(mix, flat[:, None, :] - alpha * mix.means)
    return offset, alpha**2 * mix.variances + sigma**2


def _log_joint(mix: Mixture, offset: Array, variance: Array) -> Array:
    """log(w_k N(x; component k)) up to the constant of pi: [B, K]."""
    variance = jnp.broadcast_to(variance, offset.shape)
    return mix.log_weights - 0.5 * jnp.sum(offset**2 / variance + jnp.log(variance), axis=-1)


def _to_axes(mix: Mixture, values: Array) -> Array:
    return values if mix.axes is None else jnp.einsum("kde,bkd->bke", mix.axes, values)


def _from_axes(mix: Mixture, values: Array) -> Array:
    return values if mix.axes is None else jnp.einsum("kde,bke->bkd", mix.axes, values)


def _average(weights: Array, values: Array) -> Array:
    return jnp.einsum("bk,bkd->bd", weights, values)
