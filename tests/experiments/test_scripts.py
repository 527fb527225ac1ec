"""The scripts as a user runs them, on a network small enough to compile in seconds."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import cli
import sample
import train
from diffjax.training import make_mesh
from runs import load_run

ROOT = Path(__file__).parents[2]
TINY = [
    *("--network.block-out-channels", "8", "8", "--network.num-groups", "4"),
    *("--diffusion.num-train-steps", "60", "--optimizer.warmup-steps", "4"),
    *("--batch-size", "16", "--num-steps", "24", "--checkpoint-every", "8", "--log-every", "4"),
]

pytestmark = pytest.mark.slow


def start(script, *words, devices=1, variables=None, **options):
    flags = os.environ.get("XLA_FLAGS", "")
    environment = {
        **os.environ,
        **(variables or {}),
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
    }
    return subprocess.Popen(
        [sys.executable, str(ROOT / "experiments" / script), *map(str, words)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def run(script, *words, devices=1):
    process = start(script, *words, devices=devices)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


@pytest.fixture
def complaint(monkeypatch, capsys):
    """Call a script in this process, as its file would; it must end with one line on stderr."""

    def call(module, *words):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, words)])
        monkeypatch.setattr(os, "_exit", sys.exit)
        with pytest.raises(SystemExit) as stop:
            cli.run_script(module.main)
        assert stop.value.code not in (0, None)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert f"{module.__name__}.py: error: " in lines[0]
        return lines[0]

    return call


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished tiny run."""
    folder = tmp_path_factory.mktemp("run")
    status, out, err = run("train.py", "digits", "--workdir", folder, *TINY)
    assert status == 0, err
    assert out.splitlines()[-1].endswith(f"sample.py --workdir {folder}")
    return folder


def sampled(workdir, name, *words, devices=1):
    output = workdir / f"{name}.npz"
    status, _, err = run(
        "sample.py", "--workdir", workdir, "--output", output, "--num-steps", 5, *words,
        devices=devices,
    )  # fmt: skip
    assert status == 0, err
    with np.load(output) as archive:
        return archive["images"], archive["labels"]


def test_a_run_leaves_config_metrics_events_pictures_and_checkpoints(workdir):
    assert json.loads((workdir / "config.json").read_text())["batch_size"] == 16
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()]
    assert steps == [4, 8, 12, 16, 20, 24]
    assert list(workdir.glob("events.out.tfevents.*"))
    # ten rows of ten digits, each pixel drawn four times, a gap of one pixel between digits
    for name in ("samples_ddpm.png", "samples_ddim.png"):
        assert Image.open(workdir / name).size == (4 * 89, 4 * 89)
    assert Image.open(workdir / "denoising.gif").n_frames == 51
    assert Image.open(workdir / "loss.png").size[0] > 400
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()) == [8, 16, 24]


def test_a_killed_and_resumed_run_ends_like_one_that_was_not(workdir, tmp_path):
    words = ["digits", "--workdir", tmp_path, *TINY]
    process = start("train.py", *words)
    deadline = time.time() + 300
    while not (tmp_path / "checkpoints" / "8").is_dir():
        assert process.poll() is None
        assert time.time() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "samples_ddim.png").exists()
    status, _, err = run("train.py", *words)
    assert status == 0
    assert "from step" in err
    for name in ("samples_ddim.png", "samples_ddpm.png"):
        assert (tmp_path / name).read_bytes() == (workdir / name).read_bytes()
    old, new = ([json.loads(line) for line in (folder / "metrics.jsonl").open()]
                for folder in (workdir, tmp_path))  # fmt: skip
    assert [line["loss"] for line in new][-2:] == [line["loss"] for line in old][-2:]


def test_experts_are_trained_together_and_sampled_from(tmp_path):
    words = ["digits", "--workdir", tmp_path, *TINY, "--ema-decay", 0,
             "--experts.boundaries", 0.5, "--experts.overlap", 0.1]  # fmt: skip

    def trained(num_steps):
        # once there is a checkpoint, the run goes on
        status, _, err = run("train.py", *words, "--num-steps", num_steps)
        assert status == 0, err
        return load_run(tmp_path, make_mesh()).params

    first, second = (trained(num_steps) for num_steps in (1, 2))
    assert not any(same_everywhere(first[part], second[part]) for part in "01")
    images, _ = sampled(tmp_path, "experts", "--num-samples", 8)
    assert images.shape == (8, 8, 8, 1)


def same_everywhere(one, other):
    return jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one, other))


def test_a_signal_saves_a_checkpoint_and_leaves_with_its_status(tmp_path):
    process = start("train.py", "digits", "--workdir", tmp_path, *TINY, "--num-steps", 10**6,
                    "--checkpoint-every", 10**6, "--log-every", 1)  # fmt: skip
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.time() + 300
    while not (metrics.exists() and metrics.read_text().count("\n") > 2):
        assert process.poll() is None
        assert time.time() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Stopped by SIGTERM" in err
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_images_of_a_seed_do_not_depend_on_batch_size_or_devices(workdir):
    images, labels = sampled(workdir, "whole", "--num-samples", 24, "--eta", 1)
    assert images.shape == (24, 8, 8, 1)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.arange(24) % 10)
    parts, _ = sampled(workdir, "parts", "--num-samples", 24, "--eta", 1, "--batch-size", 10)
    spread, _ = sampled(workdir, "spread", "--num-samples", 24, "--eta", 1, devices=8)
    for other in (parts, spread):
        assert np.abs(images.astype(int) - other).max() <= 1


def test_two_processes_train_and_sample_like_one(workdir, tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    job = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    words = ("train.py", "digits", "--workdir", tmp_path, *TINY)
    both = [start(*words, variables={**job, "JAX_PROCESS_ID": str(rank)}) for rank in range(2)]
    outputs = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert ["sample.py" in out for out, _ in outputs] == [True, False]

    one, two = ([json.loads(line) for line in (folder / "metrics.jsonl").open()]
                for folder in (workdir, tmp_path))  # fmt: skip
    assert [line["step"] for line in two] == [line["step"] for line in one]
    np.testing.assert_allclose(*[[line["loss"] for line in run] for run in (one, two)], rtol=1e-4)
    for name in ("samples_ddim.png", "samples_ddpm.png"):
        pictures = [np.asarray(Image.open(folder / name), int) for folder in (workdir, tmp_path)]
        assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_labels_guidance_and_png(workdir):
    output = workdir / "grid.png"
    status, out, err = run(
        "sample.py", "--workdir", workdir, "--solver", "ddpm", "--num-steps", 4, "--labels", "3,1",
        "--num-samples", 6, "--guidance-scale", 2, "--output", output,
    )  # fmt: skip
    assert status == 0, err
    assert str(output) in out
    assert Image.open(output).size == (4 * 26, 4 * 17)


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["--workdir", "nowhere"], "nowhere"),
        (["--workdir", "{run}", "--labels", "0,10"], "0 to 9"),
        (["--workdir", "{run}", "--num-steps", "0"], "num_steps is 0"),
        (["--workdir", "{run}", "--solver", "dimm"], "'ddim'"),
        (["--workdir", "{run}", "--num-sample", "3"], "--num-samples"),
        (["--workdir", "{run}", "--output", "x.jpg"], "x.jpg"),
        (["--workdir", "{run}", "--output", "{run}/config.json/x.png"], "config.json"),
        (["--workdir", "{run}", "--checkpoint", "5"], "no checkpoint of step 5"),
    ],
)
def test_sample_refuses_bad_input_in_one_line(complaint, workdir, words, culprit):
    assert culprit in complaint(sample, *(word.format(run=workdir) for word in words))


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["digit"], "'digits'"),
        (["--num-step", "3"], "--num-steps"),
        (["--num-steps", "many"], "--num-steps"),
        (["--num-steps", "0"], "num-steps"),
        (["--workdir", "{run}", "--batch-size", "8"], "batch_size 16 -> 8"),
        (["--workdir", "/proc/nowhere"], "/proc/nowhere"),
        (["--workdir", "{new}", "--network.in-channels", "3"], "in_channels"),
        (["cifar10", "--workdir", "{new}", "--data.path", "{new}"], "cifar10"),
    ],
)
def test_train_refuses_bad_input_in_one_line(complaint, workdir, tmp_path, words, culprit):
    assert culprit in complaint(train, *(word.format(run=workdir, new=tmp_path) for word in words))


def test_an_error_ends_the_process_with_one_line_and_status_1(tmp_path):
    words = ("--workdir", tmp_path, "--batch-size", 100)
    status, _, err = run("train.py", *words, devices=8)
    assert status == 1
    (line,) = err.splitlines()
    assert "100" in line
    assert "8 devices" in line


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_sampled(workdir):
    largest = max(
        (workdir / "checkpoints" / "24" / "ema").rglob("*"), key=lambda p: p.stat().st_size
    )
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    status, out, err = run("sample.py", "--workdir", workdir, "--num-samples", 2, "--num-steps", 2)
    assert status == 0
    assert "from step 16" in out
    assert "checkpoints/24 is damaged" in err


def test_help_names_every_setting():
    status, out, _ = run("sample.py", "--help")
    assert status == 0
    assert "--guidance-scale" in out
    status, out, _ = run("train.py", "--help")
    assert status == 0
    assert "cifar10" in out
