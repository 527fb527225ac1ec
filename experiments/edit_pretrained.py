"""Edit a picture with a saved model of diffusers' format and a prompt.

    python experiments/edit.py img2img --model FOLDER --image cat.png --prompt "a dog"
    python experiments/edit.py inpaint --model FOLDER --image cat.png --prompt "a hat" --mask top

The commands are img2img, inpaint, invert-edit, instruct, enlarge and vary; `COMMAND --model FOLDER
--help` lists their settings. Prompt, seed and settings stand in each picture that is written.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

import diffjax as dj
import saved_models
import text_to_image
from cli import parse_args, run_script
from diffjax import pipelines
from diffjax.core.keys import sample_keys
from diffjax.pipelines import Plan, System
from diffjax.pretrained import Components, Scheduler, find_folder
from diffjax.training import batch_sharding, filled_batch_size, make_mesh, replicated
from edit import read_mask
from generate import shared_args
from picture_models import read_picture
from pretrained_guidance import (
    GuidanceArgs,
    compares_prompts,
    guided_solver,
    guided_system,
    make_guidance,
    require_defaults,
)
from saved_models import load_parts
from text_to_image import keep_compiled, save_picture, told


@dataclass(frozen=True, kw_only=True)
class Common(GuidanceArgs):
    """What every command takes."""

    model: str
    """a folder with model_index.json, or the name of a repository of the Hugging Face hub"""
    image: Path
    """the picture to edit"""
    prompt: str = ""
    """what it is to show; for instruct, what to do with it"""
    negative_prompt: str | None = None
    """what not to show"""
    seed: int = 0
    """result i of a seed is always the same"""
    num_steps: int = 30
    """steps from noise to image"""
    solver: str | None = None
    """as of text_to_image.py: by default the model's own"""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """of weights and computation"""
    height: int | None = None
    """to which the picture is brought; by default the model's own"""
    width: int | None = None
    """to which the picture is brought; by default the model's own"""
    num_images: int = 1
    """how many results, computed at once"""
    lora: tuple[str, ...] = ()
    """LoRA files, each FILE or FILE:SCALE"""
    variant: str | None = None
    """which copy of the weights, such as fp16"""
    output: Path = Path("edited")
    """folder of the pictures"""


@dataclass(frozen=True, kw_only=True)
class Img2img(Common):
    """Noise the picture part of the way and denoise it anew, as the prompt says (SDEdit)."""

    strength: float = 0.6
    """share of the steps that are walked; 1 keeps little"""


@dataclass(frozen=True, kw_only=True)
class Inpaint(Common):
    """Paint a part of the picture anew, with a network made for it (nine channels) or any other."""

    mask: str = "center"
    """left, right, top, bottom, center, FILE.npy [H, W] or FILE.png: 1, or white, where to paint"""
    strength: float = 1.0
    """share of the steps that are walked, below 1 from what is there; not for nine channels"""


@dataclass(frozen=True, kw_only=True)
class InvertEdit(Common):
    """Walk the picture to its noise under one prompt (DDIM inversion), and back under another."""

    source_prompt: str = ""
    """what it shows as it is"""
    strength: float = 0.8
    """share of the steps that are walked"""


@dataclass(frozen=True, kw_only=True)
class Instruct(Common):
    """Do with the picture what the prompt says (models of InstructPix2Pix)."""

    image_guidance_scale: float = 1.5
    """how much of it is kept; 1 is off"""


@dataclass(frozen=True, kw_only=True)
class Enlarge(Common):
    """Make a large picture of a small one (models of super-resolution)."""

    noise_level: int = 20
    """time step of the noise that is put on the small one"""


@dataclass(frozen=True, kw_only=True)
class Vary(Common):
    """Make other pictures of the same (models of image variations); takes no prompt."""


Args = Img2img | Inpaint | InvertEdit | Instruct | Enlarge | Vary


class Job(NamedTuple):
    """What a command works on.

    Attributes:
      parts, system, scheduler: of the model.
      size: height and width of the results.
      images: [B, H, W, 3] in [-1, 1], the picture for each result.
      conditions: of the prompt, and of the negative one where there is guidance.
      keys: [B], one for each result.
      place: puts a batch where the keys are.
    """

    parts: Components
    system: System
    scheduler: Scheduler
    size: tuple[int, int]
    images: Array
    conditions: list
    keys: Array
    place: Callable[[Any], Any]

    def plan(self, args: Any) -> Plan:
        """The steps, of which the strength says how many are walked."""
        shared = _shared(args, strength=getattr(args, "strength", 1.0))
        return saved_models.make_steps(shared, self.scheduler, self.system, self.size)

    def guidance(self, args: Common) -> Any:
        """The guidance, where it is not off or the solver's."""
        return make_guidance(_shared(args), self.system, len(self.conditions))


def img2img(args: Img2img, job: Job) -> Array:
    plan, guidance = job.plan(args), job.guidance(args)
    change = partial(pipelines.img2img, job.system, solver=plan.solver, guidance=guidance)
    given = (job.parts.params, job.keys, job.conditions, job.images)
    return jax.jit(change)(*given, levels=plan.levels)


def inpaint(args: Inpaint, job: Job) -> Array:
    mask = read_mask_or_picture(args.mask, job.size)
    mask = job.place(np.tile(mask[None, ..., None].astype(np.float32), (len(job.keys), 1, 1, 1)))
    if saved_models.extra_channels(job.parts, job.system) == 5:
        if args.strength != 1.0:
            raise ValueError(f"--strength is {args.strength:g}; this model paints from noise alone")
        hole = lambda params, keys, conditions, images, mask: pipelines.with_hole(
            job.system, params, keys, conditions, images, mask
        )
        return from_noise(args, job, job.conditions, hole, job.images, mask)
    plan, guidance = job.plan(args), job.guidance(args)
    options = {"from_noise": args.strength == 1.0, "initial_scale": plan.initial_scale}
    paint = partial(pipelines.inpaint, job.system, solver=plan.solver, guidance=guidance, **options)
    given = (job.parts.params, job.keys, job.conditions, job.images, mask)
    return jax.jit(paint)(*given, levels=plan.levels)


def invert_edit(args: InvertEdit, job: Job) -> Array:
    if args.solver is not None:
        raise ValueError("--solver is set, but an inversion needs DDIM, there and back")
    levels = job.plan(dataclasses.replace(args, strength=1.0)).levels
    as_it_is = dataclasses.replace(args, prompt=args.source_prompt)
    source = job.place(prepare(as_it_is, job.system, job.size, len(job.keys))[:1])
    guidance, plain = job.guidance(args), job.system._replace(weaker=None)
    walks = {
        "inversion": dj.ddim_inversion(),
        "solver": guided_solver(args, job.system, dj.ddim()),
    }

    @jax.jit
    def run(params, keys, source, conditions, images, levels):
        up, down = (
            pipelines.denoiser(system, params, pipelines.conditioning(system, params, told), each)
            for system, told, each in (
                (plain, source, None),
                (job.system, conditions, guidance),
            )
        )
        latents = pipelines.encode(job.system, params, keys, images)
        edited = dj.edit_by_inversion(
            keys, latents, up, down, levels, strength=args.strength, **walks
        )
        return job.system.decode(params, edited)

    return run(job.parts.params, job.keys, source, job.conditions, job.images, levels)


def instruct(args: Instruct, job: Job) -> Array:
    if len(job.conditions) == 1:
        raise ValueError("--guidance-scale is 1; instructions need guidance")
    require_defaults(args, "instructions have a guidance of their own, between three estimates")
    text, image = args.guidance_scale, args.image_guidance_scale

    def original(params, keys, conditions, images):
        return pipelines.with_original(job.system, params, conditions, images)

    def guidance(both, picture, none):
        return dj.composed(none, [both, picture], guidance_scales=[text, image - text])

    return from_noise(args, job, job.conditions, original, job.images, guidance=guidance)


def enlarge(args: Enlarge, job: Job) -> Array:
    schedulers = job.parts.schedulers
    noising = schedulers.get("low_res_scheduler") or schedulers["image_noising_scheduler"]
    height, width = job.size
    most = job.parts.settings.get("max_noise_level") or noising.config["num_train_timesteps"] - 1
    if not 0 <= args.noise_level <= most:
        raise ValueError(f"--noise-level is {args.noise_level}; this model takes 0 to {most}")
    side = job.system.size[0] // job.parts.models["unet"].config.sample_size
    # through latents the network sees the small picture at their size
    small = (height // side, width // side) if side > 1 else (height // 4, width // 4)
    pictures = jnp.asarray(read_picture(args.image, small))
    pictures = job.place(jnp.broadcast_to(pictures, (len(job.keys), *pictures.shape)))
    told = lambda params, keys, conditions, pictures: pipelines.with_small(
        job.system,
        keys,
        conditions,
        pictures,
        noise_level=args.noise_level,
        level=noising.schedule(args.noise_level),
        height=height,
        width=width,
    )
    return from_noise(args, job, job.conditions, told, pictures)


def vary(args: Vary, job: Job) -> Array:
    return from_noise(args, job, job.conditions, lambda params, keys, conditions: conditions)


def from_noise(
    args: Common,
    job: Job,
    conditions: list,
    tell: Callable[..., list],
    *pictures: Array,
    guidance: Any = None,
) -> Array:
    """Images from noise, under conditions to which pictures add what the network sees."""
    plan, guidance = job.plan(args), guidance or job.guidance(args)
    height, width = job.size

    @jax.jit
    def run(params, keys, conditions, pictures, levels):
        return pipelines.txt2img(
            job.system,
            params,
            keys,
            tell(params, keys, conditions, *pictures),
            solver=plan.solver,
            levels=levels,
            height=height,
            width=width,
            guidance=guidance,
            initial_scale=plan.initial_scale,
        )

    return run(job.parts.params, job.keys, conditions, pictures, plan.levels)


class Command(NamedTuple):
    """A command, and how many channels its network may take beside the latents."""

    run: Callable[[Any, Job], Array]
    extra: tuple[int, ...] = (0,)


COMMANDS: dict[type, Command] = {
    Img2img: Command(img2img),
    Inpaint: Command(inpaint, (0, 5)),
    InvertEdit: Command(invert_edit),
    Instruct: Command(instruct, (4,)),
    Enlarge: Command(enlarge, (3,)),
    Vary: Command(vary),
}


def check_job(args: Common, job: Job) -> None:
    """Refuse a command that the model was not made for."""
    extra = saved_models.extra_channels(job.parts, job.system)
    varies = "image_encoder" in job.parts.models
    fits = extra in COMMANDS[type(args)].extra and (varies or not isinstance(args, Vary))
    if not fits or (varies and not isinstance(args, Vary)):
        can = [
            kind.__name__
            for kind, command in COMMANDS.items()
            if extra in command.extra and varies == (kind is Vary)
        ]
        raise ValueError(
            f"{args.model} ({job.parts.name}) was not made for {type(args).__name__}; it can do "
            f"{', '.join(can) or 'none of the commands'}"
        )


def read_mask_or_picture(text: str, size: tuple[int, int]) -> np.ndarray:
    """A mask [H, W], 1 where to paint: by its name, from an array, or white in a picture."""
    if text.endswith(".npy") or "." not in text:
        return read_mask(text, size)
    picture = Image.open(text).convert("L").resize((size[1], size[0]), Image.Resampling.NEAREST)
    return (np.asarray(picture) > 127).astype(np.float32)


def _shared(args: Common, **more: Any) -> text_to_image.Args:
    """What the pieces of text_to_image.py are told; its masks are files, those here have names."""
    return shared_args(args, **{"mask": None, **more})


def prepare(args: Common, system: System, size: tuple[int, int], count: int) -> list:
    """What the network is told, for `count` results; variations are told the picture."""
    if not isinstance(args, Vary):
        return saved_models.make_conditions(_shared(args), system, size, count)
    if args.prompt or args.negative_prompt:
        raise ValueError("variations take no prompt")
    picture = read_picture(args.image, size)
    away = [None] * count if compares_prompts(args) else None
    return system.prepare(np.stack([picture] * count), away, height=size[0], width=size[1])


def read_job(args: Common) -> Job:
    """Load the model and the picture."""
    shared = _shared(args)
    text_to_image.check_args(shared)
    folder, mesh = find_folder(args.model, variant=args.variant), make_mesh()
    with told("loading"):
        parts = load_parts(shared, folder)
    system = guided_system(shared, parts, pipelines.make_system)
    size = saved_models.image_size(shared, None, system)
    count = filled_batch_size(args.num_images, mesh)
    place = partial(jax.device_put, device=batch_sharding(mesh))
    picture = read_picture(args.image, size)
    params = jax.device_put(parts.params, replicated(mesh))
    models = {name: model._replace(params=params[name]) for name, model in parts.models.items()}
    job = Job(
        parts=parts._replace(models=models),
        system=system,
        scheduler=saved_models.choose_scheduler(shared, parts.schedulers["scheduler"]),
        size=size,
        images=place(np.stack([picture] * count)),
        conditions=[],
        keys=place(sample_keys(jax.random.key(args.seed), jnp.arange(count))),
        place=place,
    )
    check_job(args, job)
    return job._replace(conditions=place(prepare(args, system, size, count)))


def main() -> None:
    args = parse_args(Args, description=__doc__)
    keep_compiled()
    job = read_job(args)
    with told("compiling and editing"):
        images = np.asarray(COMMANDS[type(args)].run(args, job))
    images = np.round(np.clip(images * 127.5 + 127.5, 0, 255)).astype(np.uint8)
    settings = {**dataclasses.asdict(args), "command": type(args).__name__}
    for i, image in enumerate(images[: args.num_images]):
        path = args.output / f"{args.seed:06d}_{i:04d}.png"
        save_picture(path, image, {**settings, "index": i})
    print(f"Wrote {args.num_images} images to {args.output}")


if __name__ == "__main__":
    run_script(main)
