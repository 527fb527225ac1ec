"""Sample images from a trained run.

    python experiments/sample.py --workdir runs/digits --num-samples 100 --output digits.png
    python experiments/sample.py --workdir runs/shapes_text --prompt "two small red circles"

A seed gives the same images, whatever the batch size and the number of devices.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

import diffjax as dj
from choices import RATIOS, SPACINGS, listed
from cli import parse_args, prepare_output, run_script
from config import Config
from diffjax.core.conditioning import Condition
from diffjax.networks import Functional
from diffjax.solvers import SOLVERS
from diffjax.training import initialize_distributed, make_mesh
from diffjax.training.manifest import whole_file
from guidances import GUIDANCES, Guides
from model import (
    NO_GUIDES,
    SampleOptions,
    count_steps,
    make_sampler,
    make_schedule,
    sampling_defaults,
    to_uint8,
)
from pictures import save_grid
from runs import Run, load_run
from text import load_text, text_condition


@dataclass(frozen=True)
class Args:
    """Sample images from a trained run."""

    workdir: Path
    """the run folder"""
    num_samples: int = 100
    """how many images"""
    solver: Annotated[str | None, listed("solver, by default the run's", SOLVERS)] = None
    num_steps: int | None = None
    """steps; by default as the run's configuration says, or, for another solver than the run's,
    the whole chain for ddpm and 50 for the others"""
    spacing: Annotated[
        str | None, listed("levels to visit, by default the run's", {**SPACINGS, **RATIOS})
    ] = None
    times: str | None = None
    """the time grid itself, noise first: a list such as 999,500,20 or FILE.json of tune_grid.py"""
    eta: float | None = None
    """noise of ddim: 0 (its default) is deterministic, 1 is ancestral"""
    guidance: Annotated[str | None, listed("guidance, by default the run's", GUIDANCES)] = None
    guidance_scale: float | None = None
    """of the guidance; 1 is off (cfg_plus_plus takes 0 to 1); by default as the run's
    configuration says"""
    guidance_interval: tuple[float, float] | None = None
    """where to guide, low < sigma / alpha <= high; by default as the configuration says"""
    classifier: Path | None = None
    """folder of a run such as digits_classifier, to guide by its classifier of noisy images"""
    classifier_scale: float = 1.0
    """of the guidance by the classifier: 0 is off; 1 is Bayes' rule for unconditional estimates
    (--guidance-scale 0)"""
    labels: str = "all"
    """classes to sample, such as 0,1,2 (taken in turn), or all"""
    prompt: str | None = None
    """what the images show, for a run with captions"""
    negative_prompt: str | None = None
    """what guidance leads away from; by default the empty text"""
    seed: int = 0
    """image i of a seed is always the same"""
    output: Path | None = None
    """FILE.npz (images, labels) or FILE.png (a grid); by default WORKDIR/samples.png"""
    batch_size: int = 256
    """images computed at once"""
    checkpoint: int | None = None
    """step of the checkpoint to sample from; by default the newest"""
    ema: str | None = None
    """which average of the weights, by its decay; by default the first of the configuration"""
    clip: bool | None = None
    """clip estimates of x0 to the range of the data; by default as the configuration says"""


def parse_labels(text: str, num_classes: int | None) -> np.ndarray | None:
    """The classes that `--labels` names: [K] int32, or None for a run without classes."""
    if num_classes is None:
        if text != "all":
            raise ValueError(f"--labels is {text!r}, but this run was trained without labels.")
        return None
    if text == "all":
        return np.arange(num_classes, dtype=np.int32)
    try:
        labels = np.array([int(part) for part in text.split(",")], np.int32)
    except ValueError:
        raise ValueError(f"--labels is {text!r}; expected numbers such as 0,1,2 or all.") from None
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"--labels is {text}; the classes of this run are 0 to {num_classes - 1}.")
    return labels


def parse_times(text: str | None) -> tuple[float, ...] | None:
    """The grid that `--times` gives: a list of numbers, or a JSON file with the entry `times`."""
    if text is None:
        return None
    try:
        if text.endswith(".json"):
            return tuple(json.loads(Path(text).read_text())["times"])
        return tuple(float(part) if "." in part else int(part) for part in text.split(","))
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"--times is {text!r}; expected times such as 999,500,20 or a file of tune_grid.py."
        ) from None


def read_prompts(
    args: Args, config: Config
) -> tuple[dict[str, np.ndarray] | None, Condition | None]:
    """The prompt as the network reads it, and what guidance leads away from; None without text.

    Raises:
      ValueError: the run needs a prompt, or takes none; or the prompt is too long, or has a word
        that was in no caption.
    """
    if config.text is None:
        if args.prompt is not None or args.negative_prompt is not None:
            raise ValueError("--prompt is given, but this run was trained without captions.")
        return None, None
    if args.prompt is None:
        raise ValueError('This run draws what it is told: give --prompt, such as "a red circle".')
    encode = load_text(args.workdir)
    return encode([args.prompt]), text_condition(encode, text=args.negative_prompt or "")


def sample_options(args: Args, config: Config) -> SampleOptions:
    """Fill what the command line leaves open from the run's configuration."""
    options = sampling_defaults(
        config,
        solver=args.solver,
        num_steps=args.num_steps,
        spacing=args.spacing,
        times=parse_times(args.times),
        eta=args.eta,
        guidance=args.guidance,
        guidance_scale=args.guidance_scale,
        guidance_interval=args.guidance_interval,
        classifier_scale=args.classifier_scale,
        clip=args.clip,
    )
    condition = config.network if config.text is None else config.text
    guidance = options.read_guidance()
    away = guidance is not None and guidance.weaker == "unconditional"
    if away and not condition.cond_drop_prob:
        raise ValueError(
            f"--guidance-scale is {options.guidance_scale:g}, but this run was trained without "
            "dropping its condition (cond_drop_prob is 0), so it has no unconditional estimate."
        )
    if not away and args.negative_prompt is not None:
        raise ValueError("--negative-prompt needs guidance: set --guidance-scale above 1.")
    if args.times is not None and args.num_steps is not None:
        raise ValueError("--times is a grid of its own; leave --num-steps away.")
    if args.classifier is not None and guidance is not None and guidance.solver is not None:
        raise ValueError(f"--classifier does not go with --guidance {options.guidance}.")
    return options


def load_guides(
    args: Args, run: Run, options: SampleOptions, mesh: Mesh
) -> tuple[Functional | None, Guides]:
    """The classifier, if there is one, and the weights that guide beside those of the run.

    Raises:
      ValueError: the classifier was trained on other levels than the run, or for other classes.
    """
    guidance, weaker = options.read_guidance(), None
    if guidance is not None and guidance.checkpoint is not None:
        weaker = load_run(args.workdir, mesh, step=guidance.checkpoint, ema=args.ema).params
    if args.classifier is None:
        return None, Guides(weaker)
    classifier = load_run(args.classifier, mesh, task="classify")
    for name in ("schedule", "num_train_steps", "zero_terminal_snr", "shift"):
        own, its = (getattr(each.config.diffusion, name) for each in (run, classifier))
        if own != its:
            raise ValueError(
                f"The classifier was trained with diffusion.{name} {its}, this run with {own}; "
                "its levels must be those of the run."
            )
    own, its = (each.config.network.num_classes for each in (run, classifier))
    if own != its:
        raise ValueError(f"The classifier tells {its} classes apart, but this run has {own}.")
    return classifier.network, Guides(weaker, classifier.params)


def generate_all(
    generate,
    params,
    seed: int,
    labels: np.ndarray | None,
    num_samples: int,
    batch_size: int,
    texts: dict[str, np.ndarray] | None = None,
    guides: Guides = NO_GUIDES,
) -> Iterator[np.ndarray]:
    """Yield uint8 images batch by batch; the last batch is filled up and cut.

    Image i has the label labels[i mod len(labels)], and likewise the row of the texts.
    """
    key = jax.random.key(seed)
    for start in range(0, num_samples, batch_size):
        positions = np.arange(start, start + batch_size, dtype=np.int32)
        chosen = None if labels is None else labels[positions % len(labels)]
        rows = {name: array[positions % len(array)] for name, array in (texts or {}).items()}
        images = to_uint8(generate(params, key, positions, chosen, rows or None, guides))
        yield images[: num_samples - start]


def write_samples(path: Path, images: np.ndarray, labels: np.ndarray | None, rows: int) -> None:
    """Write an .npz archive, or a .png grid with a row for each class."""
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {"images": images}
        if labels is not None:
            arrays["labels"] = labels
        with whole_file(path) as draft:
            np.savez_compressed(draft, **arrays)
        return
    if rows > 1 and len(images) % rows == 0:
        by_class = [images[row::rows] for row in range(rows)]
        save_grid(path, np.concatenate(by_class), columns=len(images) // rows)
    else:
        save_grid(path, images, columns=int(np.ceil(np.sqrt(len(images)))))


def main() -> None:
    args = parse_args(Args, description=__doc__)
    for name in ("num_samples", "batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; at least 1.")

    initialize_distributed()
    mesh = make_mesh()
    devices = mesh.shape["data"]
    run = load_run(args.workdir, mesh, step=args.checkpoint, ema=args.ema)
    output = prepare_output(args.output or args.workdir / "samples.png", ".npz", ".png")
    options = sample_options(args, run.config)
    texts, away = read_prompts(args, run.config)
    classifier, guides = load_guides(args, run, options, mesh)
    labels = parse_labels(args.labels, run.config.network.num_classes)
    # every batch is filled up to a multiple of the devices
    batch_size = -(-min(args.batch_size, args.num_samples) // devices) * devices

    steps = count_steps(options, make_schedule(run.config.diffusion))
    batches = -(-args.num_samples // batch_size)
    speaks = jax.process_index() == 0
    # the delay keeps an empty bar from standing in front of an error message
    with tqdm(
        total=steps * batches, desc="sampling", unit="step", delay=1.0, disable=not speaks
    ) as bar:
        generate = make_sampler(
            run.config, run.network, options, mesh,
            text=away, classifier=classifier, on_step=dj.progress(bar),
        )  # fmt: skip
        parts = generate_all(
            generate, run.params, args.seed, labels, args.num_samples, batch_size, texts, guides
        )
        images = np.concatenate(list(parts))
        jax.effects_barrier()
    if speaks:
        chosen = None if labels is None else labels[np.arange(args.num_samples) % len(labels)]
        write_samples(output, images, chosen, 1 if labels is None else len(labels))
        print(f"Wrote {len(images)} images from step {run.step} to {output}")


if __name__ == "__main__":
    run_script(main)
