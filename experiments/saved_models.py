"""From the settings of text_to_image.py to what it works with: the parts of a saved model, its
system, its steps, and what it is told.

generate.py and edit.py build on the same.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from choices import build
from diffjax import pipelines
from diffjax.pipelines import Plan, System
from diffjax.pipelines.image_prompt import image_prompted, with_image_prompt
from diffjax.pipelines.refiner import REFINER, handover, refined, with_refiner
from diffjax.pretrained import Components, Scheduler, find_folder, load_components, read_scheduler
from diffjax.pretrained.components import NOT_NEEDED, read_model_index
from diffjax.pretrained.ip_adapter import load_ip_adapter
from diffjax.pretrained.lora import load_lora, merge_lora
from diffjax.pretrained.textual_inversion import load_embedding
from diffjax.solvers import SOLVERS
from diffjax.training import make_mesh
from picture_models import read_picture, seen_in, show_control, steering_of, with_steering
from pretrained_guidance import compares_prompts, guided_solver, load_weaker
from prompt_line import fit_size
from stages import Canvas
from text_to_image_settings import Args, strength

# what a refiner has from the model
SHARED = ("vae",)


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
        amount = _read_scale(text, scale)
        params = merge_lora(params, load_lora(name, parts.models), amount)
    models = {name: model._replace(params=params[name]) for name, model in parts.models.items()}
    parts = load_weaker(args, parts._replace(models=models), **options)
    if args.ip_adapter is None:
        return parts
    return load_ip_adapter(args.ip_adapter, parts, scale=args.image_scale)


def _read_scale(text: str, scale: str) -> float:
    try:
        return float(scale)
    except ValueError:
        raise ValueError(f"--lora {text}: {scale!r} is no number; FILE or FILE:SCALE") from None


def load_refiner(args: Args, parts: Components) -> Components:
    """The parts of the refiner; its latents are those of the model's own autoencoder."""
    folder = find_folder(args.refiner or "", variant=args.variant)
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


def image_size(args: Args, ratio: float | None, system: System) -> tuple[int, int]:
    """Height and width of the images."""
    if ratio is not None and args.height is None and args.width is None:
        return fit_size(system.size, ratio, 64 if min(system.size) >= 256 else 8)
    asked = zip((args.height, args.width), system.size)
    height, width = (own if side is None else side for side, own in asked)
    system.latent_shape(height, width)  # refuses sides that do not fit
    return height, width


def choose_scheduler(args: Args, scheduler: Scheduler) -> Scheduler:
    """A model's scheduler, or one of another class that is read from the same settings."""
    if args.solver is None or not args.solver.endswith("Scheduler"):
        return scheduler
    return read_scheduler(scheduler.saved, class_name=args.solver)


def make_steps(args: Args, scheduler: Scheduler, system: System, size: tuple[int, int]) -> Plan:
    """The steps of the run, with the scheduler's solver or one of diffjax."""
    share = strength(args) if args.image is not None else 1.0
    grid = system.grid(*size, args.num_steps)
    plan = pipelines.make_plan(scheduler, args.num_steps, strength=share, grid=grid)
    solver = plan.solver
    if args.solver is not None and not args.solver.endswith("Scheduler"):
        solver = build("--solver", args.solver, SOLVERS, schedule=scheduler.schedule)
    return plan._replace(solver=guided_solver(args, system, solver))


def make_system(args: Args, parts: Components) -> System:
    """The system of the parts, which sees the pictures that the settings name."""
    system = pipelines.make_system(parts)
    if args.image_prompt is not None:
        system = image_prompted(system, parts)
    if args.control_image:
        steering, context = steering_of(parts), parts.models["unet"].config.context
        # the tokens of an IP-Adapter stand behind the words
        system = pipelines.steered(system, steering, image_tokens=context.image_tokens)
    return system


def make_conditions(args: Args, system: System, size: tuple[int, int], count: int) -> list:
    """What the network is told of the prompt or the class, for `count` images."""
    sizes: dict[str, Any] = {"height": size[0], "width": size[1]}
    names = inspect.signature(system.prepare).parameters
    compared, takes_prompts = compares_prompts(args), _required(names, "prompts")
    if args.prompt and not takes_prompts:
        raise ValueError(f"{args.model} takes no --prompt; some such models take a --label")
    if args.label is not None and takes_prompts:
        raise ValueError(f"{args.model} takes a --prompt, no --label")
    if args.label is not None:
        return system.prepare([args.label] * count, [None] * count if compared else None, **sizes)
    if _required(names, "labels"):
        raise ValueError(f"{args.model} makes pictures of classes; it needs a --label")
    if not takes_prompts:
        return system.prepare(None, **sizes)
    options = {"emphasis": args.emphasis, "chunks": None}
    sizes |= {name: each for name, each in options.items() if name in names}
    sizes |= embedded_guidance(system, args.guidance_scale)
    compared = compared and not is_distilled(system, sizes)
    if args.negative_prompt is not None and not compared:
        raise ValueError("--negative-prompt needs guidance that leads away from it; there is none")
    negative = [args.negative_prompt] * count if compared else None
    return system.prepare([args.prompt] * count, negative, **sizes)


def _required(parameters: Mapping[str, inspect.Parameter], name: str) -> bool:
    """Whether a function has an argument of that name, and without a default."""
    return name in parameters and parameters[name].default is inspect.Parameter.empty


def tell(
    args: Args,
    folder: Path,
    parts: Components,
    system: System,
    *,
    size: tuple[int, int],
    count: int,
) -> list:
    """What the network is told of the prompt and of pictures, for `count` images.

    Args:
      folder, parts: of the model.
      system: from `make_system`.
    """
    conditions = make_conditions(args, system, size, count)
    if args.image_prompt is not None:
        encoder = args.image_encoder or folder / "image_encoder"
        seen = seen_in(args.image_prompt, encoder, parts)
        conditions = with_image_prompt(conditions, *(jnp.repeat(each, count, 0) for each in seen))
    if args.control_image:
        given = args.control_image, args.controlnet_scale
        conditions = show_control(parts, conditions, *given, count=count, size=size)
    return conditions


def add_refiner(
    args: Args,
    parts: Components,
    refiner: Components,
    system: System,
    conditions: list,
    *,
    size: tuple[int, int],
    count: int,
) -> tuple[System, dict[str, Any], list]:
    """The system, its params and its conditions, with a refiner that goes on where it stops."""
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


def extra_channels(parts: Components, system: System) -> int:
    """How many channels the network takes beside those of the latents."""
    model = parts.models.get("unet")
    return 0 if model is None else model.config.in_channels - system.latent_shape(*system.size)[-1]


def require_pictures(args: Args, parts: Components, system: System, canvas: Canvas) -> None:
    """Refuse models that make something else, or that need a picture which is not given."""
    if system.rate is not None:
        raise ValueError(f"{args.model} makes videos or sounds; use experiments/generate.py")
    sees = "pictures" in inspect.signature(system.prepare).parameters
    if sees or (extra_channels(parts, system) and not canvas.told_hole):
        raise ValueError(
            f"{args.model} ({parts.name}) makes pictures of a picture: one for holes needs --image "
            "and --mask, others are for experiments/edit.py instruct, enlarge or vary"
        )


def make_canvas(args: Args, parts: Components, system: System, size: tuple[int, int]) -> Canvas:
    """The picture to start from, and where it is painted anew."""
    if args.image is None:
        return Canvas(size)
    image = read_picture(args.image, size)
    if args.mask is None:
        return Canvas(size, image)
    hole = Image.open(args.mask).convert("L").resize((size[1], size[0]), Image.Resampling.NEAREST)
    mask = (np.asarray(hole, np.float32)[..., None] > 127.5).astype(np.float32)
    # networks for holes see the mask and the rest of the picture beside the latents
    told_hole = extra_channels(parts, system) == system.latent_shape(*size)[-1] + 1
    return Canvas(size, image, mask, told_hole, from_noise=strength(args) == 1.0)
