"""Inpainting against the exact conditional distributions of mixtures."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import exact, grids, posterior, schedules
from diffjax.core.keys import sample_keys
from diffjax.core.sampling import initial_noise, pad_levels, sample
from diffjax.solvers import ancestral, ddim, dpm_multistep
from diffjax.transforms import repaint, replace_known, resampling

COVARIANCE = np.array([[0.5, 0.3], [0.3, 0.4]])
PLANE = exact.mixture([0.4, 0.6], [[-0.8, 0.5], [0.7, -0.4]], [COVARIANCE, 0.5 * COVARIANCE])
DENOISE = exact.denoiser(PLANE)
VALUE, MISSING = 0.3, jnp.array([0, 1])  # the first coordinate is known
SIZE, MAX_STEPS = 1024, 2400
SCHEDULE = schedules.cosine()


@cache
def compiled():
    """RePaint on any walk of up to MAX_STEPS."""

    @jax.jit
    def run(key, mask, levels, num_steps):
        keys = sample_keys(key, jnp.arange(SIZE))
        x = initial_noise(
            sample_keys(jax.random.fold_in(key, 1), jnp.arange(SIZE)), (SIZE, 2), levels
        )
        solver = repaint(ddim(eta=1.0), jnp.full((SIZE, 2), VALUE), mask)
        return sample(keys, x, DENOISE, solver, levels, num_steps=num_steps)

    return run


def painted(walk, mask=MISSING, num_steps=50):
    levels = SCHEDULE(grids.trailing(num_steps)[walk])
    padded = pad_levels(levels, MAX_STEPS)
    return np.asarray(compiled()(jax.random.key(0), mask, padded, len(walk) - 1))


def errors(x):
    """Of the missing coordinate: the mean's in standard errors of so many samples, the variance's
    relative to it."""
    mean, covariance = exact.moments(posterior.fill(PLANE, [VALUE, 0.0], MISSING))
    variance = float(covariance[1, 1])
    floor = np.sqrt(variance / SIZE)
    return abs(x[:, 1].mean() - mean[1]) / floor, abs(x[:, 1].var() / variance - 1.0)


def test_the_more_resamples_the_closer_to_the_conditional_distribution():
    found = [
        errors(painted(resampling(50, jump_length=5, num_resamples=count))) for count in (1, 5, 25)
    ]
    replaced, some, many = found
    assert replaced[0] > 6.0
    assert some[0] < 0.6 * replaced[0]
    assert many[0] < 4.0
    assert many[1] < 0.2  # four standard errors are 0.18; steps of this length add their own


def test_ones_alone_make_a_plain_sample_and_zeros_alone_return_the_data():
    walk = resampling(50, num_resamples=1)
    x = painted(walk, jnp.array([1, 1]))
    mean, covariance = (np.asarray(moment) for moment in exact.moments(PLANE))
    spread = np.sqrt(np.diag(covariance) / SIZE)
    # 50 steps leave a bias of their own
    np.testing.assert_array_less(np.abs(x.mean(axis=0) - mean), 4.0 * spread + 0.01)
    value = np.float32(VALUE)
    np.testing.assert_array_equal(painted(walk, jnp.array([0, 0])), np.full((SIZE, 2), value))
    np.testing.assert_array_equal(painted(walk)[:, 0], np.full(SIZE, value))


@pytest.mark.parametrize("solver", [ancestral(), dpm_multistep(2)])
def test_a_mask_of_ones_leaves_any_solver_as_it_is(solver):
    x = jax.random.normal(jax.random.key(0), (4, 2))
    levels = SCHEDULE(grids.trailing(4))
    denoise = lambda x, level: jnp.tanh(x) * level.alpha
    known = jnp.full((4, 2), jnp.nan)
    run = jax.jit(lambda x: [
        sample(jax.random.key(1), x, denoise, each, levels)
        for each in (solver, repaint(solver, known, jnp.ones(2)))
    ])  # fmt: skip
    plain, masked = run(x)
    np.testing.assert_allclose(masked, plain, rtol=1e-5)


@pytest.mark.parametrize(
    ("known", "mask", "message"),
    [
        (jnp.ones((4, 3)), jnp.ones(2), r"known has the shape \(4, 3\), but x has \(4, 2\)"),
        (jnp.ones((4, 2)), jnp.ones(3), r"mask has the shape \(3,\), which does not broadcast"),
        (jnp.ones((4, 2)), jnp.ones((5, 4, 2)), r"mask has the shape \(5, 4, 2\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_before_sampling(known, mask, message):
    with pytest.raises(ValueError, match=message):
        sample(
            jax.random.key(0),
            jnp.ones((4, 2)),
            DENOISE,
            replace_known(ddim(), known, mask),
            SCHEDULE(grids.trailing(2)),
        )


@pytest.mark.parametrize(
    ("known", "mask", "message"),
    [
        (jnp.ones((4, 2)), jnp.array([0.0, 0.5]), r"mask holds 0 to 0\.5"),
        (jnp.ones((4, 2)), jnp.array([-1, 1]), "mask holds -1 to 1"),
        (
            jnp.array([[jnp.nan, 1.0]]),
            jnp.array([0, 1]),
            "Is the mask 1 where something is missing",
        ),
        (jnp.ones((4, 2), jnp.uint8), jnp.array([0, 1]), "known holds uint8"),
    ],
)
def test_masks_between_and_known_parts_that_are_not_are_refused(known, mask, message):
    with pytest.raises((ValueError, TypeError), match=message):
        repaint(ddim(), known, mask)
