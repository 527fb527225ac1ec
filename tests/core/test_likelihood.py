"""Log-likelihoods of Gaussian mixtures, which are known, and the bookkeeping of bits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from perfect_network import perfect_network
from scipy import stats

from diffjax.core import exact, schedules
from diffjax.core.integrators import dormand_prince, runge_kutta
from diffjax.core.keys import sample_keys
from diffjax.core.levels import NoiseLevel
from diffjax.core.likelihood import (
    bits_per_dim,
    cleanest_level,
    dequantize,
    exact_trace,
    hutchinson_trace,
    log_likelihood,
    logit_normal_places,
    noisiest_level,
    uniform_each,
)
from diffjax.core.parameterizations import (
    PARAMETERIZATIONS,
    make_denoiser,
)
from diffjax.core.sigma_schedules import edm_sigmas, flow, variance_exploding
from diffjax.core.variational import variational_bound

KEY = jax.random.key(0)
LINE = exact.mixture([0.3, 0.7], [[-1.0], [0.8]], [0.04, 0.09])
X = jnp.linspace(-2.0, 2.0, 9)[:, None]
CLEAN = NoiseLevel(*map(jnp.asarray, (0.0, 1.0, 0.0)))
# no axis of the plane is an axis of its components
PLANE = exact.mixture(
    [0.4, 0.6],
    [[-0.8, 0.3], [0.7, 0.1]],
    [[[0.10, 0.05], [0.05, 0.06]], [[0.06, -0.05], [-0.05, 0.20]]],
)
DRAWS = exact.draw(jax.random.key(1), PLANE, 400)
KEYS = sample_keys(KEY, jnp.arange(400))
SCHEDULES = {
    "cosine": schedules.cosine(),
    "linear": schedules.linear(),
    "flow": flow(),
    "variance exploding": variance_exploding(),
    "edm": edm_sigmas(),
    "table": schedules.linear_betas(),
}


@jax.jit
def pulled_back(x, start, end):
    """Standard noise at `end` pulled back to `start` by the exact flow: latents, log-density."""

    def noise_of(x):
        there = exact.probability_flow(LINE, start.alpha * x[None, None], start, end)
        return there[0, 0] / jnp.hypot(end.alpha, end.sigma)

    z, slope = jax.vmap(jax.value_and_grad(noise_of))(x[:, 0])
    return z[:, None], -0.5 * z**2 - 0.5 * jnp.log(2 * jnp.pi) + jnp.log(slope)


@pytest.mark.parametrize("name", SCHEDULES)
def test_likelihood_is_that_of_standard_noise_pulled_back_by_the_exact_flow(name):
    schedule = SCHEDULES[name]
    run = jax.jit(lambda x: log_likelihood(KEY, x, exact.denoiser(LINE), schedule))
    noise, nats = pulled_back(X, cleanest_level(schedule), noisiest_level(schedule))
    result = run(X)
    np.testing.assert_allclose(result.noise, noise, atol=1e-4)
    np.testing.assert_allclose(result.nats, nats, atol=1e-3)


@jax.jit
def of_the_plane(key, x, num_steps):
    """Exactly, and by two kinds of probes."""
    traces = {
        "exact": exact_trace(),
        "rademacher": hutchinson_trace(2),
        "gaussian": hutchinson_trace(probes="gaussian"),
    }
    run = lambda trace: log_likelihood(
        key, x, exact.denoiser(PLANE), schedules.cosine(), trace=trace,
        integrate=runge_kutta(num_steps),
    )  # fmt: skip
    return {name: run(trace) for name, trace in traces.items()}


@jax.jit
def density(x):
    return exact.log_likelihood(PLANE, x, CLEAN)


def test_likelihood_of_a_mixture_is_exact_to_a_thousandth_of_a_nat():
    result = of_the_plane(KEYS, DRAWS, 64)["exact"]
    np.testing.assert_allclose(result.nats, density(DRAWS), atol=1e-3)
    for coordinate in result.noise.T:
        assert stats.kstest(coordinate, "norm").pvalue > 1e-3


def test_adaptive_likelihood_of_a_mixture_is_exact_to_a_thousandth_of_a_nat():
    run = lambda x: log_likelihood(
        KEY, x, exact.denoiser(PLANE), schedules.cosine(), integrate=dormand_prince()
    )
    np.testing.assert_allclose(jax.jit(run)(DRAWS).nats, density(DRAWS), atol=1e-3)


@pytest.mark.parametrize("probes", ["rademacher", "gaussian"])
def test_random_probes_agree_within_four_standard_errors(probes):
    points = jnp.repeat(DRAWS[:4], 100, axis=0)
    estimates = of_the_plane(KEYS, points, 64)[probes].nats.reshape(4, 100)
    error = estimates.std(1) / 100**0.5
    assert np.all(error > 0)
    assert np.all(np.abs(estimates.mean(1) - density(DRAWS)[:4]) < 4 * error + 1e-3)


def perfect_denoiser(row, schedule):
    """Made of a network that is told the clock of a prediction, and predicts LINE perfectly."""
    return make_denoiser(perfect_network(row, exact.denoiser(LINE), schedule), None, row)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_likelihood_and_bound_of_a_chain_are_the_same_for_every_prediction(name):
    continuous, table = schedules.linear(), schedules.linear_betas(0.01, 0.4, num_steps=20)

    @jax.jit
    def figures(x0):
        of_row = [perfect_denoiser(PARAMETERIZATIONS[name], each) for each in (continuous, table)]
        return [
            (
                log_likelihood(KEY, x0, flowing, continuous).nats,
                variational_bound(KEY, x0, chained, table),
            )
            for flowing, chained in (of_row, [exact.denoiser(LINE)] * 2)
        ]

    one, other = figures(jnp.linspace(-1.0, 1.0, 9)[:, None])
    chex.assert_trees_all_close(one, other, rtol=1e-3, atol=1e-3)


def test_probes_belong_to_samples():
    whole = of_the_plane(KEYS, DRAWS, 8)["rademacher"].nats
    turned = of_the_plane(KEYS[::-1], DRAWS[::-1], 8)["rademacher"].nats
    np.testing.assert_allclose(turned[::-1], whole, rtol=1e-5, atol=1e-5)


def test_number_of_steps_compiles_once():
    of_the_plane(KEYS, DRAWS, 64)
    before = of_the_plane._cache_size()
    of_the_plane(KEYS, DRAWS, 5)
    assert of_the_plane._cache_size() == before


def of_a_gaussian(x):
    """Independent numbers with the variance 1/4, under the cosine schedule."""
    denoise = lambda x, level: level.alpha / (level.alpha**2 + 4.0 * level.sigma**2) * x
    return log_likelihood(KEY, x, denoise, schedules.cosine(), trace=exact_trace()).nats


def test_gradient_of_the_likelihood_is_the_score():
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(of_a_gaussian(x))))(X)
    np.testing.assert_allclose(gradient, -4.0 * X, rtol=1e-3, atol=1e-3)


def test_images_are_measured_whole():
    images = np.asarray(0.5 * jax.random.normal(KEY, (3, 4, 5, 2)))
    known = stats.norm.logpdf(images, scale=0.5).sum((1, 2, 3))
    np.testing.assert_allclose(jax.jit(of_a_gaussian)(images), known, atol=1e-3)


@pytest.mark.parametrize("num_bins", [17, 256])
def test_data_that_fill_all_bins_evenly_have_as_many_bits_as_the_bins_have(num_bins):
    width = 2.0 / (num_bins - 1)
    nats = -64 * np.log(2.0 + width)
    np.testing.assert_allclose(bits_per_dim(nats, 64, num_bins=num_bins), np.log2(num_bins))


def test_dequantised_data_stay_in_their_bins_and_fill_them():
    values = np.linspace(-1.0, 1.0, 17, dtype=np.float32)
    # half a byte away from some of the 17 values, as 8-bit files keep them
    stored = np.round(127.5 * (values + 1.0)) / 127.5 - 1.0
    x0 = jnp.asarray(np.tile(stored, (2000, 1)), jnp.float32)
    u = uniform_each(sample_keys(KEY, jnp.arange(2000)), (17,))
    spread = np.asarray(dequantize(x0, u, num_bins=17)) - values
    assert np.all(np.abs(spread) <= 1 / 16 + 1e-6)
    np.testing.assert_allclose(spread.mean(0), 0.0, atol=4 * (1 / 8) / 24000**0.5)
    np.testing.assert_allclose(spread.std(0), 1 / 8 / 12**0.5, rtol=0.06)


def test_uniform_dequantisation_bounds_the_probability_of_a_bin_from_below():
    spread = 0.2
    gaussian = exact.gaussian([0.0], spread**2)
    x0 = jnp.linspace(-1.0, 1.0, 17)[6:11, None]
    u = (jnp.arange(400) + 0.5) / 400
    nats = exact.log_likelihood(
        gaussian, dequantize(x0, u[None, :], num_bins=17).reshape(-1, 1), CLEAN
    )
    bits = bits_per_dim(nats.reshape(5, 400).mean(1), 1, num_bins=17)
    edges = np.linspace(-1.0, 1.0, 17)[6:11, None] + np.array([-1 / 16, 1 / 16])
    known = -np.log2(np.diff(stats.norm.cdf(edges / spread), axis=1)[:, 0])
    assert np.all(bits >= known)
    np.testing.assert_allclose(bits, known, atol=0.1)


MEANS, STDS = jnp.array([-1.0, 0.0, 2.0]), jnp.array([0.5, 1.2, 0.9])


def test_variational_places_have_the_density_that_they_tell():
    noise = jax.random.normal(KEY, (40_000, 3))
    u, nats = logit_normal_places(noise, MEANS, jnp.log(STDS))
    np.testing.assert_allclose(
        nats[:99],
        sum(
            stats.norm.logpdf(np.log(place / (1 - place)), mean, std) - np.log(place * (1 - place))
            for place, mean, std in zip(np.asarray(u[:99], np.float64).T, MEANS, STDS)
        ),
        rtol=1e-3,
        atol=1e-3,
    )
    # the integral of a function over [0, 1]^3, by draws from q
    terms = np.asarray(jnp.prod(6.0 * u * (1.0 - u), axis=1) * jnp.exp(-nats), np.float64)
    assert abs(terms.mean() - 1.0) < 4 * terms.std() / 200


def test_variational_dequantisation_is_exact_where_its_family_holds_the_truth():
    """Density of a bin: its probability times a logit-normal density over the bin."""
    log_probability, width = -1.3, 2.0 / 16
    x0 = jnp.full((50, 3), 0.25)
    u, nats = logit_normal_places(jax.random.normal(KEY, x0.shape), MEANS, jnp.log(STDS))
    x = np.asarray(dequantize(x0, u, num_bins=17), np.float64)
    # the same places, seen from the data alone
    place = np.clip((x - 0.25) / width + 0.5, 1e-6, 1 - 1e-6)
    within = stats.norm.logpdf(np.log(place / (1 - place)), MEANS, STDS)
    within -= np.log(place * (1 - place)) + np.log(width)
    density = log_probability + within.sum(1)
    bits = bits_per_dim(density - nats, 3, num_bins=17)
    np.testing.assert_allclose(bits, -log_probability / (3 * np.log(2)), rtol=1e-3)


@pytest.mark.parametrize("arguments", [{"num_probes": 0}, {"probes": "sobol"}])
def test_probes_that_are_none_are_refused(arguments):
    with pytest.raises(ValueError, match="at least 1 and one of rademacher, gaussian"):
        hutchinson_trace(**arguments)
