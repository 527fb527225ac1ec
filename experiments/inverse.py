"""Solve inverse problems with a diffusion model as the prior.

    python experiments/inverse.py digits --workdir runs/digits --problem masking
    python experiments/inverse.py photographs --problem downsampling --method mmps
    python experiments/inverse.py phantom --problem radon
    python experiments/inverse.py table

The first three measure pictures, draw several posterior samples for each and write a picture of
four rows: the truth, the measurement, the mean of the samples, and how uncertain each pixel is
(white: a standard deviation of half the range). The digits' prior is a trained run, that of the
others a mixture fitted to patches. The last compares all methods where the posterior is known.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array

import diffjax as dj
from choices import build, listed, read_choice
from cli import parse_args, prepare_output, run_script
from diffjax.core.parameterizations import Denoiser
from diffjax.transforms import UncertaintyMap
from jobs import Common, posterior_levels, read_job
from measurements import PROBLEMS, Measurement, magnitude
from model import to_uint8
from patch_prior import (
    SHEPP_LOGAN,
    draw_ellipses,
    fit_patches,
    patch_denoiser,
    photographs,
    random_head,
    with_phase,
)
from pictures import save_grid
from posterior_methods import METHODS, Settings, choose_method, draw_posterior, exact_table
from walks import ONCE, Walk


@dataclass(frozen=True, kw_only=True)
class Restoration:
    """What every restoration takes."""

    problem: Annotated[str, listed("the measurement", PROBLEMS)] = "masking"
    method: Annotated[str, listed("method", METHODS)] = "pigdm"
    sigma_y: float = 0.05
    """standard deviation of the noise in the measurement"""
    num_draws: int = 8
    """posterior samples of each picture, at least 2"""
    step_size: float = 1.0
    """of the method dps"""
    num_particles: int = 16
    """of the method twisted"""
    walk: Annotated[Walk, tyro.conf.arg(name="")] = ONCE
    output: Path | None = None
    """FILE.png; by default PICTURES_PROBLEM.png"""


@dataclass(frozen=True, kw_only=True)
class Digits(Restoration, Common):
    """Digits, or whatever a trained run makes."""

    labels: str = "none"
    """classes that are known, as for edit.py; same for those of the input, none for none"""


@dataclass(frozen=True, kw_only=True)
class Patches(Restoration):
    """Pictures whose prior is that of their patches."""

    size: int = 48
    """pixels a side"""
    num_steps: int = 40
    """steps of the grid from noise to picture"""
    seed: int = 0
    """of all noise"""


@dataclass(frozen=True, kw_only=True)
class Photographs(Patches):
    """Parts of the two photographs that come with scikit-learn, the prior fitted to the rest."""


@dataclass(frozen=True, kw_only=True)
class Phantom(Patches):
    """Shepp and Logan's phantom of a head (complex for the problem fourier, as MRI sees it)."""

    problem: Annotated[str, listed("the measurement", PROBLEMS)] = "radon"
    sigma_y: float = 0.02
    """standard deviation of the noise in the measurement"""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Errors of every method where the posterior is known, as a Markdown table."""

    num_samples: int = 2048
    """posterior samples"""
    num_steps: int = 100
    """steps of every sampler"""
    seed: int = 0
    """of all noise"""


Args = Digits | Photographs | Phantom | Table


class Prior(NamedTuple):
    """Pictures and what is known of such pictures.

    Attributes:
      pictures: [B, H, W, C], the truth.
      fit: () -> params of the denoiser; what takes its time.
      denoiser: (params, copies) -> denoiser of a batch with as many copies of each picture.
      levels: grid, noise first.
      std: of the data.
      look: pictures -> to be looked at, [B, h, w, 1 or 3] in [-1, 1].
    """

    pictures: Array
    fit: Callable[[], Any]
    denoiser: Callable[[Any, int], Denoiser]
    levels: dj.NoiseLevel
    std: float
    look: Callable[[Array], Array]


def digits(args: Digits) -> Prior:
    job = read_job(args)
    job.require_denoiser("an inverse problem")
    levels = posterior_levels(args.num_steps, job.schedule)
    std = float(jnp.std(job.images))
    return Prior(job.images, lambda: job.weights, job.denoiser_of_copies, levels, std, lambda x: x)


def photographs_prior(args: Photographs) -> Prior:
    whole = photographs()
    limit = min(whole.shape[1], whole.shape[2] // 2)
    if not 8 <= args.size <= limit:
        raise ValueError(f"--size is {args.size}; it must be from 8 to {limit}.")
    top = (whole.shape[1] - args.size) // 2
    truth = whole[:, top : top + args.size, : args.size]
    # the right part of each photograph is seen, the left part is to be restored
    seen = list(whole[:, :, args.size :])
    return patches_prior(args, truth, seen, lambda x: x)


def phantom_prior(args: Phantom) -> Prior:
    if args.size < 8:
        raise ValueError(f"--size is {args.size}; it must be at least 8.")
    rng = np.random.default_rng(args.seed)
    heads = [draw_ellipses(random_head(rng), args.size) for _ in range(40)]
    truth = draw_ellipses(SHEPP_LOGAN, args.size)[None]
    seen = np.stack(heads)
    if args.problem.startswith("fourier"):
        truth, seen = with_phase(truth, rng), with_phase(seen, rng)
    return patches_prior(args, truth, list(seen), lambda x: 2.0 * magnitude(x) - 1.0)


def patches_prior(args: Patches, truth: np.ndarray, seen: list[np.ndarray], look) -> Prior:
    side = 6
    return Prior(
        jnp.asarray(truth, jnp.float32),
        partial(fit_patches, seen, side, num_components=10, seed=args.seed, num_patches=3000),
        lambda mixture, _: patch_denoiser(mixture, side),
        dj.linear()(dj.uniform(args.num_steps)),
        float(np.std(np.stack(seen))),
        look,
    )


PRIORS: dict[type, Callable[[Any], Prior]] = {
    Digits: digits,
    Photographs: photographs_prior,
    Phantom: phantom_prior,
}


def restore(args: Digits | Patches, prior: Prior) -> tuple[Array, UncertaintyMap, Measurement]:
    """Measure the pictures and draw from their posterior: y, moments, and the measurement."""
    if args.num_draws < 2:
        raise ValueError(f"--num-draws is {args.num_draws}; how much they differ needs two.")
    shape = prior.pictures.shape[1:]
    measurement = build("problem", args.problem, PROBLEMS, shape=shape, seed=args.seed)
    method = choose_method(args.method, measurement.operator, linear=measurement.linear)
    noise_key, key = jax.random.split(jax.random.key(args.seed))
    y = dj.measure(noise_key, measurement.operator, prior.pictures, sigma_y=args.sigma_y)
    settings = Settings(args.sigma_y, prior.std, args.step_size, args.num_particles, args.walk)

    @jax.jit
    def run(params, key, y):
        draw = partial(
            draw_posterior, method=method, operator=measurement.operator, y=y,
            denoiser=partial(prior.denoiser, params), levels=prior.levels, shape=shape,
            settings=settings,
        )  # fmt: skip
        return dj.uncertainty_map(draw, key, args.num_draws)

    return y, run(prior.fit(), key, y), measurement


def report(prior: Prior, y: Array, result: UncertaintyMap, measurement: Measurement) -> str:
    """The error of the mean beside the spread of the samples, and how well they fit."""
    rms = lambda values: float(jnp.sqrt(jnp.mean(jnp.square(values))))
    misfit = rms(measurement.operator(result.mean) - y)
    return (
        f"error of the mean {rms(result.mean - prior.pictures):.3f}, spread of the samples "
        f"{rms(result.std):.3f}; the measurement differs from that of the mean by {misfit:.3f}"
    )


def main() -> None:
    args = parse_args(Args, description=__doc__)
    if isinstance(args, Table):
        print(exact_table(num_samples=args.num_samples, num_steps=args.num_steps, seed=args.seed))
        return
    problem, _ = read_choice("problem", args.problem)
    output = args.output or Path(f"{type(args).__name__.lower()}_{problem}.png")
    output = prepare_output(output, ".png")
    prior = PRIORS[type(args)](args)
    y, result, measurement = restore(args, prior)
    height, width = prior.pictures.shape[1:3]
    seen = prior.look(measurement.show(y))
    seen = jax.image.resize(seen, (len(seen), height, width, seen.shape[-1]), "nearest")
    spread = jnp.linalg.norm(result.std, axis=-1, keepdims=True) / np.sqrt(result.std.shape[-1])
    rows = [prior.look(prior.pictures), seen, prior.look(result.mean), 4.0 * spread - 1.0]
    channels = rows[0].shape[-1]
    rows = [jnp.broadcast_to(row, (*row.shape[:-1], channels)) for row in rows]
    save_grid(output, np.concatenate([to_uint8(row) for row in rows]), columns=len(y))
    print(report(prior, y, result, measurement))
    print(f"Wrote the truth, the measurement, the mean and the uncertainty to {output}")


if __name__ == "__main__":
    run_script(main)
