"""Training losses: denoising regression under any prediction, weight and choice of times.

For a clean x0, a time t and noise eps, the network F is regressed on its target,

    loss = w(level) out(level)^2 mean |F - target|^2,

with a weight w of the error on x0 (`loss_weights`) at a level that is drawn (`noising`). A
formulation of the field is one line of arguments; times are drawn from another distribution by
training on another schedule of the same levels:

    DDPM             diffusion_loss(apply, linear_betas(), eps)
    NCSN             diffusion_loss(apply, geometric_sigmas(), score)
    EDM              diffusion_loss(apply, resampled(edm_sigmas(), log_normal()), edm(0.5),
                                    weight=losses.edm(0.5))
    rectified flow   diffusion_loss(apply, flow(), velocity, weight=losses.velocity)
    its SD3 form     the same with resampled(flow(), logit_normal())
    score flow       diffusion_loss(apply, schedule, score, weight=likelihood(schedule)),
                     schedule = between(linear(), 1e-5, 1.0)
    the same, by importance sampling
                     diffusion_loss(apply, resampled(linear(), densities.uniform()), score)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffjax.core.keys import BatchKeys
from diffjax.core.levels import NoiseLevel, expand, interpolate_variance
from diffjax.core.loss_weights import (
    WEIGHTS,
    Weight,
    constant,
    edm,
    likelihood,
    min_snr,
    off_the_ends,
    p2,
    prediction_weight,
    sigmoid,
    simple,
    snr_plus_one,
    truncated_snr,
    velocity,
)
from diffjax.core.noising import (
    TIME_SAMPLERS,
    TimeSampler,
    as_batch_keys,
    low_discrepancy,
    noise_batch,
    stratified,
    uniform,
    within,
)
from diffjax.core.parameterizations import (
    Parameterization,
    check_schedule,
    eps,
    estimate_x0,
    run_network,
    split_learned_variance,
    target,
)
from diffjax.core.samples import mean_each
from diffjax.core.schedules import Schedule, Table
from diffjax.core.variational import bound_term, log_variances

__all__ = [
    "TIME_SAMPLERS",
    "WEIGHTS",
    "Batch",
    "Loss",
    "TimeSampler",
    "Weight",
    "constant",
    "diffusion_loss",
    "edm",
    "hybrid_loss",
    "likelihood",
    "low_discrepancy",
    "min_snr",
    "p2",
    "regression_error",
    "sigmoid",
    "simple",
    "snr_plus_one",
    "split_batch",
    "stratified",
    "thinned",
    "total",
    "truncated_snr",
    "uniform",
    "velocity",
    "within",
]

Batch = Mapping[str, Array]
Loss = Callable[[Any, Batch, BatchKeys | Array], tuple[Array, dict[str, Array]]]


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
      TypeError: the schedule or the parameterization is none; in a call, the weight is none, the
        batch no dict, or x0 holds no floats.
      ValueError: when the schedule reaches zero SNR and the prediction is undefined there; in a
        call, the network's output has another shape than x0.
      KeyError: in a call, the batch holds no "x0".

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
      TypeError: the schedule is no table; otherwise as of `diffusion_loss`.
      ValueError: as of `diffusion_loss`, but for the number of output channels.
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


def regression_error(
    parameterization: Parameterization, output: Array, x0: Array, noise: Array, level: NoiseLevel
) -> Array:
    """mean |F - target|^2 of each sample: [B].

    Raises:
      ValueError: the network's output has another shape than the data.
    """
    if output.shape != x0.shape:
        raise ValueError(
            f"The network returned {output.shape} for data of {x0.shape}; this loss needs equal "
            "shapes. Does it predict a variance too (hybrid_loss)?"
        )
    # the target of the score is infinite at sigma = 0
    wanted = target(parameterization, x0, noise, off_the_ends(level))
    return mean_each((output - wanted) ** 2)


def total(losses: Sequence[Loss]) -> Loss:
    """The sum of losses of one batch, each with noise and times of its own.

    Each moves the parameters that it alone depends on, such as those of one expert, as it would
    without the others. Metrics get the number of their loss: "mse_0", "mse_1".

    >>> of = lambda name: lambda params, batch, keys: (batch["x0"] * params[name], {})
    >>> loss = total([of("a"), of("b")])
    >>> loss({"a": 1.0, "b": 10.0}, {"x0": jnp.ones(2)}, jax.random.key(0))[0].tolist()
    [11.0, 11.0]
    """

    def of_all(params, batch, keys):
        given = as_batch_keys(keys, split_batch(batch)[0])
        metrics: dict[str, Array] = {}
        value: Any = 0.0
        for i, loss in enumerate(losses):
            own, seen = loss(params, batch, given._replace(key=jax.random.fold_in(given.key, i)))
            value = value + own
            metrics |= {f"{name}_{i}": each for name, each in seen.items()}
        return value, metrics

    return of_all


def thinned(loss: Loss, every: int) -> Loss:
    """A loss of one sample in `every` alone, at that share of the cost.

    Each value stands for the samples that are left out behind it, so that there are as many, and
    their mean is that of the samples that are seen. A device's part of the batch must be a multiple
    of `every`.

    Raises:
      ValueError: every < 1; in a call, it does not divide the batch.

    >>> loss = thinned(lambda params, batch, keys: (batch["x0"], {}), 2)
    >>> loss(None, {"x0": jnp.arange(4.0)}, jax.random.key(0))[0].tolist()
    [0.0, 0.0, 2.0, 2.0]
    """
    if every < 1:
        raise ValueError(f"every is {every}; one sample in so many is seen, so that it is from 1.")

    def of_some(params, batch, keys):
        x0 = split_batch(batch)[0]
        if len(x0) % every:
            raise ValueError(f"A batch of {len(x0)} samples cannot be thinned to one in {every}.")
        given = as_batch_keys(keys, x0)
        few = given._replace(index=given.index[::every] // every, size=given.size // every)
        seen = loss(params, jax.tree.map(lambda array: array[::every], dict(batch)), few)
        return jax.tree.map(lambda values: jnp.repeat(values, every), seen)

    return of_some


def split_batch(batch: Batch) -> tuple[Array, dict[str, Array]]:
    """The clean data of a batch, and the rest: the network's conditioning.

    Raises:
      TypeError: the batch is no dict.
      KeyError: it holds no "x0".
    """
    if not isinstance(batch, Mapping):
        raise TypeError(f"The batch is a {type(batch).__name__}; needed is a dict with 'x0'.")
    if "x0" not in batch:
        raise KeyError(f"The batch holds {sorted(batch)}; the clean data must be there as 'x0'.")
    return batch["x0"], {name: value for name, value in batch.items() if name != "x0"}
