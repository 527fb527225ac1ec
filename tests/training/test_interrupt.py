"""What a real signal does to a real process."""

import signal
import subprocess
import sys

import pytest

LOOP = """
import sys, time
from diffjax.training.interrupt import stop_on_signals
with stop_on_signals("The same command resumes the run.") as stop:
    print("ready", flush=True)
    while not stop.requested():
        time.sleep(0.01)
    print("saved", flush=True)
print("never reached", flush=True)
"""

# a step that does not end; the main thread is in C, where no Python handler can run
STUCK = """
import hashlib
from diffjax.training.interrupt import stop_on_signals
with stop_on_signals() as stop:
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


def start(program):
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_the_first_signal_lets_the_step_end_and_leaves_with_one_line(name, status):
    process = start(LOOP)
    process.send_signal(signal.Signals[name])
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (status, "saved\n")
    assert err == f"\nStopped by {name}. The same command resumes the run.\n"


def test_the_second_signal_leaves_at_once():
    process = start(STUCK)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 143


def test_handlers_are_given_back():
    from diffjax.training.interrupt import stop_on_signals

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stop:
        assert signal.getsignal(signal.SIGTERM) != before[0]
        assert not stop.requested()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
