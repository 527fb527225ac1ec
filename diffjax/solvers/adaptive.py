"""Solvers that choose their own steps: DPM-adaptive, and diffrax's for the probability-flow ODE.

Both go from one level of the grid to the next in as many steps as their tolerances ask for; a grid
of two levels leaves all of the choice to them. Each sample has steps of its own, so that it does
not depend on its batch: in one call of the network the samples are at different levels.

They work with y = x / sqrt(alpha^2 + sigma^2), which is of unit scale everywhere, and with the
ratio rho = sigma / alpha, which together with the inverse of the schedule tells the level:

    y = (x0 + rho eps) / c,    c = sqrt(1 + rho^2)

Between the ratios 1000 and 1 / 1000 they integrate; a DDIM step leads there from pure noise, and
from there to clean data.
Sources: DPM-Solver, arXiv:2206.00927, Algorithms 1-3 and Appendix C; its step control is that of
github.com/crowsonkb/k-diffusion; probability-flow ODE: Score SDE, arXiv:2011.13456, Section 4.3.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from diffjax.core.inverse import level_at
from diffjax.core.levels import NoiseLevel, expand, ratio_of, select
from diffjax.core.parameterizations import estimate_eps
from diffjax.core.sampling import Solver, stateless
from diffjax.core.schedules import Schedule
from diffjax.solvers.ddim import ddim_update

SMALLEST, LARGEST = 1e-3, 1e3
SAMPLES = "samples"

# (y [B, ...], rho [B]) -> the denoiser's x0 and eps
Estimate = Callable[[Array, Array], tuple[Array, Array]]


def _integrated(
    schedule: Schedule, integrate: Callable[[Array, Array, Array, Estimate], Array]
) -> Solver:
    """A solver from `integrate(y, rho, next_rho, estimate) -> y`, for ratios within the limits."""
    inverse = level_at(schedule)

    def inside(level: NoiseLevel) -> tuple[NoiseLevel, Array]:
        """The nearest level within the limits, and whether it is another one."""
        ratio = ratio_of(level)
        nearest = jnp.clip(ratio, SMALLEST, LARGEST)
        outside = nearest != ratio
        near = inverse(nearest)
        return jax.tree.map(lambda a, b: jnp.where(outside, a, b), near, level), outside

    def step(keys, x, denoise, current, next_):
        def jump(x, level, target):
            return ddim_update(x, denoise(x, level), None, level, target)

        def estimate(y, rho):
            level = inverse(rho)
            x = expand(jnp.hypot(level.alpha, level.sigma), y) * y
            x0 = denoise(x, level)
            return x0, estimate_eps(x, x0, level)

        (start, enters), (end, leaves) = inside(current), inside(next_)
        x = lax.cond(enters, lambda: jump(x, current, start), lambda: x)
        rho, next_rho = start.sigma / start.alpha, end.sigma / end.alpha
        y = integrate(x / jnp.hypot(start.alpha, start.sigma), rho, next_rho, estimate)
        x = jnp.hypot(end.alpha, end.sigma) * y
        return lax.cond(leaves, lambda: jump(x, end, next_), lambda: x)

    return stateless(step)


class Control(NamedTuple):
    """Where each sample of an adaptive run is.

    Attributes:
      lambda_: [B] log(alpha / sigma).
      y: [B, ...] there.
      previous: [B, ...] the less accurate y of the last accepted step, for the scale of errors.
      h: [B] length of the step to try.
      errors: [B, 2] inverse errors of the last two accepted steps, newest first; 0 for none.
    """

    lambda_: Array
    y: Array
    previous: Array
    h: Array
    errors: Array


def dpm_adaptive(
    schedule: Schedule,
    *,
    order: int = 3,
    rtol: ArrayLike = 0.05,
    atol: ArrayLike = 0.0078,
    first_step: ArrayLike = 0.05,
    pid: tuple[ArrayLike, ArrayLike, ArrayLike] = (0.0, 1.0, 0.0),
    accept_safety: ArrayLike = 0.81,
    max_steps: int = 256,
) -> Solver:
    """DPM-Solver-12 or -23 with steps chosen by the difference between its two orders.

    A step of length h in lambda is tried with `order` calls of the network. With its error relative
    to max(atol, rtol |y|), as the root of the mean square over a sample, the next length is

        h <- h (1 + arctan(f - 1)),    f = error^-(i / order) for pid = (0, i, 0),

    and the step counts if the factor of h is at least `accept_safety`. In derivatives the lengths
    count as constants.

    Args:
      schedule: of the levels; it gives those between them.
      order: 3 (default) or 2.
      rtol, atol: tolerances; they and the other numbers may be traced.
      first_step: length to begin each step of the grid with.
      pid: coefficients of a proportional, integral and differential control.
      accept_safety: see above.
      max_steps: tried steps for one step of the grid; a sample that needs more becomes NaN, and so
        does one that is asked to go from data to noise.

    Raises:
      ValueError: another order.

    >>> from diffjax.core.schedules import linear
    >>> solver = dpm_adaptive(linear(), rtol=0.01)
    """
    if order not in (2, 3):
        raise ValueError(f"order is {order}; it must be 2 or 3.")

    def attempt(state: Control, end: Array, estimate: Estimate) -> Control:
        left = end - state.lambda_
        h = jnp.minimum(state.h, left)
        low, high = EMBEDDED[order](state.y, state.lambda_, h, estimate)
        newest = 1.0 / (_relative_error(low, high, state.previous, rtol, atol) + 1e-8)
        factor = 1.0 + jnp.arctan(_proposal(newest, state.errors, pid, order) - 1.0)
        active = left > 0
        state = state._replace(h=jnp.where(active, state.h * factor, state.h))
        # where the end is reached, it is reached to the last digit
        reached = jnp.where(h == left, end, state.lambda_ + h)
        errors = jnp.stack([newest, state.errors[:, 0]], axis=1)
        stepped = Control(reached, high, low, state.h, errors)
        accepted = active & (factor >= accept_safety)
        return select(accepted, stepped, state)

    def integrate(y, rho, next_rho, estimate):
        ones, end = jnp.ones(len(y), y.dtype), -jnp.log(next_rho)
        h = jnp.asarray(first_step) * ones
        state = Control(-jnp.log(rho) * ones, y, y, h, jnp.zeros((len(y), 2), y.dtype))

        def body(_, state):
            going = jnp.any(state.lambda_ < end)
            return lax.cond(going, lambda: attempt(state, end, estimate), lambda: state)

        state = lax.fori_loop(0, max_steps, body, state)
        return jnp.where(expand(state.lambda_ == end, y), state.y, jnp.nan)

    return _integrated(schedule, integrate)


def _relative_error(low: Array, high: Array, previous: Array, rtol, atol) -> Array:
    """The difference of two results in units of what is tolerated: [B], without derivatives."""
    largest = jnp.maximum(jnp.abs(low), jnp.abs(previous))
    off = ((low - high) / jnp.maximum(atol, rtol * largest)).reshape(len(low), -1)
    return jnp.sqrt(jnp.mean(lax.stop_gradient(off) ** 2, axis=1))


def _proposal(newest: Array, errors: Array, pid, order: int) -> Array:
    """The factor of the step that a PID control proposes, from inverse errors [B]."""
    p, i, d = pid
    # before there is a history, all errors count as the newest
    last, before = (jnp.where(errors[:, k] > 0, errors[:, k], newest) for k in (0, 1))
    powers = (p + i + d) / order, -(p + 2.0 * d) / order, d / order
    return newest ** powers[0] * last ** powers[1] * before ** powers[2]


def _along(x0: Array, eps: Array, rho: Array) -> Array:
    """y at another ratio, with both estimates held."""
    rho = expand(rho, x0)
    return (x0 + rho * eps) / jnp.hypot(1.0, rho)


def _solver_12(y: Array, lambda_: Array, h: Array, estimate: Estimate) -> tuple[Array, Array]:
    """DPM-Solver-1 and -2 from lambda to lambda + h, [B] each."""
    x0, eps = estimate(y, jnp.exp(-lambda_))
    return _second_order(x0, eps, lambda_, h, 0.5, estimate)[:2]


def _second_order(x0, eps, lambda_, h, r1: float, estimate: Estimate):
    """The results of first and of second order, and the change of eps until lambda + r1 h."""
    rho, middle, end = (jnp.exp(-(lambda_ + r * h)) for r in (0.0, r1, 1.0))
    low = _along(x0, eps, end)
    change = estimate(_along(x0, eps, middle), middle)[1] - eps
    weight = (end - rho) / (2.0 * r1) / jnp.hypot(1.0, end)
    return low, low + expand(weight, low) * change, change


def _solver_23(y: Array, lambda_: Array, h: Array, estimate: Estimate) -> tuple[Array, Array]:
    """DPM-Solver-2 and -3 from lambda to lambda + h, [B] each."""
    r1, r2 = 1.0 / 3.0, 2.0 / 3.0
    x0, eps = estimate(y, jnp.exp(-lambda_))
    first, low, change = _second_order(x0, eps, lambda_, h, r1, estimate)
    length = jnp.where(h > 0, h, 1.0)
    rho, later, end = (jnp.exp(-(lambda_ + r * h)) for r in (0.0, r2, 1.0))
    # rho_s (e^x - 1 - x) / x, for x = r2 h and x = h
    inner = ((rho - later) / (r2 * length) - later) * (r2 / r1) / jnp.hypot(1.0, later)
    outer = ((rho - end) / length - end) / r2 / jnp.hypot(1.0, end)
    y_later = _along(x0, eps, later) - expand(inner, y) * change
    later_change = estimate(y_later, later)[1] - eps
    return low, first - expand(outer, y) * later_change


EMBEDDED = {2: _solver_12, 3: _solver_23}


def adaptive_ode(
    schedule: Schedule,
    method: Any = None,
    *,
    rtol: float | Array = 1e-4,
    atol: float | Array = 1e-4,
    max_steps: int = 256,
) -> Solver:
    """The probability-flow ODE by a solver of diffrax, which chooses the steps.

        dy/ds = (eps / c - x0 tanh(s)) / c,    s = arcsinh(rho),    c = cosh(s)

    which is regular at every level. It can be run from data to noise too, and differentiated.

    Args:
      schedule: of the levels; it gives those between them.
      method: a solver of diffrax; `diffrax.Tsit5()` by default, which is of order 5.
      rtol, atol: tolerances of y; may be traced.
      max_steps: steps for one step of the grid; a sample that needs more becomes NaN.

    Raises:
      ImportError: diffrax is not installed.
    """
    try:
        import diffrax
    except ImportError as error:
        raise ImportError(
            "adaptive_ode needs diffrax, which is not installed: pip install 'diffjax[ode]'."
        ) from error
    solver = diffrax.Tsit5() if method is None else method
    controller = diffrax.PIDController(rtol=rtol, atol=atol)

    def integrate(y, rho, next_rho, estimate):
        start, end = (jnp.arcsinh(ratio).astype(y.dtype) for ratio in (rho, next_rho))

        def solve(y):
            solution: Any = diffrax.diffeqsolve(
                diffrax.ODETerm(_slope_of_one(estimate)),
                solver,
                start,
                end,
                None,
                y,
                stepsize_controller=controller,
                max_steps=max_steps,
                throw=False,
                # the others differentiate the loop outside of the map over samples
                adjoint=diffrax.DirectAdjoint(),
            )
            reached = solution.result == diffrax.RESULTS.successful
            return jnp.where(reached, solution.ys[-1], jnp.nan)

        return jax.vmap(solve, axis_name=SAMPLES)(y)

    return _integrated(schedule, integrate)


def _slope_of_one(estimate: Estimate) -> Callable[..., Array]:
    """dy/ds of one sample in a map over them: one call of the network for all, where they are."""

    def slope(s, y, _):
        ys, all_s = lax.all_gather((y, s), SAMPLES)
        x0, eps = estimate(ys, jnp.sinh(all_s))
        cosh, tanh = expand(jnp.cosh(all_s), ys), expand(jnp.tanh(all_s), ys)
        return ((eps / cosh - x0 * tanh) / cosh)[lax.axis_index(SAMPLES)]

    return slope
