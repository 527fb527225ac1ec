"""Tuning the times that a sampler visits, by gradients through whole sampling runs.

A grid of N steps between fixed ends is written as

    t_i = t_0 + (t_N - t_0) (s_1 + ... + s_i),    s = softmax(theta),

which is monotone for every theta in R^N. theta is trained so that N steps from some noise end
where many steps from the same noise end. The network is left as it is.
Source: Watson et al., "Learning Fast Samplers for Diffusion Models by Differentiating Through
Sample Quality", arXiv:2202.05830, with a distance in the place of a quality.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from diffjax.core.parameterizations import Denoiser
from diffjax.core.sampling import Solver, sample
from diffjax.core.schedules import Schedule


class TunedTimes(NamedTuple):
    """What `tune_times` returns.

    Attributes:
      times: [N + 1] float32, the best grid that was met, the starting one included.
      losses: [num_iterations + 1] float32, the loss of every grid that was met, the first first.
    """

    times: np.ndarray
    losses: np.ndarray


def reference_loss(
    make_denoiser: Callable[..., Denoiser], solver: Solver, schedule: Schedule, *, segments: int = 1
) -> Callable[..., Array]:
    """The mean squared distance between where a grid leads and where it should.

    Args:
      make_denoiser: (*inputs) -> denoiser; the inputs are arrays, such as the network's parameters
        and labels, that are not to be compiled in.
      solver: which the grid is for; without noise, or the distance has no meaning.
      schedule: levels of the times. Those of a table are interpolated.
      segments: see `diffjax.sample`.

    Returns:
      `loss(times, x, target, *inputs)`: x [B, ...] noise at the first time, and target [B, ...]
      where it leads, for example in many steps.
    """

    def loss(times: Array, x: Array, target: Array, *inputs: Any) -> Array:
        # a deterministic solver draws nothing
        key = jax.random.key(0)
        denoise = make_denoiser(*inputs)
        reached = sample(key, x, denoise, solver, schedule(times), segments=segments)
        return jnp.mean((reached - target) ** 2)

    return loss


def tune_times(
    times: np.ndarray,
    loss: Callable[..., Array],
    inputs: tuple[Any, ...] = (),
    *,
    num_iterations: int = 200,
    learning_rate: float = 0.05,
    on_iteration: Callable[[int, float], Any] | None = None,
) -> TunedTimes:
    """Move the inner times of a grid to where a loss is least, by Adam; both ends stay.

    Args:
      times: [N + 1] the grid to start from, N >= 2, strictly decreasing; the better it is, the
        better the end: try several.
      loss: (times [N + 1], *inputs) -> scalar, such as `reference_loss`; times of tables are
        fractions of steps.
      inputs: further arguments of the loss, arrays.
      num_iterations: gradient steps.
      learning_rate: of theta, falling to 0 by a cosine.
      on_iteration: called with the number of the iteration and the loss before it.

    Raises:
      ValueError: the grid is too short or does not decrease.

    >>> tuned = tune_times(np.array([1.0, 0.5, 0.0]), lambda t: (t[1] - 0.2) ** 2)
    >>> tuned.times.round(2).tolist()
    [1.0, 0.20000000298023224, 0.0]
    """
    times = np.asarray(times, np.float32)
    if times.ndim != 1 or len(times) < 3 or np.any(np.diff(times) >= 0):
        raise ValueError(
            f"tune_times: times has shape {times.shape}; needed are at least 3 strictly decreasing "
            "times, of which the first and the last are kept."
        )
    first, length = jnp.asarray(times[0]), jnp.asarray(times[-1] - times[0])

    def grid(theta: Array) -> Array:
        parts = jnp.cumsum(jax.nn.softmax(theta))[:-1]
        return first + length * jnp.concatenate([jnp.zeros(1), parts, jnp.ones(1)])

    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_iterations))

    @jax.jit
    def step(theta, state, inputs):
        value, gradient = jax.value_and_grad(lambda theta: loss(grid(theta), *inputs))(theta)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(theta, updates), state, value

    theta = np.log(np.diff(times) / (times[-1] - times[0]))
    state = jax.device_get(optimizer.init(jnp.asarray(theta)))
    best, losses = theta, []
    for i in range(num_iterations + 1):
        # to the host and back: where the inputs lie on several devices, what comes back lies there
        # too, and the next call would be compiled again
        moved, state, value = jax.device_get(step(theta, state, inputs))
        losses.append(float(value))
        # NaN is never the best
        best = theta if losses[-1] <= np.nanmin(losses) else best
        theta = moved
        if on_iteration is not None:
            on_iteration(i, losses[-1])
    return TunedTimes(np.asarray(grid(best)), np.array(losses, np.float32))
