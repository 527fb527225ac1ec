"""Sampling: one loop over a grid of noise levels.

A `Solver` knows how to go from one level to the next by asking a denoiser; `sample` walks the
grid with it:

    x_{i+1}, state = solver.step(keys_i, x_i, state, denoise, levels[i], levels[i + 1])

`keys_i` holds one key for each sample, fold_in(fold_in(key, index of the sample), i).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from diffjax.core.arguments import concrete_values
from diffjax.core.keys import fold_in_each, normal_each, sample_keys
from diffjax.core.levels import NoiseLevel, check_level_type
from diffjax.core.parameterizations import Denoiser

State = Any
OnStep = Callable[[Array, Array], None]


class Solver(NamedTuple):
    """A pair of pure functions, the whole contract of a solver.

    Attributes:
      init: x -> state, the memory of a multistep solver; () for the others.
      step: (keys, x, state, denoise, current, next_) -> (x, state). `keys`: [B], one for each
        sample; `current` and `next_`: scalar levels, the second one the less noisy (the other way
        round for inversion).
      plan: for speed, levels [N + 1] -> what the steps find out from levels alone, leaves
        [N, ...]. Step i is then told entry i, `step(..., planned=entry)`, and need not find it out
        inside the loop; it does when it is told nothing. A solver that wraps another one, and takes
        its steps at the same levels, hands `**planned` on.
      from_pure_noise: whether it can start where alpha = 0; otherwise `sample` refuses to.
    """

    init: Callable[[Array], State]
    step: Callable[..., tuple[Array, State]]
    plan: Callable[[NoiseLevel], Any] | None = None
    from_pure_noise: bool = True


def stateless(step: Callable[..., Array], *, from_pure_noise: bool = True) -> Solver:
    """A solver without memory from `step(keys, x, denoise, current, next_) -> x`."""

    def step_and_state(keys, x, state, denoise, current, next_):
        return step(keys, x, denoise, current, next_), state

    return Solver(lambda x: (), step_and_state, from_pure_noise=from_pure_noise)


def initial_noise(key: Array, shape: tuple[int, ...], level: NoiseLevel) -> Array:
    """Where sampling starts: noise with the variance that unit-variance data has at `level`.

        x = sqrt(alpha^2 + sigma^2) eps,    which is eps itself for variance-preserving schedules

    Args:
      key: one key, or [B] keys, one for each sample.
      shape: (B, ...) of the batch.
      level: where to start, scalar leaves; or a grid of levels, [N + 1], whose first is meant.

    Returns:
      [B, ...] float32.

    Raises:
      TypeError: the level is none.
      ValueError: a key of the old kind or of another batch.
    """
    level = check_level_type(level)
    scale = jnp.ravel(jnp.hypot(level.alpha, level.sigma))[0]
    return scale * normal_each(per_sample(key, shape[0]), shape[1:])


def per_sample(key: Array, batch_size: int) -> Array:
    """Keys of the samples 0 .. batch_size - 1, unless `key` holds [B] keys already.

    Raises:
      ValueError: a key of the old kind, another number of keys, or no key at all.
    """
    typed = isinstance(key, Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if typed and key.ndim == 0:
        return sample_keys(key, jnp.arange(batch_size, dtype=jnp.int32))
    if not typed or key.shape != (batch_size,):
        given = f"{key.dtype}{list(key.shape)}" if isinstance(key, Array) else repr(key)
        raise ValueError(
            f"key is {given}; needed is one key made by jax.random.key, or one for each of the "
            f"{batch_size} samples (sample_keys)."
        )
    return key


def sample(
    key: Array,
    x: Array,
    denoise: Denoiser,
    solver: Solver,
    levels: NoiseLevel,
    *,
    num_steps: Array | int | None = None,
    segments: int = 1,
    on_step: OnStep | None = None,
) -> Array:
    """Walk a grid of noise levels from its first to its last.

    With `num_steps` left out the loop has a fixed length and can be differentiated: a gradient
    keeps one x for each step in memory and computes the inside of the steps again. With the walk
    cut into S segments it keeps one x for each segment and each step of one segment, S + N / S,
    and walks a second time; S = sqrt(N) keeps the fewest. A traced
    `num_steps` makes its length dynamic: pad the levels to the largest number of steps
    (`pad_levels`), and one compiled program serves every smaller one.

    Args:
      key: one key, from which each sample's own is derived by its position; or [B] keys, for a
        part of a larger batch (`sample_keys(key, positions)`), as in `pmap` and `shard_map`, where
        with one key every device would draw the same.
      x: [B, ...] start, at the first level, float32: see `initial_noise`.
      denoise: (x, level) -> estimate of x0.
      solver: how to step, for example `ddim()`.
      levels: [N + 1] grid, for example `schedule(trailing(50))`.
      num_steps: steps to take, at most N.
      segments: parts of equal length, S, to save memory in gradients; the result is the same.
      on_step: called in each iteration with the traced step number and the new x; for effects
        such as `jax.debug.callback`: see `progress`.

    Returns:
      [B, ...] at the last level, in the dtype of x and levels, float32 at least.

    Raises:
      ValueError: a key of the old kind or of another batch, levels that are no grid, or a number of
        steps or segments that the grid does not have; pure noise (alpha = 0) at the start of a
        solver that divides by alpha, unless the levels are traced.
      TypeError: x holds no floats or is a scalar, the solver is none, or levels are none; in a
        step, an estimate of x0 in another shape than x.

    >>> from diffjax.core import grids, schedules
    >>> levels = schedules.cosine()(grids.trailing(10))
    >>> follow = stateless(lambda keys, x, denoise, current, next_: denoise(x, current))
    >>> sample(jax.random.key(0), jnp.ones((2, 3)), lambda x, level: 0 * x, follow, levels).shape
    (2, 3)
    """
    keys, x, levels, length = _check_start(key, x, solver, levels)
    _check_counts(num_steps, segments, length)

    @partial(jax.checkpoint, prevent_cse=False)
    def advance(row, x, state):
        return _step(keys, row, x, state, denoise, solver)

    def body(carry, row):
        x, state = advance(row, *carry)
        if on_step is not None:
            on_step(row.i, x)
        return (x, state), None

    rows, start = _rows(solver, levels), (x, solver.init(x))
    if segments == 1 and num_steps is None:
        return lax.scan(body, start, rows)[0][0]

    def body_at(i, carry):
        return body(carry, jax.tree.map(lambda leaf: leaf[i], rows))[0]

    if segments == 1:
        return lax.fori_loop(0, num_steps, body_at, start)[0]
    return _loop_in_segments(length, segments, body_at, start)[0]


def _loop_in_segments(length: int, segments: int, body: Callable[[Any, Any], Any], start: Any):
    """`fori_loop(0, length, body, start)`; a gradient computes the inside of segments again."""
    per_segment = -(-length // segments)

    @partial(jax.checkpoint, prevent_cse=False)
    def segment(number, carry):
        def within(j, carry):
            i = number * per_segment + j
            # the last segment may be longer than what is left
            return lax.cond(i < length, partial(body, i), lambda carry: carry, carry)

        return lax.fori_loop(0, per_segment, within, carry)

    return lax.fori_loop(0, segments, segment, start)


class Trajectory(NamedTuple):
    """Everything that a sampling run passed through.

    Attributes:
      x: [N + 1, B, ...] the array at each level, the start included.
      x0: [N, B, ...] the denoiser's estimate that each step began with.
    """

    x: Array
    x0: Array


def trajectory(
    key: Array,
    x: Array,
    denoise: Denoiser,
    solver: Solver,
    levels: NoiseLevel,
    *,
    on_step: OnStep | None = None,
) -> Trajectory:
    """Like `sample`, but keep every x and the first estimate of x0 of every step.

    Arguments (key, x, denoise, solver, levels, on_step) and errors as of `sample`.

    Returns:
      A `Trajectory`; the last entry of its `x` is what `sample` returns.
    """
    keys, x, levels, _ = _check_start(key, x, solver, levels)

    @partial(jax.checkpoint, prevent_cse=False)
    def advance(row, x, state):
        estimates = []

        def recording(x, level):
            estimates.append(denoise(x, level))
            return estimates[-1]

        x, state = _step(keys, row, x, state, recording, solver)
        # a LearnedVariance holds more than the estimate
        return x, state, getattr(estimates[0], "x0", estimates[0])

    def body(carry, row):
        x, state, x0 = advance(row, *carry)
        if on_step is not None:
            on_step(row.i, x)
        return (x, state), (x, x0)

    _, (xs, x0s) = lax.scan(body, (x, solver.init(x)), _rows(solver, levels))
    return Trajectory(jnp.concatenate([x[None], xs]), x0s)


class _Row(NamedTuple):
    """What belongs to one step, or with leaves [N, ...] to each of them."""

    i: Array
    current: NoiseLevel
    next_: NoiseLevel
    planned: dict[str, Any]


def _rows(solver: Solver, levels: NoiseLevel) -> _Row:
    current, next_ = (jax.tree.map(lambda leaf, part=part: leaf[part], levels)
                      for part in (slice(None, -1), slice(1, None)))  # fmt: skip
    planned = {} if solver.plan is None else {"planned": solver.plan(levels)}
    return _Row(jnp.arange(len(levels.sigma) - 1), current, next_, planned)


def _step(keys, row: _Row, x, state, denoise, solver: Solver):
    keys = fold_in_each(keys, row.i)
    denoise = _checked(denoise)
    return solver.step(keys, x, state, denoise, row.current, row.next_, **row.planned)


def _checked(denoise: Denoiser) -> Denoiser:
    """Refuse estimates that would broadcast against x, and bring others to its dtype."""

    def check(x: Array, estimate: Array | None) -> Array:
        if estimate is None or jnp.shape(estimate) != x.shape:
            given = None if estimate is None else jnp.shape(estimate)
            raise TypeError(
                f"The denoiser returned {given} for x of {x.shape}; an estimate of x0 has the "
                "shape of x."
            )
        return jnp.asarray(estimate, x.dtype)

    def checked(x: Array, level: NoiseLevel) -> Any:
        # None, of a function that forgot to return, would be a tree without leaves
        none = lambda estimate: estimate is None
        return jax.tree.map(partial(check, x), denoise(x, level), is_leaf=none)

    return checked


def pad_levels(levels: NoiseLevel, num_steps: int) -> NoiseLevel:
    """Lengthen a grid to `num_steps` steps by repeating its last level.

    Together with the `num_steps` argument of `sample` this lets one compiled program serve grids
    of every length up to the padded one.

    Args:
      levels: [N + 1] grid.
      num_steps: the most steps that are to be served, N or more.

    Returns:
      [num_steps + 1] levels.

    Raises:
      ValueError: the grid has more steps than that.
    """
    missing = num_steps - _check_levels(levels)
    if missing < 0:
        raise ValueError(f"The grid has {num_steps - missing} steps, more than {num_steps}.")
    return jax.tree.map(lambda leaf: jnp.pad(leaf, (0, missing), mode="edge"), levels)


def progress(bar: Any) -> OnStep:
    """An `on_step` that advances a progress bar (anything with `update(n)`, such as tqdm's).

    Works inside jit: the host is told about each step by an asynchronous callback.
    """

    def advance(_):
        bar.update(1)

    return lambda i, x: jax.debug.callback(advance, i)


def _check_start(key, x, solver, levels) -> tuple[Array, Array, NoiseLevel, int]:
    """The keys of the samples, x and levels as arrays, the number of steps."""
    if not hasattr(solver, "step"):
        raise TypeError(
            f"solver is {solver!r}; needed is a Solver, what a builder such as ddim() returns "
            "(by its name: SOLVERS['ddim']())."
        )
    if not isinstance(levels, NoiseLevel):
        raise TypeError(
            f"levels is a {type(levels).__name__}; needed is a NoiseLevel with a grid in each "
            "leaf, what a schedule makes of times: schedule(trailing(50))."
        )
    length = _check_levels(levels)
    alpha = concrete_values(levels.alpha)
    if not solver.from_pure_noise and alpha is not None and np.any(alpha[:-1] == 0):
        raise ValueError(
            "The levels hold pure noise (alpha = 0), from which this solver cannot step, because "
            "it divides by alpha. Start at a level with some signal, or take a solver that can: "
            "ddim, heun, dpm_multistep, unipc, ..."
        )
    levels = jax.tree.map(jnp.asarray, levels)
    if not jax.tree_util.all_leaves([x]):
        raise TypeError(f"x is a {type(x).__name__}; sampling needs one array, [B, ...] floats.")
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim < 1:
        raise TypeError(f"x is {x.dtype}{list(x.shape)}; sampling needs [B, ...] floats.")
    # a loop must return the dtype that it was given: levels are float64 under x64
    dtype = jnp.promote_types(jnp.promote_types(x.dtype, jnp.float32), levels.sigma.dtype)
    return per_sample(key, x.shape[0]), x.astype(dtype), levels, length


def _check_counts(num_steps: Array | int | None, segments: int, length: int) -> None:
    if isinstance(num_steps, int | np.integer) and not 0 < num_steps <= length:
        raise ValueError(f"num_steps is {num_steps}; the grid has {length} steps.")
    if not 0 < segments <= length or (segments > 1 and num_steps is not None):
        raise ValueError(
            f"segments is {segments} and num_steps {num_steps}; needed are 1 to {length} segments, "
            "and without num_steps more than one."
        )


def _check_levels(levels: NoiseLevel) -> int:
    shapes = {jnp.shape(leaf) for leaf in levels}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"The leaves of levels have shapes {shapes}; needed is one shape [N + 1].")
    length = next(iter(shapes))[0] - 1
    if length < 1:
        raise ValueError(
            f"levels holds {length + 1} level; sampling needs a start and an end. Was num_steps 0?"
        )
    return length
