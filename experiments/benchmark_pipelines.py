"""How fast saved systems make images, beside diffusers on torch, as one line of JSON.

    python experiments/benchmark_pipelines.py FOLDER... --num-steps 10

Folders of text-to-image systems. Both sides are given the same folder, prompts, steps, guidance and
size, in float32; a call goes from prompts to images in the memory of the host. `rows` holds for
each folder what `benchmark.py` calls them: `median_s` and `min_s`, those of diffusers, and `ratio`
and `min_ratio` (above 1: ours is faster), from calls that took turns in this one process. `first_s`
is our first call, compilation included.

Needs the extra `bench`, and transformers.
"""

import inspect
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import diffjax as dj
from benchmark import compare_times, environment, say, take_turns
from cli import parse_args, run_script
from diffjax.core.keys import sample_keys
from diffjax.pipelines import make_plan, make_system, txt2img
from diffjax.pretrained import load_components
from saved_models import embedded_guidance, is_distilled

PROMPTS = ("a photo of the cat", "the cat and dog on a mat!")
OTHERS = ("torch", "diffusers", "transformers")

Call = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Args:
    """Time saved systems beside diffusers."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """of text-to-image systems, each with model_index.json"""
    num_steps: int = 10
    """from noise to image"""
    guidance_scale: float = 5.0
    """classifier-free, or what a distilled network is told; above 1"""
    batch_size: int = 2
    """images of a call"""
    repeats: int = 11
    """timed calls of each side"""


def ours(folder: Path, args: Args) -> tuple[Call, dict[str, Any]]:
    """A call of diffjax, compiled whole, and what it makes."""
    parts = load_components(folder)
    system = make_system(parts)
    height, width = system.size
    grid = system.grid(height, width, args.num_steps)
    plan = make_plan(parts.schedulers["scheduler"], args.num_steps, grid=grid)
    told = embedded_guidance(system, args.guidance_scale)
    sizes: dict[str, Any] = {"height": height, "width": width, **told}
    distilled = is_distilled(system, sizes)
    guidance = partial(dj.classifier_free, guidance_scale=args.guidance_scale)
    run = jax.jit(
        partial(
            txt2img,
            system,
            solver=plan.solver,
            height=height,
            width=width,
            guidance=None if distilled else guidance,
            initial_scale=plan.initial_scale,
        )
    )
    keys = sample_keys(jax.random.key(0), jnp.arange(args.batch_size))
    negative = None if distilled else [None] * args.batch_size

    def call() -> np.ndarray:
        # tokens are part of the work
        conditions = system.prepare(prompts(args), negative, **sizes)
        return np.asarray(run(parts.params, keys, conditions, levels=plan.levels))

    return call, {"system": parts.name, "shape": [args.batch_size, height, width, 3]}


def theirs(folder: Path, args: Args, shape: list[int]) -> Call:
    """A call of diffusers."""
    import torch
    from diffusers import DiffusionPipeline

    pipe: Any = DiffusionPipeline.from_pretrained(folder).to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    settings = {
        "num_inference_steps": args.num_steps,
        "guidance_scale": args.guidance_scale,
        "height": shape[1],
        "width": shape[2],
        "output_type": "np",
    }
    if "use_resolution_binning" in inspect.signature(pipe.__call__).parameters:
        # PixArt's would bring a small image to one of its own sizes
        settings["use_resolution_binning"] = False

    def call() -> np.ndarray:
        with torch.no_grad():
            return pipe(prompts(args), **settings).images

    return call


def prompts(args: Args) -> list[str]:
    return [PROMPTS[i % len(PROMPTS)] for i in range(args.batch_size)]


def compare(folder: Path, args: Args) -> dict[str, Any]:
    """The row of one folder."""
    call, made = ours(folder, args)
    other, start = theirs(folder, args, made["shape"]), time.perf_counter()
    shapes, first = [call().shape], time.perf_counter() - start
    shapes.append(other().shape)
    if any(list(shape) != made["shape"] for shape in shapes):
        raise ValueError(f"{folder}: the two sides make images of the shapes {shapes}")
    times = take_turns({"ours": call, "diffusers": other}, args.repeats)
    return {**made, **compare_times(times), "first_s": first}


def main() -> None:
    args = parse_args(Args, description=__doc__)
    if min(args.num_steps, args.batch_size, args.repeats) < 1 or args.guidance_scale <= 1:
        raise ValueError("--num-steps, --batch-size and --repeats: at least 1; guidance above 1")
    if missing := [name for name in OTHERS if find_spec(name) is None]:
        raise ImportError(f"{missing[0]} is missing: pip install {' '.join(OTHERS)}")
    rows = []
    for folder in args.folders:
        say(f"{folder}")
        rows.append({"folder": str(folder), **compare(folder, args)})
    found = environment(None)
    found["versions"] |= {name: version(name) for name in OTHERS}
    settings = {name: value for name, value in vars(args).items() if name != "folders"}
    print(json.dumps({**found, "arguments": settings, "rows": rows}))


if __name__ == "__main__":
    run_script(main)
