"""Solvers along singular vectors: marginals, limits, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import grids, schedules
from diffjax.core.levels import q_posterior
from diffjax.core.sampling import initial_noise, sample
from diffjax.solvers import ancestral, renoise
from diffjax.transforms import operators
from diffjax.transforms.ddrm import ddnm_plus, ddrm
from diffjax.transforms.posterior_mean import ddnm

RNG = np.random.default_rng(0)
TURN = np.linalg.qr(RNG.normal(size=(3, 3)))[0]
# measured well, measured badly, not measured
OPERATOR = operators.separable([np.diag([2.0, 0.4, 0.0]) @ TURN])
POINT = np.float32([0.5, -1.0, 0.3])
LEVELS = schedules.linear()(grids.uniform(8))
CHAIN = jax.tree.map(lambda leaf: leaf[:6], LEVELS)  # ends in the middle, where there is noise


def certain(x, level):
    """The denoiser of data that is one point."""
    return jnp.broadcast_to(POINT, x.shape)


def blurred(x, level):
    """Some denoiser."""
    return jnp.tanh(x[:, ::-1])


def assert_gaussian(samples, mean, covariance):
    count = len(samples)
    scale = np.sqrt(np.diag(covariance))
    np.testing.assert_array_less(np.abs(samples.mean(0) - mean), 4 * scale / np.sqrt(count))
    spread = np.sqrt((np.outer(scale**2, scale**2) + covariance**2) / count)
    np.testing.assert_array_less(np.abs(np.cov(samples.T) - covariance), 4 * spread)


@pytest.mark.parametrize(("eta", "eta_b"), [(0.85, 1.0), (0.3, 0.6)])
def test_ddrm_keeps_the_marginals_of_the_forward_process(eta, eta_b):
    count, sigma_y = 20_000, 0.3
    start = POINT * CHAIN.alpha[0] + CHAIN.sigma[0] * RNG.normal(size=(count, 3))
    y = OPERATOR(POINT[None]) + sigma_y * RNG.normal(size=(count, 3))

    @jax.jit
    def run(start, y, eta, eta_b):
        solver = ddrm(OPERATOR, y, sigma_y=sigma_y, eta=eta, eta_b=eta_b)
        return sample(jax.random.key(0), start, certain, solver, CHAIN)

    result = np.asarray(run(np.float32(start), np.float32(y), eta, eta_b), np.float64)
    assert_gaussian(result, CHAIN.alpha[-1] * POINT, CHAIN.sigma[-1] ** 2 * np.eye(3))


def test_exact_measurements_are_explained_whatever_the_denoiser():
    y = OPERATOR(np.float32(RNG.normal(size=(1, 3))))
    start = initial_noise(jax.random.key(0), (5, 3), LEVELS)
    for solver in (ddrm(OPERATOR, y), ddnm_plus(OPERATOR, y, sigma_y=0.0)):
        run = jax.jit(lambda x, s=solver: sample(jax.random.key(1), x, blurred, s, LEVELS))
        result = run(start)
        np.testing.assert_allclose(OPERATOR(result), np.tile(y, (5, 1)), atol=1e-4)


def test_without_a_measurement_ddrm_keeps_a_share_of_the_noise_fresh():
    start, nothing = initial_noise(jax.random.key(0), (5, 3), LEVELS), jnp.zeros((1, 3))
    both = [ddrm(operators.mask(np.zeros(3)), nothing, eta=0.6), renoise(fresh=0.36)]
    run = lambda x: [sample(jax.random.key(1), x, blurred, solver, LEVELS) for solver in both]
    np.testing.assert_allclose(*jax.jit(run)(start), atol=1e-5)


def test_ddnm_plus_without_noise_is_ddnm_with_ancestral_steps():
    # a mask, whose singular vectors are the pixels: both draw the same noise
    operator = operators.mask(np.array([1, 1, 0]))
    y = operator(np.float32(RNG.normal(size=(1, 3))))
    start = initial_noise(jax.random.key(0), (5, 3), LEVELS)
    denoise = ddnm(blurred, operator, y)
    pairs = (blurred, ddnm_plus(operator, y, sigma_y=0.0)), (denoise, ancestral())
    run = lambda x: [sample(jax.random.key(1), x, *pair, LEVELS) for pair in pairs]
    np.testing.assert_allclose(*jax.jit(run)(start), atol=1e-4)


def test_a_step_of_ddnm_plus_has_the_variance_of_an_ancestral_one():
    count, sigma_y = 40_000, 0.3
    current, next_ = (jax.tree.map(lambda leaf, i=i: leaf[i], LEVELS) for i in (3, 4))
    x = jnp.tile(jnp.array([[0.3, 0.1, -0.2]]), (count, 1))
    y = OPERATOR(POINT[None]) + sigma_y * RNG.normal(size=(count, 3))

    @jax.jit
    def moments(y):
        solver = ddnm_plus(OPERATOR, y, sigma_y=sigma_y)
        keys = jax.random.split(jax.random.key(0), count)
        plain = ancestral().step(keys, x, (), certain, current, next_)[0]
        return solver.step(keys, x, (), certain, current, next_)[0], plain

    plus, plain = (np.asarray(values, np.float64) for values in moments(np.float32(y)))
    mean, variance = q_posterior(x[:1], POINT[None], current, next_)
    assert_gaussian(plus, mean[0], variance * np.eye(3))
    assert_gaussian(plain, mean[0], variance * np.eye(3))


def test_pure_noise_is_refused_where_it_would_be_divided_by():
    levels, solver = schedules.flow()(grids.uniform(4)), ddrm(OPERATOR, OPERATOR(POINT[None]))
    with pytest.raises(ValueError, match="from which this solver cannot step"):
        sample(jax.random.key(0), jnp.ones((2, 3)), certain, solver, levels)


def test_an_operator_without_singular_values_is_refused():
    with pytest.raises(TypeError, match="ddrm needs an operator with its singular values"):
        ddrm(lambda x: x, jnp.zeros((1, 3)))
