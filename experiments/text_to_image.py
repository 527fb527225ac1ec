"""Images from prompts, with a saved model of diffusers' format.

    python experiments/text_to_image.py --model FOLDER --prompt "a red cat (on a mat:1.3)"

A seed gives the same images, whatever the batch size and the number of devices. Prompt, seed and
settings stand in each picture. Compiled programs are kept for the next start.
"""

import dataclasses
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

import watermark
from cli import parse_args, run_script
from diffjax.core.keys import sample_keys
from diffjax.pipelines.unclip import UNCLIP
from diffjax.pretrained import Components, find_folder
from diffjax.training import batch_sharding, filled_batch_size, make_mesh, replicated
from export_sampler import export_sampler
from picture_models import Watch
from pretrained_guidance import guided_system, make_guidance
from prompt_line import parse_prompt_line
from saved_models import (
    add_refiner,
    choose_scheduler,
    image_size,
    load_parts,
    load_refiner,
    make_canvas,
    make_steps,
    make_system,
    require_pictures,
    tell,
)
from stages import Mix, Stages, Work
from text_to_image_settings import Args, check_args, merge_line
from unclip_pictures import unclip_work


@contextmanager
def told(what: str) -> Iterator[None]:
    """Say what takes time, and how much it took."""
    print(f"{what} ...", end="", file=sys.stderr, flush=True)
    start = time.perf_counter()
    try:
        yield
    finally:
        print(f" {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


def save_picture(path: Path, image: np.ndarray, settings: dict[str, Any]) -> None:
    """Write a PNG whose text says how it was made."""
    text = PngInfo()
    text.add_text("prompt", str(settings["prompt"]))
    text.add_text("diffjax", json.dumps(settings, default=str))
    Image.fromarray(image.squeeze()).save(path, pnginfo=text)


def keep_compiled() -> None:
    """Keep compiled programs from one start to the next, as the environment says or in ~/.cache."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        folder = Path.home() / ".cache" / "diffjax" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def make_pictures(
    args: Args,
    batches: range,
    make: Callable[[int], np.ndarray],
    *,
    size: tuple[int, int],
    watch: Watch | None,
) -> None:
    """Make the batches, look at them where a checker is given, and write them."""
    settings = {**dataclasses.asdict(args), "height": size[0], "width": size[1]}
    for first in batches:
        images = make(first)
        hidden = np.zeros(len(images), bool) if watch is None else watch(images)
        for i, picture in enumerate(images[: args.num_images - first], start=first):
            if hidden[i - first]:
                reason = f"image {i} is black: {args.safety_model} finds it unsafe"
                warnings.warn(reason, stacklevel=2)
                picture = np.zeros_like(picture)
            elif args.watermark is not None:
                picture = watermark.mark(picture, args.watermark)
            path = args.output / f"{args.seed:06d}_{i:04d}.png"
            save_picture(path, picture, {**settings, "index": i})
    print(f"Wrote {args.num_images} images to {args.output}")


def count_at_once(args: Args) -> int:
    """Images of a batch, which is filled up for all devices."""
    wanted = args.batch_size if args.export else min(args.batch_size, args.num_images)
    return filled_batch_size(wanted, make_mesh())


def place_inputs(args: Args, params: Any, conditions: Any, count: int) -> Callable[[int], tuple]:
    """From the number of a batch's first image to what its programs are given, on the devices."""
    split, everywhere = (
        partial(jax.device_put, device=where(make_mesh())) for where in (batch_sharding, replicated)
    )
    params, conditions, key = everywhere(params), split(conditions), jax.random.key(args.seed)
    # no sample has this number
    common = sample_keys(key, jnp.array([-1]))
    mix = everywhere(Mix(common, jnp.float32(args.chaos / 100.0)))
    keys = lambda first: split(sample_keys(key, first + np.arange(count)))
    return lambda first: (params, keys(first), conditions, mix)


def diffusion_work(
    args: Args,
    folder: Path,
    parts: Components,
    *,
    refiner: Components | None,
    ratio: float | None,
    count: int,
) -> Work:
    """What is run with a model of one system.

    Args:
      folder, parts: of the model.
      refiner: the parts of one that goes on where the model stops.
      ratio: width / height of the images; None for the settings' or the model's.
      count: images of a batch.
    """
    system = guided_system(args, parts, partial(make_system, args))
    size = image_size(args, ratio, system)
    scheduler = choose_scheduler(args, parts.schedulers["scheduler"])
    plan = make_steps(args, scheduler, system, size)
    plan = plan._replace(levels=jax.device_put(plan.levels, replicated(make_mesh())))
    canvas = make_canvas(args, parts, system, size)
    require_pictures(args, parts, system, canvas)
    params, conditions = parts.params, tell(args, folder, parts, system, size=size, count=count)
    if refiner is not None:
        joined = parts, refiner, system, conditions
        system, params, conditions = add_refiner(args, *joined, size=size, count=count)
    guidance = make_guidance(args, system, len(conditions))
    return Work(Stages(system, plan, canvas, guidance), params, conditions, size)


def main() -> None:
    given = parse_args(Args, description=__doc__)
    ratio = parse_prompt_line(given.prompt).aspect_ratio
    args = merge_line(given)
    check_args(args)
    keep_compiled()
    folder, count = find_folder(args.model, variant=args.variant), count_at_once(args)
    with told("loading"):
        parts = load_parts(args, folder)
        refiner = None if args.refiner is None else load_refiner(args, parts)
        watch = None if args.safety_model is None else Watch(args.safety_model)
    options: dict[str, Any] = {"ratio": ratio, "count": count}
    if parts.name in UNCLIP:
        work = unclip_work(args, parts, **options)
    else:
        work = diffusion_work(args, folder, parts, refiner=refiner, **options)
    if args.watermark is not None:
        watermark.require_room(args.watermark, *work.size)
    inputs = place_inputs(args, work.params, work.conditions, count)
    if args.export is not None:
        with told("exporting"):
            export_sampler(args.export, work.program, *inputs(0))
        print(f"Wrote a sampler of {count} images to {args.export}")
        return
    with told("compiling"):
        work.program.compile(*inputs(0))
    batches = range(0, args.num_images, count)
    steps = len(batches) * work.program.num_steps
    with tqdm(total=steps, desc="sampling", unit="step") as bar:
        make = lambda first: work.program.run(*inputs(first), bar=bar)
        make_pictures(args, batches, make, size=work.size, watch=watch)


if __name__ == "__main__":
    run_script(main)
