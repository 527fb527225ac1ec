"""Several processes make one global batch: each device gets the rows that are its own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_two_processes_read_the_global_batch_together():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    script = Path(__file__).with_name("reads_as_one_of_two.py")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    running = [
        subprocess.Popen(
            [sys.executable, str(script), str(port), str(index)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for process in running:
        output, errors = process.communicate(timeout=120)
        assert (process.returncode, output.strip()) == (0, "ok"), errors
