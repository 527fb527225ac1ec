"""What a schedule does to data: a few figures, and a picture.

Sampling starts from N(0, p I), p = alpha_T^2 + sigma_T^2 (1 where the variance is preserved),
while the forward process ends at N(alpha_T x0, sigma_T^2 I). The price of the difference, for data
with the second moment m in every dimension, is

    KL = (  (alpha_T^2 m + sigma_T^2) / p - 1 - log(sigma_T^2 / p)  ) / 2    nats per dimension.
"""

from os import PathLike
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffjax.core import grids
from diffjax.core.levels import NoiseLevel, logsnr, reverse_variances
from diffjax.core.schedules import Schedule, num_train_steps


class ScheduleSummary(NamedTuple):
    """The figures of a schedule.

    Attributes:
      num_train_steps: T of a table, None in continuous time.
      terminal_alpha, terminal_sigma: scales of data and noise at the noisy end.
      terminal_snr: alpha_T^2 / sigma_T^2; 0 when nothing of the data is left.
      prior_bits_per_dim: KL divergence of q(x_T | x0) from the noise that sampling starts with.
      ends_in_gaussian: whether x_T is an isotropic Gaussian to within 1e-3 bits per dimension.
      preserves_variance: whether alpha^2 + sigma^2 = 1 at every level.
      logsnr_max, logsnr_min: over the levels that training visits; continuous time leaves out
        the ends, where they may be infinite.
      smallest_sigma: at the cleanest of those levels.
      largest_step: the largest change of log-SNR between neighbours on the grid.
    """

    num_train_steps: int | None
    terminal_alpha: float
    terminal_sigma: float
    terminal_snr: float
    prior_bits_per_dim: float
    ends_in_gaussian: bool
    preserves_variance: bool
    logsnr_max: float
    logsnr_min: float
    smallest_sigma: float
    largest_step: float


def summarize_schedule(
    schedule: Schedule, *, second_moment: float = 1.0, num_points: int = 1000
) -> ScheduleSummary:
    """The figures that tell whether a schedule fits its data.

    Args:
      schedule: a table or a schedule in continuous time.
      second_moment: mean of x0^2 over the data; 1 for standardised data.
      num_points: levels looked at in continuous time; a table's own steps are used otherwise.

    >>> from diffjax.core.schedules import linear_betas
    >>> summary = summarize_schedule(linear_betas())
    >>> round(summary.terminal_snr, 6), summary.ends_in_gaussian, summary.preserves_variance
    (4e-05, True, True)
    """
    levels = _forward_levels(schedule, num_points)
    alpha, sigma = (np.asarray(leaf, np.float64) for leaf in levels[1:])
    # the clean end is no level of training; nor, in continuous time, is the noisy end
    inner = slice(1, None if num_train_steps(schedule) else -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_ratio = np.asarray(logsnr(levels), np.float64)[inner]
        steps = np.abs(np.diff(log_ratio))
    bits = _prior_bits_per_dim(alpha[-1], sigma[-1], second_moment)
    return ScheduleSummary(
        num_train_steps=num_train_steps(schedule),
        terminal_alpha=float(alpha[-1]),
        terminal_sigma=float(sigma[-1]),
        terminal_snr=float((alpha[-1] / sigma[-1]) ** 2),
        prior_bits_per_dim=bits,
        ends_in_gaussian=bits < 1e-3,
        preserves_variance=bool(np.allclose(alpha**2 + sigma**2, 1.0, atol=1e-5)),
        logsnr_max=float(log_ratio.max()),
        logsnr_min=float(log_ratio.min()),
        smallest_sigma=float(sigma[inner].min()),
        largest_step=float(steps.max(initial=0.0)),
    )


def plot_schedule(
    schedule: Schedule, path: str | PathLike[str], *, title: str = "", num_points: int = 1000
) -> None:
    """Draw a schedule: its scales, its log-SNR, and the variances of its steps over time.

    Needs matplotlib.

    Args:
      schedule: a table or a schedule in continuous time.
      path: of the picture; the suffix chooses the format.
      title: above the picture.
      num_points: steps that continuous time is cut into; a table's own steps are used otherwise.
    """
    from matplotlib.figure import Figure

    levels = _forward_levels(schedule, num_points)
    t = np.asarray(levels.t)
    small, large = reverse_variances(_part(levels, slice(1, None)), _part(levels, slice(None, -1)))
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    if title:
        figure.suptitle(title)
    scales, ratio, variances = figure.subplots(1, 3)

    _curve(scales, t, levels.alpha, "alpha (signal)")
    _curve(scales, t, levels.sigma, "sigma (noise)")
    scales.set_title("scales of data and noise")

    _curve(ratio, t, logsnr(levels), "log-SNR")
    ratio.axhline(0.0, color="0.6", linewidth=0.8)
    ratio.set_title("log signal-to-noise ratio")

    _curve(variances, t[1:], large, "forward step: beta")
    # dashed: but for the first steps the two are nearly equal
    _curve(variances, t[1:], small, "posterior: beta-tilde", "--")
    variances.set_yscale("log")
    variances.set_title(f"variances of {len(t) - 1} steps")

    for axes in (scales, ratio, variances):
        axes.set_xlabel("time (data to noise)")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def _forward_levels(schedule: Schedule, num_points: int) -> NoiseLevel:
    """All levels from the clean end to the noisy one."""
    steps = num_train_steps(schedule)
    times = grids.uniform(num_points) if steps is None else grids.full(steps)
    return schedule(jnp.asarray(times[::-1]))


def _prior_bits_per_dim(alpha: float, sigma: float, second_moment: float) -> float:
    prior = alpha**2 + sigma**2
    nats = 0.5 * ((alpha**2 * second_moment + sigma**2) / prior - 1.0 - np.log(sigma**2 / prior))
    return float(nats / np.log(2.0))


def _part(levels: NoiseLevel, part: slice) -> NoiseLevel:
    return NoiseLevel(*(leaf[part] for leaf in levels))


def _curve(axes: Any, x: np.ndarray, y: Any, label: str, style: str = "-") -> None:
    """One curve; infinite and, on log axes, zero values are left out."""
    y = np.asarray(y, np.float64)
    axes.plot(x, np.where(np.isfinite(y) & (y != 0.0), y, np.nan), style, label=label)
