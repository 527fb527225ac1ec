"""Random arrays, and how near two trees of them must be."""

import jax
import jax.numpy as jnp
import numpy as np


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def assert_close(ours, expected, tolerance=2e-5):
    """Close relative to the largest element: sums of many terms round in another order."""
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert mine.shape == theirs.shape
        assert mine.dtype == theirs.dtype
        scale = max(float(np.abs(theirs).max()), 1e-6)
        np.testing.assert_allclose(mine / scale, theirs / scale, atol=tolerance)
