"""The jackknife's standard error of known statistics."""

import numpy as np
import pytest

from diffjax.metrics import jackknife


def test_with_groups_of_one_the_error_of_a_mean_is_the_textbooks():
    x = np.random.default_rng(0).normal(size=50)
    error = jackknife(lambda keep: x[keep].mean(), 50, groups=50)
    assert error == pytest.approx(x.std(ddof=1) / np.sqrt(50), rel=1e-12)


def test_errors_of_several_statistics_come_at_once():
    x = np.random.default_rng(0).normal(size=(40, 3))
    errors = jackknife(lambda keep: x[keep].mean(axis=0), 40)
    single = [jackknife(lambda keep, c=c: x[keep, c].mean(), 40) for c in range(3)]
    np.testing.assert_allclose(errors, single)


def test_the_error_of_a_variance_is_about_that_over_repeated_samples():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(300, 200))
    estimated = [jackknife(lambda keep, x=x: x[keep].var(), 200, groups=20) ** 2 for x in samples]
    actual = samples.var(axis=1).var()
    # The variance of 300 variances is known to 4 · sqrt(2 / 300), the mean estimate far better.
    assert abs(np.mean(estimated) / actual - 1) < 4 * np.sqrt(2 / 300)


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match="groups is 10; expected 2 to 5"):
        jackknife(lambda keep: 0.0, 5)
