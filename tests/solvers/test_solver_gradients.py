"""Derivatives of whole sampling runs, against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from solver_table import (
    ADAPTIVE,
    KEYS,
    MAX_STEPS,
    SOLVERS,
    X,
    as_wanted,
    build,
    levels_for,
    schedule_for,
)

from diffjax.core import grids, schedules
from diffjax.core.levels import expand
from diffjax.core.sampling import sample


@pytest.fixture(scope="module", autouse=True)
def forgotten():
    """What JAX traced in float64 is not to be found again by tests in float32."""
    yield
    jax.clear_caches()


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_gradient_through_sampling_is_that_of_finite_differences(x64, name):
    row, adaptive = SOLVERS[name], name in ADAPTIVE
    # from pure noise, where the solver can start there, to clean data
    schedule = schedule_for(row)
    levels = levels_for(row, grids.trailing(4, MAX_STEPS), schedule)
    # in derivatives the lengths of their steps are constant, in differences they change a little
    tight = {"rtol": 1e-6, "atol": 1e-6, "max_steps": 1000} if adaptive else {}
    h, error = (1e-2, 1e-3) if adaptive else (1e-5, 1e-7)

    @jax.jit
    @jax.value_and_grad
    def loss(x):
        # any smooth function will do, and a short one compiles sooner
        denoise = as_wanted(row, lambda x, level: jnp.tanh(expand(level.alpha, x) * x))
        return jnp.sum(jnp.sin(sample(KEYS, x, denoise, build(row, schedule, **tight), levels)))

    start = jnp.asarray(X, jnp.float64)
    gradient = loss(start)[1]
    direction = jnp.cos(jnp.arange(16.0)).reshape(8, 2)
    upper, lower = (loss(start + step * direction)[0] for step in (h, -h))
    difference = (upper - lower) / (2.0 * h)
    np.testing.assert_allclose(jnp.sum(gradient * direction), difference, rtol=1e-6, atol=error)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["heun", "dpmpp_3m", "dpmpp_2s", "unipc"])
def test_gradient_with_respect_to_the_grid_is_that_of_finite_differences(x64, name):
    row, schedule = SOLVERS[name], schedules.linear()

    @jax.jit
    @jax.value_and_grad
    def loss(times):
        denoise = lambda x, level: jnp.tanh(level.alpha * x)
        return jnp.sum(jnp.sin(sample(KEYS, X, denoise, build(row, schedule), schedule(times))))

    times, direction = jnp.linspace(0.9, 0.0, 5), jnp.array([1.0, -2.0, 3.0, 1.0, 0.0])
    gradient = loss(times)[1]
    assert np.all(np.isfinite(gradient))
    upper, lower = (loss(times + h * direction)[0] for h in (1e-6, -1e-6))
    difference = (upper - lower) / 2e-6
    np.testing.assert_allclose(jnp.sum(gradient * direction), difference, rtol=1e-6)
