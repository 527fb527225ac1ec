"""Sampling that starts from data, on distributions for which the outcome is known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import exact, grids, posterior, schedules
from diffjax.core.sampling import sample
from diffjax.solvers import ancestral, ddim, ddim_inversion
from diffjax.transforms import (
    denoise_noisy,
    edit_by_inversion,
    estimate_noise_std,
    image_to_image,
    noisy_levels,
    tail,
)

SCHEDULE = schedules.cosine()
PLANE = exact.mixture([0.4, 0.6], [[-0.8, 0.5], [0.7, -0.4]], [0.1, 0.2])
DENOISE = jax.jit(exact.denoiser(PLANE))
KEY, SIZE = jax.random.key(0), 4096


def assert_moments(x, distribution, bias):
    """Mean and covariance of samples, within four standard errors and the bias of the steps."""
    mean, covariance = (np.asarray(moment) for moment in exact.moments(distribution))
    spread = np.sqrt(np.diag(covariance))
    np.testing.assert_array_less(np.abs(x.mean(0) - mean), 4.0 * spread / np.sqrt(len(x)) + bias)
    limit = 4.0 * np.sqrt(2.0 / len(x)) * np.outer(spread, spread) + bias
    np.testing.assert_array_less(np.abs(np.cov(x, rowvar=False) - covariance), limit)


def test_the_tail_of_a_grid_is_its_share_of_steps():
    levels = SCHEDULE(grids.trailing(50))
    for strength, steps in [(1.0, 50), (0.58, 29), (0.02, 1)]:
        part = tail(levels, strength)
        for a, b in zip(part, levels):
            np.testing.assert_array_equal(a, b[50 - steps :])
    for strength in (0.0, 0.019, 1.1):
        with pytest.raises(ValueError, match=f"strength is {strength}"):
            tail(levels, strength)


def test_noising_data_and_denoising_it_anew_keeps_its_distribution():
    x0 = exact.draw(jax.random.key(1), PLANE, SIZE)
    levels = SCHEDULE(grids.trailing(60))
    run = partial(image_to_image, denoise=DENOISE, solver=ancestral(), strength=0.5)
    x = np.asarray(jax.jit(lambda x0: run(KEY, x0, levels=levels))(x0))
    assert_moments(x, PLANE, bias=0.01)
    # what is kept of x0: more than nothing, less than everything
    assert 0.2 < np.corrcoef(x[:, 0], x0[:, 0])[0, 1] < 0.98


def test_inversion_with_one_denoiser_and_sampling_with_another_is_the_flow_of_both():
    source, target = exact.gaussian([0.5, -0.3], 0.2), exact.gaussian([-1.0, 0.4], 0.6)
    x0 = exact.draw(jax.random.key(1), source, 16)
    levels = SCHEDULE(grids.uniform(200, start=0.95))
    edit = jax.jit(
        lambda x0: [
            edit_by_inversion(
                KEY, x0, exact.denoiser(source), exact.denoiser(end), levels,
                inversion=ddim_inversion(), solver=ddim(), strength=0.9,
            )
            for end in (source, target)
        ]
    )  # fmt: skip
    same, other = edit(x0)
    np.testing.assert_allclose(same, x0, atol=0.02)
    top = jax.tree.map(lambda leaf: leaf[20], levels)
    clean = jax.tree.map(lambda leaf: leaf[-1], levels)
    noise = exact.probability_flow(source, x0, clean, top)
    expected = exact.probability_flow(target, noise, top, clean)
    np.testing.assert_allclose(other, expected, atol=0.02)


def test_denoising_draws_from_the_posterior_of_clean_data_given_noisy():
    y, std = np.array([0.1, 0.2]), 0.5
    noisy = jnp.broadcast_to(jnp.asarray(y, jnp.float32), (SIZE, 2))
    run = partial(denoise_noisy, denoise=DENOISE, solver=ancestral(), schedule=SCHEDULE)
    x = jax.jit(lambda y, std: run(KEY, y, noise_std=std, num_steps=60))(noisy, std)
    expected = posterior.condition(PLANE, np.eye(2), y, std**2)
    assert_moments(np.asarray(x), expected, bias=0.01)
    level = jax.tree.map(lambda leaf: leaf[0], noisy_levels(SCHEDULE, std))
    mean = DENOISE(level.alpha * noisy[:1], level)[0]
    np.testing.assert_allclose(mean, exact.moments(expected)[0], atol=1e-5)


@pytest.mark.parametrize("schedule", [SCHEDULE, schedules.linear_betas()])
def test_noise_that_is_small_leaves_data_as_it_is(schedule):
    y = jnp.array([[0.3, -0.2]])
    levels = noisy_levels(schedule, 1e-3, num_steps=3)
    np.testing.assert_allclose(levels.sigma[0] / levels.alpha[0], 1e-3, rtol=1e-4)
    x = sample(KEY, levels.alpha[0] * y, lambda x, level: x / level.alpha, ddim(), levels)
    np.testing.assert_allclose(x, y, atol=1e-6)


@pytest.mark.parametrize("shape", [(4000,), (90, 91), (30, 31, 32)])
def test_the_noise_of_smooth_pictures_is_estimated_on_any_number_of_axes(shape):
    slope = jnp.linspace(-1.0, 1.0, shape[0]).reshape(1, -1, *[1] * len(shape))
    ramp = jnp.broadcast_to(slope, (1, *shape, 1))
    stds = jnp.array([0.05, 0.4])
    noise = jax.random.normal(KEY, (2, *shape, 1)) * stds.reshape(2, *[1] * len(shape), 1)
    # the median of n absolute values: standard error 1.17 / sqrt(n) of the deviation
    count = np.prod([side // 2 for side in shape])
    estimate = estimate_noise_std(ramp + noise)
    np.testing.assert_allclose(estimate, stds, rtol=4.0 * 1.17 / np.sqrt(count))
    np.testing.assert_allclose(estimate_noise_std(ramp), 0.0, atol=4.0 / shape[0])


@pytest.mark.parametrize("std", [0.0, -1.0, jnp.array([0.1, 0.2])])
def test_noise_that_is_none_or_of_several_sizes_is_not_removed(std):
    with pytest.raises(ValueError, match="needed is one positive number"):
        noisy_levels(SCHEDULE, std)


def test_bytes_are_not_edited():
    picture, levels = jnp.zeros((1, 2), jnp.uint8), SCHEDULE(grids.trailing(4))
    with pytest.raises(TypeError, match=r"x0 holds uint8; .* images / 127\.5 - 1"):
        image_to_image(KEY, picture, DENOISE, ddim(), levels)
    with pytest.raises(TypeError, match="y holds uint8"):
        denoise_noisy(KEY, picture, DENOISE, ddim(), SCHEDULE, 0.1)


def test_the_noise_of_what_is_no_picture_is_not_estimated():
    with pytest.raises(ValueError, match=r"needed is \[B, \*spatial, C\]"):
        estimate_noise_std(jnp.ones((3, 1, 4)))
