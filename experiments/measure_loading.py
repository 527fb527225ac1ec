"""How long a saved network takes to load and how much memory of the host, as one line of JSON.

    python experiments/measure_loading.py --model FOLDER --param-dtype bfloat16
    python experiments/measure_loading.py                  # Stable Diffusion 1's UNet, random

Each measurement is a process of its own, and they take turns:

    read    the files are read into memory, and nothing else is done
    load    `load_model`, from the folder to params that are ready on the default device

`ratio` is the time of load over that of read, the median over the turns. `memory_ratio` is what the
peak memory of the process grows by in load, over the size of the files, and `params_memory_ratio`
over that of the loaded params, which a cast makes larger or smaller. With --cold the files are
dropped from the system's memory before each measurement, so that they come from the disk.
"""

import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import jax
import ml_dtypes
import numpy as np

from cli import parse_args, run_script
from diffjax.networks import unet
from diffjax.networks.unet_latent_presets import sd1_unet
from diffjax.pretrained import load_model, save_model
from diffjax.pretrained.folders import weight_files


@dataclass(frozen=True)
class Args:
    """How long a saved network takes to load, and how much memory of the host."""

    model: Path | None = None
    """folder of one network; by default one with the shape of Stable Diffusion 1's UNet is made,
    with random weights in bfloat16"""
    param_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """to which the stored weights are cast"""
    variant: str | None = None
    """which copy of the weights, such as fp16"""
    cold: bool = False
    """drop the files from the system's memory first"""
    repeats: int = 5
    """measurements of each kind"""


def make_checkpoint(folder: Path) -> None:
    """Save a UNet of Stable Diffusion 1 with random weights in bfloat16, 1.7 GB."""
    config = sd1_unet(param_dtype="bfloat16")
    draw = np.random.default_rng(0).random

    def random(leaf: Any) -> np.ndarray:
        return (draw(leaf.shape, np.float32) - 0.5).astype(ml_dtypes.bfloat16)

    shapes = jax.eval_shape(unet(config).init, jax.random.key(0))
    save_model(folder, config, jax.tree.map(random, shapes))


class Cost(NamedTuple):
    """Of a task: seconds, bytes by which the peak memory of its process rose, bytes that it read
    or made."""

    seconds: float
    growth: int
    size: int


def read_files(args: Args, folder: Path) -> int:
    """Read the files into memory, one after another."""
    files = weight_files(folder, variant=args.variant)
    return sum(np.fromfile(file, np.uint8).nbytes for file in files)


def load(args: Args, folder: Path) -> int:
    """Load the network."""
    model = load_model(folder, param_dtype=args.param_dtype, variant=args.variant)
    return sum(leaf.nbytes for leaf in jax.tree.leaves(jax.block_until_ready(model.params)))


def measure(task: Callable[[Args, Path], int], args: Args, folder: Path) -> Cost:
    """What a task costs in this process."""
    jax.devices()
    for file in weight_files(folder, variant=args.variant) if args.cold else ():
        drop(file)
    before, start = peak_memory(), time.perf_counter()
    size = task(args, folder)
    return Cost(time.perf_counter() - start, peak_memory() - before, size)


def peak_memory() -> int:
    """The most memory that this process has had, in bytes."""
    # Linux counts it in KiB, macOS in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def drop(file: Path) -> None:
    """Drop a file from the system's memory, where the system can."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_all(args: Args, folder: Path) -> dict[str, Any]:
    """The line that is printed."""
    if args.cold and not hasattr(os, "posix_fadvise"):
        raise ValueError("--cold needs posix_fadvise, which this system lacks")
    spawn = multiprocessing.get_context("spawn")
    found: dict[str, list[Cost]] = {"read": [], "load": []}
    for _ in range(args.repeats):
        for name, task in (("read", read_files), ("load", load)):
            with spawn.Pool(1) as pool:
                found[name].append(pool.apply(measure, (task, args, folder)))
    seconds = {name: [each.seconds for each in several] for name, several in found.items()}
    files, params = (found[name][0].size for name in ("read", "load"))
    peak = max(each.growth for each in found["load"])
    return {
        "model": str(args.model or "Stable Diffusion 1's UNet, random bfloat16"),
        "param_dtype": args.param_dtype,
        "cold": args.cold,
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores",
        "jax": jax.__version__,
        "python": platform.python_version(),
        "file_bytes": files,
        "params_bytes": params,
        **{f"{name}_s": round(statistics.median(each), 2) for name, each in seconds.items()},
        "ratio": round(statistics.median(map(np.divide, seconds["load"], seconds["read"])), 2),
        "memory_ratio": round(peak / files, 2),
        "params_memory_ratio": round(peak / params, 2),
    }


def main() -> None:
    args = parse_args(Args, description=__doc__)
    if args.repeats < 1:
        raise ValueError(f"--repeats is {args.repeats}; at least 1")
    with TemporaryDirectory() as made:
        folder = args.model or Path(made)
        if args.model is None:
            make_checkpoint(folder)
        print(json.dumps(measure_all(args, folder)))


if __name__ == "__main__":
    run_script(main)
