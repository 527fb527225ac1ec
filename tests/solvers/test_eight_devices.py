"""Runs the laws of several devices in a process of their own: XLA reads its flags once for each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# without a state, with one, with noise and steps of each sample's own
SOME = ["ddim", "unipc", "predictor_corrector", "dpm_adaptive"]


def run_on_eight_devices(*names: str):
    law = "test_eight_devices_sample_what_one_does_and_move_no_sample"
    file = str(HERE / "solvers_on_eight_devices.py")
    chosen = [f"{file}::{law}[{name}]" for name in names] or [file]
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    flags = "--xla_force_host_platform_device_count=8"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": path}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *chosen]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_eight_devices_sample_what_one_does_with_some_solvers():
    run_on_eight_devices(*SOME)


@pytest.mark.slow
def test_eight_devices_sample_what_one_does_with_every_solver():
    run_on_eight_devices()
