"""Laws of the record of a run."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.training import loop
from diffjax.training.loop import METRICS, TrainingLog, read_metrics


def run(folder, start, stop, num_steps=10, every=2, bad=None):
    with TrainingLog(folder, start=start, num_steps=num_steps, every=every, progress=False) as log:
        for n in range(start, stop):
            loss = jnp.array(np.nan if n + 1 == bad else float(n + 1))
            log(n + 1, {"loss": loss, "grad_norm": jnp.array(1.0)})


def test_lines_hold_the_means_of_their_windows(tmp_path):
    run(tmp_path, 0, 10, every=4)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [4, 8, 10]
    assert [line["loss"] for line in lines] == [2.5, 6.5, 9.5]
    assert all(line["steps_per_second"] > 0 for line in lines)
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_a_resumed_run_writes_the_lines_of_an_uninterrupted_one(tmp_path):
    run(tmp_path / "whole", 0, 10)
    run(tmp_path / "killed", 0, 7)
    with (tmp_path / "killed" / METRICS).open("a") as file:
        file.write('{"step": 8, "lo')
    run(tmp_path / "killed", 4, 10)
    keep = lambda line: (line["step"], line["loss"], line["grad_norm"])
    killed, whole = read_metrics(tmp_path / "killed"), read_metrics(tmp_path / "whole")
    assert [keep(line) for line in killed] == [keep(line) for line in whole]


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match="loss is nan within steps 5 to 6"):
        run(tmp_path, 0, 10, bad=5)
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 4]


def test_a_window_without_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="every is 0"):
        run(tmp_path, 0, 1, every=0)


def on_a_full_disk(folder, start):
    return Path("/dev/full").open("w")


def test_a_full_disk_is_told_with_the_file_that_could_not_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_open_metrics", on_a_full_disk)
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        run(tmp_path, 0, 2)
