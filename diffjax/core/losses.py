"""Training losses: denoising regression under any prediction, weight and choice of times.

For a clean x0, a time t and noise eps, the network F is regressed on its target,

    loss = w_F(level) mean |F - target|^2,    w_F = w(level) out(level)^2,

where w is the weight of the same error measured on x0 (x0 - x0_estimate = out (target - F)). A
weight is therefore written once, on x0, and gives the same gradient whichever prediction the
network makes.

Weights on x0 (SNR = alpha^2 / sigma^2):

    constant               1
    simple, snr            SNR: plain mean squared error on eps, DDPM's L_simple
    score_matching         the same: sigma^2 times the squared error on the score, NCSN's
    snr_plus_one           SNR + 1: plain mean squared error on v
    velocity               (sqrt(SNR) + 1)^2: plain mean squared error on the velocity
    edm(sigma_data)        SNR + 1 / sigma_data^2: plain mean squared error on EDM's output
    truncated_snr          max(SNR, 1)
    min_snr(gamma)         min(SNR, gamma)
    p2(gamma, k)           SNR / (k + SNR)^gamma
    sigmoid(bias)          SNR sigmoid(bias - log SNR)
    likelihood(schedule)   -dSNR/dt: g^2 times the squared error on the score

So a formulation of the field is one line of arguments; times are drawn from another distribution
by training on another schedule of the same levels:

    DDPM             diffusion_loss(apply, linear_betas(), eps)
    NCSN             diffusion_loss(apply, geometric_sigmas(), score, weight=score_matching)
    EDM              diffusion_loss(apply, resampled(edm_sigmas(), log_normal()), edm(0.5),
                                    weight=losses.edm(0.5))
    rectified flow   diffusion_loss(apply, flow(), velocity, weight=losses.velocity)
    its SD3 form     the same with resampled(flow(), logit_normal())
    score flow       diffusion_loss(apply, schedule, score, weight=likelihood(schedule)),
                     schedule = between(linear(), 1e-5, 1.0)
    the same, by importance sampling
                     diffusion_loss(apply, resampled(linear(), densities.uniform()), score)
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffjax.core.keys import BatchKeys, batch_keys, fold_in_each, normal_each, sample_keys
from diffjax.core.levels import NoiseLevel, add_noise, expand, interpolate_variance
from diffjax.core.parameterizations import (
    Parameterization,
    check_schedule,
    eps,
    estimate_x0,
    run_network,
    split_learned_variance,
    target,
)
from diffjax.core.schedules import Schedule, Table, num_train_steps, time_of
from diffjax.core.sde import snr_decay
from diffjax.core.variational import bound_term, log_variances

Weight = Callable[[NoiseLevel], Array]
TimeSampler = Callable[[BatchKeys], Array]
Batch = Mapping[str, Array]
Loss = Callable[[Any, Batch, BatchKeys | Array], tuple[Array, dict[str, Array]]]


def _snr(level: NoiseLevel) -> Array:
    return (level.alpha / level.sigma) ** 2


def constant(level: NoiseLevel) -> Array:
    """Plain mean squared error on x0."""
    return jnp.ones_like(level.alpha)


def simple(level: NoiseLevel) -> Array:
    """Plain mean squared error on eps: DDPM's L_simple, arXiv:2006.11239, Eq. 14."""
    return _snr(level)


def snr_plus_one(level: NoiseLevel) -> Array:
    """Plain mean squared error on v: arXiv:2202.00512, Section 4."""
    return _snr(level) + 1.0


def velocity(level: NoiseLevel) -> Array:
    """Plain mean squared error on the velocity eps - x0: flow matching, arXiv:2210.02747, Eq. 23.

    Source of this form: arXiv:2403.03206, Section 2.
    """
    return (level.alpha / level.sigma + 1.0) ** 2


def edm(sigma_data: float = 0.5) -> Weight:
    """Plain mean squared error on the output of EDM's network: arXiv:2206.00364, Table 1.

    Args:
      sigma_data: standard deviation of the data, as for the parameterization `edm`.
    """
    return lambda level: _snr(level) + 1.0 / sigma_data**2


def likelihood(schedule: Schedule) -> Weight:
    """The weight under which the loss bounds the likelihood: g^2 on the score.

    It diverges where sigma = 0: cut that end off (`between`), or draw the times by importance,
    from `resampled(schedule, densities.uniform())` with the weight `simple`, which has the same
    expectation up to a constant. `bound_loss` is the whole bound, in bits per dimension.
    Source: Song et al., arXiv:2101.09258, Eq. 7 and Section 4.

    Args:
      schedule: the one that the loss trains on.
    """
    return lambda level: snr_decay(schedule, time_of(schedule, level))


def truncated_snr(level: NoiseLevel) -> Array:
    """The larger of the errors on x0 and on eps: arXiv:2202.00512, Section 4."""
    return jnp.maximum(_snr(level), 1.0)


def min_snr(gamma: float = 5.0) -> Weight:
    """Min-SNR-gamma, which limits the weight of the clean end: arXiv:2303.09556, Section 3.4."""
    return lambda level: jnp.minimum(_snr(level), gamma)


def p2(gamma: float = 1.0, k: float = 1.0) -> Weight:
    """Perception-prioritized weight, 1 / (k + SNR)^gamma on eps: arXiv:2204.00227, Eq. 8."""
    return lambda level: _snr(level) / (k + _snr(level)) ** gamma


def sigmoid(bias: float = 0.0) -> Weight:
    """Sigmoid weight, sigmoid(bias - log SNR) on eps.

    Source: Kingma and Gao, arXiv:2303.00848; Hoogeboom et al., arXiv:2410.19324, Section 3.1.
    """
    return lambda level: _snr(level) * jax.nn.sigmoid(bias - jnp.log(_snr(level)))


# name -> function that makes the weight; those of the schedule take it as an argument
WEIGHTS: dict[str, Callable[..., Any]] = {
    "constant": lambda: constant,
    "simple": lambda: simple,
    "snr": lambda: simple,
    "score_matching": lambda: simple,
    "velocity": lambda: velocity,
    "edm": edm,
    "likelihood": likelihood,
    "snr_plus_one": lambda: snr_plus_one,
    "truncated_snr": lambda: truncated_snr,
    "min_snr": min_snr,
    "p2": p2,
    "sigmoid": sigmoid,
}


def prediction_weight(
    weight: Weight, parameterization: Parameterization, level: NoiseLevel
) -> Array:
    """The weight on x0 converted to one on the network's output: w(level) out(level)^2.

    At SNR 0 and infinity the product is the limit: alpha and sigma count as 1e-9 at least.
    """
    level = _off_the_ends(level)
    _, out = parameterization.estimate(level)
    # out may be tiny where w is huge: multiply one factor at a time
    return weight(level) * out * out


def _off_the_ends(level: NoiseLevel) -> NoiseLevel:
    """The level with alpha and sigma of at least 1e-9, where every row and weight is finite."""
    return level._replace(
        alpha=jnp.maximum(level.alpha, 1e-9), sigma=jnp.maximum(level.sigma, 1e-9)
    )


def uniform(keys: BatchKeys) -> Array:
    """Independent uniform times, [b] in [0, 1)."""
    return jax.vmap(jax.random.uniform)(_folded(keys, 0))


def stratified(keys: BatchKeys) -> Array:
    """One uniform time in each of as many equal intervals as the global batch has samples.

    The intervals are dealt out by a random rotation, so that each sample's own time is uniform
    whatever its position in the batch.
    """
    rotation = jax.random.randint(_batch_key(keys), (), 0, keys.size)
    return ((keys.index + rotation) % keys.size + uniform(keys)) / keys.size


def low_discrepancy(keys: BatchKeys) -> Array:
    """An even grid of times under one common random shift: arXiv:2107.00630, Appendix I.1."""
    return (jax.random.uniform(_batch_key(keys)) + keys.index / keys.size) % 1.0


TIME_SAMPLERS: dict[str, TimeSampler] = {
    "uniform": uniform,
    "stratified": stratified,
    "low_discrepancy": low_discrepancy,
}


class Draws(NamedTuple):
    """The randomness of a batch: u [b] in [0, 1), eps as the data, keys [b] for the network."""

    u: Array
    eps: Array
    keys: Array


def draw_batch(x0: Array, keys: BatchKeys, times: TimeSampler = uniform) -> Draws:
    """Draw what a loss needs for every sample of x0, [b, ...]: see `noise_batch`."""
    noise = normal_each(_folded(keys, 1), x0.shape[1:])
    return Draws(times(keys), noise, _folded(keys, 2))


class Noised(NamedTuple):
    """What a loss trains on: x = alpha x0 + sigma eps at each sample's own level."""

    x: Array
    eps: Array
    level: NoiseLevel
    keys: Array


def noise_batch(
    x0: Array,
    schedule: Schedule,
    keys: BatchKeys,
    times: TimeSampler = uniform,
    *,
    noise_offset: float = 0.0,
) -> Noised:
    """Draw a time and noise for every sample and noise it.

        eps = eps_pixels + noise_offset eps_channel,    eps_channel one number for a whole channel

    With an offset of about 0.1 a network learns to change the mean of a picture, which schedules
    that end above zero SNR always give away; 0 is plain noise.
    Source of the offset: N. Guttenberg, Diffusion with Offset Noise, CrossLabs, 2023.

    Args:
      x0: [b, ...] clean data, float32.
      schedule: a table draws integer steps 0 .. T - 1, a continuous one times in [0, 1).
      keys: see `diffjax.core.keys`.
      times: the distribution of times.
      noise_offset: 0 or more.

    Returns:
      `Noised`, whose `keys`, [b], are left for the network's own randomness.
    """
    u, noise, network_keys = draw_batch(x0, keys, times)
    if noise_offset:
        channels = (*(1,) * (x0.ndim - 2), x0.shape[-1])
        noise = noise + noise_offset * normal_each(_folded(keys, 3), channels)
    level = schedule(training_times(schedule, u))
    return Noised(add_noise(x0, noise, level), noise, level, network_keys)


def training_times(schedule: Schedule, u: Array) -> Array:
    """Map [0, 1) to the times of a schedule: floor(u T) for a table, u itself otherwise."""
    steps = num_train_steps(schedule)
    if steps is None:
        return u
    # u T may round up to T in float32
    return jnp.minimum(jnp.floor(u * steps).astype(jnp.int32), steps - 1)


def diffusion_loss(
    apply: Callable[..., Array],
    schedule: Schedule,
    parameterization: Parameterization = eps,
    *,
    weight: Weight = simple,
    times: TimeSampler = uniform,
    noise_offset: float = 0.0,
) -> Loss:
    """The denoising loss of one sample, for each sample of a batch.

        w(level) out(level)^2 mean |F(x, t) - target|^2

    The default is DDPM's L_simple. Source: DDPM, arXiv:2006.11239, Eq. 14 and Algorithm 1.

    Args:
      apply: `apply(params, x, t, keys=[b] keys, **conditioning)` -> [b, ...].
      schedule: the forward process.
      parameterization: what the network predicts.
      weight: the weight of the error on x0.
      times: the distribution of times.
      noise_offset: see `noise_batch`.

    Returns:
      `loss(params, batch, keys) -> (losses [b], metrics)`: `batch` holds "x0" [b, ...] and the
      network's conditioning under its own names; `keys` is one key or a `BatchKeys`.

    Raises:
      ValueError: when the schedule reaches zero SNR and the prediction is undefined there.

    >>> from diffjax.core.schedules import linear_betas
    >>> loss = diffusion_loss(lambda params, x, t, keys: params * x, linear_betas())
    >>> loss(0.0, {"x0": jnp.zeros((4, 8, 8, 1))}, jax.random.key(0))[0].shape
    (4,)
    """
    check_schedule(parameterization, schedule)

    def loss(params, batch, keys):
        x0, conditioning = split_batch(batch)
        noised = noise_batch(
            x0, schedule, as_batch_keys(keys, x0), times, noise_offset=noise_offset
        )
        output = run_network(
            apply, params, parameterization, noised.x, noised.level, keys=noised.keys,
            **conditioning,
        )  # fmt: skip
        error = regression_error(parameterization, output, x0, noised.eps, noised.level)
        return prediction_weight(weight, parameterization, noised.level) * error, {"mse": error}

    return loss


def hybrid_loss(
    apply: Callable[..., Array],
    schedule: Table,
    parameterization: Parameterization = eps,
    *,
    weight: Weight = simple,
    times: TimeSampler = uniform,
    vlb_weight: float = 1e-3,
    noise_offset: float = 0.0,
) -> Loss:
    """L_simple + vlb_weight L_vlb, for a network that learns its reverse variance.

    L_vlb is T times the variational term of the drawn step, in bits per dimension; no gradient
    flows through its mean, so that it trains the variance alone.
    Source: Improved DDPM, arXiv:2102.09672, Eq. 16.

    Args:
      apply, parameterization, weight, times, noise_offset: as of `diffusion_loss`, but the network
        has 2 C output channels.
      schedule: a table.
      vlb_weight: of L_vlb.

    Returns:
      A loss as of `diffusion_loss`, with the metrics "mse" and "vlb".

    Raises:
      TypeError: the schedule is no table.
      ValueError: as of `diffusion_loss`.
    """
    if not isinstance(schedule, Table):
        raise TypeError("hybrid_loss needs a table of steps, for example cosine_betas().")
    check_schedule(parameterization, schedule)

    def loss(params, batch, keys):
        x0, conditioning = split_batch(batch)
        noised = noise_batch(
            x0, schedule, as_batch_keys(keys, x0), times, noise_offset=noise_offset
        )
        level = noised.level
        output = run_network(
            apply, params, parameterization, noised.x, level, keys=noised.keys, **conditioning
        )
        output, values = split_learned_variance(output, x0)
        error = regression_error(parameterization, output, x0, noised.eps, noised.level)
        simple_loss = prediction_weight(weight, parameterization, level) * error

        estimate = jax.lax.stop_gradient(estimate_x0(parameterization, noised.x, output, level))
        small, large = log_variances(schedule, level.t)
        fraction = 0.5 * (values + 1.0)
        log_variance = interpolate_variance(expand(small, x0), expand(large, x0), fraction)
        bound = bound_term(x0, noised.x, estimate, schedule, level.t, log_variance)
        bound = schedule.num_train_steps * bound
        return simple_loss + vlb_weight * bound, {"mse": error, "vlb": bound}

    return loss


def as_batch_keys(keys: BatchKeys | Array, x: Array) -> BatchKeys:
    """A plain key numbers the samples of x from 0; a `BatchKeys` is returned as it is."""
    return keys if isinstance(keys, BatchKeys) else batch_keys(keys, x.shape[0])


def _folded(keys: BatchKeys, purpose: int) -> Array:
    return fold_in_each(sample_keys(keys.key, keys.index), purpose)


def _batch_key(keys: BatchKeys) -> Array:
    """A key that the whole batch shares and no sample has: theirs are folds of 0 .. size - 1."""
    return jax.random.fold_in(keys.key, keys.size)


def regression_error(
    parameterization: Parameterization, output: Array, x0: Array, noise: Array, level: NoiseLevel
) -> Array:
    """mean |F - target|^2 of each sample; the target of the score is infinite at sigma = 0."""
    wanted = target(parameterization, x0, noise, _off_the_ends(level))
    return _mean_square(output - wanted)


def split_batch(batch: Batch) -> tuple[Array, dict[str, Array]]:
    """The clean data of a batch, and the rest: the network's conditioning."""
    if "x0" not in batch:
        raise KeyError(f"The batch holds {sorted(batch)}; the clean data must be there as 'x0'.")
    return batch["x0"], {name: value for name, value in batch.items() if name != "x0"}


def _mean_square(values: Array) -> Array:
    return jnp.mean(values.reshape(values.shape[0], -1) ** 2, axis=1)
