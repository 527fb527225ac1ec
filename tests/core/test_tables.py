"""Tables: against the betas of their papers, their continuous limits, and between their steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import grids, schedules
from diffjax.core.levels import logsnr

TABLES = {
    "linear_betas": schedules.linear_betas(),
    "scaled_linear_betas": schedules.scaled_linear_betas(),
    "cosine_betas": schedules.cosine_betas(),
    "sigmoid_betas": schedules.sigmoid_betas(),
    "zero_terminal_snr": schedules.zero_terminal_snr(schedules.linear_betas()),
    "final_alpha": schedules.from_betas(np.full(20, 0.1), final_alpha_cumprod=0.9),
    "geometric_sigmas": schedules.geometric_sigmas(),
}
every_table = pytest.mark.parametrize("name", TABLES)


def test_table_takes_concrete_times_inside_jit():
    steps = jnp.array([0, 5])
    level = jax.jit(lambda: TABLES["linear_betas"](steps))()
    np.testing.assert_array_equal(level.alpha, TABLES["linear_betas"](steps).alpha)


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
    # but for the last digit of numbers near 1
    assert np.all(np.diff(between.alpha) <= 1e-7)
    assert np.all(np.diff(between.sigma) >= -2e-7)
    if name != "geometric_sigmas":
        norm = np.square(between.alpha) + np.square(between.sigma)
        np.testing.assert_allclose(norm, 1, rtol=1e-6)


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


def test_log_snr_is_linear_between_the_steps():
    for name in ("linear_betas", "cosine_betas", "geometric_sigmas"):
        table = TABLES[name]
        between = logsnr(table(jnp.array([0.5, 99.5, 600.5])))
        ends = table.logsnr[[1, 100, 601]] + table.logsnr[[2, 101, 602]]
        np.testing.assert_allclose(between, 0.5 * ends, rtol=1e-5, err_msg=name)


@every_table
def test_level_of_a_ratio_is_that_of_the_time_between_the_steps(name):
    table = TABLES[name]
    last = table.num_train_steps - 1
    t = np.array([0.0, 0.25, 3.5, 0.6 * last, last - 0.75, last - 0.01, last], np.float32)
    level = table(t)
    again = schedules.levels_at(table, level.sigma / level.alpha)
    # the steps of some tables are so short that float32 leaves few digits of the time in the ratio
    np.testing.assert_allclose(again.t, t, atol=0.02)
    np.testing.assert_allclose(again.alpha, level.alpha, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(again.sigma, level.sigma, rtol=1e-5)


def test_ratios_cleaner_than_the_first_step_are_told_the_first_step():
    level = schedules.levels_at(TABLES["linear_betas"], np.array([0.0, 1e-4]))
    np.testing.assert_array_equal(level.t, [-1.0, 0.0])
    np.testing.assert_allclose(level.sigma, [0.0, 1e-4], rtol=1e-6)


def test_sigmas_of_score_networks_are_steps_of_the_ve_sde():
    table, sde = schedules.geometric_sigmas(0.01, 50.0, num_steps=9), schedules.variance_exploding()
    level, limit = table(np.arange(9)), sde(np.linspace(0, 1, 9, dtype=np.float32))
    np.testing.assert_allclose(level.sigma, limit.sigma, rtol=1e-5)
    np.testing.assert_array_equal(level.alpha, 1.0)
    # between the steps too: both are linear in log-SNR
    np.testing.assert_allclose(table(2.5).sigma, sde(2.5 / 8).sigma, rtol=1e-5)
    assert table(-1).sigma == 0.0


@pytest.mark.parametrize("sigmas", [[1.0, 0.1], [0.0, 1.0], [0.1, np.inf], [], [[1.0]]])
def test_sigmas_that_do_not_grow_are_refused(sigmas):
    with pytest.raises(ValueError, match="sigmas"):
        schedules.from_sigmas(np.array(sigmas))


def test_a_grid_of_continuous_time_is_refused_by_a_table():
    table = schedules.linear_betas()
    with pytest.raises(ValueError, match=r"trailing\(num_steps, 1000\)"):
        table(grids.trailing(10))
    assert table(np.array([1.0, 0.5, 0.0, -1.0])).sigma[-1] == 0.0
