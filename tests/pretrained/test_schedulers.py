"""Scheduler configs are read as diffusers reads them, and followed step for step."""

import contextlib
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import parity_repaint
import parity_runs
import pytest
from parity_bridges import BRIDGES
from parity_sdes import OWN_LOOPS

from diffjax.core.sampling import sample
from diffjax.pretrained import UnsupportedError
from diffjax.pretrained.schedulers import SCHEDULERS, read_scheduler

ROOT = Path(__file__).parents[2]


def test_every_known_difference_is_explained():
    text = (ROOT / "docs/diffusers_differences.md").read_text()
    names = {*BRIDGES, parity_repaint.DIFFERENCE, *(row.difference for row in OWN_LOOPS.values())}
    names |= parity_runs.DIFFERENCES
    assert set(re.findall(r"^## ([a-z0-9-]+)$", text, re.MULTILINE)) == names


def test_unknown_class_is_refused_with_the_nearest_name():
    with pytest.raises(UnsupportedError, match="nearest name is 'DDIMScheduler'"):
        read_scheduler({"_class_name": "DDIMSchedulr"})


def test_a_config_without_a_class_is_refused():
    with pytest.raises(UnsupportedError, match="names no class"):
        read_scheduler({"beta_start": 0.001})


def test_what_a_schedule_cannot_follow_is_named():
    with pytest.raises(UnsupportedError, match="trained_betas"):
        read_scheduler({"_class_name": "IPNDMScheduler", "trained_betas": [0.1, 0.2]})


def test_zero_terminal_snr_keeps_the_least_signal_under_any_betas():
    settings = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    for start, end in ((1e-4, 0.02), (0.00085, 0.012)):
        betas = {"beta_start": start, "beta_end": end, "timestep_spacing": "trailing"}
        config = {"_class_name": "UniPCMultistepScheduler", **settings, **betas}
        signal = np.asarray(read_scheduler(config).levels(999).alpha)
        np.testing.assert_allclose(signal[0], 2.0**-12, rtol=1e-5)
        assert (np.diff(signal) >= 0).all()


def test_config_is_read_from_a_folder_and_unknown_keys_are_ignored(tmp_path):
    config = {"_class_name": "DDIMScheduler", "beta_start": 0.001, "colour": "blue"}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    read = read_scheduler(tmp_path).config
    assert read["beta_start"] == 0.001
    assert "colour" not in read
    assert read["clip_sample"] is True  # the class's default


def test_defaults_of_the_saving_class_do_not_follow_into_another_class():
    saved = {
        "_class_name": "DDPMScheduler",
        "timestep_spacing": "trailing",
        "clip_sample": False,
        "_use_default_values": ["timestep_spacing"],
    }
    read = read_scheduler(saved, class_name="DDIMScheduler").config
    assert read["timestep_spacing"] == SCHEDULERS["DDIMScheduler"].defaults["timestep_spacing"]
    assert read["clip_sample"] is False


@pytest.mark.parametrize(
    ("saved", "name"),
    [
        ({"algorithm_type": "dpmsolver++", "solver_type": "midpoint"}, "DEISMultistepScheduler"),
        ({"algorithm_type": "deis", "solver_type": "logrho"}, "DPMSolverMultistepScheduler"),
    ],
)
def test_a_class_keeps_its_own_algorithm_whatever_a_config_of_its_family_names(saved, name):
    scheduler = read_scheduler({"_class_name": name})
    levels, x = scheduler.levels(2), jnp.ones((1, 1))
    denoise = lambda x, level: 0.5 * level.alpha * x

    def run(solver):
        with jax.disable_jit():
            return sample(jax.random.key(0), x, denoise, solver, levels)

    other = read_scheduler({"_class_name": "Other", **saved}, class_name=name)
    np.testing.assert_array_equal(run(other.solver(levels)), run(scheduler.solver(levels)))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_every_scheduler_samples_under_jit(name):
    scheduler = read_scheduler({"_class_name": name, "clip_sample": False})
    levels = scheduler.levels(num_steps=4)
    x = jnp.ones((2, 3)) * scheduler.initial_scale(levels)

    def run(key, x):
        denoise = lambda x, level: level.alpha / (level.alpha**2 + level.sigma**2) * x
        return sample(key, x, denoise, scheduler.solver(levels), levels)

    result = jax.jit(run)(jax.random.key(0), x)
    assert result.shape == x.shape
    assert np.isfinite(result).all()


def test_levels_without_a_number_of_steps_are_refused():
    scheduler = read_scheduler({"_class_name": "EulerDiscreteScheduler"})
    with pytest.raises(ValueError, match="num_steps, or a list"):
        scheduler.levels()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_settings_of_another_type_end_in_one_sentence(name):
    for key in SCHEDULERS[name].defaults:
        for value in (None, "x", -1, 0, [], {}, 3.5, [None], True):
            with contextlib.suppress(ValueError):
                read_scheduler({"_class_name": name, key: value})
    with pytest.raises(ValueError, match="num_train_timesteps is 'many'; it must be a number"):
        read_scheduler({"_class_name": "DDIMScheduler", "num_train_timesteps": "many"})
    for wrong in ({"beta_end": 20.0}, {"beta_start": -1}, {"trained_betas": [[0.1]]}):
        with pytest.raises(ValueError, match=r"betas must be in \[0, 1\]"):
            read_scheduler({"_class_name": "DDIMScheduler", **wrong})
