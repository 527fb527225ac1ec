"""Runs the laws of several devices in a process of its own, as XLA reads its flags only once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffjax.training.sharding import initialize_distributed


@pytest.mark.slow
def test_eight_devices_compute_what_one_does():
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    file = Path(__file__).with_name("on_eight_devices.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr


def test_initialize_distributed_does_nothing_for_one_process(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    # a batch script outside srun: the job has eight tasks, this step of it one
    monkeypatch.setenv("SLURM_NTASKS", "8")
    called = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *args: called.append(args))
    initialize_distributed()
    initialize_distributed("host:1234", 1, 0)
    assert called == []
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    initialize_distributed()
    assert called == [(None, None, None)]
