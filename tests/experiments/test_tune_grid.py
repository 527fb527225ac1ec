"""The script that tunes a time grid, on a run whose network is the denoiser of a Gaussian."""

import json

import numpy as np
import pytest
from gaussian_run import gaussian_run

import tune_grid

pytestmark = pytest.mark.slow


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Tune a grid with given flags; what the file says."""
    run = gaussian_run()
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


def test_a_grid_that_there_is_already_is_measured_and_none_is_tuned(call, tmp_path, capsys):
    found = call("--num-steps", 10, "--iterations", 1)
    capsys.readouterr()
    assert call("--times", tmp_path / "times_ddim_10.json") == found
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    expected = found["mean_squared_distance"]
    expected["given"] = expected.pop("tuned")
    assert printed == {name: f"{error:.3g}" for name, error in expected.items()}


def test_numbers_that_make_no_grid_are_refused_by_name(call):
    with pytest.raises(ValueError, match="--num-steps is 1; at least 2"):
        call("--num-steps", 1)
    with pytest.raises(ValueError, match="--reference-steps is 60; at least 70"):
        call("--num-steps", 70)
