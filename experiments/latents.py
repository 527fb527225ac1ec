"""Look into the latent space of a trained run: the noise that images come from.

    python experiments/latents.py reconstruct --workdir runs/digits
    python experiments/latents.py interpolate --workdir runs/digits
    python experiments/latents.py trajectory --workdir runs/digits --labels 3,8

Deterministic samplers are maps from noise to images that can be walked backwards. reconstruct
walks images to their noise and back and prints the error, interpolate draws what lies between two
noises, trajectory shows a sampling run: x, and the estimate of x0, on the way.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import diffjax as dj
from cli import parse_args, prepare_output, run_script
from diffjax.training.manifest import write_atomically
from jobs import Common, Job, read_job
from model import SampleOptions, make_levels, to_uint8
from pictures import save_grid


@dataclass(frozen=True, kw_only=True)
class Reconstruct(Common):
    """Walk images to their noise and back: by DDIM in few and many steps, and along the flow."""

    steps: tuple[int, ...] = (10, 20, 50, 100)
    """numbers of DDIM steps"""
    flow_steps: int = 64
    """Runge-Kutta steps along the probability flow, four calls each"""


@dataclass(frozen=True, kw_only=True)
class Interpolate(Common):
    """Draw what lies between the noises of two images, on the sphere and on a straight line."""

    labels: str = "none"
    """classes to ask for; none, as here, where the images are of two classes"""
    num_between: int = 8
    """images between the two"""
    flow_steps: int = 16
    """Runge-Kutta steps along the probability flow, four calls each"""


@dataclass(frozen=True, kw_only=True)
class Trajectory(Common):
    """Show DDIM sampling: a row of x, and below it a row of the estimates of x0."""

    num_images: int = 4
    """how many"""
    columns: int = 10
    """of the steps that are shown, evenly spaced"""


Args = Reconstruct | Interpolate | Trajectory
# rows of images, and what was measured of them
Made = tuple[list[Array], dict[str, Any]]


def levels_of(job: Job, num_steps: int) -> dj.NoiseLevel:
    """The grid of a sampling run, from noise to clean data."""
    return make_levels(SampleOptions(num_steps=num_steps), job.schedule)


def make_flow(job: Job, num_steps: int) -> Callable[..., Array]:
    """`follow(weights, x, told, start, end)` along the probability flow, compiled once."""
    integrate = dj.runge_kutta(num_steps)

    @jax.jit
    def follow(weights, x, told, start, end):
        denoise = job.denoiser(weights, told)
        return dj.follow_flow(x, denoise, job.schedule, start, end, integrate=integrate)

    return follow


def ends_of(job: Job) -> tuple[dj.NoiseLevel, dj.NoiseLevel]:
    """Clean data, and where sampling starts."""
    levels = levels_of(job, 1)
    noisy, clean = (jax.tree.map(lambda leaf, i=i: leaf[i], levels) for i in (0, -1))
    return clean, noisy


def reconstruct(args: Reconstruct, job: Job) -> Made:
    weights, images, told = job.weights, job.images, job.wanted
    follow, most = make_flow(job, args.flow_steps), max(args.steps)

    # one program for every number of steps
    @jax.jit
    def walk(weights, x, told, rising, falling, num_steps):
        denoise = job.denoiser(weights, told)
        up = dj.sample(job.key, x, denoise, dj.ddim_inversion(), rising, num_steps=num_steps)
        down = dj.sample(job.key, up, denoise, dj.ddim(), falling, num_steps=num_steps)
        return up, down

    walks = {}
    for num_steps in args.steps:
        falling = levels_of(job, num_steps)
        rising = jax.tree.map(lambda leaf: leaf[::-1], falling)
        grids = (dj.pad_levels(grid, most) for grid in (rising, falling))
        walks[f"ddim {num_steps}"] = walk(weights, images, told, *grids, num_steps)
    clean, noisy = ends_of(job)
    up = follow(weights, images, told, clean, noisy)
    walks["flow"] = up, follow(weights, up, told, noisy, clean)

    scale = jnp.hypot(noisy.alpha, noisy.sigma)
    figures = {}
    for name, (up, down) in walks.items():
        errors = np.asarray(jnp.sqrt(jnp.mean((down - images) ** 2, axis=(1, 2, 3))))
        std = float(jnp.std(up / scale))
        stderr = float(errors.std(ddof=1) / len(errors) ** 0.5) if len(errors) > 1 else None
        figures[name] = {"error": float(errors.mean()), "stderr": stderr, "latent_std": std}
        print(f"{name:10} error {errors.mean():.2g}    latents of standard deviation {std:.3f}")
    return [images, *(down for _, down in walks.values())], figures


def interpolate(args: Interpolate, job: Job) -> Made:
    pairs, (clean, noisy) = len(job.images) // 2, ends_of(job)
    if pairs < 1 or args.num_between < 1:
        raise ValueError("--num-images must be at least 2, and --num-between at least 1.")
    follow = make_flow(job, args.flow_steps)
    latents = follow(job.weights, job.images, job.wanted, clean, noisy)
    first, second = latents[0 : 2 * pairs : 2], latents[1 : 2 * pairs : 2]
    shares = np.linspace(0.0, 1.0, args.num_between + 2)
    paths = {
        "sphere": jnp.stack([dj.slerp(first, second, share) for share in shares], axis=1),
        "line": jnp.stack([(1 - share) * first + share * second for share in shares], axis=1),
    }
    rows, figures = [], {}
    for name, path in paths.items():
        # where the two images are of two classes, that of the first
        firsts = jax.tree.map(lambda rows: rows[0 : 2 * pairs : 2], job.wanted)
        asked = firsts.repeat(len(shares))
        flat = path.reshape(-1, *path.shape[2:])
        rows += list(follow(job.weights, flat, asked, noisy, clean).reshape(path.shape))
        middle = jnp.std(path[:, len(shares) // 2] / jnp.hypot(noisy.alpha, noisy.sigma))
        figures[name] = {"latent_std_in_the_middle": float(middle)}
        print(f"{name:10} latents of standard deviation {middle:.3f} in the middle")
    return rows, figures


def trajectory(args: Trajectory, job: Job) -> Made:
    if args.columns < 1:
        raise ValueError(f"--columns is {args.columns}; at least 1.")
    levels = levels_of(job, args.num_steps)

    @jax.jit
    def walk(weights, key, told):
        noise_key, key = jax.random.split(key)
        x = dj.initial_noise(noise_key, job.images.shape, levels)
        denoise = job.denoiser(weights, told)
        return dj.trajectory(key, x, denoise, dj.ddim(), levels)

    passed = walk(job.weights, job.key, job.wanted)
    shown = (
        np.linspace(0, args.num_steps - 1, min(args.columns, args.num_steps)).round().astype(int)
    )
    norms = jnp.hypot(levels.alpha, levels.sigma)[shown, None, None, None]
    rows = []
    for i in range(len(job.images)):
        rows += [passed.x[shown, i] / norms, passed.x0[shown, i]]
    return rows, {"times": levels.t[shown].tolist()}


COMMANDS: dict[type, Callable[[Any, Job], Made]] = {
    Reconstruct: reconstruct,
    Interpolate: interpolate,
    Trajectory: trajectory,
}


def main() -> None:
    args = parse_args(Args, description=__doc__)
    command = COMMANDS[type(args)]
    name = f"latents_{command.__name__}.png"
    output = prepare_output(args.output or args.workdir / name, ".png")
    # what is clipped cannot be walked backwards
    scale = 1.0 if args.guidance_scale is None else args.guidance_scale
    job = read_job(replace(args, clip=False, guidance_scale=scale))
    job.require_denoiser("the latent space")
    rows, figures = command(args, job)
    images = np.concatenate([to_uint8(row) for row in rows])
    save_grid(output, images, columns=len(rows[0]))
    write_atomically(output.with_suffix(".json"), json.dumps(figures, indent=2) + "\n")
    print(f"Wrote {output} and {output.with_suffix('.json').name}")


if __name__ == "__main__":
    run_script(main)
