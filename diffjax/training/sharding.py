"""Meshes, and where on them the batch and the training state live.

The batch is split over the mesh axis `data`. Parameters are replicated, or split by one list of
rules `(pattern, spec)`, read from the top: the first regular expression found in the path of a
parameter (`blocks/0/attention/query/kernel`) decides. `spec` is a `PartitionSpec`, or a function
of (shape, mesh) that returns one. The model knows nothing of it. Two examples,

    fsdp()                                                 every large array split over `data`
    [("(query|key|value)/kernel$", P(None, "model")),      tensor parallelism over `model`,
     ("out/kernel$", P("model", None)), *fsdp()]           the rest as above

Averages and optimizer moments follow their parameter. XLA inserts the communication.
"""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffjax.training.state import TrainState

Rule = tuple[str, PartitionSpec | Callable[[tuple[int, ...], Mesh], PartitionSpec]]


def make_mesh(
    axes: Mapping[str, int] | None = None, *, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over the devices, with axis `data` for the batch.

    All meshes of the library are made here, because their axes must be of the type Auto: JAX now
    makes Explicit axes by default, on which the reshapes of attention are refused.

    Args:
      axes: sizes by name, the slowest first, such as `{"data": -1, "model": 2}`; one size may be
        -1 for what is left. By default `{"data": -1}`.
      devices: the devices to use, by default all of all processes.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or no axis is named `data`.

    >>> dict(make_mesh({"data": -1, "model": 1}, devices=jax.devices()[:1]).shape)
    {'data': 1, 'model': 1}
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = dict({"data": -1} if axes is None else axes)
    if "data" not in sizes:
        raise ValueError(f"The mesh axes are {list(sizes)}; the batch needs an axis named 'data'.")
    open_axes = [name for name, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if len(open_axes) == 1 and known > 0:
        sizes[open_axes[0]] = len(devices) // known
    if math.prod(sizes.values()) != len(devices) or min(sizes.values()) < 1:
        raise ValueError(
            f"Mesh axes {dict(axes or {'data': -1})} do not fit {len(devices)} devices: the sizes "
            "must multiply to that number. One of them may be -1 for what is left."
        )
    types = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array of which every device holds a full copy, such as a key."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis split over the mesh axis `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Refuse a global batch that cannot be split evenly over the axis `data`.

    Raises:
      ValueError: with both numbers and the two nearest batch sizes that fit.
    """
    count = mesh.shape["data"]
    if batch_size < 1 or batch_size % count:
        lower, upper = batch_size // count * count, (batch_size // count + 1) * count
        choices = f"{lower} or {upper}" if lower else f"{upper}"
        raise ValueError(
            f"A batch of {batch_size} samples cannot be split over {count} devices. Use a batch "
            f"size of {choices}, or a mesh with fewer devices on its axis 'data'."
        )


def filled_batch_size(count: int, mesh: Mesh) -> int:
    """The smallest batch of at least `count` samples that is split evenly over the axis `data`.

    >>> filled_batch_size(3, make_mesh(devices=jax.devices()[:1]))
    3
    """
    devices = mesh.shape["data"]
    return -(-count // devices) * devices


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Place a batch on the mesh, split over the axis `data`.

    Args:
      batch: a tree of [B, ...] host or device arrays. With several processes each gives its own
        part of the global batch, B / process_count samples, in the order of the processes.
      mesh: from `make_mesh`.

    Raises:
      ValueError: the global batch size is not a multiple of the size of the axis `data`, or an
        entry has no axis of samples.

    >>> import numpy as np
    >>> mesh = make_mesh(devices=jax.devices()[:1])
    >>> tuple(shard_batch({"labels": np.arange(4)}, mesh)["labels"].sharding.spec)
    ('data',)
    """
    sharding = batch_sharding(mesh)
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if not np.ndim(leaf):
            raise ValueError(
                f"{_path_name(path)!r} of the batch is a single number; every entry is [B, ...], "
                "with the samples on its first axis."
            )
        check_batch_size(leaf.shape[0] * jax.process_count(), mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    place = lambda leaf: jax.make_array_from_process_local_data(sharding, leaf)
    return jax.tree.map(place, batch)


def fsdp(axis: str = "data", *, min_size: int = 2**14) -> list[Rule]:
    """Rules that split every large array over a mesh axis, on its largest axis that it divides.

    Source: ZeRO, arXiv:1910.02054, stage 3; here the compiler gathers each array where it is used.

    Args:
      axis: the mesh axis to split over; the batch's own by default.
      min_size: arrays with fewer elements, biases and scales, stay replicated.

    Raises:
      ValueError: when the rules are used on a mesh without that axis.

    >>> [(pattern, spec)] = fsdp(min_size=8)
    >>> tuple(spec((3, 4), make_mesh(devices=jax.devices()[:1])))
    (None, 'data')
    """

    def spec(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
        if axis not in mesh.shape:
            raise ValueError(f"fsdp splits over {axis!r}; the mesh has {list(mesh.shape)}.")
        fitting = [i for i, size in enumerate(shape) if size % mesh.shape[axis] == 0]
        if math.prod(shape) < min_size or not fitting:
            return PartitionSpec()
        # of equally large axes the last, which for kernels is the output
        chosen = max(fitting, key=lambda i: (shape[i], i))
        return PartitionSpec(*(axis if i == chosen else None for i in range(chosen + 1)))

    return [("", spec)]


def params_sharding(params: Any, mesh: Mesh, rules: Sequence[Rule] = ()) -> Any:
    """The sharding of every parameter: the first rule whose pattern is found in its path.

    Args:
      params: a tree of arrays or of `jax.ShapeDtypeStruct`.
      mesh: from `make_mesh`.
      rules: see the top of this module; parameters that no rule matches are replicated.

    Raises:
      ValueError: a rule names an axis that the mesh lacks, or splits an axis that it does not
        divide.
    """

    def choose(path: tuple, leaf: Any) -> NamedSharding:
        name = _path_name(path)
        for pattern, spec in rules:
            if re.search(pattern, name):
                spec = spec(leaf.shape, mesh) if callable(spec) else spec
                _check_spec(name, leaf.shape, spec, mesh)
                return NamedSharding(mesh, spec)
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(choose, params)


def state_sharding(state: TrainState, mesh: Mesh, rules: Sequence[Rule] = ()) -> TrainState:
    """The sharding of every array of a training state, as a TrainState of `NamedSharding`.

    An average or a moment of the optimizer is split like the parameter whose path ends its own,
    if it has its shape; everything else is replicated. To make a large state where it will live:

        make = lambda: init_train_state(init(key), optimizer)
        sharding = state_sharding(jax.eval_shape(make), mesh, fsdp())
        state = jax.jit(make, out_shardings=sharding)()
        step = jax.jit(make_train_step(...), donate_argnums=0, out_shardings=(sharding, None))

    Args:
      state: a state of arrays or of `jax.ShapeDtypeStruct`.
      mesh, rules: as in `params_sharding`.
    """
    shardings = params_sharding(state.params, mesh, rules)
    shapes = jax.tree_util.tree_leaves_with_path(state.params)
    known = {
        _path_name(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(shapes, jax.tree.leaves(shardings), strict=True)
    }

    def follow(path: tuple, leaf: Any) -> NamedSharding:
        parts = _path_name(path).split("/")
        for start in range(len(parts)):
            shape, sharding = known.get("/".join(parts[start:]), (None, None))
            if sharding is not None and shape == leaf.shape:
                return sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(follow, state)


def shard_state(state: TrainState, mesh: Mesh, rules: Sequence[Rule] = ()) -> TrainState:
    """Place a training state on the mesh by `state_sharding`.

    The result may share memory with the given state, so that a step that donates it consumes
    both: go on with the result alone. With several processes each gives the same values.

    Args:
      state: on the host or on any devices.
      mesh: from `make_mesh`.
      rules: as of `state_sharding`; none copies the state to every device.
    """
    return jax.device_put(state, state_sharding(state, mesh, rules))


def initialize_distributed(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Join the other processes of the job; do nothing when there is only this one.

    A thin layer over `jax.distributed.initialize`, which finds the other processes by itself
    under SLURM (`srun`), Open MPI, Kubernetes (indexed jobs) and on TPU pods. Elsewhere give the
    three arguments, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Call it
    before anything else touches a device.

    Args:
      coordinator_address: `host:port` of process 0, the same in every process.
      num_processes: how many processes the job has.
      process_id: which of them this is, from 0.

    Raises:
      ValueError: there are to be several processes, but nothing says where they meet; each would
        otherwise run alone. Or one of the variables is no number.
    """
    env = os.environ
    coordinator_address = coordinator_address or env.get("JAX_COORDINATOR_ADDRESS")
    if num_processes is None:
        num_processes = _number(env, "JAX_NUM_PROCESSES")
    if process_id is None:
        process_id = _number(env, "JAX_PROCESS_ID")
    if num_processes == 1:
        return
    if not (coordinator_address or _in_a_cluster(env)):
        if num_processes is not None:
            raise ValueError(
                f"There are to be {num_processes} processes, but nothing says where they meet: "
                "give coordinator_address, or set JAX_COORDINATOR_ADDRESS to HOST:PORT of "
                "process 0."
            )
        return
    jax.distributed.initialize(coordinator_address, num_processes, process_id)


def _number(env: Mapping[str, str], name: str) -> int | None:
    """A variable that holds a number, if it is set."""
    text = env.get(name)
    if text is None:
        return None
    if not text.isdigit():
        raise ValueError(f"{name} is {text!r}; it must be a number.")
    return int(text)


def _in_a_cluster(env: Mapping[str, str]) -> bool:
    """Whether the environment promises other processes."""
    # in a batch script outside srun the job has many tasks, but this step of it has only one
    slurm = int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1
    mpi = int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    kubernetes = "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env
    return slurm or mpi or kubernetes or _on_tpu(env)


def _on_tpu(env: Mapping[str, str]) -> bool:
    """On a TPU machine `jax.distributed.initialize` works for one host as well as for a pod."""
    if find_spec("libtpu") is None or "tpu" not in env.get("JAX_PLATFORMS", "tpu"):
        return False
    return any(Path("/dev").glob("accel*")) or any(Path("/dev").glob("vfio/[0-9]*"))


def _path_name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _check_spec(name: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> None:
    for i, entry in enumerate(spec):
        axes = (entry,) if isinstance(entry, str) else entry or ()
        unknown = [axis for axis in axes if axis not in mesh.shape]
        if unknown:
            raise ValueError(
                f"The rule for {name!r} names the mesh axis {unknown[0]!r}; the mesh has "
                f"{list(mesh.shape)}."
            )
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if i >= len(shape) or shape[i] % parts:
            raise ValueError(
                f"The rule for {name!r} splits axis {i} into {parts} parts, which does not fit "
                f"its shape {shape}."
            )
