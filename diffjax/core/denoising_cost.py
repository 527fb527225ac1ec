"""What a sample costs a denoiser between two noise levels: the part of -log p(x0) learned there.

    cost = 1/2 int E_eps |x0 - D(alpha x0 + sigma eps)|^2 dSNR,    SNR = alpha^2 / sigma^2

is the diffusion term of the variational bound, for levels of any schedule. Over all levels it is
-log p(x0) but for a constant that belongs to the data's size alone, so that differences tell

    of two samples of the same condition     which is likelier under it;
    of two conditions of the same sample     log p(x0 | c') / p(x0 | c) = cost(c) - cost(c'): with
                                             a condition of each class, a classifier by a softmax.

Differences under the same keys are much less noisy than each cost.

Sources: VDM, arXiv:2107.00630, Eq. 17; Information-Theoretic Diffusion, arXiv:2302.03792, Eq. 5
and 9; as a classifier, arXiv:2303.16203.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from diffjax.core.keys import fold_in_each, normal_each
from diffjax.core.levels import NoiseLevel, add_noise, logsnr
from diffjax.core.parameterizations import Denoiser
from diffjax.core.samples import inner_each
from diffjax.core.sampling import per_sample


def denoising_cost(
    key: Array, x0: Array, denoise: Denoiser, levels: NoiseLevel, *, num_draws: int = 1
) -> Array:
    """The cost of every sample in nats, by the trapezoidal rule over log SNR.

    Traceable and differentiable; nothing depends on the batch.

    Args:
      key: one key, or [B] keys.
      x0: [B, ...] clean samples, float32.
      denoise: (x, level) -> estimate of x0.
      levels: [N] levels, N >= 2, from noisy to clean, 0 < sigma and 0 < alpha; such as
        `levels_at(schedule, jnp.geomspace(20.0, 0.05, 64))`.
      num_draws: noises at each level, which are averaged over.

    Returns:
      [B] float32.

    Raises:
      ValueError: there are fewer than two levels, or no draw.

    >>> from diffjax.core import exact, schedules
    >>> told = exact.denoiser(exact.gaussian([1.0], 0.01))
    >>> untold = exact.denoiser(exact.mixture([0.5, 0.5], [[-1.0], [1.0]], [0.01, 0.01]))
    >>> levels = schedules.levels_at(schedules.cosine(), jnp.geomspace(30.0, 0.05, 64))
    >>> given = jax.random.key(0), jnp.ones((1, 1))
    >>> cost = lambda denoise: denoising_cost(*given, denoise, levels, num_draws=1000)
    >>> ((cost(untold) - cost(told)) / jnp.log(2.0)).round(1)  # bits: which of two
    Array([1.], dtype=float32)
    """
    count = levels.alpha.shape[0] if jnp.ndim(levels.alpha) else 1
    if count < 2 or num_draws < 1:
        raise ValueError(
            f"denoising_cost: there are {count} levels and {num_draws} draws; needed are at least "
            "2 and 1."
        )
    keys = per_sample(key, x0.shape[0])

    def error(row: tuple[Array, NoiseLevel]) -> Array:
        number, level = row
        eps = normal_each(fold_in_each(keys, number), x0.shape[1:], x0.dtype)
        missed = x0 - denoise(add_noise(x0, eps, level), level)
        return inner_each(missed, missed)

    repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, num_draws), levels)
    errors = lax.map(error, (jnp.arange(count * num_draws), repeated))
    gaps = jnp.diff(logsnr(levels))
    widths = 0.5 * (jnp.append(gaps, 0.0) + jnp.append(0.0, gaps))
    weights = 0.5 * widths * (levels.alpha / levels.sigma) ** 2
    return weights @ errors.reshape(count, num_draws, -1).mean(axis=1)
