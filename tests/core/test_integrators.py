"""Integrators, against equations with known solutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core.integrators import dormand_prince, runge_kutta


def turning(p, state):
    """Two arrays that turn with the angle p^2, and one that grows with it."""
    x, y, growth = state
    return -2 * p * y, 2 * p * x, 2 * p * growth


def begin(angle, dtype=jnp.float64):
    return tuple(jnp.full((2, 3), f(angle), dtype) for f in (np.cos, np.sin, np.exp))


@pytest.mark.parametrize(("start", "end"), [(0.5, 2.0), (2.0, 0.5)])
def test_runge_kutta_has_order_four_in_both_directions(x64, start, end):
    solve = jax.jit(lambda n: runge_kutta(n)(turning, begin(start**2), start, end))
    errors = []
    for num_steps in (32, 64, 128):
        pairs = zip(solve(num_steps), begin(end**2))
        errors.append(max(float(jnp.max(jnp.abs(got - known))) for got, known in pairs))
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(orders, 4.0, atol=0.2)


def test_number_of_steps_is_data():
    traces = []

    @jax.jit
    def solve(num_steps):
        traces.append(None)
        return runge_kutta(num_steps)(turning, begin(0.0, jnp.float32), 0.0, 1.0)

    assert [len(solve(n)) for n in (1, 8, 30)] == [3, 3, 3]
    assert len(traces) == 1


@pytest.mark.parametrize(("start", "end"), [(0.5, 2.0), (2.0, 0.5)])
def test_adaptive_steps_keep_the_error_near_the_tolerance(x64, start, end):
    solve = jax.jit(lambda tol: dormand_prince(tol, tol)(turning, begin(start**2), start, end))
    for tolerance in (1e-4, 1e-7, 1e-10):
        for got, known in zip(solve(tolerance), begin(end**2)):
            np.testing.assert_allclose(got, known, rtol=30 * tolerance, atol=30 * tolerance)


def test_adaptive_steps_see_a_sudden_change(x64):
    # d/dp of arctan(500 (p - 1/2)), all of it within a hundredth of the way
    bump = lambda p, y: jnp.full_like(y, 500.0 / (1.0 + (500.0 * (p - 0.5)) ** 2))
    got = dormand_prince(1e-6, 1e-6)(bump, jnp.zeros((1, 1)), 0.0, 1.0)
    np.testing.assert_allclose(got, 2 * np.arctan(250.0), atol=1e-4)


def test_a_run_out_of_steps_is_nan_not_a_wrong_answer():
    got = dormand_prince(1e-6, 1e-6, max_steps=2)(lambda p, y: y, jnp.ones((1,)), 0.0, 1.0)
    assert np.all(np.isnan(got))


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="num_steps is 0"):
        runge_kutta(0)
