"""The script on latents, on a run whose network is the denoiser of a Gaussian."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jobs
import latents
from configs import CONFIGS
from diffjax.core import exact, schedules
from diffjax.networks import Functional
from runs import Run

pytestmark = pytest.mark.slow

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)).astype(np.uint8)
SPREAD = 0.5
GAUSSIAN = exact.gaussian(np.zeros(64), SPREAD**2)
START, END = 13.3, -10.0


def perfect(params, x, t, *, labels):
    """The mean of x0 given x, for numbers that are N(0, SPREAD^2)."""
    level = schedules.log_linear(START, END)(t)
    return params * exact.denoiser(GAUSSIAN)(x.reshape(len(x), 64), level).reshape(x.shape)


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Run a command on four images; its picture and its figures."""
    diffusion = dataclasses.replace(
        CONFIGS["digits_vp"].diffusion,
        schedule=f"log_linear(start={START}, end={END})",
        prediction="x0",
    )
    config = dataclasses.replace(CONFIGS["digits_vp"], diffusion=diffusion)
    run = Run(config, Functional(lambda key: jnp.array(1.0), perfect), jnp.array(1.0), 1)
    monkeypatch.setattr(jobs, "load_run", lambda *_, **__: run)
    np.savez(tmp_path / "in.npz", images=IMAGES, labels=np.arange(4))

    def call(command, *words):
        output = tmp_path / "out.png"
        flags = ["--workdir", "run", "--input", tmp_path / "in.npz", "--output", output, *words]
        monkeypatch.setattr("sys.argv", ["latents.py", command, *map(str, flags)])
        latents.main()
        figures = json.loads(output.with_suffix(".json").read_text())
        return np.asarray(Image.open(output)), figures

    return call


def test_flow_comes_back_exactly_and_ddim_the_better_the_more_steps(call):
    picture, figures = call("reconstruct", "--steps", 40, 80, "--flow-steps", 32)
    assert picture.shape == (4 * 35, 4 * 35)
    assert figures["flow"]["error"] < 1e-3
    # first order
    assert 1.7 < figures["ddim 40"]["error"] / figures["ddim 80"]["error"] < 2.3
    # the flow of a Gaussian scales it to unit variance
    known = np.std(IMAGES / 127.5 - 1.0) / SPREAD
    np.testing.assert_allclose(figures["flow"]["latent_std"], known, rtol=1e-2)


def test_latents_on_the_sphere_keep_their_scale(call):
    picture, figures = call("interpolate", "--num-between", 3, "--flow-steps", 8)
    # two pairs, twice, of five images
    assert picture.shape == (4 * 35, 4 * 44)
    sphere, line = (figures[name]["latent_std_in_the_middle"] for name in ("sphere", "line"))
    assert line < 0.8 * sphere
    with pytest.raises(ValueError, match="--num-images must be at least 2"):
        call("interpolate", "--num-images", 1)


def test_trajectory_shows_x_above_the_estimates_of_x0(call):
    picture, figures = call("trajectory", "--num-images", 2, "--num-steps", 5, "--columns", 3)
    assert picture.shape == (4 * 35, 4 * 26)
    assert figures["times"] == pytest.approx([1.0, 0.6, 0.2], abs=1e-6)
