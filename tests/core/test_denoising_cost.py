"""What samples cost a denoiser: differences are those of log-densities, known for mixtures."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import exact, schedules
from diffjax.core.denoising_cost import denoising_cost
from diffjax.core.levels import NoiseLevel

KEY = jax.random.key(0)
WEIGHTS = jnp.array([0.3, 0.7])
MEANS, VARIANCES = [[-0.7, 0.5], [0.6, 0.0]], [0.16, 0.25]
BOTH = exact.mixture(WEIGHTS, MEANS, VARIANCES)
PARTS = [exact.gaussian(mean, variance) for mean, variance in zip(MEANS, VARIANCES)]
X = exact.draw(jax.random.key(1), BOTH, 6)
SCHEDULE = schedules.cosine()
LEVELS = schedules.levels_at(SCHEDULE, jnp.geomspace(100.0, 0.02, 128))
CLEAN = NoiseLevel(*map(jnp.asarray, (0.0, 1.0, 0.0)))


def cost(data, x=X, levels=LEVELS, num_draws=64):
    return denoising_cost(KEY, x, exact.denoiser(data), levels, num_draws=num_draws)


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, atol=0.06 + 0.02 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("part", PARTS)
def test_two_denoisers_differ_by_the_log_ratio_of_their_densities(part):
    both = jax.jit(lambda x: (cost(part, x, num_draws=2000), cost(BOTH, x, num_draws=2000)))
    told, untold = both(X)
    chex.assert_shape(told, (6,))
    chex.assert_type(told, jnp.float32)
    log_prob = lambda data: exact.log_likelihood(data, X, CLEAN)
    close(untold - told, log_prob(part) - log_prob(BOTH))


def test_two_samples_differ_by_the_log_ratio_of_their_densities():
    """With noise of the ratio r left, by that of densities at r, on average over the noise."""
    levels = schedules.levels_at(SCHEDULE, jnp.geomspace(100.0, 0.5, 96))
    same = jnp.stack([KEY] * 6)  # the noise of all samples is the same
    costs = denoising_cost(same, X, exact.denoiser(BOTH), levels, num_draws=2000)
    left = NoiseLevel(*map(jnp.asarray, (0.0, 1.0, 0.5)))
    eps = jax.random.normal(KEY, (8000, 1, 2))
    noisy = jax.vmap(lambda e: exact.log_likelihood(BOTH, X + 0.5 * e, left))(eps).mean(axis=0)
    close(costs[:1] - costs, noisy - noisy[:1])


def test_the_costs_of_all_classes_make_a_classifier():
    nats = -jnp.stack([cost(part) for part in PARTS], axis=-1)
    found = jax.nn.softmax(nats + jnp.log(WEIGHTS))
    np.testing.assert_allclose(found, exact.posterior_weights(BOTH, X, CLEAN), atol=0.1)


def test_a_sample_depends_neither_on_the_batch_nor_on_the_scale_of_the_schedule():
    keys, denoise = jax.random.split(KEY, 6), exact.denoiser(PARTS[0])
    whole = denoising_cost(keys, X, denoise, LEVELS)
    np.testing.assert_allclose(
        whole[4:5], denoising_cost(keys[4:5], X[4:5], denoise, LEVELS), rtol=1e-5
    )
    scaled = schedules.levels_at(schedules.edm_sigmas(), jnp.geomspace(70.0, 0.02, 128))
    levels = schedules.levels_at(SCHEDULE, jnp.geomspace(70.0, 0.02, 128))
    found = [denoising_cost(keys, X, denoise, each) for each in (scaled, levels)]
    np.testing.assert_allclose(*found, rtol=2e-3)


def test_a_sample_that_is_known_costs_nothing():
    assert (denoising_cost(KEY, X, lambda x, level: X, LEVELS) == 0.0).all()


@pytest.mark.parametrize(("levels", "draws"), [(SCHEDULE(0.5), 1), (LEVELS, 0)])
def test_what_cannot_be_summed_is_refused(levels, draws):
    with pytest.raises(ValueError, match="needed are at least 2 and 1"):
        denoising_cost(KEY, X, exact.denoiser(BOTH), levels, num_draws=draws)
