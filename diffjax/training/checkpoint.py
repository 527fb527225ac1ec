"""Checkpoints: the whole state of a run, saved in the background and verified before use.

One folder holds a run's checkpoints, one folder per step:

    checkpoints/1000/params, ema, opt_state     Orbax items, each loadable alone
                     run.json                   step, key, data position, config: readable text
                     manifest.json              size and hash of every file
    checkpoints/1500.saving                     a save that goes on, or was cut off
    checkpoints/2000.damaged                    failed its manifest; set aside, never deleted

A save is written under `.saving` and renamed when its manifest is complete, so that the name of a
step alone says that all of it was once there. Loading verifies the manifest and walks from the
newest step to the oldest; if all are damaged it refuses, and never starts again from step 0.

Folders are on a local or mounted file system that all processes share.
"""

import os
import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils

from diffjax.training.checkpoint_items import (
    CheckpointError,
    finish_saving,
    load_item,
    reason_of,
    start_saving,
)
from diffjax.training.checkpoint_run import (
    RUN,
    RunInfo,
    encode_run,
    load_run,
)
from diffjax.training.manifest import find_damage, sync_folder, write_atomically, write_manifest
from diffjax.training.state import TrainState

ITEMS = ("params", "ema", "opt_state")


class Checkpointer:
    """Writes the checkpoints of one run into a folder, in the background.

        with Checkpointer(workdir / "checkpoints", keep=3) as checkpointer:
            restored = checkpointer.restore_latest(state)
            ...
            checkpointer.save(state, key=key, data=iterator.get_state(), config=config)

    A failed save is raised as a CheckpointError by the next `save` or `wait`, and at the latest
    when the `with` block ends. With several processes, all make the same calls.

    Args:
      directory: the folder; made if it is missing.
      keep: how many checkpoints to keep; older ones are deleted after a save. None keeps all.

    Raises:
      CheckpointError: the folder cannot be written.
      ValueError: keep < 1, or the directory is an address such as gs://.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int | None = 3):
        if keep is not None and keep < 1:
            raise ValueError(f"keep is {keep}; at least the newest checkpoint must be kept.")
        self.directory = _local_path(directory)
        self._keep = keep
        self._newest: int | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future | None = None
        self._check_writable()

    def save(self, state: TrainState, *, key: Array, data: Any = None, config: Any = None) -> None:
        """Start to save a state; the arrays are copied before this returns, so it may be donated.

        Saving a step that this object has just saved or restored does nothing.

        Args:
          state: the training state; its `step` names the checkpoint.
          key: the key of the run.
          data: the position of the data pipeline of this process: bytes, or anything that JSON
            gives back unchanged.
          config: anything that JSON gives back unchanged.

        Raises:
          CheckpointError: this save cannot begin, or the one before it failed.
          ValueError: data or config would not survive JSON.
        """
        self.wait()
        step = int(state.step)
        if step == self._newest:
            return
        final, draft = self.directory / str(step), self.directory / f"{step}.saving"
        if final.exists():
            raise CheckpointError(
                f"Checkpoint {final} exists already, from another run. Resume from it with "
                "restore_latest, or use another folder."
            )
        text = encode_run(step, key, data, config)
        try:
            if jax.process_index() == 0:
                for leftover in self.directory.glob(f"{step}.saving*"):
                    _set_aside(leftover, f"{step}.unfinished")
            written = start_saving(draft, {name: getattr(state, name) for name in ITEMS})
        except Exception as error:
            raise _save_error(step, final, error) from error
        self._pending = self._writer.submit(self._finish, written, draft, final, text)
        self._newest = step

    def wait(self) -> None:
        """Wait until the save that is under way, if any, is complete on disk.

        Raises:
          CheckpointError: it failed; the message holds the path and the reason.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            try:
                pending.result()
            except BaseException:
                self._newest = None
                raise

    def restore_latest(self, like: TrainState) -> tuple[TrainState, RunInfo] | None:
        """Load the newest undamaged checkpoint; damaged newer ones are renamed and warned about.

        Args:
          like: a state of the same structure, of arrays or of `jax.ShapeDtypeStruct` with
            shardings; each array is loaded into its sharding, whatever sharding it was saved from.

        Returns:
          The state and the rest of the run, or None if the folder holds no checkpoint.

        Raises:
          CheckpointError: all checkpoints are damaged; or the newest good one does not fit `like`,
            or the number of processes.
        """
        path = _find_on_first_process(self.directory)
        if path is None:
            return None
        items = {
            name: load_item(path, name, like=getattr(like, name))
            if jax.tree.leaves(getattr(like, name))
            else getattr(like, name)
            for name in ITEMS
        }
        run = load_run(path, resume=True)
        step = jax.device_put(np.int32(run.step), like.step.sharding)
        self._newest = run.step
        return TrainState(step=step, **items), run

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self.wait()
        except CheckpointError as failure:
            if error is None:
                raise
            error.add_note(str(failure))
        finally:
            self._writer.shutdown()

    def _finish(self, written: Any, draft: Path, final: Path, text: str) -> None:
        """In the background: wait for Orbax, add run.json and the manifest, rename, prune."""
        try:
            finish_saving(written)
            if jax.process_index() == 0:
                write_atomically(draft / RUN, text)
                write_manifest(draft)
                draft.rename(final)
                sync_folder(self.directory)
                self._prune()
        except Exception as error:
            raise _save_error(int(final.name), final, error) from error

    def _prune(self) -> None:
        for step in _steps(self.directory)[self._keep :] if self._keep else []:
            # renamed first: a deletion that is cut off must not look like a damaged checkpoint
            doomed = self.directory / f"{step}.deleting"
            (self.directory / str(step)).rename(doomed)
        for doomed in self.directory.glob("*.deleting"):
            shutil.rmtree(doomed)

    def _check_writable(self) -> None:
        probe = self.directory / f".writable-{os.getpid()}"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise CheckpointError(
                f"Cannot write checkpoints to {self.directory}: {reason_of(error)}."
            ) from error


def find_checkpoint(
    directory: str | os.PathLike, *, items: Sequence[str] = ("ema",), step: int | None = None
) -> Path:
    """The newest checkpoint of a run whose needed items are undamaged, for sampling or evaluation.

    It only reads: damaged checkpoints are warned about, and stay where they are.

    Args:
      directory: the folder that `Checkpointer` was given.
      items: which items will be loaded, of "params", "ema", "opt_state".
      step: take this step and no other.

    Returns:
      The folder to give to `load_item` and `load_run`.

    Raises:
      CheckpointError: there is no checkpoint, or none that is undamaged.
    """
    directory = _local_path(directory)
    steps = _steps(directory)
    if not steps:
        raise CheckpointError(f"There is no checkpoint in {directory}.")
    if step is not None and step not in steps:
        raise CheckpointError(f"{directory} has no checkpoint of step {step}; it has {steps}.")
    under = (*(f"{item}/" for item in items), RUN, "_CHECKPOINT_METADATA")
    path, _ = _walk(directory, steps if step is None else [step], under)
    return path


def _find_on_first_process(directory: Path) -> Path | None:
    """The checkpoint to resume from, found by process 0, which also sets damaged ones aside."""
    found, failure = -1, None
    if jax.process_index() == 0:
        try:
            found = _choose_and_set_aside(directory)
        except CheckpointError as error:
            found, failure = -2, error
    if jax.process_count() > 1:
        found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
    if found == -2:
        raise failure or CheckpointError(f"Process 0 found no checkpoint to trust in {directory}.")
    return None if found == -1 else directory / str(found)


def _choose_and_set_aside(directory: Path) -> int:
    steps = _steps(directory)
    if not steps:
        damaged = sorted(directory.glob("*.damaged*"))
        if damaged:
            raise CheckpointError(
                f"{directory} holds damaged checkpoints only ({damaged[-1].name}). Nothing was "
                "deleted. To begin a new run, use another folder."
            )
        return -1
    path, damaged = _walk(directory, steps, ("",))
    for step in damaged:
        _set_aside(directory / str(step), f"{step}.damaged")
    return int(path.name)


def _walk(directory: Path, steps: list[int], under: tuple[str, ...]) -> tuple[Path, list[int]]:
    """The newest undamaged of the steps, with a warning for each damaged one before it."""
    reasons: dict[int, str] = {}
    for step in steps:
        path = directory / str(step)
        reason = find_damage(path, under=under)
        if reason is None:
            for damaged, why in reasons.items():
                warnings.warn(
                    f"Checkpoint {directory / str(damaged)} is damaged: {why}. Using {path}.",
                    stacklevel=2,
                )
            return path, list(reasons)
        reasons[step] = reason
    listed = "; ".join(f"{step}: {why}" for step, why in reasons.items())
    raise CheckpointError(
        f"No checkpoint in {directory} is undamaged ({listed}). Nothing was deleted. To begin a "
        "new run, use another folder."
    )


def _steps(directory: Path) -> list[int]:
    """The steps that have a checkpoint, newest first."""
    if not directory.is_dir():
        return []
    return sorted((int(p.name) for p in directory.iterdir() if p.name.isdigit()), reverse=True)


def _set_aside(path: Path, name: str) -> None:
    target, count = path.with_name(name), 1
    while target.exists():
        count += 1
        target = path.with_name(f"{name}-{count}")
    path.rename(target)


def _local_path(directory: str | os.PathLike) -> Path:
    if "://" in str(directory):
        raise ValueError(
            f"{directory} is not on a file system. Mount the bucket and give the mounted folder."
        )
    return Path(directory).absolute()


def _save_error(step: int, path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"Could not save the checkpoint of step {step} to {path}: {reason_of(error)}"
    )
