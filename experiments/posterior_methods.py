"""The methods for inverse problems by name, and how far each is from exact posteriors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import diffjax as dj
from choices import choose
from diffjax.core.exact import Mixture
from diffjax.core.parameterizations import Denoiser
from diffjax.core.posterior import condition
from diffjax.solvers import renoise
from diffjax.transforms.spectral import Spectral
from walks import ONCE, Walk


@dataclass(frozen=True)
class Settings:
    """What the methods can be told.

    Attributes:
      sigma_y: standard deviation of the noise in the measurement, from 0.
      sigma_data: standard deviation of the data, for pigdm and twisted.
      step_size: of dps.
      num_particles: of twisted.
      walk: over the grid.
    """

    sigma_y: float
    sigma_data: float = 1.0
    step_size: float = 1.0
    num_particles: int = 16
    walk: Walk = ONCE

    def __post_init__(self):
        if not self.sigma_y >= 0.0:
            raise ValueError(f"--sigma-y is {self.sigma_y}; noise has a standard deviation from 0.")


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
      build: (denoiser, operator, y, settings) -> the denoiser and the solver to sample with.
      needs: what is asked of the operator: "any", "linear", or "spectral".
    """

    build: Callable[[Denoiser, Any, Array, Settings], tuple[Denoiser, dj.Solver]]
    needs: str = "linear"


METHODS = {
    "dps": Method(
        lambda denoise, operator, y, s: (
            denoise, dj.dps(dj.ddim(eta=1.0), operator, y, step_size=s.step_size)
        ),
        needs="any",
    ),
    "pigdm": Method(
        lambda denoise, operator, y, s: (
            dj.pigdm(denoise, operator, y, sigma_y=s.sigma_y, sigma_data=s.sigma_data),
            dj.heun(),
        )
    ),
    "tmpd": Method(
        lambda denoise, operator, y, s: (
            dj.tmpd(denoise, operator, y, sigma_y=s.sigma_y), dj.heun()
        )
    ),
    "mmps": Method(
        lambda denoise, operator, y, s: (
            dj.mmps(denoise, operator, y, sigma_y=s.sigma_y), dj.heun()
        )
    ),
    "diffpir": Method(
        lambda denoise, operator, y, s: (
            dj.diffpir(denoise, operator, y, sigma_y=s.sigma_y), renoise(fresh=0.5)
        )
    ),
    "ddnm": Method(
        lambda denoise, operator, y, s: (dj.ddnm(denoise, operator, y), dj.ddim(eta=0.85))
    ),
    "ddnm_plus": Method(
        lambda denoise, operator, y, s: (denoise, dj.ddnm_plus(operator, y, sigma_y=s.sigma_y)),
        needs="spectral",
    ),
    "ddrm": Method(
        lambda denoise, operator, y, s: (denoise, dj.ddrm(operator, y, sigma_y=s.sigma_y)),
        needs="spectral",
    ),
    "twisted": Method(
        lambda denoise, operator, y, s: (
            denoise,
            dj.twisted(
                operator, y, sigma_y=s.sigma_y, num_particles=s.num_particles,
                sigma_data=s.sigma_data,
            ),
        )
    ),
}  # fmt: skip


def choose_method(name: str, operator: Any, *, linear: bool) -> Method:
    """A method by its name.

    Raises:
      ValueError: there is none, or it asks more of the operator than that has.
    """
    method = choose("method", name, METHODS)
    if method.needs != "any" and not linear:
        raise ValueError(f"--method {name} needs a linear operator; for this one there is dps.")
    if method.needs == "spectral" and not isinstance(operator, Spectral):
        able = [other for other, row in METHODS.items() if row.needs != "spectral"]
        raise ValueError(
            f"--method {name} needs the singular values of the operator, and those of this one "
            f"are not known. Without them work {', '.join(able)}."
        )
    return method


def draw_posterior(
    key: Array,
    method: Method,
    denoiser: Callable[[int], Denoiser],
    operator: Any,
    y: Array,
    levels: dj.NoiseLevel,
    shape: tuple[int, ...],
    settings: Settings,
) -> Array:
    """One posterior sample for each measurement.

    Args:
      key: one key.
      method: a row of `METHODS`.
      denoiser: copies -> the denoiser of a batch that holds as many copies of each sample.
      operator: A.
      y: [B, ...].
      levels: the grid, noise first.
      shape: of one sample.
      settings: of the method.

    Returns:
      [B, *shape].

    Raises:
      ValueError: particles, which carry weights from step to step, are to walk up.
    """
    if method is METHODS["twisted"] and settings.walk.again:
        raise ValueError("--num-resamples does not go with twisted: its weights are of one way.")
    # particles are many for one sample, of which the first is kept
    count = settings.num_particles if method is METHODS["twisted"] else 1
    y = jnp.repeat(y, count, axis=0)
    start_key, key = jax.random.split(key)
    start = dj.initial_noise(start_key, (len(y), *shape), levels)
    informed, solver = method.build(denoiser(count), operator, y, settings)
    walk = settings.walk
    return dj.sample(key, start, informed, walk.solver(solver), walk.levels(levels))[::count]


class Problem(NamedTuple):
    """A linear measurement of a mixture, whose posterior is known.

    Attributes:
      prior: of x0, D dimensions.
      matrix: A, [M, D].
      y: [M].
      sigma_y: standard deviation of its noise.
    """

    prior: Mixture
    matrix: np.ndarray
    y: np.ndarray
    sigma_y: float


def known_problems() -> dict[str, Problem]:
    """Gaussians, isotropic and not, and a mixture of three in four dimensions, seen by two numbers.

    The isotropic one is measured along two axes, so that pigdm and tmpd are exact, as mmps is for
    every Gaussian.
    """
    rng = np.random.default_rng(1)
    factors = rng.normal(size=(4, 4, 4)) / 2
    covariances = factors @ factors.mT + 0.05 * np.eye(4)
    matrix = rng.normal(size=(2, 4)) / 2
    means = np.array([[1.2, -0.6, 0.3, 0.9], [-1.0, 0.8, 0.5, -0.7], [0.2, 0.9, -1.3, 0.1]])
    y = np.array([0.3, -0.2])
    mixture = dj.exact.mixture(np.array([0.5, 0.3, 0.2]), means, 0.2 * covariances[1:])
    along = np.eye(2, 4) * [[1.0], [0.5]]
    isotropic = dj.exact.gaussian(means[0], 0.5 * np.eye(4))
    return {
        "isotropic Gaussian": Problem(isotropic, along, y, 0.2),
        "Gaussian": Problem(dj.exact.gaussian(means[0], covariances[0]), matrix, y, 0.2),
        "mixture": Problem(mixture, matrix, y, 0.2),
    }


# a method's name and what to change in its settings
Row = tuple[str, dict[str, Any]]


class Errors(NamedTuple):
    """How far samples are from a posterior of mean m and covariance C.

    Attributes:
      mean: |mean of the samples - m| / sqrt(trace C).
      covariance: |covariance of the samples - C| / |C|, Frobenius norms.
    """

    mean: float
    covariance: float


def errors(samples: np.ndarray, posterior: Mixture) -> Errors:
    """Compare samples [N, D] with a posterior."""
    mean, covariance = (np.asarray(moment, np.float64) for moment in dj.exact.moments(posterior))
    samples = np.asarray(samples, np.float64)
    off, spread = samples.mean(0) - mean, np.cov(samples.T) - covariance
    return Errors(
        float(np.linalg.norm(off) / np.sqrt(np.trace(covariance))),
        float(np.linalg.norm(spread) / np.linalg.norm(covariance)),
    )


def compare(
    problem: Problem,
    rows: Mapping[str, Row],
    *,
    num_samples: int,
    num_steps: int,
    seed: int = 0,
) -> dict[str, Errors]:
    """The errors of methods on a problem, under "exact draws" those of as many true samples.

    Args:
      problem: with a known posterior.
      rows: what to compare, by the name in the table.
      num_samples: N.
      num_steps: of every sampler, on the variance-preserving linear schedule.
      seed: of all noise.
    """
    posterior = condition(problem.prior, problem.matrix, problem.y, problem.sigma_y**2)
    key, *others = jax.random.split(jax.random.key(seed), 21)
    floors = [errors(draw_exactly(other, posterior, num_samples), posterior) for other in others]
    table = {"exact draws": Errors(*np.sqrt(np.mean(np.square(floors), axis=0)).tolist())}

    levels = dj.linear()(dj.uniform(num_steps))
    operator, denoise = dj.operators.separable([problem.matrix]), dj.exact.denoiser(problem.prior)
    y = jnp.asarray(np.tile(problem.y, (num_samples, 1)), jnp.float32)
    spread = float(np.sqrt(np.mean(np.diag(dj.exact.moments(problem.prior)[1]))))
    for name, (method, changes) in rows.items():
        settings = Settings(problem.sigma_y, sigma_data=spread, step_size=0.2, **changes)
        run = partial(
            draw_posterior, method=METHODS[method], denoiser=lambda _: denoise,
            operator=operator, levels=levels, shape=problem.matrix.shape[1:], settings=settings,
        )  # fmt: skip
        samples = jax.jit(lambda key, y, run=run: run(key, y=y))(key, y)
        table[name] = errors(np.asarray(samples), posterior)
    return table


draw_exactly = jax.jit(dj.exact.draw, static_argnums=2)


def exact_table(*, num_samples: int, num_steps: int, seed: int = 0) -> str:
    """Every method's errors on the known problems, as a Markdown table."""
    rows: dict[str, Row] = {name: (name, {}) for name in METHODS if name != "twisted"}
    for count in (4, 16, 64):
        rows[f"twisted, {count} particles"] = "twisted", {"num_particles": count}
    problems = known_problems()
    results = [
        compare(problem, rows, num_samples=num_samples, num_steps=num_steps, seed=seed)
        for problem in problems.values()
    ]
    heads = [f"{name}, {what}" for name in problems for what in Errors._fields]
    lines = [f"| method | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
    for name in results[0]:
        cells = [f"{value:.3f}" for result in results for value in result[name]]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
