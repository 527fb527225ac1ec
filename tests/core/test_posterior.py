"""Exact posteriors against importance weights of draws from the prior, and against each other."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffjax.core import exact, posterior

COVARIANCE = np.array([[0.6, 0.2, 0.1], [0.2, 0.3, -0.1], [0.1, -0.1, 0.5]])
MEANS = np.array([[0.5, -1.0, 0.2], [-1.0, 0.5, 0.3]])
MIXTURES = {
    "gaussian": exact.gaussian(MEANS[0], COVARIANCE),
    "isotropic": exact.mixture([0.4, 0.6], MEANS, [0.2, 0.5]),
    "full": exact.mixture([0.3, 0.7], MEANS, [COVARIANCE, 0.4 * COVARIANCE]),
    "data set": exact.dataset(np.random.default_rng(0).normal(size=(50, 3))),
}
OPERATOR = np.array([[1.0, -0.5, 0.3], [0.2, 0.8, 0.0]])
Y = np.array([0.4, -0.3])
NOISE = np.array([[0.3, 0.1], [0.1, 0.4]])


def draws(prior, count):
    rng = np.random.default_rng(2)
    k = rng.choice(len(prior.means), count, p=np.exp(prior.log_weights))
    offset = np.sqrt(prior.variances[k]) * rng.normal(size=(count, 3))
    axes = np.eye(3)[None] if prior.axes is None else prior.axes[k]
    return prior.means[k] + np.einsum("nde,ne->nd", np.broadcast_to(axes, (count, 3, 3)), offset)


@pytest.mark.parametrize("name", MIXTURES)
def test_moments_are_those_of_prior_draws_weighted_by_the_likelihood(name):
    prior = MIXTURES[name]
    x0 = draws(prior, 100_000)
    weights = stats.multivariate_normal(Y, NOISE).pdf(x0 @ OPERATOR.T)
    weights /= weights.sum()
    size = 1.0 / np.sum(weights**2)
    mean, covariance = exact.moments(posterior.condition(prior, OPERATOR, Y, NOISE))
    spread = np.sqrt(np.diag(covariance))
    np.testing.assert_array_less(np.abs(weights @ x0 - mean), 4.0 * spread / np.sqrt(size))
    centred = x0 - weights @ x0
    sampled = np.einsum("n,nd,ne->de", weights, centred, centred)
    tolerance = 4.0 * np.sqrt(2.0 / size) * np.outer(spread, spread)
    np.testing.assert_array_less(np.abs(sampled - covariance), tolerance)


@pytest.mark.parametrize("name", ["isotropic", "full"])
def test_its_density_is_joint_over_evidence(x64, name):
    prior = MIXTURES[name]
    after = posterior.condition(prior, OPERATOR, Y, NOISE)
    clean = exact.NoiseLevel(*(jnp.asarray(leaf) for leaf in (0.0, 1.0, 0.0)))
    x0 = np.random.default_rng(1).normal(size=(6, 3))
    joint = exact.log_likelihood(prior, jnp.asarray(x0), clean)
    joint += stats.multivariate_normal(Y, NOISE).logpdf(x0 @ OPERATOR.T)
    ratio = joint - exact.log_likelihood(after, jnp.asarray(x0), clean)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-10)


def test_measurements_one_after_the_other_are_measurements_at_once(x64):
    prior, noise = MIXTURES["full"], np.diag(NOISE)
    once = posterior.condition(prior, OPERATOR, Y, noise)
    first = posterior.condition(prior, OPERATOR[:1], Y[:1], noise[0])
    after = posterior.condition(first, OPERATOR[1:], Y[1:], noise[1:])
    for a, b in zip(exact.moments(once), exact.moments(after)):
        np.testing.assert_allclose(a, b, rtol=1e-10)


@pytest.mark.parametrize("name", ["gaussian", "isotropic", "full"])
def test_known_coordinates_are_kept_and_little_noise_says_the_same(x64, name):
    values, mask = np.array([0.1, np.nan, -0.2]), np.array([0, 1, 0])
    mean, covariance = exact.moments(posterior.fill(MIXTURES[name], values, mask))
    np.testing.assert_allclose(mean[mask == 0], values[mask == 0], atol=1e-12)
    np.testing.assert_allclose(covariance[mask == 0], 0.0, atol=1e-12)
    nearly = posterior.condition(MIXTURES[name], np.eye(3)[mask == 0], values[mask == 0], 1e-9)
    for a, b in zip(exact.moments(nearly), (mean, covariance)):
        np.testing.assert_allclose(a, b, atol=1e-7)


def test_nothing_known_and_nothing_but_noise_leave_the_prior():
    prior = MIXTURES["full"]
    assert posterior.fill(prior, np.zeros(3), np.ones(3)) is prior
    noisy = posterior.condition(prior, OPERATOR, Y, 1e12)
    for a, b in zip(exact.moments(noisy), exact.moments(prior)):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_everything_known_is_a_point():
    mean, covariance = exact.moments(posterior.fill(MIXTURES["full"], [1.0, 2.0, 3.0], np.zeros(3)))
    np.testing.assert_allclose(mean, [1.0, 2.0, 3.0], rtol=1e-6)
    np.testing.assert_allclose(covariance, 0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: posterior.condition(m, np.eye(2), [0.0, 0.0]), r"must be \[M, 3\] and \[M\]"),
        (lambda m: posterior.condition(m, OPERATOR, [0.0]), r"measurement \(1,\)"),
        (lambda m: posterior.condition(m, OPERATOR, Y, [1.0] * 3), "noise has shape"),
        (lambda m: posterior.fill(m, np.zeros(3), [0.0, 0.5, 1.0]), "zeros .known. and ones"),
        (lambda m: posterior.fill(m, np.zeros(2), [0, 1]), "both must be .3."),
        (
            lambda m: posterior.fill(MIXTURES["data set"], np.zeros(3), [0, 1, 1]),
            "Component 0 does not vary",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(MIXTURES["full"])
