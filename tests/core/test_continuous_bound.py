"""The bound in continuous time, against entropies and likelihoods in closed form."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from perfect_network import perfect_network

from diffjax.core import exact, schedules
from diffjax.core.continuous_bound import bound_loss, continuous_bound, reconstruction_bits
from diffjax.core.learned_schedule import learned_bound_loss, learned_logsnr
from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import PARAMETERIZATIONS

KEY = jax.random.key(0)
START, END = 12.0, -8.0
SPREAD = 0.5
SIZE = 4000
GAUSSIAN = exact.gaussian([0.0], SPREAD**2)
MODES = exact.mixture([0.3, 0.7], [[-0.8], [0.5]], [0.01, 0.09])
CLEAN = NoiseLevel(jnp.array(0.0), jnp.array(1.0), jnp.array(0.0))


def bent(t):
    """Log-SNR between the same ends as `log_linear(START, END)`, by another way."""
    return START + (END - START) * t**2 * (3.0 - 2.0 * t)


SCHEDULES = {
    "log_linear": schedules.log_linear(START, END),
    "bent": schedules.from_logsnr(bent),
    # a scaled process with the same log-SNR
    "variance_exploding": schedules.variance_exploding(float(np.exp(-START / 2)),
                                                       float(np.exp(-END / 2))),
    "learned": learned_logsnr(START, END, num_features=8),
}  # fmt: skip


@cache
def bounds(distribution_name):
    """Under each schedule: the mean bound of a density in bits, its standard error, the parts."""
    distribution = {"gaussian": GAUSSIAN, "modes": MODES}[distribution_name]

    @jax.jit
    def run():
        x0 = exact.draw(KEY, distribution, SIZE)
        denoise = exact.denoiser(distribution)
        return x0, {
            name: continuous_bound(
                jax.random.key(1), x0, denoise, schedule, num_times=20, num_bins=None
            )
            for name, schedule in SCHEDULES.items()
        }

    return run()


def mean_and_error(values):
    values = np.asarray(values, np.float64)
    return values.mean(), values.std() / len(values) ** 0.5


@pytest.mark.parametrize("name", SCHEDULES)
def test_bound_of_gaussian_data_is_their_closed_form(name):
    """With the perfect denoiser: information about x0 at t = 0, prior's divergence, decoder."""
    _, bound = bounds("gaussian")
    alpha, sigma = (float(leaf) for leaf in SCHEDULES[name](1.0)[1:])
    end = (alpha**2 * SPREAD**2 + sigma**2) / (alpha**2 + sigma**2)
    nats = 0.5 * np.log1p(SPREAD**2 * np.exp(START))
    nats += 0.5 * (end - 1.0 - np.log(end)) + 0.5 * (np.log(2 * np.pi) + 1.0 - START)
    mean, error = mean_and_error(bound[name].total)
    assert abs(mean - nats / np.log(2)) < 4 * error + 1e-4
    # which is, but for the two ends, the entropy of the data
    entropy = 0.5 * np.log2(2 * np.pi * np.e * SPREAD**2)
    assert 0 < nats / np.log(2) - entropy < 1e-3


def test_bound_lies_just_above_the_exact_likelihood_of_a_mixture():
    x0, bound = bounds("modes")
    surprise = -exact.log_likelihood(MODES, x0, CLEAN) / np.log(2)
    for name in SCHEDULES:
        # the same data in both: their spread cancels
        gap, error = mean_and_error(bound[name].total - surprise)
        assert -4 * error < gap < 4 * error + 2e-3, name


def test_bound_does_not_depend_on_what_the_schedule_does_between_its_ends():
    _, bound = bounds("modes")
    reference = bound["log_linear"]
    for name in ("bent", "learned"):
        difference, error = mean_and_error(bound[name].diffusion - reference.diffusion)
        assert abs(difference) < 4 * error, name
        np.testing.assert_allclose(bound[name].prior, reference.prior, rtol=1e-3, atol=1e-7)
        np.testing.assert_allclose(bound[name].reconstruction, reference.reconstruction, rtol=1e-5)


def test_worse_denoiser_has_a_larger_bound():
    x0, bound = bounds("gaussian")
    worse = exact.denoiser(exact.gaussian([0.3], SPREAD**2))
    run = jax.jit(lambda: continuous_bound(
        jax.random.key(1), x0, worse, SCHEDULES["log_linear"], num_times=20, num_bins=None
    ))  # fmt: skip
    # KL divergence of the data from the model's density: offset^2 / (2 variance)
    gap, error = mean_and_error(run().total - bound["log_linear"].total)
    assert abs(gap - 0.5 * (0.3 / SPREAD) ** 2 / np.log(2)) < 4 * error + 1e-3


@pytest.mark.parametrize("ratio", [1e-4, 0.003, 0.1, 3.0])
def test_probabilities_of_all_values_given_the_cleanest_level_sum_to_one(ratio):
    bins = 17
    values = jnp.linspace(-1.0, 1.0, bins)
    level = NoiseLevel(jnp.array(0.0), jnp.array(1.0), jnp.array(ratio))
    for x in (-1.0, 0.25, 0.26, 1.4):
        noise = (x - values) / ratio
        bits = reconstruction_bits(values[:, None], noise[:, None], level, num_bins=bins)
        np.testing.assert_allclose(np.sum(np.exp2(-bits)), 1.0, rtol=1e-4)


def test_quantised_data_cost_no_bits_to_reconstruct_without_noise_and_all_without_signal():
    x0 = jnp.linspace(-1.0, 1.0, 256)[:, None]
    noise = jax.random.normal(KEY, x0.shape)
    for ratio, bits in ((1e-4, 0.0), (1e4, 8.0)):
        level = NoiseLevel(jnp.array(0.0), jnp.array(1.0), jnp.array(ratio))
        np.testing.assert_allclose(reconstruction_bits(x0, noise, level), bits, atol=0.01)


@cache
def losses_of_every_row():
    """bound_loss of a perfect network under every prediction, and of the learned schedule."""
    schedule = SCHEDULES["learned"]
    base, denoise = schedules.log_linear(START, END), exact.denoiser(GAUSSIAN)

    @jax.jit
    def run():
        x0 = exact.draw(KEY, GAUSSIAN, 64)
        values = {}
        for name, row in PARAMETERIZATIONS.items():
            loss = bound_loss(perfect_network(row, denoise, base), schedule, row, num_bins=None)
            values[name] = jax.jvp(lambda p, f=loss: f(p, {"x0": x0}, KEY)[0], (0.9,), (1.0,))
        row = PARAMETERIZATIONS["v"]
        learned = learned_bound_loss(
            perfect_network(row, denoise, base), schedule, row, num_bins=None
        )
        params = {"network": 0.9, "schedule": schedule.params}
        return values, learned(params, {"x0": x0}, KEY)

    return run()


def test_bound_and_its_gradient_are_the_same_for_every_prediction():
    values, _ = losses_of_every_row()
    for name, value in values.items():
        np.testing.assert_allclose(value, values["x0"], rtol=3e-3, atol=3e-3, err_msg=name)


def test_loss_of_a_learned_schedule_has_the_value_of_the_same_schedule_held_fixed():
    values, (learned, metrics) = losses_of_every_row()
    np.testing.assert_allclose(learned, values["v"][0], rtol=1e-4)
    np.testing.assert_allclose(sum(metrics.values()), learned, rtol=1e-5)


@pytest.mark.parametrize("make", [
    lambda schedule: bound_loss(lambda params, x, t, keys: x, schedule),
    lambda schedule: continuous_bound(KEY, jnp.zeros((1, 1)), lambda x, level: x, schedule),
])  # fmt: skip
def test_schedules_without_a_finite_bound_are_refused(make):
    with pytest.raises(ValueError, match="between"):
        make(schedules.linear())
    with pytest.raises(TypeError, match="variational_bound"):
        make(schedules.linear_betas())
