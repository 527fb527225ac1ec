"""Twisted sequential Monte Carlo: exact posteriors of mixtures, groups that stand alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from diffjax.core import exact, grids, schedules
from diffjax.core.posterior import condition
from diffjax.core.sampling import initial_noise, sample
from diffjax.solvers import ancestral
from diffjax.transforms.particles import resample, twisted
from diffjax.transforms.posterior_mean import pigdm

PRIOR = exact.mixture(
    [0.4, 0.6], [[-1.0, 0.6], [1.0, -0.4]], [0.06 * np.eye(2), [[0.1, 0.08], [0.08, 0.1]]]
)
MATRIX, Y, NOISE = np.array([[0.7, 0.7]]), np.array([0.2]), 0.25
LEVELS = schedules.linear()(grids.uniform(400))
measure = lambda x: x @ jnp.asarray(MATRIX.T, x.dtype)
GROUPS, PARTICLES = 200, 32


@partial(jax.jit, static_argnames="num_particles")
def run(start, sigma_y, num_particles=PARTICLES):
    solver = twisted(measure, Y[None], sigma_y=sigma_y, num_particles=num_particles)
    return sample(jax.random.key(1), start, exact.denoiser(PRIOR), solver, LEVELS)


def statistics(x):
    """Means and second moments: [..., 5]."""
    products = [x[..., 0] ** 2, x[..., 1] ** 2, x[..., 0] * x[..., 1]]
    return np.stack([x[..., 0], x[..., 1], *products], axis=-1)


def expected(sigma_y):
    mean, covariance = map(np.asarray, exact.moments(condition(PRIOR, MATRIX, Y, sigma_y**2)))
    second = covariance + np.outer(mean, mean)
    return np.array([*mean, second[0, 0], second[1, 1], second[0, 1]])


START = initial_noise(jax.random.key(0), (GROUPS * PARTICLES, 2), LEVELS)


@pytest.mark.parametrize("sigma_y", [NOISE, 1e3])
def test_the_particles_are_posterior_samples_of_a_mixture(sigma_y):
    # at 1e3 the measurement says nothing, and the posterior is the prior
    result = np.asarray(run(START, sigma_y), np.float64).reshape(GROUPS, PARTICLES, 2)
    groups = statistics(result).mean(1)  # particles of a group depend on each other
    error = groups.std(0) / np.sqrt(GROUPS)
    np.testing.assert_array_less(np.abs(groups.mean(0) - expected(sigma_y)), 4 * error)
    first = statistics(result[:, 0])
    error = first.std(0) / np.sqrt(GROUPS)
    np.testing.assert_array_less(np.abs(first.mean(0) - expected(sigma_y)), 4 * error)


def test_the_error_of_a_group_falls_with_the_square_root_of_its_size():
    errors, deviations = [], []
    for size in (8, PARTICLES):
        result = np.asarray(run(START, NOISE, num_particles=size), np.float64)
        means = result.reshape(-1, size, 2).mean(1)
        squares = np.sum((means - expected(NOISE)[:2]) ** 2, axis=1)
        errors.append(np.sqrt(squares.mean()))
        # of the error, relative
        deviations.append(squares.std() / squares.mean() / np.sqrt(len(squares)) / 2)
    tolerance = 4 * np.hypot(*deviations)
    np.testing.assert_allclose(errors[0] / errors[1], np.sqrt(PARTICLES / 8), rtol=tolerance)


def test_steps_of_any_length_are_exact_for_isotropic_data():
    data, levels = exact.gaussian([0.3, -0.2], 0.36), schedules.linear()(grids.uniform(4))

    @jax.jit
    def draw(start):
        solver = twisted(measure, Y[None], sigma_y=1e3, num_particles=1, sigma_data=jnp.sqrt(0.36))
        return sample(jax.random.key(2), start, exact.denoiser(data), solver, levels)

    result = np.asarray(draw(initial_noise(jax.random.key(3), (20_000, 2), levels)), np.float64)
    # the last step draws no noise: it is the mean of x0 given x
    last = jax.tree.map(lambda leaf: leaf[-2], levels)
    left = 1.0 / (1.0 / 0.36 + (last.alpha / last.sigma) ** 2)
    variance = result.var(axis=0)
    np.testing.assert_allclose(variance, 0.36 - left, rtol=4 * np.sqrt(2 / len(result)))


def test_the_same_lean_without_weights_is_biased():
    denoise = pigdm(exact.denoiser(PRIOR), measure, Y[None], sigma_y=NOISE)
    result = jax.jit(lambda x: sample(jax.random.key(1), x, denoise, ancestral(), LEVELS))(START)
    values = statistics(np.asarray(result, np.float64))
    error = values.std(0) / np.sqrt(len(values))
    assert np.max(np.abs(values.mean(0) - expected(NOISE)) / error) > 8


def test_problems_on_an_axis_of_their_own_are_solved_like_groups_in_a_batch():
    """jax.vmap over observations, noises and keys; what each makes does not hang on the others."""
    levels, size = schedules.linear()(grids.uniform(6)), 4
    y, noises = np.float32([[0.2], [-0.5], [1.0]]), jnp.array([0.25, 0.1, 1.0])
    start = initial_noise(jax.random.key(0), (3 * size, 2), levels)
    keys = jax.random.split(jax.random.key(1), 3 * size)

    def solve(keys, start, y, sigma_y):
        solver = twisted(measure, y, sigma_y=sigma_y, num_particles=size)
        return sample(keys, start, exact.denoiser(PRIOR), solver, levels)

    @jax.jit
    def both(y, noises):
        groups = lambda values: values.reshape(3, size, *values.shape[1:])
        apart = jax.vmap(solve)(groups(keys), groups(start), y[:, None], noises)
        repeated = (jnp.repeat(values, size, axis=0) for values in (y, noises))
        return apart, groups(solve(keys, start, *repeated))

    apart, together = both(y, noises)
    np.testing.assert_allclose(apart, together, rtol=1e-4, atol=1e-5)
    other, _ = both(y * np.float32([[1.0], [5.0], [5.0]]), noises)
    np.testing.assert_array_equal(other[0], apart[0])
    assert not np.array_equal(other[1], apart[1])


@pytest.mark.slow
def test_groups_do_not_see_each_other():
    other = START.at[PARTICLES:].multiply(1.5)
    one, two = run(START, NOISE), run(other, NOISE)
    np.testing.assert_array_equal(one[:PARTICLES], two[:PARTICLES])
    assert not np.array_equal(one[PARTICLES:], two[PARTICLES:])


def test_resampling_takes_each_particle_as_often_as_its_weight_says_up_to_rounding():
    size, groups = 7, 200
    rng = np.random.default_rng(0)
    log_weights = np.float32(2.0 * rng.normal(size=(groups, size)) - 500.0)
    log_weights[0] = 0.1 * log_weights[0] + 3.0  # nearly even
    keys = jax.random.split(jax.random.key(1), groups * size)
    draw = jax.jit(lambda threshold: resample(keys, log_weights.ravel(), size, threshold))
    chosen, after = draw(1.0)
    np.testing.assert_array_equal(after, 0.0)
    wanted = size * special.softmax(log_weights, axis=1)
    own = np.asarray(chosen).reshape(groups, size) - size * np.arange(groups)[:, None]
    counts = np.stack([np.bincount(row, minlength=size) for row in own])
    assert np.all((counts >= np.floor(wanted - 1e-3)) & (counts <= np.ceil(wanted + 1e-3)))
    # on average exactly as often
    excess = counts - wanted
    assert np.all(np.abs(excess.mean(0)) < 4 * excess.std(0) / np.sqrt(groups))
    # and so at every place, which makes the particle at any one of them a fair draw
    excess = (own[..., None] == np.arange(size)) - wanted[:, None] / size
    assert np.all(np.abs(excess.mean(0)) < 4 * excess.std(0) / np.sqrt(groups))

    # below the threshold a group is resampled, above it keeps its particles and weights
    chosen, after = draw(0.9)
    np.testing.assert_array_equal(chosen[:size], np.arange(size))
    np.testing.assert_allclose(after[:size], special.log_softmax(log_weights[0]), atol=1e-4)
    effective = 1.0 / np.sum((wanted / size) ** 2, axis=1)
    resampled = np.all(np.asarray(after).reshape(groups, size) == 0.0, axis=1)
    np.testing.assert_array_equal(resampled, effective < 0.9 * size)


def test_what_does_not_fit_is_refused():
    solver = twisted(measure, Y[None], sigma_y=NOISE, num_particles=8)
    with pytest.raises(ValueError, match="batch of 12 does not divide into groups of 8"):
        solver.init(jnp.zeros((12, 2)))
    with pytest.raises(ValueError, match="num_particles is 0"):
        twisted(measure, Y[None], sigma_y=NOISE, num_particles=0)
    with pytest.raises(ValueError, match="twisted needs noise > 0"):
        twisted(measure, Y[None], sigma_y=0.0, num_particles=8)
