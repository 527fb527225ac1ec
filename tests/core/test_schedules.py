"""Schedules against their formulas in extended precision, and tables against their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import schedules
from diffjax.core.levels import NoiseLevel, logsnr


def squared_cosine(t):
    angle = np.longdouble(np.pi) / 2 * np.array([(t + 0.008) / 1.008, 0.008 / 1.008 + 0 * t])
    # pi in extended precision: what float64 leaves of it
    angle = angle * (1 + np.longdouble(1.2246467991473532e-16) / np.longdouble(np.pi))
    return np.cos(angle[0]) ** 2 / np.cos(angle[1]) ** 2


def sigmoid_signal(t):
    s = lambda u: 1 / (1 + np.exp(-u))
    return (s(np.longdouble(3)) - s(-3 + 6 * t)) / (s(np.longdouble(3)) - s(np.longdouble(-3)))


def scaled_linear_signal(t):
    start, end = np.sqrt(np.longdouble(0.85)), np.sqrt(np.longdouble(12))
    root = start + t * (end - start)
    return np.exp(-(root**3 - start**3) / (3 * (end - start)))


# the schedule and its alpha^2 as the papers write it
CONTINUOUS = {
    "linear": (schedules.linear(), lambda t: np.exp(-t * (0.1 + t * 19.9 / 2))),
    "scaled_linear": (schedules.scaled_linear(), scaled_linear_signal),
    "cosine": (schedules.cosine(), squared_cosine),
    "sigmoid": (schedules.sigmoid(), sigmoid_signal),
}
TABLES = {
    "linear_betas": schedules.linear_betas(),
    "scaled_linear_betas": schedules.scaled_linear_betas(),
    "cosine_betas": schedules.cosine_betas(),
    "sigmoid_betas": schedules.sigmoid_betas(),
    "zero_terminal_snr": schedules.zero_terminal_snr(schedules.linear_betas()),
    "final_alpha": schedules.from_betas(np.full(20, 0.1), final_alpha_cumprod=0.9),
}
every_continuous = pytest.mark.parametrize("name", CONTINUOUS)
every_table = pytest.mark.parametrize("name", TABLES)


@every_continuous
def test_float32_has_full_relative_accuracy_up_to_both_ends(name):
    schedule, signal = CONTINUOUS[name]
    edge = np.array([1e-4, 1e-3, 1e-2])
    t = np.concatenate([edge, np.linspace(0.05, 0.95, 19), 1 - edge[::-1]]).astype(np.float32)
    level = schedule(t)
    exact = signal(t.astype(np.longdouble))
    assert level.alpha.dtype == level.sigma.dtype == jnp.float32
    np.testing.assert_allclose(level.alpha, np.sqrt(exact).astype(float), rtol=3e-6)
    np.testing.assert_allclose(level.sigma, np.sqrt(1 - exact).astype(float), rtol=3e-6)


@every_continuous
def test_continuous_time_runs_from_data_to_noise(name):
    level = CONTINUOUS[name][0](jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(level.alpha[0], 1.0, rtol=1e-7)
    assert level.sigma[0] == 0.0
    if name in ("cosine", "sigmoid"):
        assert level.alpha[1] == 0.0
    np.testing.assert_allclose(level.sigma[1], 1.0, atol=0.01)


def times_of(name):
    if name in CONTINUOUS:
        return CONTINUOUS[name][0], np.linspace(0, 1, 500).astype(np.float32)
    return TABLES[name], np.arange(-1, TABLES[name].num_train_steps)


@pytest.mark.parametrize("name", [*CONTINUOUS, *TABLES])
def test_variance_is_preserved_and_snr_falls(name):
    schedule, t = times_of(name)
    level = schedule(t)
    np.testing.assert_allclose(np.square(level.alpha) + np.square(level.sigma), 1.0, rtol=1e-6)
    assert np.all(np.diff(level.alpha) <= 0)
    assert np.all(np.diff(level.sigma) >= 0)
    assert np.all(np.diff(logsnr(level)) < 0) or name == "final_alpha"
    assert np.all(level.t == t)


@every_continuous
def test_gradients_with_respect_to_time_and_parameters_are_finite_at_the_ends(name):
    def total(schedule, t):
        level = schedule(t)
        return jnp.sum(level.alpha + level.sigma)

    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(
        CONTINUOUS[name][0], jnp.array([0.0, 0.3, 1.0])
    )
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(gradients[0]))


@pytest.mark.parametrize("name", [*CONTINUOUS, *TABLES])
def test_schedule_is_a_pytree_that_jit_and_vmap_take_as_an_argument(name):
    schedule, t = times_of(name)
    t = t[::7].astype(np.float32)
    run = jax.jit(lambda schedule, t: jax.vmap(schedule)(t))
    for got, expected in zip(run(schedule, t), schedule(t)):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


def test_table_takes_concrete_times_inside_jit():
    steps = jnp.array([0, 5])
    level = jax.jit(lambda: TABLES["linear_betas"](steps))()
    np.testing.assert_array_equal(level.alpha, TABLES["linear_betas"](steps).alpha)


@pytest.mark.parametrize("name", [*CONTINUOUS, *TABLES])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_levels_of_half_precision_times_are_float32(name, dtype):
    schedule, _ = times_of(name)
    level = schedule(jnp.asarray([0.25, 0.75], dtype))
    assert all(leaf.dtype == jnp.float32 for leaf in level)
    for got, expected in zip(level, schedule(jnp.array([0.25, 0.75]))):
        np.testing.assert_array_equal(got, expected)


def test_betas_are_the_variances_of_the_chain():
    betas = np.array([0.1, 0.2, 0.05, 0.5])
    table = schedules.from_betas(betas)
    np.testing.assert_allclose((table.alpha[1:] / table.alpha[:-1]) ** 2, 1 - betas, rtol=1e-12)
    assert table.alpha[0] == 1.0
    assert table.sigma[0] == 0.0
    snr = table.alpha[1:] ** 2 / table.sigma[1:] ** 2
    np.testing.assert_allclose(table.logsnr[1:], np.log(snr), rtol=1e-12)
    assert table.logsnr[0] == np.inf


def test_named_tables_have_the_betas_of_their_papers():
    def betas(table):
        return 1 - (table.alpha[1:] / table.alpha[:-1]) ** 2

    linear = betas(TABLES["linear_betas"])
    np.testing.assert_allclose(linear[[0, -1]], [1e-4, 0.02], rtol=1e-9)
    np.testing.assert_allclose(np.diff(linear), (0.02 - 1e-4) / 999, rtol=1e-6)
    scaled = betas(TABLES["scaled_linear_betas"])
    np.testing.assert_allclose(scaled[[0, -1]], [0.00085, 0.012], rtol=1e-9)
    np.testing.assert_allclose(np.diff(np.sqrt(scaled), 2), 0.0, atol=1e-12)
    cosine = betas(TABLES["cosine_betas"])
    np.testing.assert_allclose(cosine[-1], 0.999, rtol=1e-9)
    sigmoid = betas(TABLES["sigmoid_betas"])
    np.testing.assert_allclose(sigmoid + sigmoid[::-1], 1e-4 + 0.02, rtol=1e-9)


@pytest.mark.parametrize(
    ("make", "limit"),
    [
        (lambda T: schedules.linear_betas(0.1 / T, 20.0 / T, num_steps=T), schedules.linear()),
        (
            lambda T: schedules.scaled_linear_betas(0.85 / T, 12.0 / T, num_steps=T),
            schedules.scaled_linear(),
        ),
        (lambda T: schedules.cosine_betas(num_steps=T), schedules.cosine()),
    ],
)
def test_table_tends_to_its_continuous_limit(make, limit):
    # step k of T ends at time (k + 1) / T
    errors = []
    for T in (1000, 10_000):
        k = np.array([T // 10, T // 2, T - T // 10]) - 1
        gap = np.asarray(make(T)(k).alpha) - np.asarray(
            limit(((k + 1) / T).astype(np.float32)).alpha
        )
        errors.append(np.abs(gap).max())
    assert errors[1] < 1e-3
    # of first order; the cosine table is exact but for rounding
    assert errors[1] < 0.15 * errors[0] or errors[0] < 1e-6


@every_table
def test_interpolated_table_meets_its_steps_and_falls_between_them(name):
    table = TABLES[name]
    T = table.num_train_steps
    steps = np.unique(np.concatenate([[-1, 0, 1], np.linspace(2, T - 1, 15).astype(int)]))
    for got, expected in zip(table(steps.astype(np.float32)), table(steps)):
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-30)
    between = table(np.linspace(-1, T - 1, 4 * T + 1).astype(np.float32))
    assert np.all(np.diff(between.alpha) <= 1e-7)
    np.testing.assert_allclose(np.square(between.alpha) + np.square(between.sigma), 1, rtol=1e-6)


def test_zero_terminal_snr_keeps_the_first_step_and_ends_in_pure_noise():
    before = TABLES["linear_betas"]
    after = schedules.zero_terminal_snr(before)
    np.testing.assert_allclose(after.alpha[1], before.alpha[1], rtol=1e-15)
    assert after.alpha[-1] == 0.0
    assert after.sigma[-1] == 1.0
    # affine in alpha
    np.testing.assert_allclose(
        np.diff(after.alpha[1:]) / np.diff(before.alpha[1:]),
        after.alpha[1] / np.ptp(before.alpha[1:]),
    )
    np.testing.assert_array_equal(schedules.zero_terminal_snr(after).alpha, after.alpha)


@pytest.mark.parametrize("num_steps", [2, 3, 5, 10, 100])
def test_zero_terminal_snr_takes_tables_that_end_with_a_trace_of_noise(num_steps):
    betas = np.linspace(1e-4, 0.02, num_steps)
    table = schedules.from_betas(betas, final_alpha_cumprod=1 - betas[0])
    after = schedules.zero_terminal_snr(table)
    np.testing.assert_allclose(after.alpha[0], table.alpha[0], rtol=1e-15)
    assert after.alpha[-1] == 0.0


def test_last_level_of_sampling_may_keep_a_trace_of_noise():
    level = TABLES["final_alpha"](-1)
    np.testing.assert_allclose(np.square(level.alpha), 0.9, rtol=1e-6)


def test_tables_can_be_compared_and_hashed_though_they_hold_arrays():
    table = schedules.linear_betas()
    assert table == table
    assert table != schedules.linear_betas()
    assert len({table, table}) == 1


def test_number_of_training_steps_is_known_for_tables_only():
    assert schedules.num_train_steps(schedules.linear_betas(num_steps=7)) == 7
    assert schedules.num_train_steps(schedules.cosine()) is None
    assert schedules.num_train_steps(lambda t: NoiseLevel(t, t, t)) is None


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: schedules.linear(2.0, 1.0), ValueError, "beta_max is 1.0"),
        (lambda: schedules.linear(-1.0, 1.0), ValueError, "beta_min is -1.0"),
        (lambda: schedules.scaled_linear(0.0, 1.0), ValueError, "must be positive"),
        (lambda: schedules.cosine(-0.1), ValueError, "offset is -0.1"),
        (lambda: schedules.sigmoid(temperature=0.0), ValueError, "temperature is 0.0"),
        (lambda: schedules.sigmoid(1.0, 1.0), ValueError, "end is 1.0"),
        (lambda: schedules.linear_betas(num_steps=0), ValueError, "num_steps is 0"),
        (lambda: schedules.linear_betas(0.02, 1e-4), ValueError, "must be larger"),
        (lambda: schedules.cosine_betas(num_steps=-1), ValueError, "at least one step"),
        (lambda: schedules.from_betas(np.array([0.1, 1.0, 0.1])), ValueError, "only the last"),
        (lambda: schedules.from_betas(np.array([0.1, np.nan])), ValueError, "must be in"),
        (lambda: schedules.from_betas(np.zeros((2, 2))), ValueError, "one-dimensional"),
        (lambda: schedules.from_alphas_cumprod(np.array([0.5, 0.6])), ValueError, "not increase"),
        (lambda: schedules.from_alphas_cumprod(np.array([np.nan])), ValueError, "lie in"),
        (lambda: schedules.from_alphas_cumprod(np.array([])), ValueError, "not empty"),
        (lambda: schedules.zero_terminal_snr(schedules.cosine()), TypeError, "Cosine"),
        (
            lambda: schedules.zero_terminal_snr(schedules.linear_betas(num_steps=1)),
            ValueError,
            "1 step",
        ),
        (lambda: schedules.cosine()(3), TypeError, "Was a table meant"),
        (lambda: schedules.linear_betas()(1000), ValueError, "-1 .clean. .. 999"),
        (lambda: schedules.linear_betas()(-2), ValueError, "from -2"),
    ],
)
def test_errors_name_the_argument(make, error, words):
    with pytest.raises(error, match=words):
        make()
