"""Grids of levels told by the ratio sigma / alpha, which EDM and k-diffusion call sigma.

    karras_ratios         evenly spaced ratio^(1/rho)
    exponential_ratios    evenly spaced log ratio, that is uniform in log-SNR
    beta_ratios           quantiles of a beta distribution

Each returns N + 1 ratios in sampling order, the last of them 0, clean data. `levels_at` finds the
levels of any schedule that have these ratios, by interpolation of the logarithm in tables:

    levels = levels_at(schedule, karras_ratios(20, 0.03, 14.6))
"""

import numpy as np
from jax import Array

from diffjax.core.inverse import level_at, levels_at

__all__ = [
    "beta_ratios",
    "exponential_ratios",
    "karras_ratios",
    "level_at",
    "levels_at",
    "shifted",
]


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

    >>> karras_ratios(2, 1.0, 10.0).round(4).tolist()
    [10.0, 1.0, 0.0]
    """
    ramp = _ramp("karras_ratios", num_steps, smallest, largest)
    low, high = smallest ** (1.0 / rho), largest ** (1.0 / rho)
    return np.append((high + ramp * (low - high)) ** rho, end)


def exponential_ratios(
    num_steps: int, smallest: float, largest: float, *, end: float = 0.0
) -> np.ndarray:
    """Evenly spaced logarithms, that is steps of equal length in log-SNR. Arguments as above.

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

    Source: "Beta Sampling is All You Need", arXiv:2407.12173. Arguments as above.

    >>> beta_ratios(3, 0.0, 2.0).round(4).tolist()
    [2.0, 1.0, 0.0, 0.0]
    """
    from scipy.stats import beta

    ramp = _ramp("beta_ratios", num_steps, smallest, largest)
    return np.append(smallest + (largest - smallest) * beta.ppf(1.0 - ramp, a, b), end)


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
