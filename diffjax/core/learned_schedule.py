"""A variance-preserving schedule whose log-SNR is learned together with the network.

    log-SNR(t) = start + (end - start) s(t),    s increasing from s(0) = 0 to s(1) = 1
    s(t) = (m(t) - m(0)) / (m(1) - m(0)),       m(t) = h + sum_k c_k sigmoid(a_k h + b_k),  h = w t

with w, a_k and c_k positive (softplus of the parameters). The two ends are trained on the bound
itself; its mean does not depend on s, which is trained to lower the variance instead: by the
gradient of the squared diffusion term of each sample,

    d (L^2) = 2 L dL,

for which one backward pass is enough, the one that trains the network.
Source: VDM, arXiv:2107.00630, Sections 4 and 5 and its appendices on the learned schedule.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import register_dataclass
from jax.typing import ArrayLike

from diffjax.core.arguments import at_least_float32, check_order, continuous_time
from diffjax.core.continuous_bound import diffusion_bits, with_ends
from diffjax.core.inverse import time_at
from diffjax.core.levels import NoiseLevel, ratio_of, vp_level
from diffjax.core.logsnr_schedules import clock_of_logsnr
from diffjax.core.losses import Loss, split_batch
from diffjax.core.noising import TimeSampler, as_batch_keys, draw_batch, low_discrepancy
from diffjax.core.parameterizations import Parameterization, eps


@partial(register_dataclass, data_fields=["params"], meta_fields=["start", "end"])
@dataclass(frozen=True)
class LearnedLogsnr:
    """A schedule with parameters: see `learned_logsnr`.

    Attributes:
      params: a dict of arrays: "ends" [2], and those of the monotone function s.
      start, end: the log-SNR at which the network's clock is 0 and 1, where training began.
    """

    params: dict[str, Any]
    start: float
    end: float

    def __call__(self, t: ArrayLike) -> NoiseLevel:
        return self.level_at_shape(self.shape(continuous_time(t)))

    def shape(self, t: Array) -> Array:
        """s(t), any shape."""
        positive = jax.nn.softplus
        inner, outer = self.params["inner"], self.params["outer"]

        def monotone(t):
            h = positive(self.params["slope"]) * t
            features = jax.nn.sigmoid(positive(inner["slope"]) * h[..., None] + inner["bias"])
            return h + features @ positive(outer)

        low, high = monotone(jnp.zeros_like(t)), monotone(jnp.ones_like(t))
        return (monotone(t) - low) / (high - low)

    def level_at_shape(self, s: Array) -> NoiseLevel:
        """The level at log-SNR start + (end - start) s, told to the network on its fixed clock."""
        start, end = self.params["ends"]
        return self.at_ratio(jnp.exp(-0.5 * ((1.0 - s) * start + s * end)))

    def at_ratio(self, ratio: ArrayLike) -> NoiseLevel:
        """The level at which sigma / alpha is `ratio`; past the first ends its clock goes on."""
        ratio = at_least_float32(ratio)
        return vp_level(clock_of_logsnr(ratio, self.start, self.end), ratio)

    def time_of(self, level: NoiseLevel) -> Array:
        """The time of a level."""
        return time_at(self, ratio_of(level))

    def with_params(self, params: dict[str, Any]) -> "LearnedLogsnr":
        """The schedule with trained parameters."""
        return replace(self, params=params)


def learned_logsnr(
    start: float = 13.3, end: float = -5.0, *, num_features: int = 1024
) -> LearnedLogsnr:
    """A schedule to learn, at first nearly log-linear from `start` to `end`.

    The network's clock is log-SNR itself, counted from 0 at `start` to 1 at `end`, so that what
    it learned of a level stays true while the schedule moves.

    Args:
      start, end: log-SNR at t = 0 and t = 1 before training; VDM's are the defaults.
      num_features: sigmoids in the monotone function, at least 1.

    Raises:
      ValueError: end is not below start, or there is no sigmoid.

    >>> schedule = learned_logsnr(10.0, -10.0)
    >>> schedule(jnp.array(0.5)).sigma.round(2), sorted(schedule.params)
    (Array(0.71, dtype=float32), ['ends', 'inner', 'outer', 'slope'])
    """
    check_order("learned_logsnr", end=end, start=start)
    if num_features < 1:
        raise ValueError(f"learned_logsnr: num_features is {num_features}; it must be at least 1.")
    steepness = 20.0
    # the middle of each sigmoid at a time of its own
    middles = (np.arange(num_features) + 0.5) / num_features
    params = {
        "ends": jnp.array([start, end], jnp.float32),
        "slope": jnp.asarray(_inverse_softplus(1.0), jnp.float32),
        "inner": {
            "slope": jnp.full(num_features, _inverse_softplus(steepness), jnp.float32),
            "bias": jnp.asarray(-steepness * middles, jnp.float32),
        },
        "outer": jnp.full(num_features, _inverse_softplus(1.0 / num_features), jnp.float32),
    }
    return LearnedLogsnr(params, start, end)


def learned_bound_loss(
    apply: Callable[..., Array],
    schedule: LearnedLogsnr,
    parameterization: Parameterization = eps,
    *,
    times: TimeSampler = low_discrepancy,
    num_bins: int | None = 256,
) -> Loss:
    """`bound_loss` for a schedule that is learned: network and ends lower it, s its variance.

    Its parameters are {"network": those of the network, "schedule": `schedule.params`}. After
    training, `schedule.with_params(params["schedule"])` is the schedule to sample from. Other
    arguments (apply, parameterization, times, num_bins) and the result as for `bound_loss`; the
    values are the same.

    >>> schedule = learned_logsnr(num_features=8)
    >>> loss = learned_bound_loss(lambda params, x, t, keys: params * x, schedule)
    >>> params = {"network": 0.0, "schedule": schedule.params}
    >>> loss(params, {"x0": jnp.zeros((4, 8, 8, 1))}, jax.random.key(0))[0].shape
    (4,)
    """

    def loss(params, batch, keys):
        x0, conditioning = split_batch(batch)
        u, noise, network_keys = draw_batch(x0, as_batch_keys(keys, x0), times)
        learned = schedule.with_params(params["schedule"])

        def diffusion(trained, shape_and_slope):
            network, ends = trained
            s, slope = shape_and_slope
            level = schedule.with_params({"ends": ends}).level_at_shape(s)
            # SNR falls at the rate SNR times -d log-SNR / dt
            decay = (level.alpha / level.sigma) ** 2 * (ends[0] - ends[1]) * slope
            return diffusion_bits(
                apply, network, parameterization, x0, noise, level, decay,
                keys=network_keys, **conditioning,
            )  # fmt: skip

        shape_and_slope = jax.jvp(learned.shape, (u,), (jnp.ones_like(u),))
        trained = params["network"], params["schedule"]["ends"]
        values = squared_gradient(diffusion)(trained, shape_and_slope)
        return with_ends(x0, noise, values, learned, num_bins)

    return loss


def squared_gradient(function: Callable[[Any, Any], Array]) -> Callable[[Any, Any], Array]:
    """function(a, b) -> losses [n], whose gradient in b is that of the squared losses.

    Every leaf of b is [n], each entry belonging to one loss. One backward pass serves a and b.

    >>> squared = squared_gradient(lambda a, b: a * b)
    >>> gradients = jax.grad(lambda a, b: squared(a, b).sum(), argnums=(0, 1))
    >>> [gradient.tolist() for gradient in gradients(2.0, jnp.array([3.0]))]
    [3.0, [24.0]]
    """

    @jax.custom_vjp
    def run(a, b):
        return function(a, b)

    def forward(a, b):
        losses, pull_back = jax.vjp(function, a, b)
        return losses, (losses, pull_back)

    def backward(saved, cotangent):
        losses, pull_back = saved
        for_a, for_b = pull_back(cotangent)
        return for_a, jax.tree.map(lambda slope: 2.0 * losses * slope, for_b)

    run.defvjp(forward, backward)
    return run


def _inverse_softplus(value: float) -> float:
    return float(value + np.log(-np.expm1(-value)))
