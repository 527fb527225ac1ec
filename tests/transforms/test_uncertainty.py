"""Moments of several posterior samples."""

import jax
import numpy as np
import pytest

from diffjax.transforms.uncertainty import uncertainty_map


def test_mean_and_deviation_are_those_of_the_runs():
    generate = lambda key: 100.0 + jax.random.normal(key, (2, 3))
    key = jax.random.key(0)
    runs = [np.asarray(generate(jax.random.fold_in(key, i)), np.float64) for i in range(7)]
    result = jax.jit(lambda key: uncertainty_map(generate, key, 7))(key)
    np.testing.assert_allclose(result.mean, np.mean(runs, axis=0), rtol=1e-6)
    np.testing.assert_allclose(result.std, np.std(runs, axis=0, ddof=1), rtol=1e-4)


def test_a_single_run_has_no_deviation():
    with pytest.raises(ValueError, match="num_samples is 1; a standard deviation needs at least 2"):
        uncertainty_map(lambda key: key, jax.random.key(0), 1)
