"""Ending a run on SIGTERM or SIGINT without losing it.

The first signal asks the loop to stop after the running step, so that it can write a checkpoint;
the process then leaves with status 143 (SIGTERM) or 130 (SIGINT). A second signal leaves at once.
"""

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# a loop that takes longer than this to stop is announced, lest the user sends the second signal
_PATIENCE_SECONDS = 2.0


class StopRequest:
    """Whether the run was asked to stop; made by `stop_on_signals`.

    Attributes:
      received: the signal that asked, or None.
    """

    received: signal.Signals | None = None

    def requested(self) -> bool:
        """Whether to stop now. With several processes all ask at the same step, and all agree."""
        asked = self.received is not None
        if jax.process_count() == 1:
            return asked
        return bool(multihost_utils.process_allgather(np.array(asked)).any())


@contextmanager
def stop_on_signals(note: str = "") -> Iterator[StopRequest]:
    """Catch SIGTERM and SIGINT while the block runs, and leave the process at its end if one came.

        with stop_on_signals("The same command resumes the run.") as stop, Checkpointer(...) as c:
            for ...:
                ...
                if stop.requested():
                    c.save(...)
                    break

    Enter it before whatever must still be finished, such as a Checkpointer. It must be entered in
    the main thread. An exception that ends the block goes its own way.

    Args:
      note: ends the line that is written to stderr before the process leaves.

    Raises:
      SystemExit: at the end of the block, with status 128 + the number of the signal.
    """
    stop = StopRequest()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # The interpreter runs Python handlers only between two bytecodes of the main thread, which may
    # be in a long compilation; the number of a signal is written to this pipe at once.
    outer_pipe = signal.set_wakeup_fd(writer)
    outer = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    threading.Thread(target=_watch, args=(reader, stop), daemon=True).start()
    try:
        yield stop
    finally:
        for number, handler in outer.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(outer_pipe)
        os.close(writer)
    if stop.received is not None:
        sys.stderr.write(f"\nStopped by {stop.received.name}. {note}".rstrip() + "\n")
        raise SystemExit(128 + stop.received)


def _watch(reader: int, stop: StopRequest) -> None:
    """Read the numbers of signals from the pipe until it is closed at its other end."""
    announced = False
    while True:
        waiting = stop.received is not None and not announced
        ready, _, _ = select.select([reader], [], [], _PATIENCE_SECONDS if waiting else None)
        if not ready and stop.received is not None:
            name = stop.received.name
            sys.stderr.write(f"\n{name}: ending this step; a second signal leaves at once.\n")
            announced = True
            continue
        numbers = os.read(reader, 1)
        if not numbers:
            os.close(reader)
            return
        number = numbers[0]
        if number not in _SIGNALS:
            continue
        if stop.received is not None:
            os._exit(128 + number)
        stop.received = signal.Signals(number)
