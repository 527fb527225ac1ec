"""Sample images from a trained run.

    python experiments/sample.py --workdir runs/digits --num-samples 100 --output digits.png
    python experiments/sample.py --workdir runs/shapes_text --prompt "two small red circles"

A seed gives the same images, whatever the batch size and the number of devices.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from jax.sharding import Mesh
from tqdm import tqdm

import diffjax as dj
from choices import RATIOS, SPACINGS, listed
from cli import parse_args, prepare_output, run_script
from compositions import read_composition
from config import Config
from denoisers import NO_GUIDES
from diffjax.core.conditioning import Condition
from diffjax.solvers import SOLVERS
from diffjax.training import filled_batch_size, initialize_distributed, make_mesh
from guidances import Guides
from latent_space import decoded, load_latent_space
from model import SampleOptions, count_visits, make_schedule, to_uint8
from pictures import save_archive, save_grid
from runs import Run, image_shape, load_run
from samplers import make_sampler
from steering import Steering, load_guides, parse_labels, steering_options
from text import load_text, text_condition
from walks import ONCE, Walk


@dataclass(frozen=True, kw_only=True)
class Args(Steering):
    """Sample images from a trained run."""

    num_samples: int = 100
    """how many images"""
    labels: str = "all"
    """classes to sample, such as 0,1,2 (taken in turn) or "3 AND 8:0.5" (both at once), or all"""
    prompt: str | None = None
    """what the images show, for a run with captions; "ONE AND ANOTHER:WEIGHT" composes several"""
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
    walk: Annotated[Walk, tyro.conf.arg(name="")] = ONCE
    candidates: int | None = None
    """draw each image so many times, and keep the one that the network itself finds likeliest for
    its class or prompt; by default as the run's configuration says"""
    seed: int = 0
    """image i of a seed is always the same"""
    output: Path | None = None
    """FILE.npz (images, labels) or FILE.png (a grid); by default WORKDIR/samples.png"""
    batch_size: int = 256
    """images computed at once"""


def parse_times(text: str | None) -> tuple[float, ...] | None:
    """The grid that `--times` gives: a list of numbers, or a JSON file with the entry `times`."""
    if text is None:
        return None
    try:
        if text.endswith(".json"):
            return read_numbers(json.loads(Path(text).read_text())["times"])
        return read_numbers(text.split(","))
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"--times is {text!r}; expected times such as 999,500,20 or a file of tune_grid.py."
        ) from None


def read_numbers(parts: Sequence[Any]) -> tuple[float, ...]:
    """Numbers as they are; of texts the whole ones as integers, which are steps of a table."""
    read = lambda text: float(text) if "." in text else int(text)
    return tuple(part if isinstance(part, int | float) else read(part) for part in parts)


def read_prompts(
    args: Args, config: Config
) -> tuple[dict[str, np.ndarray] | None, Condition | None]:
    """The prompt as the network reads it, and what guidance leads away from; None without text.

    Raises:
      ValueError: the run needs a prompt, or takes none; or the prompt is too long, or has a word
        that was in no caption.
    """
    if config.text is None:
        if args.prompt is not None:
            raise ValueError("--prompt is given, but this run was trained without captions.")
        return None, None
    if args.prompt is None:
        raise ValueError('This run draws what it is told: give --prompt, such as "a red circle".')
    encode = load_text(args.workdir)
    parts, weights = read_composition(args.prompt)
    rows = encode(parts)
    if weights is not None:
        rows = {name: array[None] for name, array in rows.items()}
    return rows, text_condition(encode, text=args.negative_prompt or "")


def sample_options(args: Args, config: Config) -> SampleOptions:
    """Fill what the command line leaves open from the run's configuration."""
    if args.times is not None and args.num_steps is not None:
        raise ValueError("--times is a grid of its own; leave --num-steps away.")
    return steering_options(
        args,
        config,
        solver=args.solver,
        num_steps=args.num_steps,
        spacing=args.spacing,
        times=parse_times(args.times),
        eta=args.eta,
        walk=args.walk,
        candidates=args.candidates,
        weights=read_composition(args.labels if args.prompt is None else args.prompt).weights,
    )


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

    Image i has the label labels[i mod len(labels)], and likewise the row of the texts; a row of a
    composition holds several.
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
        save_archive(path, images, labels)
        return
    if rows > 1 and len(images) % rows == 0:
        by_class = [images[row::rows] for row in range(rows)]
        save_grid(path, np.concatenate(by_class), columns=len(images) // rows)
    else:
        save_grid(path, images, columns=int(np.ceil(np.sqrt(len(images)))))


def sample_images(
    args: Args, run: Run, options: SampleOptions, labels: np.ndarray | None, mesh: Mesh
) -> np.ndarray:
    """The uint8 images that the command line asks for, with a progress bar."""
    texts, away = read_prompts(args, run.config)
    classifier, guides = load_guides(args, run, options, mesh)
    batch_size = filled_batch_size(min(args.batch_size, args.num_samples), mesh)
    steps = count_visits(options, make_schedule(run.config.diffusion))
    batches = -(-args.num_samples // batch_size)
    # the delay keeps an empty bar from standing in front of an error message
    with tqdm(
        total=steps * batches, desc="sampling", unit="step", delay=1.0,
        disable=jax.process_index() != 0,
    ) as bar:  # fmt: skip
        generate = make_sampler(
            run.config, run.network, options, mesh,
            text=away, classifier=classifier, on_step=dj.progress(bar),
        )  # fmt: skip
        if run.config.latents is not None:
            space = load_latent_space(args.workdir, image_shape(run.config))
            generate = decoded(generate, space)
        parts = generate_all(
            generate, run.params, args.seed, labels, args.num_samples, batch_size, texts, guides
        )
        images = np.concatenate(list(parts))
        jax.effects_barrier()
    return images


def main() -> None:
    args = parse_args(Args, description=__doc__)
    for name in ("num_samples", "batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; at least 1.")

    initialize_distributed()
    mesh = make_mesh()
    run = load_run(args.workdir, mesh, step=args.checkpoint, ema=args.ema, latents=True)
    output = prepare_output(args.output or args.workdir / "samples.png", ".npz", ".png")
    options = sample_options(args, run.config)
    labels = parse_labels(args.labels, run.config.network.num_classes)
    images = sample_images(args, run, options, labels, mesh)
    if jax.process_index() == 0:
        chosen = None if labels is None else labels[np.arange(args.num_samples) % len(labels)]
        write_samples(output, images, chosen, 1 if labels is None else len(labels))
        print(f"Wrote {len(images)} images from step {run.step} to {output}")


if __name__ == "__main__":
    run_script(main)
