"""Grids of levels told by the ratio sigma / alpha, which EDM and k-diffusion call sigma.

    karras_ratios         evenly spaced ratio^(1/rho)
    exponential_ratios    evenly spaced log ratio, that is uniform in log-SNR
    beta_ratios           quantiles of a beta distribution
    shifted_ratios        evenly spaced times of the straight flow, moved towards noise
    aligned_ratios        published tables of ten steps (Align Your Steps), for any number of them

Each returns N + 1 ratios in sampling order, the last of them 0, clean data. `levels_at` finds the
levels of any schedule that have these ratios, by interpolation of the logarithm in tables:

    levels = levels_at(schedule, karras_ratios(20, 0.03, 14.6))
"""

import numpy as np
from jax import Array

from diffjax.core.arguments import check_positive
from diffjax.core.inverse import level_at, levels_at

__all__ = [
    "ALIGNED",
    "aligned_ratios",
    "beta_ratios",
    "exponential_ratios",
    "karras_ratios",
    "level_at",
    "levels_at",
    "shifted",
    "shifted_ratios",
]

# grids that were optimised for public models: ratios of the starts of ten steps
ALIGNED = {
    "stable_diffusion": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152),
    "stable_diffusion_xl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.38, 0.234, 0.113),
    "stable_video": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034),
}


def karras_ratios(
    num_steps: int, smallest: float, largest: float, *, rho: float = 7.0, end: float = 0.0
) -> np.ndarray:
    """Evenly spaced roots: ratio_i = (largest^(1/rho) + i/(N-1) (smallest^(1/rho) - ...))^rho.

    Source: EDM, arXiv:2206.00364, Eq. 5.

    Args:
      num_steps: N >= 1.
      smallest, largest: ratios of the last entry before the end and of the first.
      rho: larger makes shorter steps at small ratios.
      end: the last entry; 0 is clean data.

    Returns:
      [N + 1] float64, largest first.

    Raises:
      ValueError: no step at all, not 0 <= smallest <= largest, or rho is not positive.

    >>> karras_ratios(2, 1.0, 10.0).round(4).tolist()
    [10.0, 1.0, 0.0]
    """
    ramp = _ramp("karras_ratios", num_steps, smallest, largest)
    check_positive("karras_ratios", rho=rho)
    low, high = smallest ** (1.0 / rho), largest ** (1.0 / rho)
    return np.append((high + ramp * (low - high)) ** rho, end)


def exponential_ratios(
    num_steps: int, smallest: float, largest: float, *, end: float = 0.0
) -> np.ndarray:
    """Evenly spaced logarithms, that is steps of equal length in log-SNR.

    Args:
      num_steps, smallest, largest, end: as of `karras_ratios`, smallest > 0.

    >>> exponential_ratios(3, 1.0, 100.0).round(4).tolist()
    [100.0, 10.0, 1.0, 0.0]
    """
    ramp = _ramp("exponential_ratios", num_steps, smallest, largest)
    return np.append(np.exp(np.log(largest) + ramp * np.log(smallest / largest)), end)


def beta_ratios(
    num_steps: int,
    smallest: float,
    largest: float,
    *,
    a: float = 0.6,
    b: float = 0.6,
    end: float = 0.0,
) -> np.ndarray:
    """Quantiles of the beta distribution: with a, b < 1 the steps are short at both ends.

    Source: "Beta Sampling is All You Need", arXiv:2407.12173.

    Args:
      num_steps, smallest, largest, end: as of `karras_ratios`.
      a, b: of the distribution, positive.

    >>> beta_ratios(3, 0.0, 2.0).round(4).tolist()
    [2.0, 1.0, 0.0, 0.0]
    """
    from scipy.stats import beta

    ramp = _ramp("beta_ratios", num_steps, smallest, largest)
    return np.append(smallest + (largest - smallest) * beta.ppf(1.0 - ramp, a, b), end)


def shifted_ratios(
    num_steps: int, smallest: float, largest: float, *, shift: float = 3.0, end: float = 0.0
) -> np.ndarray:
    """Evenly spaced times of the straight flow, u = ratio / (1 + ratio), with ratios times `shift`.

    As `shifted`, but between the given ends and for any schedule.

    Args:
      num_steps, smallest, largest, end: as of `karras_ratios`.
      shift: above 1 makes more steps at large ratios; 1 is even in u.

    >>> shifted_ratios(3, 0.5, 2.0, shift=1.0).round(4).tolist()
    [2.0, 1.0, 0.5, 0.0]
    """
    ramp = _ramp("shifted_ratios", num_steps, smallest, largest)
    low, high = (ratio / (shift + ratio) for ratio in (smallest, largest))
    times = shifted(high + ramp * (low - high), shift)
    return np.append(times / (1.0 - times), end)


def aligned_ratios(
    num_steps: int,
    smallest: float | None = None,
    largest: float | None = None,
    *,
    table: str = "stable_diffusion",
    end: float = 0.0,
) -> np.ndarray:
    """A published table of ten steps, interpolated in the logarithm to any number of them.

    Source: Align Your Steps, arXiv:2404.14507, Appendix: tables, and their interpolation.

    Args:
      num_steps: N >= 1.
      smallest, largest: ratios of the last entry before the end and of the first: the logarithms of
        the table are stretched between them. The table's own by default.
      table: a name of `ALIGNED`.
      end: the last entry; 0 is clean data.

    Raises:
      ValueError: there is no such table.

    >>> aligned_ratios(3).round(3).tolist()
    [14.615, 1.623, 0.152, 0.0]
    """
    if table not in ALIGNED:
        raise ValueError(f"table is {table!r}; it must be one of {', '.join(ALIGNED)}.")
    logs = np.log(ALIGNED[table])
    top = logs[0] if largest is None else np.log(largest)
    bottom = logs[-1] if smallest is None else np.log(smallest)
    ramp = _ramp("aligned_ratios", num_steps, np.exp(bottom), np.exp(top))
    places = (logs - logs[0]) / (logs[-1] - logs[0])
    inside = np.interp(ramp, np.linspace(0.0, 1.0, len(logs)), places)
    return np.append(np.exp(top + inside * (bottom - top)), end)


def shifted(times: np.ndarray | Array, shift: float) -> np.ndarray | Array:
    """Move times towards noise: t -> shift t / (1 + (shift - 1) t).

    For the straight flow this multiplies sigma / alpha by `shift`, as larger images need. Apply it
    once, to the grid or to the training times.
    Source: Stable Diffusion 3, arXiv:2403.03206, Eq. 23.

    >>> float(shifted(np.float64(0.5), 3.0))
    0.75
    """
    return shift * times / (1.0 + (shift - 1.0) * times)


def _ramp(name: str, num_steps: int, smallest: float, largest: float) -> np.ndarray:
    if num_steps < 1:
        raise ValueError(f"{name}: num_steps is {num_steps}; sampling needs at least one step.")
    if not 0.0 <= smallest <= largest:
        raise ValueError(
            f"{name}: the ratios run from {largest} to {smallest}; "
            "needed is 0 <= smallest <= largest."
        )
    return np.linspace(0.0, 1.0, num_steps)
