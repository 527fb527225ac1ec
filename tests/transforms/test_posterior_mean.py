"""Corrected denoisers against the denoisers of exact posteriors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import exact
from diffjax.core.levels import NoiseLevel, expand
from diffjax.core.parameterizations import LearnedVariance
from diffjax.core.posterior import condition
from diffjax.transforms.operators import decompose
from diffjax.transforms.posterior_mean import ddnm, diffpir, mmps, pigdm, tmpd

RNG = np.random.default_rng(0)
MATRIX = RNG.normal(size=(3, 5)) / 2
FACTOR = RNG.normal(size=(5, 5)) / 2
MEAN = RNG.normal(size=5)
CORRELATED = exact.gaussian(MEAN, FACTOR @ FACTOR.T + 0.05 * np.eye(5))
INDEPENDENT = exact.gaussian(MEAN, np.diag([0.1, 0.5, 1.0, 2.0, 0.3]))
ISOTROPIC = exact.gaussian(MEAN, 0.49 * np.eye(5))
Y = np.array([0.7, -0.4, 1.1])
NOISE = 0.3
X = np.float32(RNG.normal(size=(4, 5)))
# a level for each sample: nearly clean, even, nearly pure noise, variance exploding
TIMES, ALPHAS, SIGMAS = np.float32(
    [[0.1, 0.5, 0.9, 0.7], [0.99, 0.6, 0.05, 1.0], [0.1, 0.8, 0.99, 3.0]]
)
LEVELS = NoiseLevel(TIMES, ALPHAS, SIGMAS)

SPECTRAL = decompose(lambda x: x @ MATRIX.T, (5,))
METHODS = {
    "mmps": mmps,
    "tmpd": tmpd,
    "pigdm": partial(pigdm, sigma_data=0.7),
    "diffpir": partial(diffpir, regularization=3.0),
}


@partial(jax.jit, static_argnames="spectral")
def estimates(prior, matrix, x, level, y, sigma_y, *, spectral=False):
    """What every method makes of a denoiser, and the denoiser itself, in one program."""
    operator = SPECTRAL if spectral else lambda x: x @ matrix.T
    denoise = exact.denoiser(prior)
    methods = {
        name: method(denoise, operator, y, sigma_y=sigma_y) for name, method in METHODS.items()
    }
    methods["ddnm"] = ddnm(denoise, operator, y)
    methods["prior"] = denoise
    return {name: method(x, level) for name, method in methods.items()}


def corrected(prior, matrix=MATRIX, *, x=X, sigma_y=NOISE, spectral=False):
    noises = np.broadcast_to(np.float32(sigma_y), len(x))  # one shape, one compilation
    y = np.float32(Y)[None]
    return estimates(prior, np.float32(matrix), x, LEVELS, y, noises, spectral=spectral)


def exact_estimate(prior, matrix=MATRIX):
    return estimates_of(condition(prior, matrix, Y, NOISE**2), X)


estimates_of = jax.jit(lambda prior, x: exact.denoiser(prior)(x, LEVELS))


@pytest.fixture(params=[False, True], ids=["function", "spectral"])
def spectral(request):
    return request.param


def test_moment_matching_is_exact_for_gaussian_data(spectral):
    result = corrected(CORRELATED, spectral=spectral)["mmps"]
    np.testing.assert_allclose(result, exact_estimate(CORRELATED), atol=3e-5)


def test_row_sums_are_exact_where_the_covariance_of_the_measurement_is_diagonal():
    pick = np.diag([2.0, 1.0, 0.5, 1.0, 1.0])[[0, 2, 3]]
    result = corrected(INDEPENDENT, pick)["tmpd"]
    np.testing.assert_allclose(result, exact_estimate(INDEPENDENT, pick), atol=3e-5)


def test_pseudoinverse_guidance_is_exact_for_isotropic_gaussian_data(spectral):
    result = corrected(ISOTROPIC, spectral=spectral)["pigdm"]
    np.testing.assert_allclose(result, exact_estimate(ISOTROPIC), atol=3e-5)


def test_diffpir_is_the_posterior_mean_under_a_gaussian_around_the_estimate(spectral):
    result = corrected(CORRELATED, spectral=spectral)
    for i, x0 in enumerate(result["prior"]):
        around = exact.gaussian(x0, SIGMAS[i] ** 2 / (3.0 * ALPHAS[i] ** 2))
        expected = exact.moments(condition(around, MATRIX, Y, NOISE**2))[0]
        np.testing.assert_allclose(result["diffpir"][i], expected, atol=1e-4)


def test_without_noise_the_estimate_explains_the_measurement_and_keeps_the_null_space(spectral):
    result = corrected(ISOTROPIC, sigma_y=1e-9, spectral=spectral)
    for name in ("ddnm", "pigdm", "diffpir"):
        np.testing.assert_allclose(result[name] @ MATRIX.T, np.tile(Y, (4, 1)), atol=2e-4)
        unmeasured = np.linalg.svd(MATRIX)[2][3:]
        change = result[name] - result["prior"]
        np.testing.assert_allclose(change @ unmeasured.T, 0.0, atol=1e-5)


def test_noise_that_drowns_the_measurement_leaves_the_denoiser_alone():
    result = corrected(CORRELATED, sigma_y=1e6)
    for name in METHODS:
        np.testing.assert_allclose(result[name], result["prior"], atol=1e-5)


def test_the_noise_of_the_measurement_may_differ_between_samples():
    noises = [0.1, 0.3, 1.0, 3.0]
    together = corrected(CORRELATED, sigma_y=noises)
    alone = [corrected(CORRELATED, sigma_y=noise) for noise in noises]
    for name in METHODS:
        for i, result in enumerate(alone):
            np.testing.assert_allclose(together[name][i], result[name][i], atol=1e-5)


def test_a_sample_does_not_depend_on_its_neighbours():
    neighbours = X * np.float32([[1.0], [5.0], [5.0], [5.0]])
    for one, other in zip(*(corrected(CORRELATED, x=x).values() for x in (X, neighbours))):
        np.testing.assert_array_equal(one[0], other[0])


def test_derivatives_are_those_of_the_exact_posterior(x64):
    x, step = jnp.asarray(X[:1], float), 1e-4
    level = NoiseLevel(*(jnp.asarray(leaf[1], float) for leaf in LEVELS))

    @jax.jit
    def mean(y, sigma_y):
        operator = lambda x: x @ MATRIX.T
        denoise = exact.denoiser(CORRELATED)
        return mmps(denoise, operator, y[None], sigma_y=sigma_y, max_iterations=9)(x, level)[0]

    def exactly(y, sigma_y):
        return exact.denoiser(condition(CORRELATED, MATRIX, y, sigma_y**2))(x, level)[0]

    by_y, by_noise = jax.jit(jax.jacrev(mean, (0, 1)))(jnp.asarray(Y), jnp.asarray(NOISE))
    for j, shift in enumerate(step * np.eye(3)):
        slope = (exactly(Y + shift, NOISE) - exactly(Y - shift, NOISE)) / (2 * step)
        np.testing.assert_allclose(by_y[:, j], slope, atol=1e-6)
    slope = (exactly(Y, NOISE + step) - exactly(Y, NOISE - step)) / (2 * step)
    np.testing.assert_allclose(by_noise, slope, atol=1e-6)


def test_at_the_ends_of_the_schedule_and_under_vmap_estimates_are_finite():
    ends = NoiseLevel(*np.float32([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]))
    blind = lambda x, level: expand(level.alpha, x) * x

    def one(x, level):
        methods = (
            method(blind, lambda x: x[:, :3], Y[None], sigma_y=NOISE) for method in METHODS.values()
        )
        return [method(x[None], level)[0] for method in methods]

    for clean, noise in jax.jit(jax.vmap(one))(X[:2], ends):
        np.testing.assert_allclose(clean, X[0], atol=1e-4)
        assert np.all(np.isfinite(noise))


def test_a_learned_variance_passes():
    learned = lambda x, level: LearnedVariance(0.5 * x, 0.3 * x)
    for method in (mmps, diffpir):
        both = [
            method(d, lambda x: x[:, :3], Y[None], sigma_y=NOISE)
            for d in (learned, lambda x, _: 0.5 * x)
        ]
        result, plain = jax.jit(lambda both=both: [corrected(X, LEVELS) for corrected in both])()
        np.testing.assert_array_equal(result.fraction, np.float32(0.3) * X)
        np.testing.assert_allclose(result.x0, plain, atol=1e-6)


def test_what_does_not_fit_is_refused():
    half = lambda x, level: 0.5 * x
    with pytest.raises(ValueError, match=r"y has shape \(1, 2\), but the operator makes \(4, 3\)"):
        ddnm(half, lambda x: x[:, :3], Y[None, :2])(X, LEVELS)
    with pytest.raises(ValueError, match="has no adjoint, so it is not linear"):
        ddnm(half, lambda x: x**2, jnp.ones((1, 5)))(X, LEVELS)
    with pytest.raises(ValueError, match=r"sigma_y is 0.0; tmpd needs noise > 0"):
        tmpd(half, lambda x: x, Y[None], sigma_y=0.0)
