"""The attack on classifiers, where the worst point of a ball is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.transforms import pgd_attack

RNG = np.random.default_rng(0)
X = np.float32(RNG.uniform(-1, 1, (6, 5)))
WEIGHTS = np.float32(RNG.normal(size=5))


@jax.jit
def attack(x0, radius):
    return pgd_attack(jax.random.key(0), lambda x: x @ WEIGHTS, x0, radius=radius)


def test_the_attack_of_a_linear_classifier_ends_in_the_worst_corner_of_ball_and_range():
    for radius in (0.05, 0.7):
        corner = np.clip(X - radius * np.sign(WEIGHTS), -1, 1)
        np.testing.assert_allclose(attack(X, radius), corner, atol=1e-6)
    np.testing.assert_array_equal(attack(X, 0.0), X)


def test_the_best_point_of_the_ball_is_left_for_a_worse_one():
    # the class is the most likely at x0 itself: only the random start leads away
    peak = jax.jit(lambda x0: pgd_attack(
        jax.random.key(1), lambda x: -((x - X) ** 2).sum(-1), x0, radius=0.1, low=-2.0, high=2.0
    ))  # fmt: skip
    np.testing.assert_allclose(np.abs(peak(X) - X), 0.1, atol=1e-6)


def test_a_probability_for_all_samples_together_is_refused():
    with pytest.raises(ValueError, match="one number for each"):
        pgd_attack(jax.random.key(0), lambda x: jnp.sum(x), X, radius=0.1)
