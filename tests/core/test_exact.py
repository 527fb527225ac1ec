"""The closed forms against quadrature, SciPy and a numerically integrated ODE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffjax.core import exact, schedules
from diffjax.core.levels import NoiseLevel

COVARIANCE = np.array([[0.6, 0.2, 0.0], [0.2, 0.3, -0.1], [0.0, -0.1, 0.5]])
MEAN = np.array([0.5, -1.0, 0.2])
POINTS = np.array([[1.0, 0.0, -1.0], [-1.0, 0.5, 0.3], [0.2, 0.1, 1.0], [0.9, 0.1, -1.0]])

DISTRIBUTIONS = {
    "gaussian": exact.gaussian(MEAN, COVARIANCE),
    "diagonal": exact.gaussian(MEAN, [0.1, 1.0, 2.0]),
    "isotropic mixture": exact.mixture([0.2, 0.3, 0.1, 0.4], POINTS, [0.1, 0.2, 0.05, 0.3]),
    "full mixture": exact.mixture([0.3, 0.7], POINTS[:2], [COVARIANCE, 0.1 * COVARIANCE]),
    "data set": exact.dataset(POINTS),
}
LEVELS = [(1.0, 0.05), (0.8, 0.6), (0.05, 0.998), (1.0, 3.0)]

# two unequal modes on a line, the usual test of a solver
LINE = ([0.3, 0.7], [[-1.0], [0.8]], [0.04, 0.09])


def make_level(alpha, sigma):
    return NoiseLevel(jnp.asarray(0.5), jnp.asarray(alpha), jnp.asarray(sigma))


def components(name):
    """Weights, means and covariances as matrices, from the arguments above, not from the code."""
    isotropic = [variance * np.eye(3) for variance in [0.1, 0.2, 0.05, 0.3]]
    return {
        "gaussian": ([1.0], [MEAN], [COVARIANCE]),
        "diagonal": ([1.0], [MEAN], [np.diag([0.1, 1.0, 2.0])]),
        "isotropic mixture": ([0.2, 0.3, 0.1, 0.4], POINTS, isotropic),
        "full mixture": ([0.3, 0.7], POINTS[:2], [COVARIANCE, 0.1 * COVARIANCE]),
        "data set": ([0.25] * 4, POINTS, [np.zeros((3, 3))] * 4),
    }[name]


@jax.jit
def everything(distribution, x, level):
    """All functions at one level, in one program for each kind of distribution."""
    total = lambda x: exact.log_likelihood(distribution, x, level).sum()
    return {
        "denoised": exact.denoiser(distribution)(x, level),
        "log likelihood": exact.log_likelihood(distribution, x, level),
        "weights": exact.posterior_weights(distribution, x, level),
        "score": exact.score(distribution, x, level),
        "gradient": jax.grad(total)(x),
    }


@jax.jit
def value_and_gradient(distribution, x, level):
    value, pull_back = jax.vjp(exact.denoiser(distribution), x, level)
    return value, pull_back(value)


denoise = jax.jit(lambda distribution, x, level: exact.denoiser(distribution)(x, level))
flow = jax.jit(exact.probability_flow)
draw = jax.jit(exact.draw, static_argnums=2)


def noisy_points(name, alpha, sigma):
    """Points that are likely, and one that is far from everything."""
    rng = np.random.default_rng(0)
    _, means, covariances = components(name)
    x0 = [
        rng.multivariate_normal(means[k], covariances[k]) for k in rng.integers(len(means), size=5)
    ]
    return np.concatenate([alpha * np.array(x0) + sigma * rng.normal(size=(5, 3)), [[4.0] * 3]])


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_log_likelihood_and_posterior_weights_are_those_of_scipy(x64, name):
    for alpha, sigma in LEVELS:
        x = noisy_points(name, alpha, sigma)
        densities = []
        for weight, mean, cov in zip(*components(name)):
            total = alpha**2 * np.asarray(cov) + sigma**2 * np.eye(3)
            density = stats.multivariate_normal(alpha * np.asarray(mean), total).pdf(x)
            densities.append(weight * density)
        densities = np.stack(densities, axis=1)
        likely = densities.sum(1) > 1e-250
        got = everything(DISTRIBUTIONS[name], jnp.asarray(x), make_level(alpha, sigma))
        expected = np.log(densities.sum(1)[likely])
        np.testing.assert_allclose(got["log likelihood"][likely], expected, rtol=1e-9)
        expected = densities[likely] / densities[likely].sum(1, keepdims=True)
        np.testing.assert_allclose(got["weights"][likely], expected, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_denoiser_is_the_posterior_mean_by_gaussian_conditioning(x64, name):
    for alpha, sigma in LEVELS:
        x = noisy_points(name, alpha, sigma)
        got = everything(DISTRIBUTIONS[name], jnp.asarray(x), make_level(alpha, sigma))
        expected = 0.0
        for k, (_, mean, cov) in enumerate(zip(*components(name))):
            total = alpha**2 * cov + sigma**2 * np.eye(3)
            conditional = mean + alpha * (cov @ np.linalg.solve(total, (x - alpha * mean).T)).T
            expected = expected + np.asarray(got["weights"])[:, k : k + 1] * conditional
        np.testing.assert_allclose(got["denoised"], expected, rtol=1e-9, atol=1e-12)


def test_denoiser_is_the_posterior_mean_by_quadrature(x64):
    x0 = np.linspace(-4.0, 4.0, 40001)
    weights, means, variances = (np.ravel(part) for part in LINE)
    prior = sum(w * stats.norm.pdf(x0, m, v**0.5) for w, m, v in zip(weights, means, variances))
    x = np.linspace(-2.0, 2.0, 9)
    for alpha, sigma in LEVELS:
        joint = prior * stats.norm.pdf(x[:, None], alpha * x0, sigma)
        expected = (joint * x0).sum(1) / joint.sum(1)
        got = denoise(exact.mixture(*LINE), jnp.asarray(x[:, None]), make_level(alpha, sigma))
        np.testing.assert_allclose(got[:, 0], expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_score_is_the_gradient_of_the_log_likelihood_and_obeys_tweedie(x64, name):
    for alpha, sigma in LEVELS:
        x = noisy_points(name, alpha, sigma)
        got = everything(DISTRIBUTIONS[name], jnp.asarray(x), make_level(alpha, sigma))
        np.testing.assert_allclose(got["score"], got["gradient"], rtol=1e-8)
        tweedie = (x + sigma**2 * got["score"]) / alpha
        np.testing.assert_allclose(got["denoised"], tweedie, atol=1e-10)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_denoiser_knows_both_ends(name):
    x = jnp.asarray(noisy_points(name, 1.0, 0.0), jnp.float32)
    clean = denoise(DISTRIBUTIONS[name], x, make_level(1.0, 0.0))
    np.testing.assert_array_equal(clean, x)
    weights, means, _ = components(name)
    mean = np.broadcast_to(np.average(means, axis=0, weights=weights), x.shape)
    pure_noise = denoise(DISTRIBUTIONS[name], x, make_level(0.0, 1.0))
    np.testing.assert_allclose(pure_noise, mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["gaussian", "isotropic mixture", "data set"])
def test_float32_is_accurate_and_has_finite_gradients_at_every_level(name):
    sigma = np.array([0.0, 1e-6, 1e-3, 0.03, 0.9, 1.0])
    alpha = np.sqrt(1.0 - sigma**2)
    x = noisy_points(name, 1.0, 0.0)
    x = alpha[:, None] * x + sigma[:, None] * np.random.default_rng(1).normal(size=x.shape)

    def run(dtype):
        level = NoiseLevel(*(jnp.asarray(leaf, dtype) for leaf in (sigma, alpha, sigma)))
        value, gradient = value_and_gradient(DISTRIBUTIONS[name], jnp.asarray(x, dtype), level)
        assert value.dtype == dtype
        assert all(np.all(np.isfinite(part)) for part in jax.tree.leaves(gradient))
        return np.asarray(value)

    single = run(jnp.float32)
    with jax.enable_x64(True):
        np.testing.assert_allclose(single, run(jnp.float64), rtol=1e-4, atol=1e-5)


def test_levels_of_a_batch_are_those_of_each_sample():
    distribution = DISTRIBUTIONS["full mixture"]
    levels = NoiseLevel(*(jnp.array(leaf) for leaf in ([0.1, 0.9], [0.9, 0.3], [0.4, 0.9])))
    x = jnp.array([[0.3, 1.0, -1.0], [1.0, -2.0, 0.0]])
    together = everything(distribution, x, levels)
    for i in (0, 1):
        one = everything(distribution, x[i : i + 1], jax.tree.map(lambda a, i=i: a[i], levels))
        for name, value in one.items():
            np.testing.assert_allclose(together[name][i], value[0], rtol=1e-5, err_msg=name)


def test_shape_of_a_sample_does_not_matter():
    images = np.random.default_rng(0).uniform(-1, 1, size=(5, 2, 3, 1))
    level = make_level(0.6, 0.8)
    x = jnp.asarray(images[:2] * 0.6, jnp.float32)
    result = denoise(exact.dataset(images), x, level)
    flat = denoise(exact.dataset(images.reshape(5, 6)), x.reshape(2, 6), level)
    np.testing.assert_array_equal(result.reshape(2, 6), flat)


def test_denoiser_takes_the_mixture_as_an_argument_of_jit_and_vmap():
    mixtures = [DISTRIBUTIONS["gaussian"], exact.gaussian(-MEAN, 2 * COVARIANCE)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *mixtures)
    level, x = make_level(0.6, 0.8), jnp.ones((2, 3))
    run = lambda mixture: exact.denoiser(mixture)(x, level)
    together = jax.jit(jax.vmap(run))(stacked)
    for row, mixture in zip(together, mixtures):
        np.testing.assert_allclose(row, denoise(mixture, x, level), rtol=1e-5)


@pytest.mark.parametrize("name", ["isotropic mixture", "full mixture", "data set"])
def test_draws_have_the_moments_within_four_standard_errors(name):
    size = 20_000
    draws = np.asarray(draw(jax.random.key(3), DISTRIBUTIONS[name], size), np.float64)
    mean, covariance = exact.moments(DISTRIBUTIONS[name])
    error = np.sqrt(np.diag(covariance) / size)
    assert np.all(np.abs(draws.mean(0) - mean) <= 4 * error)
    products = np.einsum("nd,ne->nde", draws - mean, draws - mean)
    error = products.std(0) / np.sqrt(size)
    assert np.all(np.abs(products.mean(0) - covariance) <= 4 * error + 1e-6)


def test_draws_choose_the_components_by_their_weights():
    size = 20_000
    draws = draw(jax.random.key(4), exact.mixture(*LINE), size)
    level = make_level(1.0, 0.0)
    weights = everything(exact.mixture(*LINE), draws, level)["weights"].mean(0)
    np.testing.assert_allclose(weights, LINE[0], atol=4 * 0.5 / size**0.5)


def flow_by_runge_kutta(score, schedule, x, start, end, num_steps):
    """dx/dt = f x - g^2 score / 2 with f = d log alpha / dt, g^2 = d sigma^2 / dt - 2 f sigma^2."""

    def drift(x, t):
        level, rate = jax.jvp(schedule, (t,), (jnp.ones_like(t),))
        f = rate.alpha / level.alpha
        g2 = 2.0 * level.sigma * (rate.sigma - f * level.sigma)
        return f * x - 0.5 * g2 * score(x, level)

    h = (end - start) / num_steps

    def step(i, x):
        t = jnp.asarray(start) + i * h
        k1 = drift(x, t)
        k2 = drift(x + 0.5 * h * k1, t + 0.5 * h)
        k3 = drift(x + 0.5 * h * k2, t + 0.5 * h)
        k4 = drift(x + h * k3, t + h)
        return x + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)

    return jax.jit(lambda x: jax.lax.fori_loop(0, num_steps, step, x))(x)


@pytest.mark.parametrize("distribution", [exact.mixture(*LINE), DISTRIBUTIONS["gaussian"]])
def test_probability_flow_solves_the_ode(x64, distribution):
    schedule = schedules.linear()
    dims = distribution.means.shape[1]
    x = jax.random.normal(jax.random.key(0), (16, dims)) * jnp.linspace(0.2, 2.0, 16)[:, None]
    score = lambda x, level: exact.score(distribution, x, level)
    expected = flow_by_runge_kutta(score, schedule, x, 0.9, 0.1, 800)
    got = flow(distribution, x, schedule(0.9), schedule(0.1))
    np.testing.assert_allclose(got, expected, atol=2e-7)


def test_probability_flow_there_and_back_is_the_identity_also_in_the_tails(x64):
    distribution, schedule = exact.mixture(*LINE), schedules.cosine()
    x = jnp.linspace(-9.0, 9.0, 37).reshape(-1, 1)
    noisy, clean = schedule(0.98), schedule(0.05)
    there = exact.probability_flow(distribution, x, noisy, clean)
    assert np.all(np.diff(there[:, 0]) > 0)
    back = flow(distribution, there, clean, noisy)
    np.testing.assert_allclose(back, x, rtol=1e-9, atol=1e-9)


def test_probability_flow_reaches_both_ends(x64):
    distribution, schedule = exact.mixture(*LINE), schedules.cosine()
    z = jnp.linspace(-3.0, 3.0, 13).reshape(-1, 1)
    data = flow(distribution, z, schedule(1.0), schedule(0.0))
    weights, means, variances = (np.ravel(part) for part in LINE)
    cdf = stats.norm.cdf(np.asarray(data), means, np.sqrt(variances)) @ weights
    np.testing.assert_allclose(cdf, stats.norm.cdf(z[:, 0]), rtol=1e-10)


def test_probability_flow_changes_densities_by_its_jacobian(x64):
    distribution, schedule = exact.mixture(*LINE), schedules.linear()
    noisy, clean = schedule(0.8), schedule(0.2)
    x = jnp.linspace(-2.0, 2.0, 9)
    one = lambda x: exact.probability_flow(distribution, x[None], noisy, clean)[0]
    y, slope = jax.jit(jax.vmap(jax.value_and_grad(one)))(x)
    before = everything(distribution, x[:, None], noisy)["log likelihood"]
    after = everything(distribution, y[:, None], clean)["log likelihood"]
    np.testing.assert_allclose(after + jnp.log(slope), before, atol=1e-9)


def test_probability_flow_in_float32_is_that_of_float64():
    distribution = exact.mixture(*LINE)
    x = np.linspace(-4.0, 4.0, 17).reshape(-1, 1)
    levels = [(0.3, 0.954), (0.95, 0.312)]

    def run(dtype):
        ends = (NoiseLevel(*(jnp.asarray(v, dtype) for v in (0.5, *pair))) for pair in levels)
        return np.asarray(flow(distribution, jnp.asarray(x, dtype), *ends))

    single = run(jnp.float32)
    with jax.enable_x64(True):
        np.testing.assert_allclose(single, run(jnp.float64), atol=1e-5)


def test_coordinatewise_denoises_each_coordinate_on_its_own():
    line = exact.mixture(*LINE)
    x = jnp.array([[[-0.5], [0.2]], [[0.1], [2.0]]])
    level = NoiseLevel(*(jnp.array(leaf) for leaf in ([0.1, 0.9], [0.9, 0.3], [0.4, 0.9])))
    result = exact.coordinatewise(lambda x, level: denoise(line, x, level))(x, level)
    for i in (0, 1):
        for j in (0, 1):
            one = denoise(line, x[i, j][None], jax.tree.map(lambda leaf, i=i: leaf[i], level))
            np.testing.assert_allclose(result[i, j], one[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: exact.mixture([0.5, 0.6], [[0.0], [1.0]], [1.0, 1.0]), "sum 1"),
        (lambda: exact.mixture([1.0], [0.0], [1.0]), r"\[K\] and \[K, D\]"),
        (lambda: exact.mixture([1.0], [[0.0, 1.0]], np.ones((1, 3, 3))), "do not fit"),
        (lambda: exact.mixture([1.0], [[0.0, 1.0]], np.ones((1, 2))), r"\[K\] or \[K, D, D\]"),
        (lambda: exact.gaussian([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]), "negative eigenvalue"),
        (lambda: exact.gaussian([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]), "not symmetric"),
        (
            lambda: exact.denoiser(exact.mixture(*LINE))(jnp.ones((2, 3)), make_level(0.6, 0.8)),
            "coordinatewise",
        ),
        (
            lambda: exact.probability_flow(
                DISTRIBUTIONS["full mixture"], jnp.ones((2, 3)), *[make_level(0.6, 0.8)] * 2
            ),
            "one component or for one dimension",
        ),
    ],
)
def test_errors_say_what_is_needed(make, words):
    with pytest.raises(ValueError, match=words):
        make()
