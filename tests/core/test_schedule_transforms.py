"""Shifted, resampled and cut schedules: what happens to log-SNR, clock and distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffjax.core import densities, grids, schedules
from diffjax.core.levels import logsnr, ratio_of
from diffjax.core.losses import diffusion_loss
from diffjax.core.parameterizations import edm
from diffjax.core.schedules import between, flow, levels_at, resampled, shifted, time_of
from diffjax.core.sde import drift_and_diffusion
from diffjax.core.sigma_grids import shifted as shifted_times

T = np.linspace(0.05, 0.9, 7).astype(np.float32)
BASES = {
    "cosine": (schedules.cosine(), T),
    "sub_vp": (schedules.sub_vp(), T),
    "edm_sigmas": (schedules.edm_sigmas(), T),
    "flow": (flow(clock=1000.0), T),
    "linear_betas": (schedules.linear_betas(), np.array([5, 300, 900])),
}
every_base = pytest.mark.parametrize("name", BASES)


@every_base
def test_shift_lowers_log_snr_by_a_constant_and_stays_among_the_levels(name):
    base, t = BASES[name]
    level = shifted(base, 2.5)(t)
    np.testing.assert_allclose(logsnr(level), logsnr(base(t)) - 2 * np.log(2.5), atol=1e-5)
    known = levels_at(base, ratio_of(level))
    for got, expected in zip(level, known):
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_shifts_multiply_and_a_shift_by_one_is_none():
    base = schedules.cosine()
    for got, expected in (
        (shifted(shifted(base, 2.0), 3.0)(T), shifted(base, 6.0)(T)),
        (shifted(base, 1.0)(T), base(T)),
    ):
        np.testing.assert_allclose(got.sigma, expected.sigma, rtol=1e-5)
        np.testing.assert_allclose(got.t, expected.t, rtol=1e-5)


def test_flow_shift_is_not_applied_twice():
    """The trap: a schedule that shifts its times, on a grid whose times are shifted already."""
    network_clock, times = 1000.0, grids.uniform(8)
    base = flow(clock=network_clock)
    by_schedule, by_grid = shifted(base, 3.0)(times), base(shifted_times(times, 3.0))
    for got, expected in zip(by_schedule, by_grid):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    # ratios asked for are given, not shifted again
    ratios = np.array([3.0, 0.5, 0.0])
    np.testing.assert_allclose(ratio_of(levels_at(shifted(base, 3.0), ratios)), ratios, rtol=1e-6)
    # and the network is told the noise that there is
    np.testing.assert_allclose(by_schedule.t, network_clock * by_schedule.sigma, rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "curve", "share_below"),
    [
        # the share of levels that are cleaner, by the distribution's own function
        (
            schedules.edm_sigmas(1e-4, 1e4),
            densities.log_normal(-1.2, 1.2),
            lambda level: stats.norm(-1.2, 1.2).cdf(np.log(level.sigma)),
        ),
        (
            flow(),
            densities.logit_normal(0.5, 0.8),
            lambda level: stats.norm(0.5, 0.8).cdf(np.log(level.t / (1 - level.t))),
        ),
        (
            schedules.cosine(),
            densities.laplace(0.3, 0.7),
            lambda level: stats.laplace(0.3, 0.7).sf(logsnr(level)),
        ),
        (
            schedules.linear(),
            densities.uniform(7.0, -8.0),
            lambda level: stats.uniform(-8.0, 15.0).sf(logsnr(level)),
        ),
    ],
)
def test_uniform_time_spreads_the_levels_as_the_density_says(schedule, curve, share_below):
    u = np.linspace(0.01, 0.99, 30).astype(np.float32)
    level = resampled(schedule, curve)(u)
    share = share_below(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), level))
    np.testing.assert_allclose(share, u, atol=2e-5)
    # the level is one of the schedule's own, with its clock
    np.testing.assert_allclose(schedule(level.t).sigma, level.sigma, rtol=1e-3)


def test_density_is_a_schedule_of_its_own():
    laplace = schedules.from_logsnr(densities.laplace(0.3, 0.7))
    np.testing.assert_allclose(laplace(T).sigma, schedules.laplace(0.3, 0.7)(T).sigma, rtol=1e-6)
    np.testing.assert_allclose(
        resampled(schedules.cosine(), densities.laplace(0.3, 0.7))(T).sigma,
        laplace(T).sigma,
        rtol=1e-5,
    )


def test_infinite_ends_of_a_density_are_left_out():
    schedule = resampled(schedules.edm_sigmas(), densities.log_normal())
    level = schedule(jnp.array([0.0, 1.0]))
    assert np.all(np.isfinite(ratio_of(level)))
    # EDM's output scale is undefined at sigma = infinity; the loss accepts the schedule
    loss = diffusion_loss(lambda params, x, t, keys: params * x, schedule, edm())
    values, _ = loss(0.5, {"x0": jnp.ones((4, 2))}, jax.random.key(0))
    assert np.all(np.isfinite(values))


def test_part_of_a_schedule_is_the_schedule_there():
    base = schedules.linear()
    part = between(base, 0.2, 0.7)
    np.testing.assert_allclose(part(T).alpha, base(0.2 + 0.5 * T).alpha, rtol=1e-6)
    np.testing.assert_allclose(time_of(part, part(T)), T, rtol=1e-5)
    for got, expected in zip(drift_and_diffusion(part, T), drift_and_diffusion(base, 0.2 + T / 2)):
        np.testing.assert_allclose(got, 0.5 * expected, rtol=1e-4)


@every_base
def test_sde_of_a_shifted_schedule_is_that_of_its_levels(name):
    """-d log-SNR / dt = g^2 / sigma^2 is the same before and after; the drift is the family's."""
    base, t = BASES[name]
    if name == "linear_betas":
        t = t + 0.5
    level = shifted(base, 2.0)(t)
    f, g2 = drift_and_diffusion(shifted(base, 2.0), t)
    _, before = drift_and_diffusion(base, t)
    np.testing.assert_allclose(g2 / level.sigma**2, before / base(t).sigma ** 2, rtol=1e-3)
    if name in ("cosine", "linear_betas"):
        np.testing.assert_allclose(g2, -2 * f, rtol=1e-3)
