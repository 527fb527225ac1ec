"""Langevin dynamics: sampling one noise level by its score, and solvers that go through levels.

A step of size e at a level leaves the distribution of that level as it is, but for O(e),

    x <- x + e score + sqrt(2 e) z,    score = (alpha x0 - x) / sigma^2

`annealed_langevin` (NCSN) makes many such steps at every level and nothing else. `langevin` makes
few of them, with a size told by a signal-to-noise ratio; `predictor_corrector` puts it in front of
every step of another solver. `consistent_annealed` joins each step to the next level in such a way
that x always holds as much noise as the level says.
Sources: NCSN, arXiv:1907.05600, Algorithm 1; Score SDE, arXiv:2011.13456, Algorithms 1-5;
Jolicoeur-Martineau et al., arXiv:2009.05475, Algorithm 2.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from diffjax.core.keys import Normal, fold_in_each, normal_each
from diffjax.core.levels import NoiseLevel, expand, safe_sqrt
from diffjax.core.parameterizations import Denoiser, estimate_eps
from diffjax.core.sampling import Solver, stateless
from diffjax.solvers.sde import estimate_score, reverse_diffusion

# (keys, x, denoise, level) -> x at the same level
Corrector = Callable[[Array, Array, Denoiser, NoiseLevel], Array]


def langevin_update(x: Array, score: Array, noise: Array, size: ArrayLike) -> Array:
    """One step of Langevin dynamics as a plain formula: x + size score + sqrt(2 size) noise.

    Args:
      x: [B, ...] float32.
      score: [B, ...] gradient of the log-density at x.
      noise: [B, ...] standard normal.
      size: of the step, scalar or [B].
    """
    size = expand(jnp.asarray(size), x)
    return x + size * score + safe_sqrt(2.0 * size) * noise


def norm_each(values: Array) -> Array:
    """The Euclidean norm of each sample: [B] of [B, ...]."""
    return safe_sqrt(jnp.sum(values**2, axis=tuple(range(1, values.ndim))))


def langevin(
    snr: ArrayLike = 0.16,
    num_inner: int = 1,
    *,
    norm: Callable[[Array], Array] = norm_each,
    normal: Normal = normal_each,
) -> Corrector:
    """A corrector: Langevin steps at one level, their size told by a signal-to-noise ratio.

        size = 2 (snr |z| / |score|)^2

    Norms are those of each sample, so that no sample depends on its batch; the paper's code takes
    their means over the batch.
    Source: Score SDE, arXiv:2011.13456, Algorithms 4 and 5.

    Args:
      snr: the ratio, 0.16 for CIFAR-10 in the paper, 0.01 to 0.4 elsewhere; may be traced.
      num_inner: steps, one call of the network each.
      norm: [B, ...] -> [B] or scalar, the length of scores and noises.
      normal: how noise is drawn; another function than the default may replay recorded draws.

    >>> corrector = langevin(snr=0.1)
    """
    _check_inner(num_inner)

    def correct(keys, x, denoise, level):
        def body(i, x):
            score = estimate_score(x, denoise(x, level), level)
            noise = normal(fold_in_each(keys, i), x.shape[1:], x.dtype)
            length = norm(score)
            # without a slope there is nothing to correct
            ratio = jnp.where(length > 0, norm(noise) / jnp.where(length > 0, length, 1.0), 0.0)
            return langevin_update(x, score, noise, 2.0 * (snr * ratio) ** 2)

        return lax.fori_loop(0, num_inner, body, x)

    return correct


def predictor_corrector(
    predictor: Solver | None = None, corrector: Corrector | None = None
) -> Solver:
    """A solver that corrects x at the current level before the predictor leaves it.

    Source: Score SDE, arXiv:2011.13456, Algorithm 1; the order of the two is that of its code,
    which ends with a predictor and thus free of noise.

    Args:
      predictor: any solver; `reverse_diffusion()` by default.
      corrector: what is done at each level; `langevin()` by default.

    >>> solver = predictor_corrector(reverse_diffusion(), langevin(snr=0.15))
    """
    predict = reverse_diffusion() if predictor is None else predictor
    correct = langevin() if corrector is None else corrector

    def step(keys, x, state, denoise, current, next_, **planned):
        x = correct(fold_in_each(keys, 0), x, denoise, current)
        keys = fold_in_each(keys, 1)
        return predict.step(keys, x, state, denoise, current, next_, **planned)

    return predict._replace(step=step)


def annealed_langevin(
    step_size: ArrayLike = 0.2,
    num_inner: int = 100,
    *,
    denoise_last: bool = True,
    normal: Normal = normal_each,
) -> Solver:
    """NCSN's sampler: `num_inner` Langevin steps at each level, then on with the same x.

        x <- x + (a / 2) score + sqrt(a) z,    a = step_size sigma^2

    A grid of L levels and the clean end makes L steps; x / alpha is kept from level to level.
    Source: NCSN, arXiv:1907.05600, Algorithm 1; for the end, arXiv:2009.05475, Section 3.

    Args:
      step_size: epsilon / sigma_L^2 of the paper, 2e-5 / 0.01^2 there; below 4. May be traced.
      num_inner: T, calls of the network at each level.
      denoise_last: return the estimate of x0 at clean data, with one call more; otherwise x keeps
        the noise of the last level.
      normal: how noise is drawn; another function than the default may replay recorded draws.

    >>> solver = annealed_langevin(num_inner=5)
    """
    _check_inner(num_inner)

    def step(keys, x, denoise, current, next_):
        size = 0.5 * step_size * current.sigma**2

        def body(i, x):
            score = estimate_score(x, denoise(x, current), current)
            noise = normal(fold_in_each(keys, i), x.shape[1:], x.dtype)
            return langevin_update(x, score, noise, size)

        x = lax.fori_loop(0, num_inner, body, x)
        # pure noise has no signal to be scaled by
        signal = current.alpha > 0
        keep = jnp.where(
            signal,
            next_.alpha / jnp.where(signal, current.alpha, 1.0),
            next_.sigma / current.sigma,
        )
        if not denoise_last:
            return keep * x
        return lax.cond(
            next_.sigma > 0, lambda: keep * x, lambda: next_.alpha * denoise(x, current)
        )

    return stateless(step)


def consistent_annealed(eta: ArrayLike = 0.25, *, normal: Normal = normal_each) -> Solver:
    """Consistent annealed sampling: a share of the noise is replaced by fresh noise in every step.

        x_s = alpha_s x0 + d eps + sqrt(sigma_s^2 - d^2) z,
        d = (1 - eta) alpha_s sigma_t / alpha_t, at most sigma_s

    With alpha = 1 it is x + eta sigma_t^2 score + sqrt(sigma_s^2 - (1 - eta)^2 sigma_t^2) z. Where
    eta is too small for the step it is one of DDIM; eta = 1 replaces all of the noise.
    Source: arXiv:2009.05475, Algorithm 2, with eta = epsilon / sigma_L^2.

    Args:
      eta: how far each step goes from x towards x0, in [0, 1]; may be traced.
      normal: how noise is drawn; another function than the default may replay recorded draws.

    >>> solver = consistent_annealed(eta=0.1)
    """

    def step(keys, x, denoise, current, next_):
        x0 = denoise(x, current)
        # pure noise, alpha = 0, has more noise to keep than any level
        ratio = current.sigma / jnp.where(current.alpha > 0, current.alpha, 1e-6)
        kept = jnp.minimum((1.0 - eta) * next_.alpha * ratio, next_.sigma)
        spread = safe_sqrt((next_.sigma - kept) * (next_.sigma + kept))
        noise = spread * normal(keys, x.shape[1:], x.dtype)
        return next_.alpha * x0 + kept * estimate_eps(x, x0, current) + noise

    return stateless(step)


def _check_inner(num_inner: int) -> None:
    if num_inner < 1:
        raise ValueError(f"num_inner is {num_inner}; Langevin dynamics needs at least one step.")
