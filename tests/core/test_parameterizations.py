"""The table of predictions: each row with itself, with the others, and at its ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import exact, parameterizations, schedules
from diffjax.core.levels import NoiseLevel, add_noise
from diffjax.core.losses import diffusion_loss
from diffjax.core.parameterizations import (
    PARAMETERIZATIONS,
    LearnedVariance,
    check_schedule,
    estimate_eps,
    estimate_x0,
    make_denoiser,
    make_learned_variance_denoiser,
    map_x0,
    run_network,
    target,
)

# variance preserving, variance exploding, straight flow
LEVELS = NoiseLevel(
    t=jnp.arange(5.0),
    alpha=jnp.array([0.6, 0.999, 1.0, 1.0, 0.3]),
    sigma=jnp.array([0.8, 0.0447, 0.1, 40.0, 0.7]),
)
DATA, NOISE = jax.random.normal(jax.random.key(0), (2, 5, 3, 2))
X = add_noise(DATA, NOISE, LEVELS)
CLEAN = NoiseLevel(jnp.array(0.0), jnp.array(1.0), jnp.array(0.0))
PURE_NOISE = NoiseLevel(jnp.array(1.0), jnp.array(0.0), jnp.array(1.0))

every_row = pytest.mark.parametrize("row", PARAMETERIZATIONS.values(), ids=PARAMETERIZATIONS)
undefined_at_pure_noise = pytest.mark.parametrize("name", ["eps", "score", "ncsn", "edm"])
defined_everywhere = pytest.mark.parametrize("name", ["x0", "v", "velocity"])


@every_row
def test_two_halves_of_a_row_are_inverse(row):
    (a, b), (skip, out) = row.target(LEVELS), row.estimate(LEVELS)
    # x0 = skip (alpha x0 + sigma eps) + out (a x0 + b eps) for every x0 and eps
    np.testing.assert_allclose(skip * LEVELS.alpha + out * a, 1.0, rtol=1e-6)
    scale = np.abs(skip * LEVELS.sigma) + 1.0
    np.testing.assert_allclose((skip * LEVELS.sigma + out * b) / scale, 0.0, atol=1e-6)


@every_row
def test_target_determines_the_data_and_the_noise(row):
    clean = estimate_x0(row, X, target(row, DATA, NOISE, LEVELS), LEVELS)
    # at sigma = 40 the data are a fortieth of what float32 holds of x
    np.testing.assert_allclose(clean, DATA, atol=3e-5)
    noise = estimate_eps(X, clean, LEVELS)
    np.testing.assert_allclose(noise, NOISE, atol=1e-4)


@every_row
@pytest.mark.parametrize("other", PARAMETERIZATIONS.values(), ids=PARAMETERIZATIONS)
def test_any_prediction_converts_to_any_other_and_back(row, other):
    output = jax.random.normal(jax.random.key(1), DATA.shape)
    clean = estimate_x0(row, X, output, LEVELS)
    as_other = target(other, clean, estimate_eps(X, clean, LEVELS), LEVELS)
    again = estimate_x0(other, X, as_other, LEVELS)
    scale = np.maximum(np.abs(clean), np.abs(X))
    np.testing.assert_allclose((again - clean) / scale, 0.0, atol=1e-5)


def test_names_mean_what_the_papers_say():
    alpha, sigma = (leaf[:, None, None] for leaf in LEVELS[1:])
    norm = np.sqrt(sigma**2 + 0.25 * alpha**2)
    expected = {
        "eps": NOISE,
        "x0": DATA,
        "v": alpha * NOISE - sigma * DATA,
        "score": -(X - alpha * DATA) / sigma**2,
        "velocity": NOISE - DATA,
        "ncsn": -(X - alpha * DATA) / sigma,
        "edm": (DATA - 0.25 * alpha * X / norm**2) * norm / (0.5 * sigma),
    }
    assert expected.keys() == PARAMETERIZATIONS.keys()
    for name, value in expected.items():
        got = target(PARAMETERIZATIONS[name], DATA, NOISE, LEVELS)
        np.testing.assert_allclose(got, value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_velocity_is_the_time_derivative_of_the_straight_path():
    path = lambda t: add_noise(DATA[:1], NOISE[:1], NoiseLevel(t, 1.0 - t, t))
    slope = jax.jvp(path, (jnp.array(0.3),), (jnp.array(1.0),))[1]
    level = NoiseLevel(jnp.array(0.3), jnp.array(0.7), jnp.array(0.3))
    velocity = target(parameterizations.velocity, DATA[:1], NOISE[:1], level)
    np.testing.assert_allclose(velocity, slope, rtol=1e-6)


def test_networks_of_ncsn_and_edm_are_told_the_logarithm_of_the_noise():
    level = NoiseLevel(jnp.array(0.3), jnp.array(0.5), jnp.array(0.5 * np.e))
    tell = lambda params, x, t: t
    for name, clock in (("ncsn", 1.0), ("edm", 0.25), ("score", 0.3)):
        told = run_network(tell, None, PARAMETERIZATIONS[name], X, level)
        np.testing.assert_allclose(told, np.full(5, clock), rtol=1e-6)


def test_true_score_of_a_distribution_gives_its_denoiser():
    distribution = exact.mixture([0.3, 0.7], [[-1.0, 0.0], [0.8, 0.5]], [0.04, 0.09])
    level = NoiseLevel(jnp.array(0.5), jnp.array(0.6), jnp.array(0.8))
    x = DATA[:, 0]
    denoise = make_denoiser(
        lambda params, x, t: exact.score(distribution, x, level), None, parameterizations.score
    )
    np.testing.assert_allclose(denoise(x, level), exact.denoiser(distribution)(x, level), atol=1e-5)


@defined_everywhere
@pytest.mark.parametrize("level", [CLEAN, PURE_NOISE], ids=["clean", "pure noise"])
def test_row_is_exact_at_both_ends(name, level):
    row = PARAMETERIZATIONS[name]
    x = add_noise(DATA, NOISE, level)
    clean = estimate_x0(row, x, target(row, DATA, NOISE, level), level)
    np.testing.assert_allclose(clean, DATA, rtol=1e-6, atol=1e-6)


@undefined_at_pure_noise
def test_eps_and_its_like_are_refused_at_zero_terminal_snr_with_the_reason(name):
    """The trap: pure noise says all of eps and nothing of x0, whose estimate is 0 / 0."""
    row = PARAMETERIZATIONS[name]
    denoise = make_denoiser(lambda params, x, t: x, None, row)
    table = schedules.zero_terminal_snr(schedules.linear_betas(num_steps=10))
    for refused in (
        lambda: denoise(X, PURE_NOISE),
        lambda: check_schedule(row, table),
        lambda: check_schedule(row, schedules.cosine()),
        lambda: diffusion_loss(lambda params, x, t, keys: x, table, row),
    ):
        with pytest.raises(ValueError, match=r"pure noise.*Use 'v', 'velocity' or 'x0'"):
            refused()
    check_schedule(row, schedules.linear_betas())


@defined_everywhere
def test_prediction_that_determines_x0_everywhere_is_accepted(name):
    check_schedule(PARAMETERIZATIONS[name], schedules.cosine())


def test_check_does_not_hinder_tracing():
    jax.jit(lambda schedule: check_schedule(parameterizations.eps, schedule))(schedules.cosine())


def test_eps_is_zero_and_has_finite_gradients_without_noise():
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(estimate_eps(x, DATA, CLEAN)))(X)
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


def test_network_receives_the_clock_for_each_sample_and_the_conditioning():
    def apply(params, x, t, *, labels):
        assert t.shape == (5,)
        return params * x + t[:, None, None] + labels[:, None, None]

    labels = jnp.arange(5)
    denoise = make_denoiser(apply, 2.0, parameterizations.x0, labels=labels)
    level = NoiseLevel(jnp.array(7), jnp.array(0.6), jnp.array(0.8))
    expected = 2.0 * X + 7.0 + np.arange(5.0)[:, None, None]
    np.testing.assert_allclose(denoise(X, level), expected, rtol=1e-6)


def test_output_of_a_bfloat16_network_is_denoised_in_float32():
    denoise = make_denoiser(
        lambda params, x, t: x.astype(jnp.bfloat16), None, parameterizations.eps
    )
    assert denoise(X, LEVELS).dtype == jnp.float32


@every_row
def test_jit_of_a_denoiser_bakes_in_no_constant_larger_than_the_table(row):
    table = schedules.linear_betas(num_steps=100)

    def run(params, x, t):
        denoise = make_denoiser(lambda params, x, t: x @ params, params, row)
        return denoise(x, table(t))

    traced = jax.make_jaxpr(run)(jnp.eye(128), jnp.ones((4, 128)), jnp.array(3))
    sizes = [np.size(const) for const in traced.consts]
    assert max(sizes, default=0) <= 101


def test_learned_variance_is_the_second_half_of_the_channels():
    def apply(params, x, t):
        return jnp.concatenate([2.0 * x, jnp.broadcast_to(params, x.shape)], axis=-1)

    for value, fraction in ((-1.0, 0.0), (0.0, 0.5), (1.0, 1.0)):
        denoise = make_learned_variance_denoiser(apply, value, parameterizations.x0)
        estimate = denoise(X, LEVELS)
        np.testing.assert_array_equal(estimate.x0, 2.0 * X)
        np.testing.assert_array_equal(estimate.fraction, fraction)


def test_map_x0_lets_a_learned_variance_pass():
    np.testing.assert_array_equal(map_x0(jnp.negative, X), -X)
    mapped = map_x0(jnp.negative, LearnedVariance(X, NOISE))
    np.testing.assert_array_equal(mapped.x0, -X)
    np.testing.assert_array_equal(mapped.fraction, NOISE)


def test_wrong_number_of_output_channels_is_refused():
    double = lambda params, x, t: jnp.concatenate([x, x], axis=-1)
    with pytest.raises(ValueError, match="make_learned_variance_denoiser"):
        make_denoiser(double, None, parameterizations.eps)(X, LEVELS)
    same = lambda params, x, t: x
    with pytest.raises(ValueError, match="needs 4 output channels"):
        make_learned_variance_denoiser(same, None, parameterizations.eps)(X, LEVELS)
