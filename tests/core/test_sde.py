"""Drift and diffusion of a schedule's SDE, against the rates of the papers and the chain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import schedules, sigma_schedules
from diffjax.core.levels import NoiseLevel, transition
from diffjax.core.sde import drift_and_diffusion

T = np.array([0.0, 1e-4, 0.03, 0.5, 0.99, 1.0], np.float32)


def vp(beta):
    return -0.5 * beta, beta


def sub_vp(t):
    beta, signal = 0.1 + 19.9 * t, np.exp(-t * (0.1 + t * 19.9 / 2))
    return -0.5 * beta, beta * (1 - signal**2)


def scaled_linear_rate(t):
    return (np.sqrt(0.85) + t * (np.sqrt(12) - np.sqrt(0.85))) ** 2


# the schedule, its drift and squared diffusion as the papers write them
CLOSED_FORMS = {
    "linear": (schedules.linear(), lambda t: vp(0.1 + 19.9 * t)),
    "sub_vp": (schedules.sub_vp(), sub_vp),
    "scaled_linear": (schedules.scaled_linear(), lambda t: vp(scaled_linear_rate(t))),
    "cosine": (
        schedules.cosine(),
        lambda t: vp(np.pi / 1.008 * np.tan(0.5 * np.pi * (t + 0.008) / 1.008)),
    ),
    "variance_exploding": (
        sigma_schedules.variance_exploding(0.01, 50.0),
        lambda t: (0 * t, 0.01**2 * 5000.0 ** (2 * t) * 2 * np.log(5000.0)),
    ),
    "flow": (sigma_schedules.flow(clock=1000.0), lambda t: (-1 / (1 - t), 2 * t / (1 - t))),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_coefficients_are_those_of_the_paper_up_to_the_ends(name):
    schedule, closed_form = CLOSED_FORMS[name]
    pure = np.asarray(schedule(T).alpha) == 0
    f, g2 = drift_and_diffusion(schedule, T)
    expected = closed_form(T[~pure].astype(np.float64))
    np.testing.assert_allclose(f[~pure], expected[0], rtol=2e-5)
    np.testing.assert_allclose(g2[~pure], expected[1], rtol=2e-5, atol=1e-9)
    # where nothing of the data is left the SDE has no coefficients
    assert np.all(np.isneginf(f[pure]))
    assert np.all(np.isposinf(g2[pure]))


def test_one_step_of_a_table_is_its_beta_but_for_the_change_of_the_rate():
    table = schedules.linear_betas()
    steps = jnp.array([100, 500, 998])
    f, g2 = drift_and_diffusion(table, steps)
    beta = 1e-4 + (0.02 - 1e-4) * np.asarray(steps) / 999
    np.testing.assert_allclose(f, -0.5 * beta, rtol=0.015)
    np.testing.assert_allclose(g2, beta, rtol=0.015)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_short_steps_of_the_forward_process_are_those_of_the_sde(name):
    schedule = CLOSED_FORMS[name][0]
    t, dt = jnp.array([0.1, 0.5, 0.9]), 1e-2
    start, end = (NoiseLevel(*schedule(t + offset)) for offset in (-dt / 2, dt / 2))
    scale, variance = transition(end, start)
    f, g2 = drift_and_diffusion(schedule, t)
    np.testing.assert_allclose(scale - 1.0, f * dt, rtol=0.12, atol=1e-7)
    np.testing.assert_allclose(variance, g2 * dt, rtol=0.12)


def test_coefficients_have_gradients_in_the_parameters_of_the_schedule():
    def rate(schedule):
        return jnp.sum(drift_and_diffusion(schedule, jnp.array([0.0, 0.5]))[1])

    gradient = jax.jit(jax.grad(rate))(schedules.linear())
    # beta = beta_min + t (beta_max - beta_min)
    np.testing.assert_allclose([gradient.beta_min, gradient.beta_max], [1.5, 0.5], rtol=1e-4)
