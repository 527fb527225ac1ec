"""Tune the time grid of a solver for a trained run, by gradients through sampling.

    python experiments/tune_grid.py --workdir runs/digits --solver ddim --num-steps 10
    python experiments/sample.py --workdir runs/digits --times runs/digits/times_ddim_10.json

The few steps of the grid are to end where many steps from the same noise do. It starts from the
best of the grids with names; the file says by how much it improves on each of them, on noise that
it was not tuned on. A grid that there is already can be measured beside them on another run:

    python experiments/tune_grid.py --workdir runs/other --times runs/digits/times_ddim_10.json
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import diffjax as dj
from cli import parse_args, run_script
from denoisers import sampling_denoiser
from diffjax.core.inverse import level_at, levels_at, time_of
from diffjax.core.schedules import Schedule
from diffjax.core.sigma_grids import exponential_ratios, karras_ratios
from diffjax.training import make_mesh, reference_loss, tune_times
from model import SampleOptions, make_levels, make_schedule, make_solver, make_times
from runs import Run, image_shape, load_run
from sample import parse_times


@dataclass(frozen=True)
class Args:
    """Tune the time grid of a solver for a trained run."""

    workdir: Path
    """the run folder"""
    solver: str = "ddim"
    """which the grid is for, without noise: ddim, heun, dpm_multistep, unipc, ..."""
    num_steps: int = 10
    """steps of the grid, at least 2"""
    times: str | None = None
    """measure this grid and tune none: times, noise first (999,500,20), or a file of this script"""
    reference_steps: int = 100
    """steps of the runs that it is to come near"""
    iterations: int = 100
    """gradient steps"""
    learning_rate: float = 0.05
    """of the logarithms of the step lengths"""
    num_images: int = 64
    """noises to tune on; as many again to test on"""
    seed: int = 0
    """of the noises"""
    guidance_scale: float | None = None
    """classifier-free guidance; 1 is off; by default as the run's configuration says"""
    output: Path | None = None
    """FILE.json for the grid; by default WORKDIR/times_SOLVER_STEPS.json"""
    checkpoint: int | None = None
    """step of the checkpoint; by default the newest"""
    ema: str | None = None
    """which average of the weights, by its decay; by default the first of the configuration"""


def named_grids(schedule: Schedule, num_steps: int) -> dict[str, np.ndarray]:
    """Grids made by hand, as float times; all begin and end like `trailing`."""
    grids = {
        name: make_times(SampleOptions(num_steps=num_steps, spacing=name), schedule)
        for name in ("trailing", "quadratic")
    }
    first, *_, last = grids["trailing"]
    start = schedule(jnp.asarray(first))
    # pure noise has no finite ratio
    largest = min(float(start.sigma / jnp.maximum(start.alpha, 1e-9)), 100.0)
    for name, ratios in (("karras", karras_ratios), ("log-snr", exponential_ratios)):
        levels = levels_at(schedule, ratios(num_steps, 0.02, largest)[1:-1])
        grids[name] = np.array([first, *np.asarray(time_of(schedule, levels)), last])
    return {
        name: times.astype(np.float32)
        for name, times in grids.items()
        if np.all(np.diff(times) < 0)
    }


def clean_at_the_end(schedule: Schedule) -> Schedule:
    """The schedule on grids, whose last level is clean data, as sampling ends."""

    def levels(times) -> dj.NoiseLevel:
        clean = level_at(schedule)(jnp.zeros(()))
        return jax.tree.map(lambda leaf, end: leaf.at[-1].set(end), schedule(times), clean)

    return levels


def make_pairs(args: Args, run: Run, options: SampleOptions):
    """Noises, where many steps lead from them, and their labels: two sets, to tune and to test."""
    schedule = make_schedule(run.config.diffusion, run.params)
    levels = make_levels(replace(options, num_steps=args.reference_steps), schedule)
    solver = make_solver(options, schedule, run.config.diffusion.learn_variance)
    denoiser = sampling_denoiser(run.config, run.network, options)
    count = 2 * args.num_images
    key = jax.random.key(args.seed)
    x = dj.initial_noise(key, (count, *image_shape(run.config)), levels)
    classes = run.config.network.num_classes
    labels = None if classes is None else jnp.arange(count, dtype=jnp.int32) % classes

    @jax.jit
    def target(params, x, labels):
        return dj.sample(key, x, denoiser(params, labels), solver, levels)

    pairs = x, target(run.params, x, labels), labels
    # every second one, so that both sets hold all classes
    return tuple(jax.tree.map(lambda leaf, k=k: leaf[k::2], pairs) for k in (0, 1))


def distance_of(args: Args, run: Run, options: SampleOptions) -> Callable[..., jax.Array]:
    """`(times, x, target, labels, params)` -> mean squared distance of the grid's run from x."""
    schedule = make_schedule(run.config.diffusion, run.params)
    denoiser = sampling_denoiser(run.config, run.network, options)
    solver = make_solver(options, schedule, run.config.diffusion.learn_variance)
    of_inputs = lambda labels, params: denoiser(params, labels)
    segments = math.isqrt(args.num_steps)
    return reference_loss(of_inputs, solver, clean_at_the_end(schedule), segments=segments)


def check_numbers(args: Args) -> None:
    """Refuse counts of which nothing can be made."""
    least = {"num_steps": 2, "iterations": 1, "num_images": 1, "reference_steps": args.num_steps}
    for name, bound in least.items():
        if getattr(args, name) < bound:
            raise ValueError(
                f"--{name.replace('_', '-')} is {getattr(args, name)}; at least {bound}."
            )


def tuned(args: Args, grids: dict[str, np.ndarray], loss, pairs: tuple) -> tuple[str, np.ndarray]:
    """The name of the best grid on these noises, and the one that it becomes."""
    errors = {name: float(loss(grid, *pairs)) for name, grid in grids.items()}
    start = min(errors, key=lambda name: errors[name])
    with tqdm(total=args.iterations + 1, desc="tuning", unit="step") as bar:
        found = tune_times(
            grids[start], loss, pairs,
            num_iterations=args.iterations, learning_rate=args.learning_rate,
            on_iteration=lambda i, value: bar.update(1),
        )  # fmt: skip
    return start, found.times


def main() -> None:
    args = parse_args(Args, description=__doc__)
    given = parse_times(args.times)
    args = args if given is None else replace(args, num_steps=len(given) - 1)
    check_numbers(args)
    run = load_run(args.workdir, make_mesh(), step=args.checkpoint, ema=args.ema)
    scale = run.config.sampling.guidance_scale
    scale = scale if args.guidance_scale is None else args.guidance_scale
    options = SampleOptions(args.solver, guidance_scale=scale, clip=run.config.sampling.clip)
    loss = jax.jit(distance_of(args, run, options))
    tuning, testing = make_pairs(args, run, options)
    schedule = make_schedule(run.config.diffusion, run.params)
    grids, start = named_grids(schedule, args.num_steps), None
    if given is None:
        start, grids["tuned"] = tuned(args, grids, loss, (*tuning, run.params))
    else:
        grids["given"] = make_times(replace(options, times=given), schedule)
    errors = {name: float(loss(grid, *testing, run.params)) for name, grid in grids.items()}
    for name, error in errors.items():
        print(f"{name:10} {error:.3g}")
    if given is None:
        output = args.output or args.workdir / f"times_{args.solver}_{args.num_steps}.json"
        result = {
            "times": grids["tuned"].tolist(),
            "solver": args.solver,
            "started_from": start,
            "mean_squared_distance": errors,
        }
        output.write_text(json.dumps(result, indent=2) + "\n")
        print(f"Wrote {output}")


if __name__ == "__main__":
    run_script(main)
