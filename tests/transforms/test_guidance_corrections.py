"""What rescaling, projection and the multiple of the unconditional estimate promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import eps, estimate_eps, target, v, velocity, x0
from diffjax.core.sampling import sample
from diffjax.core.sigma_schedules import flow
from diffjax.solvers.ddim import ddim
from diffjax.transforms import apg, cfg_zero_star, classifier_free, rescaled, zero_init

LEVEL = NoiseLevel(*jnp.array([0.5, 0.6, 0.8]))
X, C, U = jax.random.normal(jax.random.key(0), (3, 4, 5))
conditional, unconditional = (lambda x, level: C), (lambda x, level: U)


def prediction(row, estimate):
    return target(row, estimate, estimate_eps(X, estimate, LEVEL), LEVEL)


@pytest.mark.parametrize("row", [x0, eps, v])
def test_rescaling_in_full_gives_the_conditional_spread_in_any_prediction(row):
    guided = classifier_free(conditional, unconditional, guidance_scale=6.0)
    amounts = {
        amount: rescaled(guided, conditional, amount=amount, parameterization=row)(X, LEVEL)
        for amount in (0.0, 0.5, 1.0)
    }
    spread = lambda estimate: np.std(prediction(row, estimate), axis=1)
    np.testing.assert_allclose(spread(amounts[1.0]), spread(C), rtol=1e-5)
    np.testing.assert_allclose(amounts[0.0], guided(X, LEVEL), rtol=1e-5, atol=1e-6)
    half = 0.5 * (amounts[0.0] + amounts[1.0])
    np.testing.assert_allclose(amounts[0.5], half, rtol=1e-4, atol=1e-5)


def test_apg_pushes_across_the_conditional_estimate_and_no_further_than_its_threshold():
    push = apg(conditional, unconditional, guidance_scale=3.0)(X, LEVEL) - C
    np.testing.assert_allclose(np.sum(push * C, axis=1), 0.0, atol=1e-5)
    short = apg(conditional, unconditional, guidance_scale=3.0, parallel=1.0, threshold=0.4)
    length = np.linalg.norm(short(X, LEVEL) - C, axis=1)
    np.testing.assert_allclose(length, 2.0 * 0.4, rtol=1e-5)


def test_apg_with_all_of_the_difference_is_classifier_free_guidance():
    all_of_it = apg(conditional, unconditional, guidance_scale=3.0, parallel=1.0)
    plain = classifier_free(conditional, unconditional, guidance_scale=3.0)
    np.testing.assert_allclose(all_of_it(X, LEVEL), plain(X, LEVEL), rtol=1e-5)


@pytest.mark.parametrize("row", [x0, velocity])
def test_cfg_zero_star_pushes_across_the_unconditional_prediction(row):
    result = cfg_zero_star(conditional, unconditional, guidance_scale=5.0, parameterization=row)
    push = prediction(row, result(X, LEVEL)) - prediction(row, C)
    np.testing.assert_allclose(np.sum(push * prediction(row, U), axis=1), 0.0, atol=1e-4)
    assert np.linalg.norm(push) > 1.0


def test_zero_init_leaves_x_where_it_is_until_the_ratio_is_reached():
    away = lambda x, level: jnp.zeros_like(x)
    levels = flow()(jnp.array([1.0, 0.8, 0.7]))  # ratios: infinite, 4, 2.33
    walk = lambda denoise: sample(jax.random.key(0), X, denoise, ddim(), levels)
    np.testing.assert_allclose(walk(zero_init(away, above=3.0)), X, rtol=1e-6)
    # from pure noise one step is held, the next leads from 0.8 to 0.7
    np.testing.assert_allclose(walk(zero_init(away)), 0.7 / 0.8 * X, rtol=1e-5)
