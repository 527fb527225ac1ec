"""What scripts that start from pictures work on: a trained run, pictures, and what it is told."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import diffjax as dj
from compositions import read_composition
from config import Config
from denoisers import sampling_denoiser
from diffjax.core.conditioning import Condition
from diffjax.core.schedules import Schedule
from diffjax.data.sources import checked_labels, read_archive
from diffjax.training import make_mesh
from guidances import Guides
from model import SampleOptions, guided_solver, make_levels, make_parameterization, make_schedule
from runs import Run, image_shape, load_run, open_source
from steering import Steering, load_guides, parse_labels, steering_options
from text import load_text, text_condition

LARGEST_RATIO = 20  # sigma / alpha where drawing from a posterior starts
# of an image: height, width, channels
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Common(Steering):
    """What every command takes."""

    input: Path | None = None
    """FILE.npz with images [N, H, W, C] and, if there are any, labels [N] or captions [N]; by
    default the first images of the run's own data set"""
    num_images: int = 10
    """how many of them"""
    labels: str = "same"
    """classes to make, such as 3, 0,1,2 (taken in turn) or "3 AND 8:0.5" (both at once); same for
    those of the input, none for none"""
    prompt: str | None = None
    """what to make, for a run with captions, several things as "ONE AND ANOTHER:WEIGHT"; by default
    the captions of the input, or nothing where it has none"""
    num_steps: int = 50
    """steps of the grid from noise to image"""
    seed: int = 0
    """of all noise"""
    output: Path | None = None
    """FILE.png (rows before and after) or FILE.npz (images); by default WORKDIR/COMMAND.png"""


class Told(NamedTuple):
    """What the network is told of images: labels [N], the rows of their texts, or nothing.

    A composition is told by rows of several.
    """

    labels: Array | None = None
    texts: dict[str, Array] | None = None

    def repeat(self, count: int) -> "Told":
        """The same for as many copies of each image."""
        return jax.tree.map(lambda rows: jnp.repeat(rows, count, axis=0), self)


class Pictures(NamedTuple):
    """Images and what is known of them.

    Attributes:
      images: [N, H, W, C] float32 in [-1, 1]; NaN where something is missing.
      labels: [N] int32, if they have any.
      captions: N texts, if they have any.
    """

    images: Array
    labels: np.ndarray | None = None
    captions: Sequence[str] | None = None


class Job(NamedTuple):
    """What a command works on.

    Attributes:
      run: the trained run.
      options: how it is steered.
      schedule: its forward process.
      levels: the grid, noise first.
      images: [N, H, W, C] float32 in [-1, 1]; NaN where something is missing.
      source, wanted: what the network is told of the images as they are and as they are to be.
      key: one key, of which every image gets its own.
      weights: all that `denoiser` and `plain` take into compiled functions.
      denoiser: (weights, told) -> the run's denoiser, guided and clipped as the options say; for
        a guidance of solvers what those take in its place.
      plain: the same without guidance.
    """

    run: Run
    options: SampleOptions
    schedule: Schedule
    levels: dj.NoiseLevel
    images: Array
    source: Told
    wanted: Told
    key: Array
    weights: Any
    denoiser: Callable[[Any, Told], Any]
    plain: Callable[[Any, Told], Any]

    def guided(self, solver: dj.Solver) -> dj.Solver:
        """The solver, guided where the guidance is one of solvers."""
        return guided_solver(solver, self.options)

    def denoiser_of_copies(self, weights: Any, count: int) -> Any:
        """The denoiser of as many copies of each image, for methods of particles."""
        return self.denoiser(weights, self.wanted.repeat(count))

    def require_denoiser(self, what: str) -> None:
        """Refuse guidances of solvers where the estimate itself is needed."""
        guidance = self.options.read_guidance()
        if guidance is not None and guidance.solver is not None:
            raise ValueError(
                f"--guidance {self.options.guidance} changes the solver, but {what} needs guided "
                "estimates; classifier_free and most others make them."
            )


def read_job(
    args: Common, *, given: Callable[[Shape], Shape] | None = None, holes: bool = False
) -> Job:
    """Load the run and the images, and check that they fit.

    Args:
      args: of the command.
      given: from the shape of the run's images to another that those of the input may have.
      holes: whether numbers of the images may be missing.
    """
    if args.num_images < 1 or args.num_steps < 1:
        raise ValueError("--num-images and --num-steps must be at least 1.")
    mesh = make_mesh()
    run = load_run(args.workdir, mesh, step=args.checkpoint, ema=args.ema)
    settings = {"solver": "ddim", "num_steps": args.num_steps, "spacing": "trailing"}
    weights = read_composition(args.labels if args.prompt is None else args.prompt).weights
    options = steering_options(args, run.config, weights=weights, **settings)
    schedule = make_schedule(run.config.diffusion, run.params)
    levels = make_levels(options, schedule)
    dj.parameterizations.check_level(make_parameterization(run.config.diffusion), levels)
    own = image_shape(run.config)
    pictures = read_pictures(args, run.config, (own,) if given is None else (own, given(own)))
    if not holes and jnp.isnan(pictures.images).any():
        raise ValueError(f"{args.input} misses numbers (NaN); `edit.py fill` fills them.")
    source, wanted, text = read_told(args, run.config, pictures)
    classifier, guides = load_guides(args, run, options, mesh)
    unguided = SampleOptions(clip=options.clip)
    guided = sampling_denoiser(run.config, run.network, options, text, classifier)
    plain = sampling_denoiser(run.config, run.network, unguided)

    def denoiser(weights: tuple[Any, Guides], told: Told) -> Any:
        return guided(weights[0], *told, weights[1])

    return Job(
        run, options, schedule, levels, pictures.images, source, wanted,
        jax.random.key(args.seed), (run.params, guides),
        denoiser, lambda weights, told: plain(weights[0], *told),
    )  # fmt: skip


def posterior_levels(num_steps: int, schedule: Schedule) -> dj.NoiseLevel:
    """The grid on which a trained run draws from a posterior."""
    # near pure noise the Jacobian of a network over alpha is all error
    options = SampleOptions(spacing=f"karras(largest={LARGEST_RATIO})", num_steps=num_steps)
    return make_levels(options, schedule)


def read_pictures(args: Common, config: Config, shapes: Sequence[Shape]) -> Pictures:
    """The images of the input, of one of the shapes, or the first ones of the run's data set."""
    if args.input is None:
        source = open_source(config.data)
        examples = [source[i] for i in range(min(args.num_images, len(source)))]
        images = np.stack([example["image"] for example in examples])
        known = {
            name: [example[single] for example in examples]
            for name, single in (("labels", "label"), ("captions", "caption"))
            if single in examples[0]
        }
    else:
        images, known = read_file(args.input, args.num_images)
    if images.shape[1:] not in shapes:
        others = "".join(f" It can also be given {shape}." for shape in {*shapes} - {shapes[0]})
        raise ValueError(
            f"The images are {images.shape[1:]}, but this run makes {shapes[0]}.{others}"
        )
    labels = np.asarray(known["labels"], np.int32) if "labels" in known else None
    scaled = jnp.asarray(images, jnp.float32) / 127.5 - 1.0
    return Pictures(scaled, labels, known.get("captions"))


def read_file(path: Path, most: int) -> tuple[np.ndarray, dict[str, Any]]:
    """The first images of an archive, and the labels and captions that it has of them.

    Raises:
      ValueError: there are none, floats that are not levels 0..255 (NaN where one is missing), or
        not as many labels or captions as images.
    """
    arrays = read_archive(path)
    images = arrays["images"][:most]
    if not images.size:
        raise ValueError(f"{path} holds no images.")
    if not np.issubdtype(images.dtype, np.number):
        raise ValueError(f"{path}: images are {images.dtype}; expected levels 0..255.")
    low, high = (float(end(images)) for end in (np.nanmin, np.nanmax))
    levels = low >= 0.0 and 1.0 < high <= 255.0
    if images.dtype != np.uint8 and not levels:
        raise ValueError(
            f"{path}: images are {images.dtype} from {low:g} to {high:g}; expected levels 0..255."
        )
    known = {}
    if "captions" in arrays:
        known["captions"] = arrays["captions"][:most].tolist()
        if len(known["captions"]) != len(images):
            raise ValueError(f"{path} holds fewer captions than images; each needs one.")
    if "labels" in arrays:
        known["labels"] = checked_labels(arrays["labels"][:most], len(images), str(path)).tolist()
    return images, known


def read_told(
    args: Common, config: Config, pictures: Pictures
) -> tuple[Told, Told, Condition | None]:
    """What the network is told of the images as they are and as they are to be.

    The third is what guidance leads away from, for runs with captions.
    """
    if config.text is None:
        if args.prompt is not None:
            raise ValueError("--prompt is given, but this run was trained without captions.")
        return *read_labels(args, config, pictures), None
    if args.labels not in ("same", "none"):
        raise ValueError(f"--labels is {args.labels!r}; for a run with captions give --prompt.")
    encode, count = load_text(args.workdir), len(pictures.images)
    empty = [""] * count
    own = empty if pictures.captions is None else pictures.captions
    rows = encode(empty if args.labels == "none" else own)
    if args.prompt is not None:
        parts, weights = read_composition(args.prompt)
        shape = (count,) if weights is None else (count, len(parts))
        rows = {
            name: np.broadcast_to(array, (*shape, *array.shape[1:]))
            for name, array in encode(parts).items()
        }
    source, told = (Told(None, jax.tree.map(jnp.asarray, each)) for each in (encode(own), rows))
    return source, told, text_condition(encode, text=args.negative_prompt or "")


def read_labels(args: Common, config: Config, pictures: Pictures) -> tuple[Told, Told]:
    """The labels that the images have and are to have; nothing for a run without classes."""
    network, count = config.network, len(pictures.images)
    if network.num_classes is None:
        parse_labels("all" if args.labels in ("same", "none") else args.labels, None)
        return Told(), Told()
    known = () if pictures.labels is None else pictures.labels
    if any(label >= network.num_classes for label in known):
        raise ValueError(
            f"The labels of the input reach {max(known)}; the classes of this run are 0 to "
            f"{network.num_classes - 1}."
        )
    null = np.full(count, network.num_classes) if network.cond_drop_prob else None
    source = null if pictures.labels is None else pictures.labels
    if args.labels == "same":
        wanted = source
    elif args.labels == "none":
        wanted = null
    else:
        chosen = np.asarray(parse_labels(args.labels, network.num_classes))
        wanted = np.resize(chosen, (count, *chosen.shape[1:]))
    if source is None:
        # not known: as they are to be, unless that is a composition
        composed = wanted is not None and wanted.ndim > 1
        source = null if composed else wanted
    if source is None or wanted is None:
        raise ValueError(
            f"--labels is {args.labels!r}, but the input has no labels, or this run knows no "
            "missing ones. Name the classes, such as --labels 0,1,2."
        )
    return Told(jnp.asarray(source, jnp.int32)), Told(jnp.asarray(wanted, jnp.int32))
