"""Where in their bins quantised values are put before the flow of a run is asked for their density.

`uniform` puts them anywhere. `fit` learns where it pays: a value is put at the logit-normal place

    u = sigmoid(mean + std z),    mean and log std = those of its grey level + those of its pixel,

and what these places cost, log q(u | x), is counted (see `diffjax.core.likelihood`). The figure is
a bound whatever q is, so q may be fitted to the very images that are measured. It is fitted by the
gradients of the bound in continuous time, which costs one call of the network where the flow costs
dozens.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from tqdm import tqdm

import diffjax as dj
from diffjax.core.keys import normal_each
from diffjax.core.levels import ratio_of
from diffjax.core.likelihood import noisiest_level, uniform_each
from diffjax.core.schedules import Schedule
from runs import Run

# (keys [b], x0 [b, ...]) -> places in [0, 1), [b, ...], and log q of each image [b]
Places = Callable[[Array, Array], tuple[Array, Array]]
Table = dict[str, Array]

LEARNING_RATE = 0.05
NEARLY_UNIFORM = 0.5  # the log std of a logit-normal place
NOISES_PER_BIN = 24.0  # standard deviations of the least noise in the width of a bin
LARGEST_RATIO = 100.0  # of noise to signal, beyond which nothing is left to learn


def uniform(keys: Array, x0: Array) -> tuple[Array, Array]:
    """Anywhere in the bin, at no cost."""
    return uniform_each(keys, x0.shape[1:]), jnp.zeros(len(x0))


def learned(table: Table, num_bins: int) -> Places:
    """Where a table of means and logarithms of standard deviations says.

    Args:
      table: "value" [2, num_bins] and "pixel" [2, ...], which are added.
      num_bins: values that the data can take.
    """

    def places(keys: Array, x0: Array) -> tuple[Array, Array]:
        value = jnp.round(0.5 * (num_bins - 1) * (x0 + 1.0)).astype(jnp.int32)
        mean, log_std = table["value"][:, value] + table["pixel"][:, None]
        return dj.logit_normal_places(normal_each(keys, x0.shape[1:]), mean, log_std)

    return places


def fit(
    key: Array,
    run: Run,
    denoiser: Callable[..., Any],
    schedule: Schedule,
    images: np.ndarray,
    labels: np.ndarray | None,
    *,
    num_steps: int,
    batch_size: int,
) -> Table:
    """The table of places that makes the run's images likeliest.

    Args:
      key: for the choice of images and all noise.
      run: whose network is asked.
      denoiser: (params, labels) -> denoiser.
      schedule: of its levels.
      images: [N, H, W, C] in [-1, 1]; labels: [N] or None.
      num_steps: of the optimizer, Adam.
      batch_size: images in each step.
    """
    bins = run.config.data.num_bins
    curve = even_in_logsnr(schedule, bins)
    optimizer = optax.adam(LEARNING_RATE)

    def bits(table, params, keys, x0, labels):
        u, nats = learned(table, bins)(keys[0], x0)
        x = dj.dequantize(x0, u, num_bins=bins)
        denoise = denoiser(params, labels)
        bound = dj.continuous_bound(keys[1], x, denoise, curve, num_times=1, num_bins=None)
        return jnp.mean(bound.total + nats / (x0[0].size * jnp.log(2.0)))

    @jax.jit
    def step(table, state, params, key, x0, labels):
        keys = [dj.sample_keys(part, jnp.arange(len(x0))) for part in jax.random.split(key)]
        updates, state = optimizer.update(jax.grad(bits)(table, params, keys, x0, labels), state)
        return optax.apply_updates(table, updates), state

    level = jnp.array([0.0, NEARLY_UNIFORM])[:, None]
    table: Table = {
        "value": jnp.broadcast_to(level, (2, bins)),
        "pixel": jnp.zeros((2, *images.shape[1:])),
    }
    state = optimizer.init(table)
    chosen = np.random.default_rng(0).integers(len(images), size=(num_steps, batch_size))
    for i, some in enumerate(tqdm(chosen, desc="fitting", unit="step", delay=1.0)):
        asked = None if labels is None else labels[some]
        table, state = step(
            table, state, run.params, jax.random.fold_in(key, i), images[some], asked
        )
    return table


def even_in_logsnr(schedule: Schedule, num_bins: int) -> Schedule:
    """The levels of a schedule, of a table too, in continuous time and evenly in log-SNR.

    They begin where the noise is much narrower than the bins, to resolve places in them.
    """
    noisiest = float(np.asarray(ratio_of(noisiest_level(schedule))))
    ends = np.log([2.0 / (num_bins - 1) / NOISES_PER_BIN, min(noisiest, LARGEST_RATIO)])
    level = dj.level_at(schedule)
    return lambda t: level(jnp.exp(ends[0] + t * (ends[1] - ends[0])))
