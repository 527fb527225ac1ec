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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

import diffjax as dj
import watermark
from choices import build
from cli import parse_args, prepare_output, run_script
from diffjax import pipelines
from diffjax.core.keys import sample_keys
from diffjax.pipelines import Plan, System
from diffjax.pipelines.image_prompt import image_prompted, with_image_prompt
from diffjax.pretrained import Components, Scheduler, find_folder, load_components, read_scheduler
from diffjax.pretrained.ip_adapter import load_ip_adapter
from diffjax.pretrained.lora import load_lora, merge_lora
from diffjax.pretrained.schedulers import SCHEDULER_FILE
from diffjax.pretrained.textual_inversion import load_embedding
from diffjax.solvers import SOLVERS
from diffjax.training import batch_sharding, make_mesh, replicated
from export_sampler import export_sampler, require_flatbuffers
from picture_models import Watch, read_picture, seen_in, steer, with_steering
from prompt_line import fit_size, parse_prompt_line
from stages import Canvas, Mix, Stages


@dataclass(frozen=True)
class Args:
    """Images from prompts, with a saved model of diffusers' format."""

    model: str
    """a folder with model_index.json, or the name of a repository of the Hugging Face hub"""
    prompt: str = ""
    """what to show; (words:1.3) count more, (words:0.7) less; may end with --ar W:H, --seed N,
    --no THINGS, --iw SHARE, --stylize N, --chaos N"""
    negative_prompt: str | None = None
    """what not to show"""
    label: int | None = None
    """a class in the place of a prompt, for models of classes"""
    seed: int = 0
    """image i of a seed is always the same"""
    num_steps: int = 30
    """steps from noise to image"""
    guidance_scale: float = 7.0
    """classifier-free guidance, or what a distilled network is told; 1 is off"""
    guidance_rescale: float = 0.0
    """against over-exposure: share of the guided estimate that gets the spread of the other"""
    solver: str | None = None
    """by default the model's own; the class of another scheduler (EulerDiscreteScheduler), or a
    solver of diffjax (dpmpp_2m, unipc, ddim(eta=0.5), ...) on the model's own grid"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of weights and computation"""
    height: int | None = None
    """by default the model's own"""
    width: int | None = None
    """by default the model's own"""
    num_images: int = 1
    """how many"""
    batch_size: int = 4
    """images computed at once"""
    image: Path | None = None
    """a picture to start from"""
    mask: Path | None = None
    """a picture of its size, white where it is to be painted anew"""
    strength: float | None = None
    """how much of it is made anew, in (0, 1]; by default 0.6, and 1 under a mask"""
    chaos: float = 100.0
    """how unlike each other the images are: 100 for noise of their own, 0 for the same"""
    ip_adapter: Path | None = None
    """a file that lets the model see a picture beside the prompt"""
    image_prompt: Path | None = None
    """the picture that it sees"""
    image_scale: float = 1.0
    """how much that counts"""
    image_encoder: Path | None = None
    """folder of CLIP's image encoder; by default MODEL/image_encoder"""
    controlnet: tuple[Path, ...] = ()
    """folders of ControlNets and T2I-Adapters"""
    control_image: tuple[Path, ...] = ()
    """what they see, a picture for each: edges, poses, depths"""
    controlnet_scale: tuple[float, ...] = (1.0,)
    """how much that counts, one number for all or one for each"""
    lora: tuple[str, ...] = ()
    """LoRA files, each FILE or FILE:SCALE"""
    embedding: tuple[Path, ...] = ()
    """files of learned words (textual inversion); FILE is <FILE> in prompts, unless it names one"""
    emphasis: bool = True
    """whether parentheses in prompts give weights"""
    variant: str | None = None
    """which copy of the weights, such as fp16"""
    single_file: Path | None = None
    """the weights in one file of the layout of the first releases, in the place of the folder's"""
    tile: int | None = None
    """for large pictures: side of the tiles in which they are decoded, such as 512"""
    safety_model: Path | None = None
    """folder of a safety checker; pictures that it finds unsafe become black"""
    watermark: str | None = None
    """a short text, put into the pictures so that it is not seen; watermark.py reads it"""
    export: Path | None = None
    """FILE.npz: write the sampler, for --batch-size images, in the place of images"""
    output: Path = Path("images")
    """folder of the pictures"""


@contextmanager
def told(what: str) -> Iterator[None]:
    """Say what takes time, and how much it took."""
    print(f"{what} ...", end="", file=sys.stderr, flush=True)
    start = time.perf_counter()
    try:
        yield
    finally:
        print(f" {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


def merge_line(args: Args) -> Args:
    """The settings of a prompt's line in their places; only the aspect ratio is left for later."""
    line = parse_prompt_line(args.prompt)
    changes: dict[str, Any] = {"prompt": line.prompt}
    if line.seed is not None:
        changes["seed"] = line.seed
    if line.negative is not None:
        changes["negative_prompt"] = line.negative
    if line.image_weight is not None and args.image_prompt is not None:
        changes["image_scale"] = line.image_weight
    elif line.image_weight is not None:
        changes["strength"] = 1.0 - line.image_weight
    if line.chaos is not None:
        changes["chaos"] = line.chaos
    if line.stylize is not None:
        changes["guidance_scale"] = 1.0 + (args.guidance_scale - 1.0) * line.stylize / 100.0
    return dataclasses.replace(args, **changes)


def check_args(args: Args) -> None:
    """Refuse before any work what cannot be done."""
    for name in ("num_steps", "num_images", "batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; at least 1")
    for name in ("image", "mask", "ip_adapter", "image_prompt", "single_file"):
        path = getattr(args, name)
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"--{name.replace('_', '-')} {path} is not a file")
    pairs = ("mask", "image"), ("image_prompt", "ip_adapter"), ("ip_adapter", "image_prompt")
    for name, needed in (*pairs, ("controlnet", "control_image")):
        if getattr(args, name) and not getattr(args, needed):
            raise ValueError(f"--{name.replace('_', '-')} needs --{needed.replace('_', '-')}")
    for path in args.control_image:
        if not path.is_file():
            raise FileNotFoundError(f"--control-image {path} is not a file")
    if len(args.controlnet_scale) not in (1, len(args.control_image)):
        given = f"{len(args.controlnet_scale)} numbers for {len(args.control_image)} pictures"
        raise ValueError(f"--controlnet-scale has {given}")
    if args.control_image and args.ip_adapter is not None:
        raise ValueError("--control-image does not go with --ip-adapter")
    if not 0.0 <= args.chaos <= 100.0:
        raise ValueError(f"--chaos is {args.chaos}; it must be in [0, 100]")
    if args.watermark is not None and args.export is not None:
        raise ValueError("--watermark does not go with --export")
    if args.export is not None:
        prepare_output(args.export, ".npz")
        require_flatbuffers()
    args.output.mkdir(parents=True, exist_ok=True)
    if not os.access(args.output, os.W_OK):
        raise PermissionError(f"--output {args.output} cannot be written")


def image_size(args: Args, ratio: float | None, system: System) -> tuple[int, int]:
    """Height and width of the images."""
    if ratio is not None and args.height is None and args.width is None:
        return fit_size(system.size, ratio, 64 if min(system.size) >= 256 else 8)
    height, width = args.height or system.size[0], args.width or system.size[1]
    system.latent_shape(height, width)  # refuses sides that do not fit
    return height, width


def load_parts(args: Args, folder: Path) -> Components:
    """The parts of the model, with learned words and the LoRA files in them."""
    options: dict[str, Any] = {
        "dtype": args.dtype,
        "param_dtype": args.dtype,
        "mesh": make_mesh(),
    }
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
    if "embedded_guidance" in names:
        sizes["embedded_guidance"] = args.guidance_scale
    if "chunks" in names:
        sizes["chunks"] = None
    guided = args.guidance_scale != 1.0 and not is_distilled(system, sizes)
    negative = [args.negative_prompt] * count if guided else None
    return system.prepare([args.prompt] * count, negative, emphasis=args.emphasis, **sizes)


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


def strength(args: Args) -> float:
    """How much of the picture to start from is made anew."""
    if args.strength is not None:
        return args.strength
    return 1.0 if args.mask is not None else 0.6


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
    conditions = make_conditions(args, system, size, count)
    if args.image_prompt is not None:
        system = image_prompted(system, parts)
        seen = seen_in(args.image_prompt, args.image_encoder or folder / "image_encoder")
        conditions = with_image_prompt(conditions, jnp.tile(seen, (count, 1)))
    if args.control_image:
        shape: dict[str, Any] = {"count": count, "size": size}
        given = args.control_image, args.controlnet_scale
        system, conditions = steer(system, parts, conditions, *given, **shape)
    conditions = place(conditions)
    plan = plan._replace(levels=everywhere(plan.levels))
    params = everywhere(parts.params)
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
