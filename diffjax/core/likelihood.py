"""Log-likelihood of data by the probability flow, and what it takes to turn it into bits.

The flow carries data z at position p to noise, and its density with it (`probability_flow` has the
ODE and the positions):

    log p(z_data) = log N(z_noise; 0, I) + int div(dz/dp) dp

The divergence is a trace of the denoiser's Jacobian J: exactly, one product e_d^T J for each
dimension d; or by Hutchinson's estimate, the mean of r^T J r over random probes r, which are held
fixed along the flow.

A density of continuous data becomes a probability of quantised data (n grey levels in [-1, 1],
bins of width 2 / (n - 1) around them) by dequantisation: with u in [0, 1)^D drawn from q(u | x),

    log P(x) >= E[log p(x + (u - 1/2) 2 / (n - 1)) - log q(u | x)] + D log(2 / (n - 1)),

where uniform dequantisation has q = 1. In bits per dimension the last term is +6.994 for n = 256
and +3 for n = 17. Variational dequantisation fits q, so that the bound is closer; the family of
`logit_normal_places` has parameters that may be anything computed from x, a table of grey levels or
the output of a network.

Sources: Score SDE, arXiv:2011.13456, Section 4.3 and Appendix D.2; FFJORD, arXiv:1810.01367,
Section 3.1; Flow++, arXiv:1902.00275, Section 3.1.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from diffjax.core.integrators import Integrate, runge_kutta
from diffjax.core.keys import fold_in_each
from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import Denoiser
from diffjax.core.probability_flow import position_of, velocity_field
from diffjax.core.samples import inner_each
from diffjax.core.sampling import per_sample
from diffjax.core.schedules import Schedule, num_train_steps

# (keys [B], function, x [B, ...]) -> function(x), trace of its Jacobian for each sample [B]
Trace = Callable[[Array, Callable[[Array], Array], Array], tuple[Array, Array]]

PROBES = {"rademacher": jax.random.rademacher, "gaussian": jax.random.normal}


def exact_trace(*, chunk_size: int = 16) -> Trace:
    """The trace by D vector-Jacobian products, for data of few dimensions.

    Args:
      chunk_size: products computed at once.
    """

    def trace(keys, function, x):
        value, pull_back = jax.vjp(function, x)
        size = math.prod(x.shape[1:])

        def diagonal(d):
            basis = jnp.zeros(size, x.dtype).at[d].set(1.0).reshape(x.shape[1:])
            # samples do not depend on each other: one product serves the whole batch
            (row,) = pull_back(jnp.broadcast_to(basis, x.shape))
            return inner_each(row, basis)

        entries = lax.map(diagonal, jnp.arange(size), batch_size=min(chunk_size, size))
        return value, jnp.sum(entries, axis=0)

    return trace


def hutchinson_trace(num_probes: int = 1, *, probes: str = "rademacher") -> Trace:
    """The trace by random probes: unbiased, at the cost of one gradient for each probe.

    Args:
      num_probes: averaged over, at least 1.
      probes: "rademacher" (+-1; it has the smaller variance) or "gaussian".

    Raises:
      ValueError: no probe at all, or of another kind.
    """
    if num_probes < 1 or probes not in PROBES:
        raise ValueError(
            f"hutchinson_trace: num_probes is {num_probes} and probes {probes!r}; needed are at "
            f"least 1 and one of {', '.join(PROBES)}."
        )

    def trace(keys, function, x):
        value, pull_back = jax.vjp(function, x)

        def quadratic(i):
            draw = lambda key: PROBES[probes](key, x.shape[1:], x.dtype)
            probe = jax.vmap(draw)(fold_in_each(keys, i))
            (row,) = pull_back(probe)
            return inner_each(row, probe)

        return value, jnp.mean(jax.vmap(quadratic)(jnp.arange(num_probes)), axis=0)

    return trace


class Likelihood(NamedTuple):
    """What `log_likelihood` returns.

    Attributes:
      nats: [B] natural logarithm of the density of x0.
      noise: [B, ...] the latent that the flow carries x0 to, standard normal for data of the model.
    """

    nats: Array
    noise: Array


def cleanest_level(schedule: Schedule) -> NoiseLevel:
    """The cleanest level that a network of this schedule was trained on: t = 0, in tables too."""
    return schedule(jnp.asarray(0 if num_train_steps(schedule) else 0.0))


def noisiest_level(schedule: Schedule) -> NoiseLevel:
    """The level where sampling starts: t = 1, or T - 1 in tables."""
    steps = num_train_steps(schedule)
    return schedule(jnp.asarray(steps - 1 if steps else 1.0))


def log_likelihood(
    key: Array,
    x0: Array,
    denoise: Denoiser,
    schedule: Schedule,
    *,
    trace: Trace | None = None,
    integrate: Integrate | None = None,
    start: NoiseLevel | None = None,
) -> Likelihood:
    """Log-density of data under the probability flow of a model, in nats.

    The model is the flow that starts from N(0, (alpha^2 + sigma^2) I) at the noisiest level of the
    schedule, as sampling does. At the level `start` it gives the density of x / alpha, which is
    that of x0 + (sigma / alpha) eps, and this density is taken at the given x0. Traceable and
    differentiable; nothing depends on the batch.

    Args:
      key: one key, or [B] keys; used by Hutchinson's trace alone.
      x0: [B, ...] clean data, or dequantised data, float32.
      denoise: (x, level) -> estimate of x0, under any parameterization.
      schedule: of the levels that the denoiser knows.
      trace: `exact_trace()` or `hutchinson_trace(...)`; by default the first up to 16 dimensions.
      integrate: how the ODE is solved; by default 64 Runge-Kutta steps, 256 calls.
      start: the level that stands for clean data; by default the cleanest trained one.

    >>> from diffjax.core import exact, schedules
    >>> denoise = exact.denoiser(exact.gaussian([0.0], 1.0))
    >>> key, x0 = jax.random.key(0), jnp.zeros((1, 1))
    >>> round(float(log_likelihood(key, x0, denoise, schedules.cosine()).nats[0]), 4)
    -0.9189
    """
    x0 = jnp.asarray(x0)
    size = math.prod(x0.shape[1:])
    if trace is None:
        trace = exact_trace() if size <= 16 else hutchinson_trace()
    integrate = runge_kutta(64) if integrate is None else integrate
    start = cleanest_level(schedule) if start is None else start
    keys = per_sample(key, x0.shape[0])
    velocity = velocity_field(denoise, schedule)

    def field(p, state):
        z, _ = state
        return trace(keys, lambda z: velocity(p, z), z)

    # x0 is x / alpha of the level `start`, and z is x / norm
    cosine = start.alpha / jnp.hypot(start.alpha, start.sigma)
    state = cosine * x0, jnp.zeros(x0.shape[0], x0.dtype)
    ends = position_of(start), position_of(noisiest_level(schedule))
    noise, growth = integrate(field, state, *ends)
    return Likelihood(_standard_normal(noise) + growth + size * jnp.log(cosine), noise)


def bits_per_dim(nats: ArrayLike, num_dims: int, *, num_bins: int = 256) -> Array:
    """Bits per dimension of quantised data from the log-density, in nats, of dequantised data.

        bits = -nats / (D log 2) + log2((num_bins - 1) / 2)

    The offset is that of values spread evenly over [-1, 1]: log2(127.5) = 6.994 for 8 bits, 3 for
    the 17 grey levels of the digits. Subtract log q(u | x) from `nats` first, if u was not uniform.

    Args:
      nats: log-densities, any shape.
      num_dims: D, the numbers in a sample.
      num_bins: values that the data can take.

    >>> float(bits_per_dim(0.0, 64, num_bins=17))
    3.0
    """
    return -jnp.asarray(nats) / (num_dims * math.log(2.0)) + math.log2((num_bins - 1) / 2)


def dequantize(x0: Array, u: Array, *, num_bins: int = 256) -> Array:
    """Data spread over their bins: the nearest of the values, + (u - 1/2) 2 / (num_bins - 1).

    Args:
      x0: [B, ...] quantised data in [-1, 1].
      u: [B, ...] places in the bins, in [0, 1); uniform draws for uniform dequantisation.
      num_bins: values that the data can take.

    >>> dequantize(jnp.array([-1.0, 1.0]), jnp.array([0.5, 0.0]), num_bins=3)
    Array([-1. ,  0.5], dtype=float32)
    """
    half = 0.5 * (num_bins - 1)
    return (jnp.round((x0 + 1.0) * half) + u - 0.5) / half - 1.0


def logit_normal_places(noise: Array, mean: ArrayLike, log_std: ArrayLike) -> tuple[Array, Array]:
    """Places in the bins for variational dequantisation, and how likely they were drawn.

        u = sigmoid(mean + std noise),    log q(u) = sum of log N(noise; 0, 1) - log(std u (1 - u))

    Differentiable in mean and log_std: the bound of this module is raised by gradients. The median
    place is sigmoid(mean); mean 0 and log_std 0.5 are nearly uniform.
    Source of the bound: Flow++, arXiv:1902.00275, Section 3.1; this family is the simplest one.

    Args:
      noise: [B, ...] standard normal, float32.
      mean, log_std: of each number, broadcasting against noise; functions of the quantised data.

    Returns:
      u, [B, ...] in [0, 1], for `dequantize`, and log q(u | x), [B], in nats: to be subtracted from
      the log-density before it is turned into bits.

    >>> u, nats = logit_normal_places(jnp.zeros((1, 1)), 0.0, 0.5)
    >>> round(float(u[0, 0]), 3), round(float(nats[0]), 3)
    (0.5, -0.033)
    """
    places = mean + jnp.exp(log_std) * noise
    # log(u (1 - u)), which rounds to log(0) when written so
    slope = jax.nn.log_sigmoid(places) + jax.nn.log_sigmoid(-places) + log_std
    return jax.nn.sigmoid(places), _standard_normal(noise) - inner_each(slope, jnp.ones_like(noise))


def uniform_each(keys: Array, shape: tuple[int, ...]) -> Array:
    """One array of `shape`, uniform in [0, 1), for every key: [b, *shape] float32."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)


def _standard_normal(z: Array) -> Array:
    """log N(z; 0, I) of each sample."""
    size = math.prod(z.shape[1:])
    return -0.5 * (inner_each(z, z) + size * math.log(2.0 * math.pi))
