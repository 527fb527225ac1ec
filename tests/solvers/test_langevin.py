"""Langevin dynamics on Gaussian data, where the law of each of its steps is known.

Noisy data at a level are N(alpha m, V) there, V = alpha^2 s^2 + sigma^2, and a step of size e makes
of the variance v around alpha m

    v -> (1 - e / V)^2 v + 2 e

which comes to rest at V / (1 - e / (2 V)): too wide by half of e / V, the price of finite steps.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import exact
from diffjax.core.keys import sample_keys
from diffjax.core.levels import NoiseLevel
from diffjax.core.sampling import sample
from diffjax.solvers import annealed_langevin, langevin, predictor_corrector

MEAN, SPREAD, DIMS, SIZE = 0.5, 0.6, 256, 64
GAUSS = exact.gaussian([MEAN] * DIMS, SPREAD**2)
ALPHA, SIGMA = 0.6, 0.8
VARIANCE = (ALPHA * SPREAD) ** 2 + SIGMA**2
NOISY = NoiseLevel(jnp.array(0.5), jnp.array(ALPHA), jnp.array(SIGMA))
TO_CLEAN = NoiseLevel(jnp.array([0.5, 0.0]), jnp.array([ALPHA, 1.0]), jnp.array([SIGMA, 0.0]))
KEYS = sample_keys(jax.random.key(0), jnp.arange(SIZE))
FAR = jnp.full((SIZE, DIMS), 3.0)  # a start that the dynamics has to forget
INNER = 100


def assert_normal(x, mean, variance):
    """Numbers, all independent, have mean and variance within four standard errors."""
    x = np.asarray(x, np.float64).ravel()
    assert abs(x.mean() - mean) < 4 * np.sqrt(variance / x.size)
    assert abs(np.mean((x - mean) ** 2) / variance - 1.0) < 4 * np.sqrt(2 / x.size)


def resting_variance(step_size):
    size = 0.5 * step_size * SIGMA**2
    return VARIANCE / (1.0 - 0.5 * size / VARIANCE)


@jax.jit
def annealed(step_size):
    solver = annealed_langevin(step_size, INNER, denoise_last=False)
    return solver.step(KEYS, FAR, (), exact.denoiser(GAUSS), NOISY, NOISY)[0]


@pytest.mark.parametrize("step_size", [0.3, 1.5])
def test_langevin_steps_at_one_level_rest_in_the_normal_widened_by_their_size(step_size):
    assert_normal(annealed(step_size), ALPHA * MEAN, resting_variance(step_size))


@jax.jit
def corrected(snr):
    return langevin(snr, INNER)(KEYS, FAR, exact.denoiser(GAUSS), NOISY)


@pytest.mark.parametrize("snr", [0.4, 0.7])
def test_corrector_rests_where_the_variance_is_wider_by_its_signal_to_noise_ratio_squared(snr):
    # in many dimensions |z| / |score| is V / sqrt(v), hence e = 2 snr^2 V^2 / v; at rest
    # v = V / (1 - e / (2 V)) = V (1 + snr^2)
    assert_normal(corrected(snr), ALPHA * MEAN, VARIANCE * (1.0 + snr**2))


@pytest.mark.parametrize(
    ("solver", "resting"),
    [
        (annealed_langevin(1.0, INNER), resting_variance(1.0)),
        (predictor_corrector(corrector=langevin(0.4, INNER)), VARIANCE * 1.16),
    ],
    ids=["annealed", "predictor-corrector"],
)
def test_last_step_returns_the_estimates_of_what_is_at_rest(solver, resting):
    run = jax.jit(lambda: sample(KEYS, FAR, exact.denoiser(GAUSS), solver, TO_CLEAN))
    # E[x0 | x] = m + (alpha s^2 / V) (x - alpha m)
    assert_normal(run(), MEAN, (ALPHA * SPREAD**2 / VARIANCE) ** 2 * resting)


def norm_of_batch(values):
    """In one dimension only the scores of all samples together have a typical length."""
    return jnp.linalg.norm(values)


WEAK = langevin(0.1, norm=norm_of_batch)


@pytest.mark.parametrize(
    ("solver", "count"),
    [(annealed_langevin(0.2, 20), 64), (predictor_corrector(corrector=WEAK), 256)],
    ids=["annealed", "predictor-corrector"],
)
def test_annealing_through_geometric_sigmas_finds_both_modes_in_their_shares(solver, count):
    share, centres, spread, size = 0.3, np.array([-1.0, 0.8]), 0.2, 2048
    modes = exact.mixture([share, 1 - share], centres[:, None], [spread**2] * 2)
    sigmas = np.append(np.geomspace(20.0, 0.02, count), 0.0).astype(np.float32)
    levels = NoiseLevel(sigmas, np.ones_like(sigmas), sigmas)
    keys = sample_keys(jax.random.key(1), jnp.arange(size))
    start = 20.0 * jax.random.normal(jax.random.key(2), (size, 1))
    run = jax.jit(lambda x: sample(keys, x, exact.denoiser(modes), solver, levels))
    x = np.asarray(run(start), np.float64)
    left = x[:, 0] < centres.mean()
    assert abs(left.mean() - share) < 4 * np.sqrt(share * (1 - share) / size)
    for inside, centre in zip((left, ~left), centres):
        assert_normal(x[inside], centre, spread**2)
