"""Runs the laws of several devices and processes; XLA reads its flags once for each process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_problem as tiny

from diffjax.training.sharding import (
    check_batch_size,
    filled_batch_size,
    fsdp,
    initialize_distributed,
    make_mesh,
    params_sharding,
    shard_batch,
)
from diffjax.training.step import make_train_step

HERE = Path(__file__).parent


def with_devices(count):
    flags = f"--xla_force_host_platform_device_count={count}"
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": path}


@pytest.mark.slow
def test_eight_devices_compute_what_one_does():
    files = [str(HERE / "on_eight_devices.py"), str(HERE / "unet_on_eight_devices.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    run = subprocess.run(
        command, env=with_devices(8), capture_output=True, text=True, timeout=500, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.slow
def test_two_processes_compute_and_resume_what_one_does(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / "one_of_two_processes.py"), str(n), port, str(tmp_path)],
            env=with_devices(2),
            **pipe,
        )
        for n in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    losses = [json.loads(out.splitlines()[-1]) for out, _ in outputs]

    step = jax.jit(make_train_step(tiny.loss, tiny.SGD, ema_decay=(0.0, 0.9)))
    state, expected = tiny.new_state(), []
    for _ in range(3):
        state, metrics = step(state, tiny.make_batch(), jax.random.key(7))
        expected.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, [expected, expected], rtol=1e-5)


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_a_filled_batch_is_the_smallest_that_is_split_evenly(devices):
    mesh = jax.sharding.AbstractMesh((devices,), ("data",))
    for count in range(1, 20):
        size = filled_batch_size(count, mesh)
        check_batch_size(size, mesh)
        assert count <= size < count + devices


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


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "nothing says where they meet"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two'; it must be a number"),
    ],
)
def test_processes_that_would_run_alone_are_refused(monkeypatch, variables, message):
    for name in ("JAX_COORDINATOR_ADDRESS", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        initialize_distributed()


def test_an_axis_that_the_mesh_lacks_and_a_number_in_a_batch_are_refused():
    mesh = make_mesh(devices=jax.devices()[:1])
    params = {"kernel": np.zeros((200, 200))}
    with pytest.raises(ValueError, match=r"fsdp splits over 'model'; the mesh has \['data'\]"):
        params_sharding(params, mesh, fsdp("model"))
    with pytest.raises(ValueError, match="'scale' of the batch is a single number"):
        shard_batch({"x0": np.zeros((2, 3)), "scale": 3.0}, mesh)
