"""Classifier guidance against Bayes' rule on mixtures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import exact
from diffjax.core.levels import NoiseLevel
from diffjax.transforms import class_log_prob, classifier_guidance, classifier_loss

MEANS, VARIANCES, WEIGHTS = [[1.0, 0.2], [-0.6, 0.4], [0.1, -1.0]], [0.2, 0.5, 0.1], [0.5, 0.3, 0.2]
CLASSES = exact.mixture(WEIGHTS, MEANS, VARIANCES)
# nearly pure noise, in between, nearly clean, and both ends
LEVELS = NoiseLevel(
    *jnp.array([[0.9, 0.5, 0.1, 1.0, 0.0], [0.1, 0.6, 0.99, 0, 1], [1, 0.8, 0.1, 1, 0]])
)
X = LEVELS.alpha[:, None] * 0.3 + LEVELS.sigma[:, None] * jax.random.normal(
    jax.random.key(0), (5, 2)
)
LABELS = jnp.array([0, 1, 2, 1, 0])


def classifier(params, x, t):
    """The exact logits, up to a constant; the clock is the position in LEVELS."""
    level = NoiseLevel(*(leaf[t.astype(int)] for leaf in LEVELS))
    return jnp.log(exact.posterior_weights(CLASSES, x, level)) + params


@jax.jit
def guided(x, scale, shift):
    log_prob = class_log_prob(classifier, shift, LABELS)
    levels = LEVELS._replace(t=jnp.arange(5))
    return classifier_guidance(exact.denoiser(CLASSES), log_prob, guidance_scale=scale)(x, levels)


unconditional = jax.jit(exact.denoiser(CLASSES))


def conditional(k):
    mean, variance = jnp.array(MEANS[k]), VARIANCES[k]
    alpha, sigma = LEVELS.alpha[:, None], LEVELS.sigma[:, None]
    return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (X - alpha * mean)


def test_the_exact_classifier_at_scale_one_makes_the_exact_conditional_denoiser():
    expected = jnp.stack([conditional(k) for k in range(3)])[LABELS, jnp.arange(5)]
    result = guided(X, 1.0, 7.0)  # logits count up to a constant
    # at pure noise nothing is added, at clean data nothing is left to say
    np.testing.assert_allclose(result[:3], expected[:3], rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(result[3:], unconditional(X, LEVELS)[3:], rtol=1e-6)


def test_a_scale_of_zero_is_unconditional_and_scales_are_linear():
    zero, one, four = (guided(X, scale, 0.0) for scale in (0.0, 1.0, 4.0))
    np.testing.assert_allclose(zero, unconditional(X, LEVELS), rtol=1e-6)
    np.testing.assert_allclose(four - zero, 4.0 * (one - zero), rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda x: guided(x, 4.0, 0.0).sum())(X)
    assert np.all(np.isfinite(gradient))


def test_the_null_label_leads_nowhere():
    apply = lambda params, x, t: jnp.concatenate([x, -x[:, :1]], axis=-1)
    log_prob = class_log_prob(apply, None, jnp.array([3, 1, 3, 0, 3]))
    lean = classifier_guidance(lambda x, level: x, log_prob, guidance_scale=4.0)
    moved = np.any(np.asarray(lean(X, LEVELS)) != X, axis=1)
    # at both ends there is nothing to add
    np.testing.assert_array_equal(moved, [False, True, False, False, False])
    with pytest.raises(ValueError, match=r"There are \(2,\) labels for the 5 samples"):
        class_log_prob(apply, None, jnp.array([0, 1]))(X, LEVELS)


def test_log_probabilities_of_a_wrong_shape_are_refused():
    guide = classifier_guidance(lambda x, level: x, lambda x, level: x, guidance_scale=1.0)
    with pytest.raises(ValueError, match=r"log_prob returned the shape \(5, 2\)"):
        guide(X, LEVELS)


def test_the_exact_classifier_is_where_its_loss_has_no_slope():
    count = 4000
    keys = jax.random.split(jax.random.key(1), 3)
    labels = jax.random.choice(keys[0], 3, (count,), p=jnp.array(WEIGHTS))
    noise = jax.random.normal(keys[1], (count, 2))
    x0 = jnp.array(MEANS)[labels] + jnp.sqrt(jnp.array(VARIANCES))[labels, None] * noise
    # levels 0 to 2, whose clocks are their positions
    table = lambda t: NoiseLevel(t, *(leaf[jnp.round(2 * t).astype(int)] for leaf in LEVELS[1:]))

    def apply(shift, x, t, *, keys):
        return classifier(shift, x, jnp.round(2 * t))

    @jax.jit
    def evaluate(shift):
        loss = classifier_loss(apply, table)
        of = lambda shift: loss(shift, {"x0": x0, "labels": labels}, keys[2])
        losses, metrics = of(shift)
        return losses, metrics["accuracy"], jax.jacfwd(lambda shift: of(shift)[0])(shift)

    losses, right, slopes = evaluate(jnp.zeros(3))
    np.testing.assert_array_less(
        np.abs(slopes.mean(0)), 4 * np.asarray(slopes).std(0) / np.sqrt(count)
    )
    # whoever has the probability 1/2 is right
    assert np.all(right[losses < np.log(2)] == 1)
