"""The figures of a schedule, and its picture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffjax.core import schedules
from diffjax.core.diagnostics import plot_schedule, summarize_schedule
from diffjax.core.levels import NoiseLevel
from diffjax.core.variational import prior_kl

LINEAR = schedules.linear_betas()


def test_summary_of_the_linear_schedule_is_that_of_its_betas():
    alphas_cumprod = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    snr = alphas_cumprod / (1 - alphas_cumprod)
    summary = summarize_schedule(LINEAR)
    assert summary.num_train_steps == 1000
    np.testing.assert_allclose(summary.terminal_snr, snr[-1], rtol=1e-5)
    np.testing.assert_allclose(summary.logsnr_max, np.log(snr[0]), rtol=1e-5)
    np.testing.assert_allclose(summary.logsnr_min, np.log(snr[-1]), rtol=1e-5)
    np.testing.assert_allclose(summary.smallest_sigma, 1e-2, rtol=1e-5)
    np.testing.assert_allclose(summary.largest_step, np.log(snr[0] / snr[1]), rtol=1e-4)
    assert summary.preserves_variance


@pytest.mark.parametrize("second_moment", [0.25, 1.0])
def test_prior_is_the_mean_of_prior_kl_over_the_data(second_moment):
    x0 = jax.random.normal(jax.random.key(0), (4000, 1))
    x0 = x0 * jnp.sqrt(second_moment / jnp.mean(x0**2))
    table = schedules.scaled_linear_betas()
    expected = jnp.mean(prior_kl(x0, table(999)))
    summary = summarize_schedule(table, second_moment=second_moment)
    np.testing.assert_allclose(summary.prior_bits_per_dim, expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("schedule", "gaussian"),
    [
        (LINEAR, True),
        (schedules.cosine(), True),
        # the flaw that zero_terminal_snr was made for
        (schedules.scaled_linear_betas(), False),
        (schedules.zero_terminal_snr(schedules.scaled_linear_betas()), True),
        (schedules.linear_betas(num_steps=100), False),
    ],
)
def test_summary_says_whether_the_end_is_gaussian(schedule, gaussian):
    summary = summarize_schedule(schedule)
    assert summary.ends_in_gaussian == gaussian
    assert summary.terminal_snr >= 0


def test_prior_of_an_exploding_schedule_is_the_noise_that_sampling_starts_with():
    exploding = lambda t: NoiseLevel(t, jnp.ones_like(t), 80.0 * t)
    summary = summarize_schedule(exploding)
    assert summary.ends_in_gaussian
    assert not summary.preserves_variance
    np.testing.assert_allclose(summary.terminal_snr, 80.0**-2, rtol=1e-5)


@pytest.mark.parametrize("schedule", [schedules.linear_betas(num_steps=50), schedules.cosine()])
def test_picture_is_drawn(tmp_path, schedule):
    path = tmp_path / "schedule.png"
    plot_schedule(schedule, path, title="a schedule", num_points=50)
    picture = np.asarray(Image.open(path).convert("L"))
    height, width = picture.shape
    assert width > 2 * height
    # three panels, each with something in it
    for panel in np.array_split(picture, 3, axis=1):
        assert 0.01 < np.mean(panel < 200) < 0.5
