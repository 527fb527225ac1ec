"""The loop: what it does with keys, levels, steps and gradients."""

import threading
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import exact, grids, schedules
from diffjax.core.keys import fold_in_each, sample_keys
from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import LearnedVariance
from diffjax.core.sampling import (
    Solver,
    initial_noise,
    pad_levels,
    progress,
    sample,
    stateless,
    trajectory,
)
from diffjax.solvers.ancestral import ancestral
from diffjax.solvers.ddim import ddim

TABLE = schedules.linear_betas(0.01, 0.4, num_steps=12)
LEVELS = TABLE(grids.trailing(6, 12))
PLANE = exact.mixture([0.4, 0.6], [[-0.8, 0.3], [0.7, 0.1]], [0.05, 0.1])
DENOISE = exact.denoiser(PLANE)
KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (8, 2))


@jax.jit
def run(key, x):
    return sample(key, x, DENOISE, ancestral(), LEVELS)


def test_jit_is_no_jit():
    with jax.disable_jit():
        x = sample(KEY, X[:2], DENOISE, ancestral(), LEVELS)
    np.testing.assert_allclose(run(KEY, X)[:2], x, rtol=1e-4, atol=1e-5)


def test_vmap_is_a_loop():
    keys, starts = jax.random.split(KEY, 3), jnp.stack([X, 2 * X, -X])
    together = jax.jit(jax.vmap(lambda key, x: sample(key, x, DENOISE, ancestral(), LEVELS)))
    for key, x, got in zip(keys, starts, together(keys, starts)):
        np.testing.assert_allclose(got, run(key, x), rtol=1e-4, atol=1e-5)


def test_batch_of_eight_is_twice_four():
    keys = sample_keys(KEY, jnp.arange(8))
    whole = initial_noise(KEY, (8, 3, 2), LEVELS)
    halves = [initial_noise(keys[half], (4, 3, 2), LEVELS) for half in (slice(4), slice(4, 8))]
    np.testing.assert_array_equal(whole, np.concatenate(halves))
    parts = [run(keys[half], X[half]) for half in (slice(4), slice(4, 8))]
    np.testing.assert_allclose(run(KEY, X), np.concatenate(parts), rtol=1e-5, atol=1e-6)


def test_key_of_a_step_is_the_samples_key_folded_with_its_number():
    record = stateless(
        lambda keys, x, denoise, current, next_: jax.vmap(jax.random.uniform)(keys)[:, None]
    )
    path = trajectory(KEY, X[:, :1], lambda x, level: x, with_a_call(record), LEVELS)
    keys = sample_keys(KEY, jnp.arange(8))
    for i in range(6):
        expected = jax.vmap(jax.random.uniform)(fold_in_each(keys, i))
        np.testing.assert_array_equal(path.x[i + 1, :, 0], expected)


def with_a_call(solver):
    """A solver that also asks the denoiser, as `trajectory` expects."""

    def step(keys, x, state, denoise, current, next_):
        denoise(x, current)
        return solver.step(keys, x, state, denoise, current, next_)

    return Solver(solver.init, step)


def test_solver_is_shown_neighbouring_levels_and_its_own_state():
    def step(keys, x, state, denoise, current, next_):
        return x + 100.0 * current.t + next_.t, state + 1

    counting = Solver(lambda x: jnp.zeros((), jnp.int32), step)
    x = sample(KEY, jnp.zeros((1, 1)), lambda x, level: x, counting, LEVELS)
    times = grids.trailing(6, 12)
    assert float(x[0, 0]) == sum(100 * a + b for a, b in pairwise(times))


def test_prefix_of_a_grid_is_the_start_of_the_whole():
    path = jax.jit(lambda x: trajectory(KEY, x, DENOISE, ancestral(), LEVELS))(X)
    prefix = jax.tree.map(lambda leaf: leaf[:4], LEVELS)
    x = jax.jit(lambda x: sample(KEY, x, DENOISE, ancestral(), prefix))(X)
    np.testing.assert_allclose(x, path.x[3], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run(KEY, X), path.x[6], rtol=1e-5, atol=1e-6)


def test_trajectory_holds_what_the_denoiser_said_at_each_step():
    path = jax.jit(lambda x: trajectory(KEY, x, DENOISE, ddim(), LEVELS))(X)
    for i in range(6):
        level = jax.tree.map(lambda leaf, i=i: leaf[i], LEVELS)
        np.testing.assert_allclose(path.x0[i], DENOISE(path.x[i], level), rtol=1e-4, atol=1e-5)


def test_trajectory_of_a_learned_variance_keeps_the_estimate_alone():
    denoise = lambda x, level: LearnedVariance(0.5 * x, jnp.full_like(x, 0.3))
    path = trajectory(KEY, X, denoise, ancestral("learned_range"), LEVELS)
    np.testing.assert_array_equal(path.x0[0], 0.5 * X)


def test_number_of_steps_is_data_and_compiles_once():
    traces = []

    @jax.jit
    def run_padded(levels, num_steps):
        traces.append(None)
        return sample(KEY, X, DENOISE, ddim(), levels, num_steps=num_steps)

    for n in (1, 3, 12):
        levels = TABLE(grids.trailing(n, 12))
        padded = run_padded(pad_levels(levels, 12), n)
        static = jax.jit(lambda levels: sample(KEY, X, DENOISE, ddim(), levels))(levels)
        np.testing.assert_allclose(padded, static, rtol=1e-5, atol=1e-6)
    assert len(traces) == 1


def test_padding_repeats_the_last_level():
    padded = pad_levels(LEVELS, 9)
    for leaf, short in zip(padded, LEVELS):
        np.testing.assert_array_equal(leaf[:7], short)
        np.testing.assert_array_equal(leaf[7:], np.repeat(short[-1], 3))


class Bar:
    def __init__(self):
        self.count = 0
        self.lock = threading.Lock()

    def update(self, n):
        with self.lock:
            self.count += n


@pytest.mark.parametrize("walk", [sample, trajectory])
def test_on_step_is_called_once_a_step_inside_jit(walk):
    bar, seen = Bar(), []
    advance = progress(bar)

    def on_step(i, x):
        advance(i, x)
        jax.debug.callback(lambda i, x: seen.append((int(i), x.shape)), i, x)

    jax.block_until_ready(
        jax.jit(lambda x: walk(KEY, x, DENOISE, ddim(), LEVELS, on_step=on_step))(X)
    )
    jax.effects_barrier()
    assert bar.count == 6
    assert sorted(seen) == [(i, (8, 2)) for i in range(6)]


def test_memory_of_a_gradient_does_not_grow_with_steps_times_activations():
    weights = jax.random.normal(KEY, (2, 2048)) / 50.0

    def memory(num_steps):
        levels = schedules.cosine()(grids.trailing(num_steps))

        def loss(weights, x):
            denoise = lambda x, level: jnp.tanh(x @ weights) @ weights.T
            return jnp.sum(sample(KEY, x, denoise, ddim(), levels) ** 2)

        gradient = jax.jit(jax.grad(loss)).lower(weights, jnp.ones((64, 2))).compile()
        return gradient.memory_analysis().temp_size_in_bytes

    # one step has 64 * 2048 activations, 0.5 MB; an x has 0.5 kB
    assert memory(32) < memory(4) + 200_000


def test_memory_of_a_gradient_grows_with_the_root_of_the_steps_in_segments():
    size = 8 * 2048 * 4

    def kept(num_steps, segments):
        """How many arrays of the size of x the gradient holds."""
        levels = schedules.cosine()(grids.trailing(num_steps))

        def loss(weights, x):
            denoise = lambda x, level: jnp.tanh(x * weights)
            return jnp.sum(sample(KEY, x, denoise, ddim(), levels, segments=segments) ** 2)

        arguments = jnp.zeros(2048), jnp.ones((8, 2048))
        gradient = jax.jit(jax.grad(loss)).lower(*arguments).compile()
        return gradient.memory_analysis().temp_size_in_bytes / size

    whole, few, many = kept(256, 1), kept(64, 8), kept(256, 16)
    assert whole > 256
    # twice sqrt(N), and some that do not depend on N
    np.testing.assert_allclose(many - few, 2 * (16 - 8), atol=3)
    assert many < 2 * 16 + 16


@pytest.mark.parametrize("segments", [1, 3])
def test_gradient_through_a_run_is_the_finite_difference(x64, segments):
    # seven steps in three segments of three: the last is not full
    levels = schedules.cosine()(np.linspace(0.95, 0.05, 8))
    x = jnp.asarray(X[:3], jnp.float64)

    @jax.jit
    def loss(shift, x):
        denoise = lambda x, level: jnp.tanh(x + shift * level.sigma)
        return jnp.sum(sample(KEY, x, denoise, ancestral(), levels, segments=segments) ** 3)

    shift = jnp.asarray(0.3)
    to_shift, to_x = jax.jit(jax.grad(loss, argnums=(0, 1)))(shift, x)
    h = 1e-5
    difference = (loss(shift + h, x) - loss(shift - h, x)) / (2 * h)
    np.testing.assert_allclose(to_shift, difference, rtol=1e-7)
    along = jnp.cos(jnp.arange(6.0)).reshape(3, 2)
    difference = (loss(shift, x + h * along) - loss(shift, x - h * along)) / (2 * h)
    np.testing.assert_allclose(jnp.sum(to_x * along), difference, rtol=1e-7)


def test_segments_do_not_change_the_result():
    run_in_segments = jax.jit(lambda x: sample(KEY, x, DENOISE, ancestral(), LEVELS, segments=4))
    np.testing.assert_allclose(run_in_segments(X), run(KEY, X), rtol=1e-5, atol=1e-6)


def test_initial_noise_has_the_variance_of_unit_data_at_the_level():
    level = NoiseLevel(jnp.array(1.0), jnp.array(1.0), jnp.array(7.0))
    x = initial_noise(KEY, (4, 5000), level)
    # the variance of a sample variance is 2 sigma^4 / n
    assert abs(np.var(x) / 50.0 - 1.0) < 4 * (2 / 20_000) ** 0.5
    grid = jax.tree.map(lambda leaf: jnp.array([leaf, 0.5, 0.0]), level)
    np.testing.assert_array_equal(initial_noise(KEY, (4, 5000), grid), x)


def test_levels_may_be_numpy_arrays():
    levels = NoiseLevel(*(np.asarray(leaf) for leaf in LEVELS))
    np.testing.assert_allclose(
        sample(KEY, X, DENOISE, ddim(), levels), sample(KEY, X, DENOISE, ddim(), LEVELS), rtol=1e-6
    )


def test_half_precision_is_sampled_in_float32_and_float64_levels_in_float64():
    follow = stateless(lambda keys, x, denoise, current, next_: next_.alpha * x)
    assert sample(KEY, X.astype(jnp.bfloat16), None, follow, LEVELS).dtype == jnp.float32
    with jax.enable_x64(True):
        levels = schedules.cosine()(np.linspace(1.0, 0.0, 4))
        assert sample(KEY, X, None, follow, levels).dtype == jnp.float64


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: sample(KEY, X, DENOISE, ddim(), TABLE(np.array([3]))), ValueError, "num_steps 0"),
        (lambda: sample(KEY, X, DENOISE, ddim(), TABLE(3)), ValueError, "one shape"),
        (
            lambda: sample(KEY, X, DENOISE, ddim(), LEVELS, num_steps=7),
            ValueError,
            "grid has 6 steps",
        ),
        (
            lambda: sample(KEY, X, DENOISE, ddim(), LEVELS, num_steps=np.int64(0)),
            ValueError,
            "num_steps is 0",
        ),
        (
            lambda: sample(KEY, jnp.ones((2, 2), jnp.int32), DENOISE, ddim(), LEVELS),
            TypeError,
            "int32",
        ),
        (
            lambda: sample(KEY, X, DENOISE, ddim(), LEVELS, segments=7),
            ValueError,
            "1 to 6 segments",
        ),
        (
            lambda: sample(KEY, X, DENOISE, ddim(), LEVELS, segments=2, num_steps=3),
            ValueError,
            "without num_steps",
        ),
        (
            lambda: sample(jax.random.PRNGKey(0), X, DENOISE, ddim(), LEVELS),
            ValueError,
            "jax.random.key",
        ),
        (
            lambda: sample(jax.random.split(KEY, 3), X, DENOISE, ddim(), LEVELS),
            ValueError,
            "each of the 8 samples",
        ),
        (lambda: sample(0, X, DENOISE, ddim(), LEVELS), ValueError, "key is 0"),
        (lambda: sample(KEY, {"a": X}, DENOISE, ddim(), LEVELS), TypeError, "x is a dict"),
        (lambda: sample(KEY, X, lambda x, level: None, ddim(), LEVELS), TypeError, "returned None"),
        (lambda: initial_noise(KEY, X.shape, TABLE), TypeError, "level is a Table"),
        (lambda: pad_levels(LEVELS, 5), ValueError, "6 steps, more than 5"),
        (lambda: sample(KEY, X, DENOISE, ddim, LEVELS), TypeError, "a builder such as ddim"),
        (lambda: sample(KEY, X, DENOISE, ddim(), TABLE), TypeError, "levels is a Table"),
        (
            lambda: sample(KEY, X, lambda x, level: x[:, :1], ddim(), LEVELS),
            TypeError,
            "the shape of x",
        ),
    ],
)
def test_errors_say_what_sampling_needs(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_estimates_of_another_dtype_are_brought_to_that_of_x():
    estimate = lambda x, level: jnp.zeros(x.shape, jnp.bfloat16)
    assert jax.eval_shape(lambda: sample(KEY, X, estimate, ddim(), LEVELS)).dtype == jnp.float32
