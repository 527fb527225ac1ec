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
    """What a checkpoint says about its run.

    Attributes:
      step: the number of steps taken.
      key: the key of the run.
      config: the configuration as it was given to `save`, or None.
    """

    step: int
    key: Array
    config: Any


def encode_run(step: int, key: Array, data: Any, config: Any) -> str:
    """The text of `run.json`. With several processes, all call it, and it holds all their `data`.

    Raises:
      ValueError: key is not a typed key, or data or config would not survive JSON.
    """
    run = {"step": step, "key": _encode_key(key), "data": _gather(data), "config": config}
    return _to_json(run, "config")


def load_run(path: Path) -> RunInfo:
    """Load step, key and config of a checkpoint; `path` as in `load_item`."""
    run = json.loads((path / RUN).read_text())
    return RunInfo(run["step"], _decode_key(run["key"]), run["config"])


def load_data_position(path: Path) -> Any:
    """Load the position of the data pipeline of this process, as it was given to `save`.

    Raises:
      CheckpointError: it was saved by another number of processes, and their positions differ, so
        that there is none for this process.
    """
    positions = json.loads((path / RUN).read_text())["data"]
    # equal positions count batches, each of its own process, and hold for every number of them
    if len(positions) != jax.process_count() and any(p != positions[0] for p in positions):
        raise CheckpointError(
            f"Checkpoint {path} holds the data positions of {len(positions)} processes; this run "
            f"has {jax.process_count()}. Resume with {len(positions)} processes."
        )
    return _decode_data(positions[jax.process_index() % len(positions)])


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
