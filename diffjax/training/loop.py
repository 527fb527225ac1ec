"""The record of a run: metrics.jsonl, TensorBoard events and a progress bar."""

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffjax.training.manifest import write_atomically

METRICS = "metrics.jsonl"


class TrainingLog:
    """Averages the metrics of every `every` steps, and writes and shows them.

        with TrainingLog(workdir, start=step, num_steps=5000, every=50) as log:
            for n in range(step, 5000):
                state, metrics = train_step(state, next(batches), key)
                log(n + 1, metrics)

    Metrics stay on the device until they are averaged. Each call waits for the step before the one
    it is given, so that the device always has work and the bar shows the true speed. Lines of
    metrics.jsonl after step `start`, left by a run that was killed, are dropped. With several
    processes only the first writes.

    Args:
      folder: where `metrics.jsonl` and TensorBoard's event file go; made if it is missing.
      start: the number of steps taken before.
      num_steps: the number of steps at the end.
      every: how many steps to average.
      progress: show a progress bar with loss, steps/s and time left.

    Raises:
      ValueError: every < 1.
      OSError: the folder cannot be written.
    """

    def __init__(
        self, folder: Path, *, start: int, num_steps: int, every: int = 50, progress: bool = True
    ):
        if every < 1:
            raise ValueError(f"every is {every}; metrics are averaged over at least 1 step.")
        self._every, self._num_steps = every, num_steps
        self._window: list[dict[str, Any]] = []
        self._window_start = time.perf_counter()
        first = jax.process_index() == 0
        self._file = _open_metrics(Path(folder), start) if first else None
        self._events = _open_events(Path(folder), start) if first else None
        self._bar = _open_bar(start, num_steps, progress and first)

    def __call__(self, step: int, metrics: dict[str, Any]) -> dict[str, float] | None:
        """Take the metrics of a step; at the end of a window write their means and return them.

        Args:
          step: the number of steps taken, this one included.
          metrics: scalars, as the train step returns them.

        Raises:
          FloatingPointError: the loss or the gradient of a step in the window is not finite.
          OSError: the means cannot be written.
        """
        if self._window:
            jax.block_until_ready(self._window[-1])
        self._window.append(metrics)
        self._bar.update(1)
        if step % self._every and step != self._num_steps:
            return None
        return self._write(step)

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._bar.close()
        # a file that could not be written cannot be closed either, which says less
        quiet = contextlib.suppress(OSError) if kind else contextlib.nullcontext()
        for sink in (self._file, self._events):
            if sink is not None:
                with quiet:
                    sink.close()

    def _write(self, step: int) -> dict[str, float]:
        window, self._window = jax.device_get(self._window), []
        now = time.perf_counter()
        speed = len(window) / (now - self._window_start)
        self._window_start = now
        means = {name: float(np.mean([entry[name] for entry in window])) for name in window[0]}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(means.get(name, 0.0)):
                first = step - len(window) + 1
                raise FloatingPointError(
                    f"{name} is {means[name]} within steps {first} to {step}. A step that "
                    "is not finite leaves the params as they were. Lower the learning rate, "
                    "clip gradients, or look at the data of these steps."
                )
        if self._file is not None:
            _append(self._file, {"step": step, **means, "steps_per_second": round(speed, 3)})
        if self._events is not None:
            for name, value in means.items():
                self._events.add_scalar(name, value, step)
        self._bar.set_postfix(loss=f"{means['loss']:.4g}")
        return means


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of `metrics.jsonl` in a run folder, without a last one that was cut off."""
    lines = []
    for text in (Path(folder) / METRICS).read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def _open_metrics(folder: Path, start: int) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / METRICS
    if path.exists():
        kept = [line for line in read_metrics(folder) if line["step"] <= start]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
    return path.open("a")


def _append(file: Any, line: dict[str, float]) -> None:
    try:
        file.write(json.dumps(line) + "\n")
        file.flush()
    except OSError as error:
        # the system's own words, such as that no space is left, do not name the file
        raise OSError(error.errno, error.strerror, file.name) from error


def _open_events(folder: Path, start: int) -> Any:
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder), purge_step=start + 1 if start else None)


def _open_bar(start: int, num_steps: int, shown: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=num_steps, initial=start, unit="step", dynamic_ncols=True, disable=not shown)
