"""Measure how likely a trained run finds images, in bits per dimension.

    python experiments/train.py digits --workdir runs/held_out --data.split train
    python experiments/likelihood.py --workdir runs/held_out --split test

Two figures, each the mean over the images with its standard error, smaller being better:

- flow: by the probability flow, on images dequantised uniformly, or where it pays most
  (--dequantize variational, see dequantization.py). An upper bound of -log2 P, but for the error of
  the integrator and the noise of the trace.
- bound: the variational bound of the sampling chain for a run whose schedule is a table, the bound
  in continuous time for the others, and its parts. The latter begins where the noise is so small
  that it hides no value of the data.

A run with classes is asked for the probability of an image given its class. A figure of images
that the run was trained on says nothing: see its `--data.split`.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from tqdm import tqdm

import dequantization
import diffjax as dj
from choices import build, listed
from cli import parse_args, prepare_output, run_script
from config import DataConfig
from denoisers import sampling_denoiser
from dequantization import Places
from diffjax import data
from diffjax.core.inverse import time_at
from diffjax.core.keys import fold_in_each
from diffjax.core.levels import ratio_of
from diffjax.core.likelihood import cleanest_level
from diffjax.core.schedules import Schedule, between, num_train_steps
from diffjax.training import batch_sharding, initialize_distributed, make_mesh, replicated
from diffjax.training.manifest import write_atomically
from evaluate import table
from model import SampleOptions, make_schedule
from runs import Run, image_shape, load_run

TRACES = {"hutchinson": dj.hutchinson_trace, "exact": dj.exact_trace}
INTEGRATORS = {"runge_kutta": dj.runge_kutta, "dormand_prince": dj.dormand_prince}

PARTS = ("prior", "diffusion", "reconstruction")
FIGURES = ("flow", "bound", *PARTS)

# (params, keys [b], x0 [b, ...], labels [b]) -> figures [b] by name
Measure = Callable[[Any, Array, Array, Array | None], dict[str, Array]]


@dataclass(frozen=True)
class Args:
    """Measure how likely a trained run finds images, in bits per dimension."""

    workdir: Path
    """the run folder"""
    split: str | None = "test"
    """split of the data set, such as test or train[:100]; None for data without splits"""
    path: str | None = None
    """folder or file of the data, by default that of the run"""
    num_images: int | None = None
    """how many of the images, by default all"""
    num_draws: int = 1
    """draws of all noise for each image"""
    measure: Literal["both", "flow", "bound"] = "both"
    """which of the figures"""
    trace: Annotated[str, listed("trace of the flow's Jacobian", TRACES)] = "hutchinson"
    integrate: Annotated[str, listed("integrator of the flow", INTEGRATORS)] = (
        "runge_kutta(num_steps=64)"
    )
    dequantize: Literal["uniform", "variational"] = "uniform"
    """where values are put in their bins, for the flow"""
    fit_steps: int = 300
    """optimizer steps that fit the places, for --dequantize variational"""
    num_times: int = 100
    """network calls for each image of the bound in continuous time"""
    variance: Literal["fixed_small", "fixed_large"] = "fixed_large"
    """of the chain, in the bound of a table"""
    labels: Literal["own", "none"] = "own"
    """the probability given the class of an image, or given no class"""
    seed: int = 0
    """of all noise"""
    batch_size: int = 64
    """images computed at once; it does not change the result"""
    output: Path | None = None
    """FILE.json for the figures; by default WORKDIR/likelihood.json"""
    checkpoint: int | None = None
    """step of the checkpoint; by default the newest"""
    ema: str | None = None
    """which average of the weights, by its decay; by default the first of the configuration"""


def flow_denoiser(run: Run):
    """(params, labels) -> denoiser, whose estimates are not clipped: that would bend the flow."""
    return sampling_denoiser(run.config, run.network, SampleOptions(clip=False))


def measure_flow(run: Run, args: Args, places: Places) -> Measure:
    """Bits per dimension by the probability flow."""
    config, bins = run.config, run.config.data.num_bins
    denoiser = flow_denoiser(run)
    trace = build("trace", args.trace, TRACES)
    integrate = build("integrate", args.integrate, INTEGRATORS)

    def measure(params, keys, x0, labels):
        u, log_q = places(fold_in_each(keys, 0), x0)
        nats = dj.log_likelihood(
            fold_in_each(keys, 1), dj.dequantize(x0, u, num_bins=bins), denoiser(params, labels),
            make_schedule(config.diffusion, params), trace=trace, integrate=integrate,
        ).nats  # fmt: skip
        return {"flow": dj.bits_per_dim(nats - log_q, x0[0].size, num_bins=bins)}

    return measure


def measure_bound(run: Run, args: Args) -> Measure:
    """The variational bound and its parts, of the denoiser that the run samples with."""
    config, bins = run.config, run.config.data.num_bins
    untrained: Any = make_schedule(config.diffusion)
    steps = num_train_steps(untrained)
    # only the chain of a table has a variance to learn
    options = SampleOptions("ddim" if steps is None else "ddpm", clip=config.sampling.clip)
    denoiser = sampling_denoiser(config, run.network, options)
    start = None if steps else clean_time(untrained, bins)

    def of_table(params, keys, x0, labels):
        bound = dj.variational_bound(
            keys, x0, denoiser(params, labels), untrained,
            variance=args.variance, num_bins=bins,
        )  # fmt: skip
        return bound.prior, bound.terms[1:].sum(axis=0), bound.terms[0]

    def in_continuous_time(params, keys, x0, labels):
        schedule = make_schedule(config.diffusion, params)
        return dj.continuous_bound(
            keys, x0, denoiser(params, labels),
            between(schedule, start, 1.0) if start else schedule,
            num_times=args.num_times, num_bins=bins,
        )  # fmt: skip

    def measure(params, keys, x0, labels):
        # what files keep of a value may be half a byte away from it
        exact = dj.dequantize(x0, jnp.asarray(0.5), num_bins=bins)
        parts = (in_continuous_time if steps is None else of_table)(params, keys, exact, labels)
        return {"bound": sum(parts), **dict(zip(PARTS, parts))}

    return measure


def clean_time(schedule: Schedule, num_bins: int) -> float | None:
    """The time before which there is nothing to denoise; None if the schedule begins after it.

    It is where the values of the data are six standard deviations of the noise apart, so that the
    decoder tells them by itself: sigma / alpha = 0.0013 for 256 values, where VDM begins.
    """
    ratio = 2.0 / (num_bins - 1) / 6.0
    if ratio_of(cleanest_level(schedule)) >= ratio:
        return None
    return float(time_at(schedule, jnp.asarray(ratio)))


def choose_places(args: Args, run: Run, images: np.ndarray, labels: np.ndarray | None) -> Places:
    """How images are dequantised: fitted to them, if that is wanted."""
    if args.dequantize == "uniform" or args.measure == "bound":
        return dequantization.uniform
    # the draws have the keys before
    key = jax.random.fold_in(jax.random.key(args.seed), args.num_draws)
    table = dequantization.fit(
        key, run, flow_denoiser(run), make_schedule(run.config.diffusion, run.params),
        images, labels, num_steps=args.fit_steps, batch_size=min(args.batch_size, len(images)),
    )  # fmt: skip
    return dequantization.learned(table, run.config.data.num_bins)


def compile_measures(run: Run, args: Args, places: Places, mesh: Mesh):
    """`measure(params, key, positions, images, labels)` -> figures [b] by name, on a mesh."""
    makers = {"flow": partial(measure_flow, places=places), "bound": measure_bound}
    measures = [make(run, args) for name, make in makers.items() if args.measure in (name, "both")]
    whole, split = replicated(mesh), batch_sharding(mesh)

    def measure(params, key, positions, images, labels):
        batch = (positions, images, labels)
        positions, x0, labels = jax.lax.with_sharding_constraint(batch, split)
        keys = dj.sample_keys(key, positions)
        figures = {}
        for number, one in enumerate(measures):
            figures |= one(params, fold_in_each(keys, number), x0, labels)
        return figures

    return jax.jit(measure, in_shardings=whole, out_shardings=whole)


def read_images(args: Args, run: Run) -> tuple[np.ndarray, np.ndarray | None]:
    """Images [N, H, W, C] in [-1, 1], and the labels to ask for [N]."""
    if run.config.text is not None:
        raise ValueError("This run was trained with captions, whose likelihoods are not measured.")
    config: DataConfig = run.config.data
    source = data.load(
        config.name, split=args.split, path=args.path or config.path, image_size=config.image_size
    )
    if source.shape != image_shape(run.config):
        raise ValueError(
            f"The images are {source.shape}; this run is of {image_shape(run.config)}."
        )
    count = len(source) if args.num_images is None else min(args.num_images, len(source))
    examples = [source[i] for i in range(count)]
    images = np.stack([example["image"] for example in examples]).astype(np.float32) / 127.5 - 1.0
    classes = run.config.network.num_classes
    if classes is None:
        return images, None
    if args.labels == "none":
        if not run.config.network.cond_drop_prob:
            raise ValueError(
                "--labels is none, but this run was trained without dropping its labels "
                "(network.cond_drop_prob is 0), so it has no unconditional estimate."
            )
        return images, np.full(count, classes, np.int32)
    if "label" not in examples[0]:
        raise ValueError("The images have no labels, which this run needs; see --labels none.")
    return images, np.array([example["label"] for example in examples], np.int32)


def cut(images: np.ndarray, labels: np.ndarray | None, size: int) -> Iterator[tuple]:
    """Batches of one size, (positions, images, labels), the last filled up with its last image."""
    for start in range(0, len(images), size):
        positions = np.minimum(np.arange(start, start + size), len(images) - 1).astype(np.int32)
        yield positions, images[positions], None if labels is None else labels[positions]


def measure_all(args: Args, run: Run, mesh: Mesh) -> dict[str, np.ndarray]:
    """Every figure of every image, [N] float64: the mean over the draws."""
    images, labels = read_images(args, run)
    devices = mesh.shape["data"]
    size = -(-min(args.batch_size, len(images)) // devices) * devices
    places = choose_places(args, run, images, labels)
    measure = compile_measures(run, args, places, mesh)
    sums: dict[str, np.ndarray] = {}
    total = args.num_draws * -(-len(images) // size)
    silent = jax.process_index() != 0
    with tqdm(total=total, desc="measuring", unit="batch", delay=1.0, disable=silent) as bar:
        for draw in range(args.num_draws):
            key = jax.random.fold_in(jax.random.key(args.seed), draw)
            parts = []
            for batch in cut(images, labels, size):
                parts.append(jax.device_get(measure(run.params, key, *batch)))
                bar.update(1)
            for name in parts[0]:
                values = np.concatenate([part[name] for part in parts])[: len(images)]
                sums[name] = sums.get(name, 0.0) + values.astype(np.float64)
    return {name: values / args.num_draws for name, values in sums.items()}


def summarize(figures: dict[str, np.ndarray]) -> dict[str, float]:
    """The mean of each figure over the images and its standard error, under NAME_stderr."""
    summary = {}
    for name in (name for name in FIGURES if name in figures):
        values = figures[name]
        if not np.all(np.isfinite(values)):
            raise ValueError(
                f"{name} is not finite for {np.sum(~np.isfinite(values))} of {len(values)} images. "
                "An adaptive integrator may have given up: allow it more tries or larger errors, "
                "as in dormand_prince(rtol=1e-4, atol=1e-4, max_steps=10000)."
            )
        summary[name] = float(values.mean())
        if len(values) > 1:
            summary[f"{name}_stderr"] = float(values.std(ddof=1) / len(values) ** 0.5)
    return summary


def main() -> None:
    args = parse_args(Args, description=__doc__)
    for name in ("num_draws", "batch_size", "num_times", "num_images", "fit_steps"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; at least 1.")
    output = prepare_output(args.output or args.workdir / "likelihood.json", ".json")
    initialize_distributed()
    mesh = make_mesh()
    run = load_run(args.workdir, mesh, step=args.checkpoint, ema=args.ema)
    figures = measure_all(args, run, mesh)
    if jax.process_index() == 0:
        summary = summarize(figures)
        facts = {"step": run.step, "num_images": len(next(iter(figures.values())))}
        settings = ("split", "num_draws", "trace", "integrate", "dequantize", "labels", "seed")
        facts |= {name: getattr(args, name) for name in settings}
        write_atomically(output, json.dumps({**facts, **summary}, indent=2) + "\n")
        print(table(summary))
        print(f"Wrote {output}")


if __name__ == "__main__":
    run_script(main)
