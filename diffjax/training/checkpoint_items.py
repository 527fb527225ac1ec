"""The arrays of a checkpoint: the only file that knows Orbax.

Each item (params, averages, optimizer state) is one Orbax tree, loadable alone. Optimizer states
are saved as one flat dict by path, so that no class of optax needs to be found again.
"""

import logging
import os
import re
from pathlib import Path
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding


class CheckpointError(RuntimeError):
    """A checkpoint could not be saved, found or trusted; the message says which and why."""


def start_saving(path: Path, items: dict[str, Any]) -> Any:
    """Copy trees of arrays to the host and start to write them; items without arrays are left out.

    Args:
      path: the folder to make; it must not exist.
      items: the trees by name.

    Returns:
      What `finish_saving` waits for.
    """
    # named tuples as one flat dict, so that loading needs no class of optax
    items = dict(items, opt_state=_by_path(items["opt_state"]))
    filled = {name: item for name, item in items.items() if jax.tree.leaves(item)}
    # Orbax logs a failure once per thread, with traces; it is raised too, which is enough
    logging.getLogger("absl").addFilter(_not_orbax)
    ocp = _orbax()
    options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
    with ocp.Context(async_options=options):
        return ocp.save_checkpointables_async(str(path), filled)


def finish_saving(response: Any) -> None:
    """Wait until the arrays are on disk, and raise what went wrong."""
    try:
        response.result()
    finally:
        logging.getLogger("absl").removeFilter(_not_orbax)


def load_item(path: Path, name: str, *, like: Any = None) -> Any:
    """Load one item of a checkpoint.

    Args:
      path: the folder of one step, from `find_checkpoint`.
      name: "params", "ema" (a dict by the name of the decay), or "opt_state".
      like: a tree of arrays or of `jax.ShapeDtypeStruct` with shardings, whose structure, shapes
        and types are checked and whose shardings are used. Without it the nested dicts that were
        saved are loaded onto the first device of this process.

    Raises:
      CheckpointError: the checkpoint lacks the item, or does not fit `like`.
    """
    ocp = _orbax()
    if not (path / name).is_dir():
        raise CheckpointError(f"Checkpoint {path} holds no item {name!r}.")
    saved = ocp.metadata(str(path), checkpointable_name=name).metadata
    first = SingleDeviceSharding(jax.local_devices()[0])
    if like is None:
        place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=first)
        return ocp.load(str(path), jax.tree.map(place, saved), checkpointable_name=name)
    wanted = _by_path(like)
    _check_fits(path / name, _by_path(saved), wanted)

    def target(key_path: tuple, _: Any) -> jax.ShapeDtypeStruct:
        leaf = wanted[_path_name(key_path)]
        sharding = getattr(leaf, "sharding", None) or first
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    targets = jax.tree_util.tree_map_with_path(target, saved)
    loaded = _by_path(ocp.load(str(path), targets, checkpointable_name=name))
    return jax.tree.unflatten(jax.tree.structure(like), [loaded[name] for name in wanted])


def reason_of(error: Exception) -> str:
    """What the system said, without the layers around it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    code = re.search(r"os_error_code='(\d+)'", text)
    return os.strerror(int(code.group(1))) if code else text or type(error).__name__


def _check_fits(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    describe = lambda leaf: f"{leaf.dtype}{list(leaf.shape)}"
    problems = [f"{name} is missing" for name in wanted if name not in saved]
    problems += [f"{name} is not in the model" for name in saved if name not in wanted]
    problems += [
        f"{name} is {describe(saved[name])}, the model has {describe(leaf)}"
        for name, leaf in wanted.items()
        if name in saved and describe(saved[name]) != describe(leaf)
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"Checkpoint {path} does not fit this model: {'; '.join(problems[:3])}{more}. Was it "
            "written with another configuration?"
        )


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_path_name(path): leaf for path, leaf in leaves}


def _path_name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _not_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _orbax() -> Any:
    # imported late: it takes half a second, and `import orbax.checkpoint.v1` does not work
    from orbax.checkpoint import v1

    return v1
