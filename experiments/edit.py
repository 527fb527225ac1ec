"""Edit images with a trained run: paint holes, enlarge, vary, restyle, denoise.

    python experiments/edit.py inpaint --workdir runs/digits --mask right
    python experiments/edit.py img2img --workdir runs/digits --labels 8 --strength 0.7

Each command writes a picture whose rows are the images as they were, what the model was given of
them, and what it made of that (inpaint, outpaint, fill, denoise, img2img, invert-edit, style;
`edit.py COMMAND --help` lists their settings).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import diffjax as dj
from cli import parse_args, prepare_output, run_script
from diffjax import data
from diffjax.core.schedules import Schedule
from diffjax.training import make_mesh
from diffjax.training.manifest import whole_file
from model import (
    SampleOptions,
    make_parameterization,
    make_schedule,
    make_times,
    to_uint8,
)
from pictures import save_grid
from runs import Run, image_shape, load_run
from sample import parse_labels


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every command takes."""

    workdir: Path
    """the run folder"""
    input: Path | None = None
    """FILE.npz with images [N, H, W, C] and, if there are any, labels [N]; by default the first
    images of the run's own data set"""
    num_images: int = 10
    """how many of them"""
    labels: str = "same"
    """classes to make, such as 3 or 0,1,2 (taken in turn); same for those of the input, none for
    none"""
    guidance_scale: float = 1.0
    """classifier-free guidance; 1 is off"""
    num_steps: int = 50
    """steps of the grid from noise to image"""
    seed: int = 0
    """of all noise"""
    output: Path | None = None
    """FILE.png (rows before and after) or FILE.npz (images); by default WORKDIR/COMMAND.png"""


@dataclass(frozen=True, kw_only=True)
class Inpaint(Common):
    """Paint a hole so that it goes with the rest, by RePaint."""

    mask: str = "center"
    """left, right, top, bottom, center, or FILE.npy [H, W]: 1 where to paint"""
    jump_length: int = 5
    """steps that are walked again"""
    num_resamples: int = 10
    """how often they are walked; 1 is plain replacement"""


@dataclass(frozen=True, kw_only=True)
class Outpaint(Common):
    """Continue an image beyond its borders, on a canvas of overlapping tiles."""

    height: int | None = None
    """of the canvas; by default that of the image"""
    width: int | None = None
    """of the canvas; by default twice that of the image"""
    jump_length: int = 5
    """steps that are walked again"""
    num_resamples: int = 10
    """how often they are walked"""


@dataclass(frozen=True, kw_only=True)
class Fill(Common):
    """Fill the missing numbers (NaN) of an array; without --input some are left out first."""

    missing: float = 0.5
    """share of the pixels that is left out where the input misses none"""
    jump_length: int = 5
    """steps that are walked again"""
    num_resamples: int = 10
    """how often they are walked"""


@dataclass(frozen=True, kw_only=True)
class Img2img(Common):
    """Noise images part of the way and denoise them anew (SDEdit), as --labels say."""

    strength: float = 0.6
    """share of the grid that is walked; 1 keeps little"""


@dataclass(frozen=True, kw_only=True)
class InvertEdit(Common):
    """Walk images to their noise (DDIM inversion) and back as --labels say."""

    strength: float = 1.0
    """share of the grid that is walked"""


@dataclass(frozen=True, kw_only=True)
class Denoise(Common):
    """Remove the noise of noisy images, from the level that they are at."""

    noise_std: float | None = None
    """of the noise, in units of [-1, 1]; by default estimated from the images"""
    add_noise: float = 0.0
    """standard deviation of noise to add first"""


@dataclass(frozen=True, kw_only=True)
class Style(Common):
    """Give images the texture of another, by guidance with the statistics of its patches."""

    style: int = 0
    """which image of the input has the style"""
    strength: float = 0.6
    """share of the grid that is walked"""
    step_size: float = 2.0
    """of the gradient descent on the statistics in every step"""


Args = Inpaint | Outpaint | Fill | Img2img | InvertEdit | Denoise | Style


class Job(NamedTuple):
    """What a command works on.

    Attributes:
      run: the trained run.
      schedule: its forward process.
      times: the grid of times.
      images: [N, H, W, C] float32 in [-1, 1]; NaN where something is missing.
      source, wanted: labels [N] of the images as they are and to be; None without classes.
      key: one key, of which every image gets its own.
    """

    run: Run
    schedule: Schedule
    times: np.ndarray
    images: Array
    source: Array | None
    wanted: Array | None
    key: Array


def inpaint(args: Inpaint, job: Job) -> list[Array]:
    mask = jnp.asarray(read_mask(args.mask, job.images.shape[1:3]))[..., None]
    return painted(job, job.images, mask, args, lambda params: denoiser(job, args, params))


def fill(args: Fill, job: Job) -> list[Array]:
    mask = jnp.isnan(job.images)
    if not mask.any():
        if args.input is not None:
            raise ValueError(f"{args.input} misses nothing: its images hold no NaN.")
        mask = jax.random.uniform(job.key, job.images.shape) < args.missing
    return painted(job, job.images, mask, args, lambda params: denoiser(job, args, params))


def outpaint(args: Outpaint, job: Job) -> list[Array]:
    tile, channels = job.images.shape[1:3], job.images.shape[3]
    size = args.height or tile[0], args.width or 2 * tile[1]
    stride = tuple(max(side // 2, 1) for side in tile)
    # refuses a canvas that is smaller than the image
    count = dj.num_tiles(size, tile, stride)
    top, left = ((whole - part) // 2 for whole, part in zip(size, tile))
    where = (slice(None), slice(top, top + tile[0]), slice(left, left + tile[1]))
    canvas = jnp.zeros((len(job.images), *size, channels)).at[where].set(job.images)
    mask = jnp.ones((1, *size, 1)).at[where].set(0.0)
    wide = job._replace(wanted=None if job.wanted is None else jnp.repeat(job.wanted, count))
    make = lambda params: dj.tiled(denoiser(wide, args, params), tile, stride=stride)
    return painted(job, canvas, mask, args, make)[1:]


def painted(job: Job, known: Array, mask: Array, args: Any, make: Callable) -> list[Array]:
    """The images, the same with holes, and RePaint's result."""
    walk = dj.resampling(
        len(job.times) - 1, jump_length=args.jump_length, num_resamples=args.num_resamples
    )
    levels = job.schedule(jnp.asarray(job.times[walk]))

    @jax.jit
    def run(params, key, known, mask):
        start_key, key = jax.random.split(key)
        x = dj.initial_noise(start_key, known.shape, levels)
        solver = dj.repaint(dj.ddim(eta=1.0), known, mask)
        return dj.sample(key, x, make(params), solver, levels)

    given = jnp.where(mask, 0.0, known)
    return [jnp.nan_to_num(known), given, run(job.run.params, job.key, known, mask)]


def img2img(args: Img2img, job: Job) -> list[Array]:
    levels = job.schedule(jnp.asarray(job.times))

    @jax.jit
    def run(params, key, images):
        return dj.image_to_image(
            key, images, denoiser(job, args, params), dj.ddim(eta=1.0), levels,
            strength=args.strength,
        )  # fmt: skip

    return [job.images, run(job.run.params, job.key, job.images)]


def invert_edit(args: InvertEdit, job: Job) -> list[Array]:
    levels = job.schedule(jnp.asarray(job.times))
    as_it_is = job._replace(wanted=job.source)

    @jax.jit
    def run(params, key, images):
        source = denoiser(as_it_is, Common(workdir=args.workdir), params)
        walks = {"inversion": dj.ddim_inversion(), "solver": dj.ddim(), "strength": args.strength}
        return [
            dj.edit_by_inversion(key, images, source, target, levels, **walks)
            for target in (source, denoiser(job, args, params))
        ]

    return [job.images, *run(job.run.params, job.key, job.images)]


def denoise(args: Denoise, job: Job) -> list[Array]:
    noise_key, key = jax.random.split(job.key)
    noisy = job.images + args.add_noise * jax.random.normal(noise_key, job.images.shape)
    std = args.noise_std
    if std is None:
        std = float(jnp.median(dj.estimate_noise_std(noisy)))
        print(f"The images are taken to hold noise of standard deviation {std:.3f}")

    @jax.jit
    def run(params, key, noisy, std):
        estimate = denoiser(job, args, params)
        settings = {"noise_std": std, "num_steps": args.num_steps}
        drawn = dj.denoise_noisy(key, noisy, estimate, dj.ddim(eta=1.0), job.schedule, **settings)
        level = jax.tree.map(lambda leaf: leaf[0], dj.noisy_levels(job.schedule, std))
        return estimate(level.alpha * noisy, level), drawn

    return [job.images, noisy, *run(job.run.params, key, noisy, std)]


def style(args: Style, job: Job) -> list[Array]:
    if not 0 <= args.style < len(job.images):
        raise ValueError(f"--style is {args.style}, but there are {len(job.images)} images.")
    levels = job.schedule(jnp.asarray(job.times))
    wanted = job.images[args.style][None]

    @jax.jit
    def run(params, key, images, wanted):
        loss = dj.match_statistics(dj.patch_statistics, dj.patch_statistics(wanted))
        guided = dj.backward_guidance(
            denoiser(job, args, params), loss, num_steps=10, step_size=args.step_size
        )
        return dj.image_to_image(
            key, images, guided, dj.ddim(eta=1.0), levels, strength=args.strength
        )

    rows = [job.images, jnp.broadcast_to(wanted, job.images.shape)]
    return [*rows, run(job.run.params, job.key, job.images, wanted)]


COMMANDS: dict[type, Callable[[Any, Job], list[Array]]] = {
    Inpaint: inpaint,
    Outpaint: outpaint,
    Fill: fill,
    Img2img: img2img,
    InvertEdit: invert_edit,
    Denoise: denoise,
    Style: style,
}


def denoiser(job: Job, args: Common, params: Any) -> Any:
    """The run's denoiser under the wanted labels, guided and clipped."""
    config, scale = job.run.config, args.guidance_scale
    row = make_parameterization(config.diffusion)
    learned = config.diffusion.learn_variance
    build: Any = dj.make_learned_variance_denoiser if learned else dj.make_denoiser
    make = partial(build, job.run.network.apply, params, row)
    estimate: Any
    if job.wanted is None:
        estimate = make()
    elif scale == 1.0:
        estimate = make(labels=job.wanted)
    else:
        null = jnp.full_like(job.wanted, config.network.num_classes or 0)
        both = dj.in_one_call(make, {"labels": job.wanted}, {"labels": null})
        estimate = dj.guide(both, partial(dj.classifier_free, guidance_scale=scale))
    estimate = dj.clip_denoised(estimate) if config.sampling.clip else estimate
    return (lambda x, level: estimate(x, level).x0) if learned else estimate


def read_job(args: Common) -> Job:
    """Load the run and the images, and check that they fit."""
    if args.num_images < 1 or args.num_steps < 1:
        raise ValueError("--num-images and --num-steps must be at least 1.")
    run = load_run(args.workdir, make_mesh())
    schedule = make_schedule(run.config.diffusion, run.params)
    times = make_times(SampleOptions(num_steps=args.num_steps), schedule)
    row = make_parameterization(run.config.diffusion)
    dj.parameterizations.check_level(row, schedule(jnp.asarray(times)))
    images, labels = read_images(args, run)
    source, wanted = read_labels(args, run, labels, len(images))
    if args.guidance_scale != 1.0 and (wanted is None or not run.config.network.cond_drop_prob):
        raise ValueError(
            f"--guidance-scale is {args.guidance_scale:g}, but this run has no unconditional "
            "estimate: it was trained without classes, or without dropping them."
        )
    return Job(run, schedule, times, images, source, wanted, jax.random.key(args.seed))


def read_images(args: Common, run: Run) -> tuple[Array, np.ndarray | None]:
    """Images as [N, H, W, C] in [-1, 1], and their labels if they have any."""
    if args.input is None:
        config = run.config.data
        source = data.load(
            config.name, split=config.split, path=config.path, image_size=config.image_size
        )
        examples = [source[i] for i in range(min(args.num_images, len(source)))]
        images = np.stack([example["image"] for example in examples])
        labels = [example["label"] for example in examples if "label" in example]
    else:
        with np.load(args.input) as arrays:
            if "images" not in arrays:
                raise ValueError(f"{args.input} holds {list(arrays)}; needed is an array images.")
            images = arrays["images"][: args.num_images]
            labels = arrays["labels"][: args.num_images] if "labels" in arrays else []
    if images.shape[1:] != image_shape(run.config):
        raise ValueError(
            f"The images are {images.shape[1:]}, but this run makes {image_shape(run.config)}."
        )
    scaled = jnp.asarray(images, jnp.float32) / 127.5 - 1.0
    return scaled, np.asarray(labels, np.int32) if len(labels) else None


def read_labels(
    args: Common, run: Run, labels: np.ndarray | None, count: int
) -> tuple[Array | None, Array | None]:
    """The labels that the images have and are to have; None for a run without classes."""
    network = run.config.network
    if network.num_classes is None:
        parse_labels("all" if args.labels == "same" else args.labels, None)
        return None, None
    null = np.full(count, network.num_classes) if network.cond_drop_prob else None
    source = null if labels is None else labels
    if args.labels == "same":
        wanted = source
    elif args.labels == "none":
        wanted = null
    else:
        chosen = parse_labels(args.labels, network.num_classes)
        wanted = np.resize(np.asarray(chosen), count)
    source = wanted if source is None else source
    if source is None or wanted is None:
        raise ValueError(
            f"--labels is {args.labels!r}, but the input has no labels, or this run knows no "
            "missing ones. Name the classes, such as --labels 0,1,2."
        )
    return jnp.asarray(source, jnp.int32), jnp.asarray(wanted, jnp.int32)


def read_mask(text: str, size: tuple[int, ...]) -> np.ndarray:
    """A mask [H, W], 1 where to paint, by its name or from a file."""
    height, width = size
    parts = {
        "left": (slice(None), slice(width // 2)),
        "right": (slice(None), slice(width // 2, None)),
        "top": (slice(height // 2), slice(None)),
        "bottom": (slice(height // 2, None), slice(None)),
        "center": (slice(height // 4, -(height // 4)), slice(width // 4, -(width // 4))),
    }
    if text in parts:
        mask = np.zeros(size)
        mask[parts[text]] = 1.0
        return mask
    if not text.endswith(".npy"):
        raise ValueError(f"--mask is {text!r}; it must be one of {', '.join(parts)} or FILE.npy.")
    mask = np.load(text)
    if mask.shape != size or not np.isin(mask, (0, 1)).all():
        raise ValueError(f"{text} has the shape {mask.shape}; needed is {size} of zeros and ones.")
    return mask


def main() -> None:
    args = parse_args(Args, description=__doc__)
    command = COMMANDS[type(args)]
    job = read_job(args)
    output = args.output or args.workdir / f"{command.__name__.replace('_', '-')}.png"
    output = prepare_output(output, ".npz", ".png")
    rows = [to_uint8(row) for row in command(args, job)]
    if output.suffix == ".npz":
        with whole_file(output) as draft:
            np.savez_compressed(draft, images=rows[-1])
    else:
        save_grid(output, np.concatenate(rows), columns=len(rows[0]))
    print(f"Wrote {len(rows[0])} images in {len(rows)} rows, the last of them new, to {output}")


if __name__ == "__main__":
    run_script(main)
