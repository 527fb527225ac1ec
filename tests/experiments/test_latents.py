"""The script on latents, on a run whose network is the denoiser of a Gaussian."""

import json

import numpy as np
import pytest
from gaussian_run import SPREAD, gaussian_run
from PIL import Image

import jobs
import latents

pytestmark = pytest.mark.slow

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)).astype(np.uint8)


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Run a command on four images; its picture and its figures."""
    run = gaussian_run()
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
