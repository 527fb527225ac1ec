"""The script that measures likelihoods, on a run whose network is the denoiser of a Gaussian."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import dequantization
import likelihood
from config import DataConfig
from configs import CONFIGS
from diffjax.core import exact, schedules
from diffjax.core.keys import sample_keys
from diffjax.core.levels import expand
from diffjax.core.likelihood import bits_per_dim, dequantize
from diffjax.networks import Functional
from runs import Run

LEVELS = np.random.default_rng(0).integers(0, 17, (5, 8, 8, 1))
VALUES = LEVELS / 8.0 - 1.0
LABELS = np.arange(5)
SPREAD = 0.5
GAUSSIAN = exact.gaussian(np.zeros(64), SPREAD**2)


def perfect(params, x, t, *, labels):
    """The mean of x0 given x, for numbers that are N(label / 10, SPREAD^2)."""
    level = schedules.log_linear()(t)
    mean = 0.1 * labels[:, None, None, None]
    centred = (x - expand(level.alpha, x) * mean).reshape(len(x), 64)
    return exact.denoiser(GAUSSIAN)(centred, level).reshape(x.shape) + params * mean


def simple(params, x, t, *, labels):
    """Half of x, whatever the schedule."""
    return 0.5 * params * x


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Run the script on five images of 17 levels, kept as bytes; the figures that it wrote."""
    images = np.rint(LEVELS * 255 / 16).astype(np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=LABELS)

    def call(*words, schedule="log_linear", apply=perfect):
        config = CONFIGS["digits_vp"]
        diffusion = dataclasses.replace(config.diffusion, schedule=schedule, prediction="x0")
        source = DataConfig("npz", path=str(tmp_path / "images.npz"), num_bins=17)
        config = dataclasses.replace(config, data=source, diffusion=diffusion)
        network = Functional(lambda key: jnp.array(1.0), apply)
        run = Run(config, network, jnp.array(1.0), 7)
        monkeypatch.setattr(likelihood, "load_run", lambda *_, **__: run)
        flags = ["--workdir", tmp_path, "--split", "None", "--num-times", 4, *words]
        monkeypatch.setattr("sys.argv", ["likelihood.py", *map(str, flags)])
        likelihood.main()
        return json.loads((tmp_path / "likelihood.json").read_text())

    return call


def test_flow_of_a_gaussian_has_its_bits(call):
    figures = call("--measure", "flow", "--integrate", "runge_kutta(num_steps=16)")
    # every place in a bin is equally likely
    places = (np.arange(100) + 0.5) / 100 - 0.5
    nats = stats.norm.logpdf(
        VALUES[..., None] + places / 8, 0.1 * LABELS[:, None, None, None, None], SPREAD
    )
    known = -nats.mean(-1) / np.log(2) + 3.0
    error = (nats.var(-1).mean() / VALUES.size) ** 0.5 / np.log(2)
    assert abs(figures["flow"] - known.mean()) < 4 * error + 2e-3
    of_images = known.mean((1, 2, 3))
    np.testing.assert_allclose(
        figures["flow_stderr"], of_images.std(ddof=1) / 5**0.5, atol=4 * error
    )
    assert (figures["step"], figures["num_images"]) == (7, 5)


@pytest.mark.slow
def test_figures_do_not_depend_on_the_batches_and_parts_make_the_bound(call):
    short = ("--integrate", "runge_kutta(num_steps=2)", "--num-draws", "2")
    whole, cut = call(*short), call(*short, "--batch-size", 2)
    for name in likelihood.FIGURES:
        np.testing.assert_allclose(cut[name], whole[name], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(sum(whole[part] for part in likelihood.PARTS), whole["bound"])
    assert "bound_stderr" in whole


def test_fitted_places_come_nearer_to_the_probability_than_even_ones():
    """All values are 0, and the model is a normal distribution narrower than their bins."""
    spread, num_dims = 0.02, 4
    gaussian = exact.denoiser(exact.gaussian(np.zeros(num_dims), spread**2))

    def make(params, labels):
        return lambda x, level: gaussian(x.reshape(len(x), num_dims), level).reshape(x.shape)

    config = CONFIGS["digits_vp"]
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, num_bins=17))
    run = Run(config, Functional(lambda key: jnp.array(1.0), simple), jnp.array(1.0), 7)
    images, table_of_levels = np.zeros((8, 2, 2, 1), np.float32), schedules.cosine_betas()
    table = dequantization.fit(
        jax.random.key(0), run, make, table_of_levels, images, None, num_steps=150, batch_size=32
    )

    def bits(places):
        keys, x0 = sample_keys(jax.random.key(1), jnp.arange(500)), jnp.zeros((500, 2, 2, 1))
        u, log_q = places(keys, x0)
        x = dequantize(x0, u, num_bins=17)
        nats = stats.norm.logpdf(x, scale=spread).sum(axis=(1, 2, 3)) - log_q
        return bits_per_dim(nats, num_dims, num_bins=17).mean()

    perfect_bits = -np.log2(1.0 - 2.0 * stats.norm.cdf(-1 / 16 / spread))
    even, fitted = bits(dequantization.uniform), bits(dequantization.learned(table, 17))
    assert perfect_bits < fitted < perfect_bits + 0.25 * (even - perfect_bits)


@pytest.mark.parametrize("schedule", ["linear_betas", "flow"])
def test_a_bound_is_finite_whatever_the_schedule(call, schedule):
    """A table has that of its chain; an end without noise is cut off."""
    words = ("--measure", "bound", "--num-images", 2)
    figures = call(*words, schedule=schedule, apply=simple)
    assert set(figures) >= {"bound", "prior", "diffusion", "reconstruction"}
    assert figures["num_images"] == 2


def test_an_adaptive_integrator_that_gives_up_is_an_error(call):
    with pytest.raises(ValueError, match=r"flow is not finite for 5 of 5 images"):
        call("--measure", "flow", "--integrate", "dormand_prince(max_steps=2)")


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["--num-images", "0"], "--num-images is 0"),
        (["--trace", "exakt"], "'exact'"),
        (["--split", "test"], "has no splits"),
        (["--output", "out.txt"], "FILE.json"),
    ],
)
def test_bad_input_is_refused(call, words, culprit):
    with pytest.raises(ValueError, match=culprit):
        call(*words)
