"""Diffusion posterior sampling: its step in closed form, and what it leaves to the solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import exact, grids, schedules
from diffjax.core.parameterizations import LearnedVariance
from diffjax.core.sampling import initial_noise, sample, stateless
from diffjax.solvers import ancestral, ddim, heun
from diffjax.transforms.dps import dps

RNG = np.random.default_rng(0)
FACTOR = RNG.normal(size=(4, 4)) / 2
PRIOR = exact.gaussian(RNG.normal(size=4), FACTOR @ FACTOR.T + 0.1 * np.eye(4))
LEVELS = schedules.linear()(grids.trailing(12))
NEAR, NEXT = (jax.tree.map(lambda leaf, i=i: leaf[i], LEVELS) for i in (6, 7))
X = np.float32(RNG.normal(size=(3, 4)))
MATRIX = np.float32(RNG.normal(size=(2, 4)))
saturated = lambda x: jnp.tanh(x @ MATRIX.T)
Y = np.tanh(np.float32([[0.5, -0.8]]))
KEYS = jax.random.split(jax.random.key(0), 3)


def test_the_step_is_the_gradient_of_the_distance_of_a_nonlinear_measurement(x64):
    x = jnp.asarray(X, float)
    still = stateless(lambda keys, x, denoise, current, next_: x)
    step = jax.jit(lambda x: dps(still, saturated, Y, step_size=0.3).step(
        KEYS, x, (), exact.denoiser(PRIOR), NEAR, NEXT
    )[0])  # fmt: skip
    moved = np.asarray(step(x))

    # by hand: the denoiser of a Gaussian is affine, with slope C alpha (alpha^2 C + sigma^2)^-1
    alpha, sigma = float(NEAR.alpha), float(NEAR.sigma)
    mean, covariance = (np.asarray(moment) for moment in exact.moments(PRIOR))
    slope = alpha * covariance @ np.linalg.inv(alpha**2 * covariance + sigma**2 * np.eye(4))
    x0 = mean + (x - alpha * mean) @ slope.T
    off = Y - np.tanh(x0 @ MATRIX.T)
    unit = off / np.linalg.norm(off, axis=1, keepdims=True)
    by_x0 = -(unit * (1 - np.tanh(x0 @ MATRIX.T) ** 2)) @ MATRIX
    np.testing.assert_allclose(moved, x - 0.3 * by_x0 @ slope, atol=1e-6)


@pytest.mark.parametrize("solver", [ancestral(), heun()])
def test_a_step_size_of_zero_is_the_solver_itself(solver):
    start, denoise = initial_noise(jax.random.key(0), (3, 4), LEVELS), exact.denoiser(PRIOR)
    both = solver, dps(solver, saturated, Y, step_size=0.0)
    run = lambda x: [sample(jax.random.key(1), x, denoise, each, LEVELS) for each in both]
    np.testing.assert_allclose(*jax.jit(run)(start), atol=1e-5)


def test_samples_come_nearer_to_the_measurement():
    start, denoise = initial_noise(jax.random.key(0), (64, 4), LEVELS), exact.denoiser(PRIOR)

    @jax.jit
    def distances(step_size):
        solver = dps(ddim(), saturated, Y, step_size=step_size)
        result = sample(jax.random.key(1), start, denoise, solver, LEVELS)
        return jnp.linalg.norm(saturated(result) - Y, axis=1).mean()

    assert distances(2.0) < distances(0.5) < distances(0.0)


def test_the_denoiser_is_asked_once_in_a_step_and_a_fit_has_no_slope():
    calls = []

    def counting(x, level):
        calls.append(x)
        return LearnedVariance(0.5 * x, x)

    # the measurement is met exactly: the distance has a kink there
    solver = dps(ancestral("learned_range"), lambda x: x, 0.5 * X)
    moved, _ = solver.step(KEYS, X, (), counting, NEAR, NEXT)
    assert len(calls) == 1
    assert np.all(np.isfinite(moved))


def test_a_measurement_of_another_shape_is_refused():
    solver = dps(ddim(), saturated, Y[:, :1])
    with pytest.raises(ValueError, match=r"y has shape \(1, 1\), but the operator makes \(3, 2\)"):
        solver.step(KEYS, X, (), exact.denoiser(PRIOR), NEAR, NEXT)
