"""Training: state, step, weight averages, sharding, checkpoints and the small parts of a loop."""

from diffjax.training.checkpoint import Checkpointer, find_checkpoint
from diffjax.training.checkpoint_items import CheckpointError, load_item
from diffjax.training.ema import ema_names, init_ema, update_ema
from diffjax.training.frozen import make_frozen_step
from diffjax.training.interrupt import StopRequest, stop_on_signals
from diffjax.training.loop import TrainingLog, read_metrics
from diffjax.training.sharding import (
    batch_sharding,
    check_batch_size,
    filled_batch_size,
    fsdp,
    initialize_distributed,
    make_mesh,
    params_sharding,
    replicated,
    shard_batch,
    shard_state,
    state_sharding,
)
from diffjax.training.state import TrainState, init_train_state
from diffjax.training.step import make_train_step
from diffjax.training.time_grid import TunedTimes, reference_loss, tune_times

__all__ = [
    "CheckpointError",
    "Checkpointer",
    "StopRequest",
    "TrainState",
    "TrainingLog",
    "TunedTimes",
    "batch_sharding",
    "check_batch_size",
    "ema_names",
    "filled_batch_size",
    "find_checkpoint",
    "fsdp",
    "init_ema",
    "init_train_state",
    "initialize_distributed",
    "load_item",
    "make_frozen_step",
    "make_mesh",
    "make_train_step",
    "params_sharding",
    "read_metrics",
    "reference_loss",
    "replicated",
    "shard_batch",
    "shard_state",
    "state_sharding",
    "stop_on_signals",
    "tune_times",
    "update_ema",
]
