"""The loop of a training run: steps, checkpoints, a log and previews, from where it stopped."""

import dataclasses
import json
import sys
from bisect import bisect_right
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax import Array

from config import RunConfig, load_config, save_config
from diffjax import data
from diffjax.training import Checkpointer, TrainingLog, TrainState, ema_names, stop_on_signals
from runs import CHECKPOINTS, CONFIG_FILE

Step = Callable[[TrainState, Any, Array], tuple[TrainState, Any]]


def claim_workdir(workdir: Path, config: Any) -> None:
    """Write config.json, or check that the run that is there has the same settings.

    A command that failed before it made anything leaves only its settings, which may be replaced.
    """
    if workdir.exists() and not workdir.is_dir():
        raise NotADirectoryError(f"--workdir is {workdir}, a file; needed is a folder for the run.")
    path = workdir / CONFIG_FILE
    if not path.exists() or not _has_begun(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            save_config(config, path)
        return
    before = load_config(path, type(config))
    old, new = (_flat(dataclasses.asdict(each)) for each in (before, config))
    # a run may have parts, such as a text encoder, that the other lacks
    both = {name: (old.get(name), new.get(name)) for name in {**old, **new} if name != "num_steps"}
    changed = [f"{name} {was} -> {is_}" for name, (was, is_) in both.items() if was != is_]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ValueError(
            f"{workdir} holds a run with other settings ({'; '.join(changed[:5])}{more}). "
            "Use its settings to continue it, or another --workdir."
        )
    if jax.process_index() == 0:
        save_config(config, path)


def _has_begun(workdir: Path) -> bool:
    """Whether there are checkpoints, or parts that were made for the run."""
    return any(any(entry.iterdir()) for entry in workdir.iterdir() if entry.is_dir())


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        flat |= (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return flat


def in_turn(steps: Mapping[int, Step]) -> Step:
    """One step of several: each from the step on that is its name, until the next begins.

    >>> from types import SimpleNamespace
    >>> step = in_turn({0: lambda *_: "early", 5: lambda *_: "late"})
    >>> [step(SimpleNamespace(step=n), None, None) for n in (3, 4, 5)]
    ['early', 'early', 'late']
    """
    begins = sorted(steps)
    taken = None

    def step(state, batch, key):
        nonlocal taken
        # read once, since reading waits for the step before
        taken = int(state.step) if taken is None else taken + 1
        return steps[begins[bisect_right(begins, taken) - 1]](state, batch, key)

    return step


def run_steps(
    step: Step,
    state: TrainState,
    batches: data.Batches,
    key: Array,
    *,
    config: Any,
    run: RunConfig,
    workdir: Path,
    title: str,
    size: str,
    preview: Callable[[TrainState, str], None] | None = None,
) -> TrainState:
    """Train from the newest checkpoint, if there is one, to the last step.

    Args:
      step: compiled, `step(state, batch, key)`; may consume the state.
      state: before the first step, placed on its devices.
      batches: are read from where the checkpoint left them, and closed at the end.
      key: of a new run; one that goes on has its own.
      config: a dataclass with `num_steps` and `batch_size`, kept in the checkpoints.
      run: how often to save, log and draw.
      workdir: the run folder.
      title: what this is, such as "Training digits".
      size: of what is trained, such as "1,000 parameters".
      preview: `preview(state, suffix)` leaves pictures with that suffix in their names.
    """
    num_steps = config.num_steps
    with (
        stop_on_signals("The same command goes on from here.") as stop,
        Checkpointer(workdir / CHECKPOINTS, keep=run.keep) as checkpointer,
    ):
        if restored := checkpointer.restore_latest(state):
            state, info = restored
            key = info.key
            batches.set_state(info.data)
        start = int(state.step)
        if start > num_steps:
            raise ValueError(f"The run has {start} steps already; num_steps is {num_steps}.")
        _announce(f"{title} from step {start}" if start else title, size, config, workdir)
        save = partial(
            checkpointer.save, key=key, config=json.loads(json.dumps(dataclasses.asdict(config)))
        )
        with TrainingLog(workdir, start=start, num_steps=num_steps, every=run.log_every) as log:
            for n in range(start + 1, num_steps + 1):
                state, metrics = step(state, next(batches), key)
                log(n, metrics)
                stopping = stop.requested()
                if stopping or n % run.checkpoint_every == 0 or n == num_steps:
                    save(state, data=batches.get_state())
                if stopping:
                    break
                if preview and run.sample_every and n % run.sample_every == 0:
                    preview(state, f"_{n:07d}")
    batches.close()
    return state


def _announce(title: str, size: str, config: Any, workdir: Path) -> None:
    if jax.process_index() == 0:
        devices = jax.devices()
        print(
            f"{title} to step {config.num_steps}: {size}, batches of {config.batch_size} on "
            f"{len(devices)} x {devices[0].device_kind}, into {workdir}",
            file=sys.stderr,
        )


def averaged_params(state: TrainState, config: Any) -> Any:
    """The weights to sample from and to keep: the first average, or themselves without one.

    Args:
      state: of a run.
      config: of the run, a dataclass with `ema_decay`.
    """
    names = list(ema_names(config.ema_decay))
    return state.ema[names[0]] if names else state.params
