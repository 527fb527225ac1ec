"""Classifier-free guidance as a map of denoisers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import exact
from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import PARAMETERIZATIONS, LearnedVariance, estimate_x0
from diffjax.transforms import classifier_free

LEVEL = NoiseLevel(jnp.array(0.5), jnp.array(0.6), jnp.array(0.8))
X = jax.random.normal(jax.random.key(0), (5, 2))
CONDITIONAL = exact.denoiser(exact.gaussian([1.0, 0.0], 0.1))
UNCONDITIONAL = exact.denoiser(exact.gaussian([0.0, 0.0], 1.0))


def guided(scale, conditional=CONDITIONAL, unconditional=UNCONDITIONAL):
    return classifier_free(conditional, unconditional, guidance_scale=scale)(X, LEVEL)


def test_scale_of_one_is_conditional_and_of_zero_unconditional():
    np.testing.assert_allclose(guided(1.0), CONDITIONAL(X, LEVEL), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(guided(0.0), UNCONDITIONAL(X, LEVEL))


def test_equal_conditions_cancel_at_every_scale():
    same = guided(jnp.array(7.5), UNCONDITIONAL, UNCONDITIONAL)
    np.testing.assert_array_equal(same, UNCONDITIONAL(X, LEVEL))


def test_scale_is_linear_extrapolation():
    np.testing.assert_allclose(guided(3.0) - guided(2.0), guided(1.0) - guided(0.0), atol=1e-6)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_guidance_of_x0_is_guidance_of_every_prediction(name):
    row = PARAMETERIZATIONS[name]
    outputs = jax.random.normal(jax.random.key(1), (2, 5, 2))
    denoisers = [lambda x, level, f=f: estimate_x0(row, x, f, level) for f in outputs]
    mixed = outputs[0] + 2.5 * (outputs[1] - outputs[0])
    expected = estimate_x0(row, X, mixed, LEVEL)
    np.testing.assert_allclose(guided(2.5, denoisers[1], denoisers[0]), expected, rtol=1e-4)


def test_learned_variance_of_the_conditional_denoiser_passes():
    fraction = jnp.full_like(X, 0.3)
    learn = lambda denoise, value: lambda x, level: LearnedVariance(denoise(x, level), value)
    result = guided(2.0, learn(CONDITIONAL, fraction), learn(UNCONDITIONAL, 1.0 - fraction))
    np.testing.assert_array_equal(result.x0, guided(2.0))
    np.testing.assert_array_equal(result.fraction, fraction)
