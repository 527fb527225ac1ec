"""What a checkpoint holds beside arrays: step, key, data position and config, as readable JSON."""

import base64
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils

from diffjax.training.checkpoint_items import CheckpointError

RUN = "run.json"


class RunInfo(NamedTuple):
    """What a checkpoint holds beside arrays.

    Attributes:
      step: the number of steps taken.
      key: the key of the run.
      data: the position of the data pipeline of this process as it was given to `save`, or None.
      config: the configuration as it was given to `save`, or None.
    """

    step: int
    key: Array
    data: Any
    config: Any


def encode_run(step: int, key: Array, data: Any, config: Any) -> str:
    """The text of `run.json`. With several processes, all call it, and it holds all their `data`.

    Raises:
      ValueError: key is not a typed key, or data or config would not survive JSON.
    """
    run = {"step": step, "key": _encode_key(key), "data": _gather(data), "config": config}
    return _to_json(run, "config")


def load_run(path: Path, *, resume: bool = False) -> RunInfo:
    """Load what a checkpoint holds beside arrays.

    Args:
      path: the folder of one step, from `find_checkpoint`.
      resume: insist on a data position for this process.

    Raises:
      CheckpointError: with resume, if the positions were saved by another number of processes and
        differ, so that there is none for this process. Without resume `data` is None then.
    """
    run = json.loads((path / RUN).read_text())
    positions, count = run["data"], jax.process_count()
    # equal positions count batches, each of its own process, and hold for every number of them
    fits = len(positions) == count or all(position == positions[0] for position in positions)
    if resume and not fits:
        raise CheckpointError(
            f"Checkpoint {path} holds the data positions of {len(positions)} processes; this run "
            f"has {count}. Resume with {len(positions)} processes."
        )
    data = _decode_data(positions[jax.process_index() % len(positions)]) if fits else None
    return RunInfo(run["step"], _decode_key(run["key"]), data, run["config"])


def _encode_key(key: Array) -> dict[str, Any]:
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError("The key of a run is a typed key: make it with jax.random.key(seed).")
    data = np.asarray(jax.random.key_data(key))
    return {"impl": str(jax.random.key_impl(key)), "data": data.tolist()}


def _decode_key(entry: dict[str, Any]) -> Array:
    return jax.random.wrap_key_data(jnp.array(entry["data"], jnp.uint32), impl=entry["impl"])


def _gather(data: Any) -> list[Any]:
    """The data positions of all processes, ready for JSON."""
    entry = {"base64": base64.b64encode(data).decode()} if isinstance(data, bytes) else data
    text = _to_json({"data": entry}, "data").encode()
    if jax.process_count() == 1:
        return [json.loads(text)["data"]]
    longest = int(multihost_utils.process_allgather(np.int32(len(text))).max())
    padded = np.frombuffer(text.ljust(longest), np.uint8)
    return [json.loads(row.tobytes())["data"] for row in multihost_utils.process_allgather(padded)]


def _decode_data(entry: Any) -> Any:
    if isinstance(entry, dict) and set(entry) == {"base64"}:
        return base64.b64decode(entry["base64"])
    return entry


def _to_json(value: dict[str, Any], name: str) -> str:
    try:
        text = json.dumps(value, indent=1)
        unchanged = json.loads(text) == value
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be saved as JSON: {error}.") from error
    if not unchanged:
        raise ValueError(
            f"{name} would come back from JSON changed (tuples become lists, keys strings). Give "
            "lists and string keys, or encode it to a string."
        )
    return text
