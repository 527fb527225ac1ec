"""Blur guidance and self-attention guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import LearnedVariance
from diffjax.transforms import blur_guidance
from diffjax.transforms.blur import enlarge, gaussian_blur

LEVEL = NoiseLevel(*jnp.array([0.5, 0.6, 0.8]))
X = jax.random.normal(jax.random.key(0), (2, 8, 6, 2))
half = lambda x, level: 0.5 * x
blurred = jax.jit(lambda x, std: gaussian_blur(x, std, radius=4))


def test_the_blur_is_that_of_scipy():
    expected = ndimage.gaussian_filter(np.asarray(X), (0, 1.3, 1.3, 0), radius=(0, 4, 4, 0))
    np.testing.assert_allclose(blurred(X, 1.3), expected, atol=1e-6)


@pytest.mark.parametrize("attention", [None, lambda x, level: jnp.ones((2, 4, 3)) * 2.0])
def test_of_a_linear_denoiser_it_sharpens_the_estimate(attention):
    """x_weak = x - alpha d, so the weak estimate is x0 + (1 - alpha / 2) d away from the blur."""
    x0 = half(X, LEVEL)
    detail = x0 - blurred(x0, 1.0)
    for scale in (1.0, 3.0):
        guided = blur_guidance(half, guidance_scale=scale, attention=attention)(X, LEVEL)
        expected = x0 - (scale - 1.0) * (1.0 - 0.5 * 0.6) * detail
        np.testing.assert_allclose(guided, expected, atol=1e-5)


def test_what_is_attended_little_is_left_alone():
    seen = jnp.zeros((2, 4, 3)).at[:, 1, 2].set(12.0)
    guided = blur_guidance(half, guidance_scale=3.0, attention=lambda x, level: seen)(X, LEVEL)
    changed = np.any(np.asarray(guided) != half(X, LEVEL), axis=(0, 3))
    expected = np.zeros((8, 6), bool)
    expected[2:4, 4:6] = True
    np.testing.assert_array_equal(changed, expected)


def test_learned_variance_passes():
    learned = lambda x, level: LearnedVariance(half(x, level), 0.3 * x)
    result = blur_guidance(learned, guidance_scale=2.0)(X, LEVEL)
    expected = blur_guidance(half, guidance_scale=2.0)(X, LEVEL)
    np.testing.assert_array_equal(result.x0, expected)
    np.testing.assert_array_equal(result.fraction, 0.3 * X)


def test_attention_of_a_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="2 spatial axes"):
        enlarge(jnp.ones((2, 4, 1)), (8, 6))


def test_a_blur_of_no_width_or_of_no_picture_is_refused():
    with pytest.raises(ValueError, match=r"std is 0\.0"):
        blur_guidance(half, guidance_scale=2.0, std=0.0)
    with pytest.raises(ValueError, match=r"x has the shape \(2, 6\)"):
        blur_guidance(half, guidance_scale=2.0)(X[:, 0, :, 0], LEVEL)
