"""Images from prompts, with a saved model of diffusers' format.

    python experiments/text_to_image.py --model FOLDER --prompt "a red cat (on a mat:1.3)"

A seed gives the same images, whatever the batch size and the number of devices. Prompt, seed and
settings stand in each picture. Compiled programs are kept for the next start.
"""

import dataclasses
import inspect
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

import diffjax as dj
import watermark
from choices import build
from cli import parse_args, run_script
from diffjax import pipelines
from diffjax.core.keys import sample_keys
from diffjax.pipelines import Plan, System
from diffjax.pipelines.image_prompt import image_prompted, with_image_prompt
from diffjax.pipelines.refiner import REFINER, handover, refined, with_refiner
from diffjax.pretrained import Components, Scheduler, find_folder, load_components, read_scheduler
from diffjax.pretrained.components import NOT_NEEDED, read_model_index
from diffjax.pretrained.ip_adapter import load_ip_adapter
from diffjax.pretrained.lora import load_lora, merge_lora
from diffjax.pretrained.schedulers import SCHEDULER_FILE
from diffjax.pretrained.textual_inversion import load_embedding
from diffjax.solvers import SOLVERS
from diffjax.training import batch_sharding, make_mesh, replicated
from export_sampler import export_sampler
from picture_models import Watch, read_picture, seen_in, steer, with_steering
from prompt_line import fit_size, parse_prompt_line
from stages import Canvas, Mix, Stages
from text_to_image_settings import Args, check_args, merge_line, strength

# what a refiner has from the model
SHARED = ("vae",)


@contextmanager
def told(what: str) -> Iterator[None]:
    """Say what takes time, and how much it took."""
    print(f"{what} ...", end="", file=sys.stderr, flush=True)
    start = time.perf_counter()
    try:
        yield
    finally:
        print(f" {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


def image_size(args: Args, ratio: float | None, system: System) -> tuple[int, int]:
    """Height and width of the images."""
    if ratio is not None and args.height is None and args.width is None:
        return fit_size(system.size, ratio, 64 if min(system.size) >= 256 else 8)
    height, width = args.height or system.size[0], args.width or system.size[1]
    system.latent_shape(height, width)  # refuses sides that do not fit
    return height, width


def load_options(args: Args) -> dict[str, Any]:
    """How the networks are loaded."""
    return {"dtype": args.dtype, "param_dtype": args.dtype, "mesh": make_mesh()}


def load_parts(args: Args, folder: Path) -> Components:
    """The parts of the model, with learned words and the LoRA files in them."""
    options = load_options(args)
    parts = load_components(folder, variant=args.variant, single_file=args.single_file, **options)
    if args.tile is not None:
        parts = pipelines.with_tiles(parts, args.tile)
    if args.controlnet:
        parts = with_steering(parts, args.controlnet, **options)
    for path in args.embedding:
        if not path.is_file():
            raise FileNotFoundError(f"--embedding {path} is not a file")
        parts = load_embedding(path, parts)
    params: Any = parts.params
    for text in args.lora:
        name, _, scale = text.rpartition(":") if not Path(text).is_file() else (text, "", "1")
        if not Path(name).is_file():
            raise FileNotFoundError(f"--lora {text}: {name or text} is not a file")
        params = merge_lora(params, load_lora(name, parts.models), float(scale))
    models = {name: model._replace(params=params[name]) for name, model in parts.models.items()}
    parts = parts._replace(models=models)
    if args.ip_adapter is None:
        return parts
    return load_ip_adapter(args.ip_adapter, parts, scale=args.image_scale)


def load_refiner(args: Args, parts: Components) -> Components:
    """The parts of the refiner; its latents are those of the model's own autoencoder."""
    folder = find_folder(args.refiner or "")
    _, names, _ = read_model_index(folder)
    models = parts.models
    if not {"unet", "vae"} <= models.keys() or not {"unet", "vae"} <= names.keys():
        raise ValueError(f"--refiner {folder}: it and the model need a UNet of latents (unet, vae)")
    only = [name for name in names if name not in (*NOT_NEEDED, *SHARED)]
    found = load_components(folder, variant=args.variant, only=only, **load_options(args))
    here, there = (each["unet"].config.in_channels for each in (models, found.models))
    if here != there:
        raise ValueError(f"--refiner {folder} takes {there} channels, and the model {here}")
    return found._replace(models={**found.models, **{name: models[name] for name in SHARED}})


def choose_scheduler(args: Args, folder: Path, parts: Components) -> Scheduler:
    """The model's scheduler, or another one of its class that is read from the same file."""
    if args.solver is None or not args.solver.endswith("Scheduler"):
        return parts.schedulers["scheduler"]
    return read_scheduler(folder / "scheduler" / SCHEDULER_FILE, class_name=args.solver)


def make_steps(args: Args, scheduler: Scheduler, system: System, size: tuple[int, int]) -> Plan:
    """The steps of the run, with the scheduler's solver or one of diffjax."""
    share = strength(args) if args.image is not None else 1.0
    grid = system.grid(*size, args.num_steps)
    plan = pipelines.make_plan(scheduler, args.num_steps, strength=share, grid=grid)
    if args.solver is None or args.solver.endswith("Scheduler"):
        return plan
    solver = build("--solver", args.solver, SOLVERS, schedule=scheduler.schedule)
    return plan._replace(solver=solver)


def make_conditions(args: Args, system: System, size: tuple[int, int], count: int) -> list:
    """What the network is told, for `count` images."""
    sizes: dict[str, Any] = {"height": size[0], "width": size[1]}
    if args.label is not None:
        guided = args.guidance_scale != 1.0
        return system.prepare([args.label] * count, [None] * count if guided else None, **sizes)
    names = inspect.signature(system.prepare).parameters
    if "emphasis" not in names:
        return system.prepare(None, **sizes)
    sizes |= embedded_guidance(system, args.guidance_scale)
    if "chunks" in names:
        sizes["chunks"] = None
    guided = args.guidance_scale != 1.0 and not is_distilled(system, sizes)
    negative = [args.negative_prompt] * count if guided else None
    return system.prepare([args.prompt] * count, negative, emphasis=args.emphasis, **sizes)


def tell(
    args: Args,
    folder: Path,
    parts: Components,
    refiner: Components | None,
    system: System,
    *,
    size: tuple[int, int],
    count: int,
) -> tuple[System, dict[str, Any], list]:
    """The system with all that joins it, their params, and what they are told for `count` images.

    Args:
      folder, parts: of the model.
      refiner: the parts of one that goes on where the model stops.
      system: of the parts.
    """
    conditions = make_conditions(args, system, size, count)
    if args.image_prompt is not None:
        system = image_prompted(system, parts)
        encoder = args.image_encoder or folder / "image_encoder"
        seen = seen_in(args.image_prompt, encoder, parts)
        conditions = with_image_prompt(conditions, *(jnp.repeat(each, count, 0) for each in seen))
    if args.control_image:
        shape: dict[str, Any] = {"count": count, "size": size}
        given = args.control_image, args.controlnet_scale
        system, conditions = steer(system, parts, conditions, *given, **shape)
    if refiner is None:
        return system, parts.params, conditions
    here, there = (each.schedulers["scheduler"] for each in (parts, refiner))
    second = pipelines.make_system(refiner)
    system = refined(system, second, until=handover(here, there, args.refiner_start))
    conditions = with_refiner(conditions, make_conditions(args, second, size, count))
    own = {name: each for name, each in refiner.params.items() if name not in SHARED}
    return system, {**parts.params, REFINER: own}, conditions


def embedded_guidance(system: System, guidance_scale: float) -> dict[str, float]:
    """What `prepare` takes besides, of a system whose network may be told the guidance scale."""
    taken = "embedded_guidance" in inspect.signature(system.prepare).parameters
    return {"embedded_guidance": guidance_scale} if taken else {}


def is_distilled(system: System, sizes: dict[str, Any]) -> bool:
    """Whether the network is told the guidance scale, and needs no second estimate."""
    return "guidance" in system.prepare([""], **sizes)[0]


def make_guidance(args: Args, system: System):
    def guidance(denoise, unconditional):
        guided = dj.classifier_free(denoise, unconditional, guidance_scale=args.guidance_scale)
        if not args.guidance_rescale:
            return guided
        row = system.parameterization
        return dj.rescaled(guided, denoise, amount=args.guidance_rescale, parameterization=row)

    return guidance


def make_canvas(args: Args, parts: Components, system: System, size: tuple[int, int]) -> Canvas:
    """The picture to start from, and where it is painted anew."""
    if args.image is None:
        return Canvas(size)
    image = read_picture(args.image, size)
    if args.mask is None:
        return Canvas(size, image)
    hole = Image.open(args.mask).convert("L").resize((size[1], size[0]), Image.Resampling.NEAREST)
    mask = (np.asarray(hole, np.float32)[..., None] > 127.5).astype(np.float32)
    latents = system.latent_shape(*size)[-1]
    takes = getattr(parts.models["unet"].config, "in_channels", 0) if "unet" in parts.models else 0
    # networks for holes see the mask and the rest of the picture beside the latents
    told_hole = takes == 2 * latents + 1
    return Canvas(size, image, mask, told_hole, from_noise=strength(args) == 1.0)


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


def make_pictures(args: Args, batches: range, make: Callable[[int], np.ndarray], size) -> None:
    """Make the batches, look at them where a checker is given, and write them."""
    watch = None if args.safety_model is None else Watch(args.safety_model)
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


def main() -> None:
    given = parse_args(Args, description=__doc__)
    ratio = parse_prompt_line(given.prompt).aspect_ratio
    args = merge_line(given)
    check_args(args)
    keep_compiled()
    folder = find_folder(args.model)
    with told("loading"):
        parts = load_parts(args, folder)
        refiner = None if args.refiner is None else load_refiner(args, parts)
    system = pipelines.make_system(parts)
    size = image_size(args, ratio, system)
    if args.watermark is not None:
        watermark.require_room(args.watermark, *size)
    plan = make_steps(args, choose_scheduler(args, folder, parts), system, size)
    canvas = make_canvas(args, parts, system, size)

    mesh = make_mesh()
    devices = mesh.shape["data"]
    # every batch is filled up to a multiple of the devices
    wanted = args.batch_size if args.export else min(args.batch_size, args.num_images)
    count = -(-wanted // devices) * devices
    place, everywhere = (
        partial(jax.device_put, device=where) for where in (batch_sharding(mesh), replicated(mesh))
    )
    told_for: dict[str, Any] = {"size": size, "count": count}
    system, params, conditions = tell(args, folder, parts, refiner, system, **told_for)
    params, conditions = everywhere(params), place(conditions)
    plan = plan._replace(levels=everywhere(plan.levels))
    keys = lambda first: place(sample_keys(jax.random.key(args.seed), first + np.arange(count)))
    # no sample has this number
    common = sample_keys(jax.random.key(args.seed), jnp.array([-1]))
    mix = everywhere(Mix(common, jnp.float32(args.chaos / 100.0)))
    stages = Stages(system, plan, canvas, make_guidance(args, system))
    if args.export is not None:
        with told("exporting"):
            export_sampler(args.export, stages, params, keys(0), conditions, mix)
        print(f"Wrote a sampler of {count} images to {args.export}")
        return
    with told("compiling"):
        stages.compile(params, keys(0), conditions, mix)

    batches = range(0, args.num_images, count)
    steps = len(batches) * (len(plan.levels.t) - 1)
    with tqdm(total=steps, desc="sampling", unit="step") as bar:
        make = lambda first: stages.run(params, keys(first), conditions, mix, bar)
        make_pictures(args, batches, make, size)


if __name__ == "__main__":
    run_script(main)
