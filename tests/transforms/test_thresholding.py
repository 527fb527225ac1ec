"""Static and dynamic thresholding of x0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core.parameterizations import LearnedVariance
from diffjax.transforms import clip_denoised, dynamic_threshold

X = 0.9 * jax.random.uniform(jax.random.key(0), (3, 4, 4, 2), minval=-1.0)
identity = lambda x, level: x


def test_values_in_range_are_left_alone():
    np.testing.assert_array_equal(clip_denoised(identity)(X, None), X)
    np.testing.assert_array_equal(dynamic_threshold(identity)(X, None), X)


def test_clipping_reaches_the_limits_and_no_further():
    clipped = clip_denoised(identity, -0.5, 0.25)(X, None)
    np.testing.assert_array_equal(clipped, np.clip(X, -0.5, 0.25))


@pytest.mark.parametrize("limit", [2.0, np.inf])
def test_dynamic_threshold_divides_each_sample_by_its_own_quantile(limit):
    x = X * jnp.array([0.5, 2.0, 8.0])[:, None, None, None]
    result = np.asarray(dynamic_threshold(identity, 0.9, max_value=limit)(x, None))
    for got, sample in zip(result, np.asarray(x)):
        s = min(max(np.quantile(np.abs(sample), 0.9), 1.0), limit)
        np.testing.assert_allclose(got, np.clip(sample, -s, s) / s, rtol=1e-5)
    assert np.max(np.abs(result)) <= 1.0


def test_limit_of_one_is_clipping():
    result = dynamic_threshold(identity, 0.9, max_value=1.0)(5.0 * X, None)
    np.testing.assert_array_equal(result, clip_denoised(identity)(5.0 * X, None))


@pytest.mark.parametrize("wrap", [clip_denoised, dynamic_threshold])
def test_learned_variance_passes(wrap):
    learned = lambda x, level: LearnedVariance(5.0 * x, 0.3 * x)
    result = wrap(learned)(X, None)
    np.testing.assert_array_equal(result.x0, wrap(identity)(5.0 * X, None))
    np.testing.assert_array_equal(result.fraction, 0.3 * X)


def test_ranges_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"low is 1\.0 and high -1\.0"):
        clip_denoised(identity, 1.0, -1.0)
    with pytest.raises(ValueError, match=r"max_value is 0\.5"):
        dynamic_threshold(identity, max_value=0.5)


@pytest.mark.parametrize("quantile", [0.0, 1.5])
def test_quantile_outside_its_range_is_refused(quantile):
    with pytest.raises(ValueError, match=f"quantile is {quantile}"):
        dynamic_threshold(identity, quantile)
