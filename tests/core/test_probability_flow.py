"""The flow of every prediction, against the exact map of Gaussian mixtures.

That it is right for every schedule is tested together with the likelihood.
"""

import jax
import jax.numpy as jnp
import numpy as np
from perfect_network import perfect_network

from diffjax.core import exact, schedules
from diffjax.core.integrators import dormand_prince, runge_kutta
from diffjax.core.keys import sample_keys
from diffjax.core.levels import NoiseLevel, expand, logsnr
from diffjax.core.likelihood import exact_trace
from diffjax.core.parameterizations import (
    PARAMETERIZATIONS,
    LearnedVariance,
    make_denoiser,
)
from diffjax.core.probability_flow import follow_flow, position_of, velocity_field

LINE = exact.mixture([0.3, 0.7], [[-1.0], [0.8]], [0.04, 0.09])
DENOISE = exact.denoiser(LINE)
X = jnp.linspace(-2.0, 2.0, 9)[:, None]
COSINE, LINEAR = schedules.cosine(), schedules.linear()
ENDS = COSINE(0.0), COSINE(1.0)

exact_map = jax.jit(exact.probability_flow)


@jax.jit
def carry(x, current, next_, num_steps=64):
    return follow_flow(x, DENOISE, COSINE, current, next_, integrate=runge_kutta(num_steps))


def test_flow_from_data_to_pure_noise_and_back_is_the_exact_map():
    noise = exact_map(LINE, X, *ENDS)
    np.testing.assert_allclose(carry(X, *ENDS), noise, atol=3e-5)
    # few noises lead to the places between the modes: the way back is steep
    np.testing.assert_allclose(carry(noise, *ENDS[::-1]), X, atol=1e-3)


def test_flow_between_inner_levels_is_the_exact_map():
    ends = COSINE(0.7), COSINE(0.2)
    np.testing.assert_allclose(carry(X, *ends), exact_map(LINE, X, *ends), atol=3e-5)


def test_flow_has_the_order_of_its_integrator_over_the_whole_way():
    # beyond 64 steps float32's rounding is larger than the error
    known = exact_map(LINE, X, *ENDS)
    errors = np.array([np.abs(carry(X, *ENDS, n) - known).max() for n in (16, 32, 64)])
    assert np.all(errors[:-1] / errors[1:] > 0.8 * 2**4)


def test_flow_solved_adaptively_is_the_exact_map():
    run = jax.jit(lambda x: follow_flow(x, DENOISE, COSINE, *ENDS, integrate=dormand_prince()))
    np.testing.assert_allclose(run(X), exact_map(LINE, X, *ENDS), atol=1e-4)


def test_velocity_and_its_divergence_are_the_same_under_every_prediction():
    denoiser = lambda x, level: jnp.tanh(x + expand(level.sigma, x))

    @jax.jit
    def under_each(positions):
        rows = PARAMETERIZATIONS
        denoisers = {
            name: make_denoiser(perfect_network(row, denoiser, LINEAR), None, row)
            for name, row in rows.items()
        }
        keys = sample_keys(jax.random.key(0), jnp.arange(len(X)))

        def at(denoise, p):
            velocity = velocity_field(denoise, LINEAR)
            return exact_trace()(keys, lambda z: velocity(p, z), X)

        known = jax.vmap(lambda p: at(denoiser, p))(positions)
        return known, {
            name: jax.vmap(lambda p, denoise=denoise: at(denoise, p))(positions)
            for name, denoise in denoisers.items()
        }

    known, found = under_each(jnp.linspace(0.05, 0.8, 6))
    assert set(found) == set(PARAMETERIZATIONS)
    for name, (velocity, divergence) in found.items():
        scale = np.abs(known[1]).max()
        np.testing.assert_allclose(velocity, known[0], rtol=1e-3, atol=2e-3, err_msg=name)
        np.testing.assert_allclose(divergence, known[1], atol=1e-3 * scale, err_msg=name)


def test_velocity_is_zero_at_clean_data_and_a_learned_variance_is_left_aside():
    learned = lambda x, level: LearnedVariance(0.5 * x, jnp.zeros_like(x))
    velocity = velocity_field(learned, COSINE)
    np.testing.assert_array_equal(velocity(jnp.array(0.0), X), 0.0 * X)
    plain = velocity_field(lambda x, level: 0.5 * x, COSINE)
    np.testing.assert_array_equal(velocity(jnp.array(0.3), X), plain(jnp.array(0.3), X))


def test_positions_follow_the_log_snr_and_reach_both_ends():
    level = COSINE(np.linspace(0.0, 1.0, 7, dtype=np.float32))
    p = np.asarray(position_of(level))
    assert (p[0], p[-1]) == (0.0, 1.0)
    inner = logsnr(NoiseLevel(*(leaf[1:-1] for leaf in level)))
    np.testing.assert_allclose(np.log(p[1:-1] / (1 - p[1:-1])), -inner / 6, atol=1e-6)
