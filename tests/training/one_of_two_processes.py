"""One process of a run on two hosts with two devices each; `test_sharding.py` starts both.

Arguments: the number of this process, the port of the first, the checkpoint folder.
"""

import json
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import tiny_problem as tiny

from diffjax.training import (
    Checkpointer,
    fsdp,
    initialize_distributed,
    make_mesh,
    make_train_step,
    shard_batch,
    shard_state,
    state_sharding,
    stop_on_signals,
)


def main(process: int, port: int, folder: Path) -> None:
    initialize_distributed(f"localhost:{port}", 2, process)
    assert (jax.process_count(), jax.device_count()) == (2, 4)
    mesh, rules = make_mesh(), fsdp(min_size=64)
    state = shard_state(jax.device_get(tiny.new_state()), mesh, rules)
    step = make_train_step(tiny.loss, tiny.SGD, ema_decay=(0.0, 0.9))
    step = jax.jit(step, out_shardings=(state_sharding(state, mesh, rules), None))
    batch = jax.device_get(tiny.make_batch())
    mine = shard_batch({"x0": np.split(batch["x0"], 2)[process]}, mesh)
    key = jax.random.key(7)
    with stop_on_signals() as stop, Checkpointer(folder) as checkpointer:
        losses = []
        for _ in range(2):
            state, metrics = step(state, mine, key)
            losses.append(float(metrics["loss"]))
            checkpointer.save(state, key=key, data={"process": process})
        assert not stop.requested()
    if process == 0:
        (folder / "9").mkdir()
    with Checkpointer(folder) as checkpointer, warnings.catch_warnings(record=True) as caught:
        restored, run = checkpointer.restore_latest(state)
    assert (run.step, run.data) == (2, {"process": process})
    assert len(caught) == (1 if process == 0 else 0)
    _, metrics = step(restored, mine, run.key)
    losses.append(float(metrics["loss"]))
    print(json.dumps(losses))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
