"""Edit images with a trained run: paint holes, continue, vary, restyle, denoise, enlarge, colour.

    python experiments/edit.py inpaint --workdir runs/digits --mask right
    python experiments/edit.py img2img --workdir runs/digits --labels 8 --strength 0.7

Each command writes a picture whose rows are the images as they were, what the model was given of
them, and what it made of that (inpaint, outpaint, fill, denoise, img2img, invert-edit, style,
enlarge, colourise; `edit.py COMMAND --help` lists their settings). With --model FOLDER a saved
model edits a picture with a prompt: see edit_pretrained.py.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import diffjax as dj
from choices import listed
from cli import parse_args, prepare_output, run_script
from embeddings import Embedding, load_embedding
from jobs import Common, Job, posterior_levels, read_job
from measurements import Measurement, downsampling, grey
from model import to_uint8
from pictures import save_archive, save_grid
from posterior_methods import METHODS, Settings, choose_method, draw_posterior
from runs import image_shape


@dataclass(frozen=True, kw_only=True)
class Painting(Common):
    """What painting by RePaint takes."""

    jump_length: int = 5
    """steps that are walked again"""
    num_resamples: int = 10
    """how often they are walked; 1 is plain replacement"""


@dataclass(frozen=True, kw_only=True)
class Inpaint(Painting):
    """Paint a hole so that it goes with the rest, by RePaint."""

    mask: str = "center"
    """left, right, top, bottom, center, or FILE.npy [H, W]: 1 where to paint"""


@dataclass(frozen=True, kw_only=True)
class Outpaint(Painting):
    """Continue an image beyond its borders, on a canvas of overlapping tiles."""

    height: int | None = None
    """of the canvas; by default that of the image"""
    width: int | None = None
    """of the canvas; by default twice that of the image"""


@dataclass(frozen=True, kw_only=True)
class Fill(Painting):
    """Fill the missing numbers (NaN) of an array; without --input some are left out first."""

    missing: float = 0.5
    """share of the pixels that is left out where the input misses none"""


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
    """Give images the texture of another, by guidance with the statistics of its patches.

    With --embedding an image encoder says what they have in common instead.
    """

    style: int = 0
    """which image of the input has the style"""
    start: Literal["sdedit", "inversion"] = "sdedit"
    """from where to walk back: the images under fresh noise, or their own noise (DDIM inversion),
    which keeps more of them"""
    strength: float = 0.6
    """share of the grid that is walked"""
    embedding: Path | None = None
    """folder of an image encoder of CLIP, such as RUN/image_encoder of a run with captions"""
    step_size: float = 2.0
    """of the gradient descent on the statistics, or the embedding, in every step; 0 is off"""


@dataclass(frozen=True, kw_only=True)
class Restoration(Common):
    """What enlarging and colouring take, which draw from the posterior of what is given."""

    method: Annotated[str, listed("method", METHODS)] = "pigdm"
    sigma_y: float = 0.02
    """standard deviation of the noise in what is given, in units of [-1, 1]"""


@dataclass(frozen=True, kw_only=True)
class Enlarge(Restoration):
    """Make small images large (super-resolution); those of the run's own size are made small first.

    Of the result each block of --factor times --factor pixels has the mean of the given pixel.
    """

    factor: int = 2
    """how many times longer the sides become"""


@dataclass(frozen=True, kw_only=True)
class Colourise(Restoration):
    """Colour grey images, of one channel; from those in colour their luminance is taken first."""


Args = Inpaint | Outpaint | Fill | Img2img | InvertEdit | Denoise | Style | Enlarge | Colourise


def inpaint(args: Inpaint, job: Job) -> list[Array]:
    mask = jnp.asarray(read_mask(args.mask, job.images.shape[1:3]))[..., None]
    return painted(job, job.images, mask, args, lambda weights: job.denoiser(weights, job.wanted))


def fill(args: Fill, job: Job) -> list[Array]:
    if not 0.0 <= args.missing < 1.0:
        raise ValueError(f"--missing is {args.missing}; a share is at least 0 and below 1.")
    mask = jnp.isnan(job.images)
    if not mask.any():
        if args.input is not None:
            raise ValueError(f"{args.input} misses nothing: its images hold no NaN.")
        mask = jax.random.uniform(job.key, job.images.shape) < args.missing
    return painted(job, job.images, mask, args, lambda weights: job.denoiser(weights, job.wanted))


def outpaint(args: Outpaint, job: Job) -> list[Array]:
    job.require_denoiser("outpainting")
    tile, channels = job.images.shape[1:3], job.images.shape[3]
    size = (
        tile[0] if args.height is None else args.height,
        2 * tile[1] if args.width is None else args.width,
    )
    stride = tuple(max(side // 2, 1) for side in tile)
    # refuses a canvas that is smaller than the image
    count = dj.num_tiles(size, tile, stride)
    top, left = ((whole - part) // 2 for whole, part in zip(size, tile))
    where = (slice(None), slice(top, top + tile[0]), slice(left, left + tile[1]))
    canvas = jnp.zeros((len(job.images), *size, channels)).at[where].set(job.images)
    mask = jnp.ones((1, *size, 1)).at[where].set(0.0)
    wanted = job.wanted.repeat(count)
    make = lambda weights: dj.tiled(job.denoiser(weights, wanted), tile, stride=stride)
    return painted(job, canvas, mask, args, make)[1:]


def painted(job: Job, known: Array, mask: Array, args: Painting, make: Callable) -> list[Array]:
    """The images, the same with holes, and RePaint's result."""
    levels = dj.revisited(
        job.levels, jump_length=args.jump_length, num_resamples=args.num_resamples
    )

    @jax.jit
    def run(weights, key, known, mask):
        start_key, key = jax.random.split(key)
        x = dj.initial_noise(start_key, known.shape, levels)
        solver = dj.repaint(job.guided(dj.ddim(eta=1.0)), known, mask)
        return dj.sample(key, x, make(weights), solver, levels)

    given = jnp.where(mask, 0.0, known)
    return [jnp.nan_to_num(known), given, run(job.weights, job.key, known, mask)]


def img2img(args: Img2img, job: Job) -> list[Array]:
    @jax.jit
    def run(weights, key, images):
        denoise, solver = job.denoiser(weights, job.wanted), job.guided(dj.ddim(eta=1.0))
        return dj.image_to_image(key, images, denoise, solver, job.levels, strength=args.strength)

    return [job.images, run(job.weights, job.key, job.images)]


def invert_edit(args: InvertEdit, job: Job) -> list[Array]:
    @jax.jit
    def run(weights, key, images):
        source = job.plain(weights, job.source)
        walks = {"levels": job.levels, "inversion": dj.ddim_inversion(), "strength": args.strength}
        target, guided = job.denoiser(weights, job.wanted), job.guided(dj.ddim())
        return [
            dj.edit_by_inversion(key, images, source, source, solver=dj.ddim(), **walks),
            dj.edit_by_inversion(key, images, source, target, solver=guided, **walks),
        ]

    return [job.images, *run(job.weights, job.key, job.images)]


def denoise(args: Denoise, job: Job) -> list[Array]:
    job.require_denoiser("denoising")
    if args.add_noise < 0.0 or (args.noise_std is not None and not args.noise_std > 0.0):
        raise ValueError(
            f"--add-noise is {args.add_noise} and --noise-std {args.noise_std}; noise to add is "
            "not negative, noise to remove is positive."
        )
    noise_key, key = jax.random.split(job.key)
    noisy = job.images + args.add_noise * jax.random.normal(noise_key, job.images.shape)
    std = args.noise_std
    if std is None:
        std = float(jnp.median(dj.estimate_noise_std(noisy)))
        print(f"The images are taken to hold noise of standard deviation {std:.3f}")

    @jax.jit
    def run(weights, key, noisy, std):
        estimate = job.denoiser(weights, job.wanted)
        settings = {"noise_std": std, "num_steps": args.num_steps}
        drawn = dj.denoise_noisy(key, noisy, estimate, dj.ddim(eta=1.0), job.schedule, **settings)
        level = jax.tree.map(lambda leaf: leaf[0], dj.noisy_levels(job.schedule, std))
        return estimate(level.alpha * noisy, level), drawn

    return [job.images, noisy, *run(job.weights, key, noisy, std)]


def style(args: Style, job: Job) -> list[Array]:
    job.require_denoiser("style")
    if not 0 <= args.style < len(job.images):
        raise ValueError(f"--style is {args.style}, but there are {len(job.images)} images.")
    wanted = job.images[args.style][None]
    encoder = Embedding(None, lambda _, images: dj.patch_statistics(images))
    if args.embedding is not None:
        encoder = load_embedding(args.embedding)

    @jax.jit
    def run(weights, encoder_params, key, images, wanted):
        statistics = partial(encoder.embed, encoder_params)
        loss = dj.match_statistics(statistics, statistics(wanted))
        guided = dj.backward_guidance(
            job.denoiser(weights, job.wanted), loss, num_steps=10, step_size=args.step_size
        )
        walk = {"levels": job.levels, "strength": args.strength}
        if args.start == "sdedit":
            return dj.image_to_image(key, images, guided, dj.ddim(eta=1.0), **walk)
        source = job.plain(weights, job.source)
        walk |= {"inversion": dj.ddim_inversion(), "solver": dj.ddim()}
        return dj.edit_by_inversion(key, images, source, guided, **walk)

    rows = [job.images, jnp.broadcast_to(wanted, job.images.shape)]
    return [*rows, run(job.weights, encoder.params, job.key, job.images, wanted)]


def enlarge(args: Enlarge, job: Job) -> list[Array]:
    return restored(args, job, "enlarging")


def colourise(args: Colourise, job: Job) -> list[Array]:
    return restored(args, job, "colouring")


def restored(args: Enlarge | Colourise, job: Job, what: str) -> list[Array]:
    """The images, where they are known; what is measured of them; a draw given that alone."""
    job.require_denoiser(what)
    shape = image_shape(job.run.config)
    measurement = lost(args, shape)
    method = choose_method(args.method, measurement.operator, linear=True)
    whole = job.images.shape[1:] == shape
    y = measurement.operator(job.images) if whole else job.images
    draw = partial(
        draw_posterior,
        method=method,
        operator=measurement.operator,
        levels=posterior_levels(args.num_steps, job.schedule),
        shape=shape,
        settings=Settings(args.sigma_y, sigma_data=float(jnp.std(job.images))),
    )

    @jax.jit
    def run(weights, key, y):
        return draw(key, denoiser=partial(job.denoiser_of_copies, weights), y=y)

    seen = jax.image.resize(measurement.show(y), (len(y), *shape), "nearest")
    before = [job.images, seen] if whole else [seen]
    return [*before, run(job.weights, job.key, y)]


def lost(args: Enlarge | Colourise, shape: tuple[int, ...]) -> Measurement:
    """What is left of images [H, W, C] where their size or their colour is lost."""
    if isinstance(args, Enlarge):
        if args.factor < 2 or any(side % args.factor for side in shape[:2]):
            raise ValueError(
                f"--factor is {args.factor}; it must be at least 2 and divide the sides of this "
                f"run's images, {shape[0]} and {shape[1]}."
            )
        return downsampling(shape, factor=args.factor)
    if shape[2] != 3:
        raise ValueError(
            f"This run makes images of {shape[2]} channels; colouring needs one whose images have "
            "3, red, green and blue."
        )
    return grey(shape)


def given_shape(args: Args, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what a command can be given in the place of images [H, W, C]."""
    if not isinstance(args, Enlarge | Colourise):
        return shape
    return jax.eval_shape(lost(args, shape).operator, jnp.zeros((1, *shape))).shape[1:]


COMMANDS: dict[type, Callable[[Any, Job], list[Array]]] = {
    Inpaint: inpaint,
    Outpaint: outpaint,
    Fill: fill,
    Img2img: img2img,
    InvertEdit: invert_edit,
    Denoise: denoise,
    Style: style,
    Enlarge: enlarge,
    Colourise: colourise,
}


def read_mask(text: str, size: tuple[int, ...]) -> np.ndarray:
    """A mask [H, W], 1 where to paint, by its name or from a file."""
    height, width = size
    parts = {
        "left": (slice(None), slice(width // 2)),
        "right": (slice(None), slice(width // 2, None)),
        "top": (slice(height // 2), slice(None)),
        "bottom": (slice(height // 2, None), slice(None)),
        "center": tuple(slice(side // 4, side - side // 4) for side in size),
    }
    if text in parts:
        mask = np.zeros(size)
        mask[parts[text]] = 1.0
        return mask
    if not text.endswith(".npy"):
        raise ValueError(f"--mask is {text!r}; it must be one of {', '.join(parts)} or FILE.npy.")
    try:
        mask = np.load(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"--mask {text} is no file that numpy.save wrote ({error}).") from error
    if mask.shape != size:
        raise ValueError(f"{text} has the shape {mask.shape}; this run's images need {size}.")
    if not np.isin(mask, (0, 1)).all():
        raise ValueError(f"{text} holds other values than 1, to paint, and 0, to keep.")
    return mask


def main() -> None:
    if any(word.split("=")[0] == "--model" for word in sys.argv):
        # needs none of the above
        import edit_pretrained

        edit_pretrained.main()
        return
    args = parse_args(Args, description=__doc__)
    command = COMMANDS[type(args)]
    job = read_job(args, given=partial(given_shape, args), holes=isinstance(args, Fill))
    output = args.output or args.workdir / f"{command.__name__.replace('_', '-')}.png"
    output = prepare_output(output, ".npz", ".png")
    rows = [to_uint8(row) for row in command(args, job)]
    if output.suffix == ".npz":
        save_archive(output, rows[-1])
    else:
        save_grid(output, np.concatenate(rows), columns=len(rows[0]))
    print(f"Wrote {len(rows[0])} images in {len(rows)} rows, the last of them new, to {output}")


if __name__ == "__main__":
    run_script(main)
