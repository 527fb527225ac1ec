"""The variational bound in continuous time, in bits per dimension: to evaluate, and to train on.

    -log p(x0) <= L_1 + L_diffusion + L_0
    L_1         = KL(q(x_1 | x0) || N(0, p I))                             prior
    L_diffusion = 1/2 E_{t, eps} [-dSNR/dt |x0 - estimate of x0|^2]        t uniform in [0, 1]
    L_0         = E_eps [-log p(x0 | x at t = 0)]                          reconstruction

Seen as an integral over SNR the diffusion term holds no trace of the schedule but its two ends:
what is between them changes the variance of the Monte Carlo estimate alone. It is the loss with
the weight `likelihood`, whatever the network predicts.

The decoder p(x0 | x at t = 0) is, for every number by itself, either proportional to
q(x at t = 0 | x0) among the values that quantised data can take, or for data of infinite
precision the Gaussian N(x / alpha, sigma^2 / alpha^2).

Source: VDM, arXiv:2107.00630, Sections 3 to 5, Eqs. 17 and 18.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.scipy.special import logsumexp

from diffjax.core.keys import fold_in_each, normal_each
from diffjax.core.levels import NoiseLevel, add_noise, expand, ratio_of
from diffjax.core.loss_weights import prediction_weight
from diffjax.core.losses import Loss, regression_error, split_batch
from diffjax.core.noising import TimeSampler, as_batch_keys, draw_batch, low_discrepancy
from diffjax.core.parameterizations import (
    Denoiser,
    Parameterization,
    check_schedule,
    eps,
    run_network,
)
from diffjax.core.sampling import per_sample
from diffjax.core.schedules import Schedule, num_train_steps
from diffjax.core.sde import snr_decay
from diffjax.core.variational import bits_per_dim, prior_kl


class ContinuousBound(NamedTuple):
    """The terms of the bound, each [B], in bits per dimension.

    Attributes:
      prior: L_1, what is lost by starting from noise.
      diffusion: L_diffusion, what denoising costs.
      reconstruction: L_0, what is left to say at the clean end.
    """

    prior: Array
    diffusion: Array
    reconstruction: Array

    @property
    def total(self) -> Array:
        """Their sum, [B]: an upper bound of -log2 p(x0) per dimension."""
        return self.prior + self.diffusion + self.reconstruction


def continuous_bound(
    key: Array,
    x0: Array,
    denoise: Denoiser,
    schedule: Schedule,
    *,
    num_times: int = 100,
    num_bins: int | None = 256,
) -> ContinuousBound:
    """An unbiased estimate of the bound for every sample, by `num_times` calls of the denoiser.

    Args:
      key: one key, or [B] keys.
      x0: [B, ...] clean data, float32; quantised in [-1, 1] unless num_bins is None.
      denoise: (x, level) -> estimate of x0.
      schedule: in continuous time, with noise at t = 0: see `between`.
      num_times: at which the integral is sampled, evenly spaced under a random shift.
      num_bins: values that the data can take, spread evenly over [-1, 1]; None for a density.

    >>> from diffjax.core.logsnr_schedules import log_linear
    >>> keys, x0 = jax.random.key(0), jnp.zeros((2, 3))
    >>> bound = continuous_bound(keys, x0, lambda x, level: 0.0 * x, log_linear(), num_times=4)
    >>> bound.diffusion.tolist()
    [0.0, 0.0]
    """
    check_clean_end(schedule)
    keys = per_sample(key, x0.shape[0])
    shift = jax.vmap(jax.random.uniform)(fold_in_each(keys, num_times))
    clean, noisy = schedule(jnp.asarray(0.0)), schedule(jnp.asarray(1.0))

    def add(total, i):
        noise = normal_each(fold_in_each(keys, i), x0.shape[1:])
        t = (i + shift) / num_times
        level = schedule(t)
        error = (x0 - denoise(add_noise(x0, noise, level), level)) ** 2
        term = bits_per_dim(expand(0.5 * snr_decay(schedule, t), x0) * error)
        decoded = reconstruction_bits(x0, noise, clean, num_bins=num_bins)
        return (total[0] + term, total[1] + decoded), None

    zero = jnp.zeros(x0.shape[0], x0.dtype)
    (diffusion, reconstruction), _ = lax.scan(add, (zero, zero), jnp.arange(num_times))
    return ContinuousBound(prior_kl(x0, noisy), diffusion / num_times, reconstruction / num_times)


def reconstruction_bits(
    x0: Array, noise: Array, level: NoiseLevel, *, num_bins: int | None = 256
) -> Array:
    """-log2 p(x0 | x) of x = alpha x0 + sigma noise, per dimension: [B].

    Args:
      x0: [B, ...] clean data; on the grid -1, -1 + 2 / (num_bins - 1), ..., 1 if it is quantised.
      noise: [B, ...] standard normal.
      level: the cleanest level.
      num_bins: number of values on the grid; None for data of infinite precision.
    """
    ratio = expand(ratio_of(level), x0)
    if num_bins is None:
        # the Gaussian's -log density, with the mean of noise^2, which is 1, in its place
        return bits_per_dim(0.5 * (1.0 + jnp.log(2.0 * jnp.pi * ratio**2)) + 0.0 * x0)

    # the sum over all values costs no memory if the gradient computes it again
    @jax.checkpoint
    def negative_log_prob(ratio):
        spacing = 2.0 / (num_bins - 1)
        index = jnp.round((x0 + 1.0) / spacing)[..., None]
        away = (jnp.arange(num_bins) - index) * spacing / ratio[..., None]
        return 0.5 * noise**2 + logsumexp(-0.5 * (noise[..., None] - away) ** 2, axis=-1)

    return bits_per_dim(negative_log_prob(jnp.broadcast_to(ratio, x0.shape)))


def bound_loss(
    apply: Callable[..., Array],
    schedule: Schedule,
    parameterization: Parameterization = eps,
    *,
    times: TimeSampler = low_discrepancy,
    num_bins: int | None = 256,
) -> Loss:
    """The bound as a training loss: likelihood weighting, in bits per dimension.

    `learned_bound_loss` trains the schedule too. Source: VDM, arXiv:2107.00630, Section 5.

    Args:
      apply: `apply(params, x, t, keys=[b] keys, **conditioning)` -> [b, ...].
      schedule: in continuous time, with noise at t = 0: see `between`.
      parameterization: what the network predicts.
      times: the distribution of times, uniform for every sample.
      num_bins: values that the data can take, spread evenly over [-1, 1]; None for a density.

    Returns:
      `loss(params, batch, keys) -> (losses [b], metrics)`, as `diffusion_loss`; the metrics are
      the three terms.

    >>> from diffjax.core.logsnr_schedules import log_linear
    >>> loss = bound_loss(lambda params, x, t, keys: params * x, log_linear())
    >>> loss(0.0, {"x0": jnp.zeros((4, 8, 8, 1))}, jax.random.key(0))[0].shape
    (4,)
    """
    check_schedule(parameterization, schedule)
    check_clean_end(schedule)

    def loss(params, batch, keys):
        x0, conditioning = split_batch(batch)
        u, noise, network_keys = draw_batch(x0, as_batch_keys(keys, x0), times)
        diffusion = diffusion_bits(
            apply, params, parameterization, x0, noise, schedule(u), snr_decay(schedule, u),
            keys=network_keys, **conditioning,
        )  # fmt: skip
        return with_ends(x0, noise, diffusion, schedule, num_bins)

    return loss


def diffusion_bits(
    apply: Callable[..., Array],
    params: Any,
    parameterization: Parameterization,
    x0: Array,
    noise: Array,
    level: NoiseLevel,
    decay: Array,
    **kwargs: Any,
) -> Array:
    """The diffusion term of each sample at its own level, where SNR falls at the rate `decay`."""
    x = add_noise(x0, noise, level)
    output = run_network(apply, params, parameterization, x, level, **kwargs)
    error = regression_error(parameterization, output, x0, noise, level)
    weight = prediction_weight(lambda _: 0.5 * decay, parameterization, level)
    return weight * error / jnp.log(2.0)


def with_ends(
    x0: Array, noise: Array, diffusion: Array, schedule: Schedule, num_bins: int | None
) -> tuple[Array, dict[str, Array]]:
    """The whole bound of each sample, and its terms, from the diffusion term."""
    clean, noisy = schedule(jnp.asarray(0.0)), schedule(jnp.asarray(1.0))
    # the noise of the diffusion term serves again: the terms are added, not multiplied
    decoded = reconstruction_bits(x0, noise, clean, num_bins=num_bins)
    bound = ContinuousBound(prior_kl(x0, noisy), diffusion, decoded)
    return bound.total, bound._asdict()


def check_clean_end(schedule: Schedule) -> None:
    """Refuse schedules whose bound is infinite or not one of continuous time; traced ones pass.

    Raises:
      TypeError: for a table.
      ValueError: when there is no noise at t = 0.
    """
    if num_train_steps(schedule) is not None:
        raise TypeError(
            "The bound in continuous time needs a schedule with times in [0, 1]; "
            "variational_bound is that of a table."
        )
    sigma = schedule(jnp.asarray(0.0)).sigma
    if not isinstance(sigma, Tracer) and not np.asarray(sigma) > 0:
        raise ValueError(
            "The schedule has no noise at t = 0, where the bound is infinite. "
            "Cut that end off: between(schedule, 1e-5, 1.0)."
        )
