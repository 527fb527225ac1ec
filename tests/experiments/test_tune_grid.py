"""The script that tunes a time grid, on a run whose network is the denoiser of a Gaussian."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

import tune_grid
from configs import CONFIGS
from diffjax.core import exact, schedules
from diffjax.networks import Functional
from runs import Run

pytestmark = pytest.mark.slow

GAUSSIAN = exact.gaussian(np.zeros(64), 0.5**2)
START, END = 13.3, -10.0


def perfect(params, x, t, *, labels):
    """The mean of x0 given x."""
    level = schedules.log_linear(START, END)(t)
    return params * exact.denoiser(GAUSSIAN)(x.reshape(len(x), 64), level).reshape(x.shape)


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Tune a grid with given flags; what the file says."""
    diffusion = dataclasses.replace(
        CONFIGS["digits_vp"].diffusion,
        schedule=f"log_linear(start={START}, end={END})",
        prediction="x0",
    )
    config = dataclasses.replace(CONFIGS["digits_vp"], diffusion=diffusion)
    run = Run(config, Functional(lambda key: jnp.array(1.0), perfect), jnp.array(1.0), 1)
    monkeypatch.setattr(tune_grid, "load_run", lambda *_, **__: run)

    def call(*words):
        flags = ["--workdir", tmp_path, "--num-images", 4, "--reference-steps", 60, *words]
        monkeypatch.setattr("sys.argv", ["tune_grid.py", *map(str, flags)])
        tune_grid.main()
        return json.loads((tmp_path / "times_ddim_10.json").read_text())

    return call


def test_ten_tuned_steps_end_nearer_to_many_than_those_of_any_grid_with_a_name(call):
    found = call("--num-steps", 10, "--iterations", 40)
    times, errors = np.array(found["times"]), found["mean_squared_distance"]
    assert times.shape == (11,)
    assert np.all(np.diff(times) < 0)
    assert times[0] == pytest.approx(1.0)
    assert errors["tuned"] < 0.9 * min(errors[name] for name in errors if name != "tuned")


def test_numbers_that_make_no_grid_are_refused_by_name(call):
    with pytest.raises(ValueError, match="--num-steps is 1; at least 2"):
        call("--num-steps", 1)
    with pytest.raises(ValueError, match="--reference-steps is 60; at least 70"):
        call("--num-steps", 70)
