"""Time grids: the times that a sampler visits, as plain NumPy arrays in sampling order.

A grid of N steps holds N + 1 times, noise first: a step leads from entry i to entry i + 1. Calling
a schedule with a grid gives the levels that `sample` takes. For a table of T steps the times are
integers and the last entry is -1, the clean end; in continuous time they run from 1 to 0.

The spacings of a table are the ones that the field knows by name (arXiv:2305.08891, Table 2).
Times are rounded half to even.
"""

import operator
from collections.abc import Sequence

import numpy as np


def full(num_train_steps: int) -> np.ndarray:
    """Every step of a table of num_train_steps T: T - 1, ..., 1, 0, -1. [T + 1] int32.

    >>> full(4)
    array([ 3,  2,  1,  0, -1], dtype=int32)
    """
    return trailing(num_train_steps, num_train_steps)


def uniform(num_steps: int, *, start: float = 1.0, end: float = 0.0) -> np.ndarray:
    """Evenly spaced continuous times from `start` (noise) down to `end`, num_steps + 1 of them.

    Args:
      num_steps: at least 1.
      start, end: with 0 <= end < start <= 1.

    Returns:
      [num_steps + 1] float32.

    Raises:
      ValueError: no step at all, or times outside of [0, 1].

    >>> uniform(4)
    array([1.  , 0.75, 0.5 , 0.25, 0.  ], dtype=float32)
    """
    num_steps = _count("uniform", num_steps)
    if not 0.0 <= end < start <= 1.0:
        raise ValueError(f"uniform: times run from {start} to {end}; they must fall within [0, 1].")
    return np.linspace(start, end, num_steps + 1).astype(np.float32)


def trailing(num_steps: int, num_train_steps: int | None = None) -> np.ndarray:
    """Evenly spaced from the noisiest step on: the spacing to prefer.

        t_i = round(T - i T / N) - 1    for i = 0 .. N - 1

    Args:
      num_steps: N, from 1 to T.
      num_train_steps: T of a table; None for continuous time, where this is `uniform`.

    Returns:
      [N + 1] times, int32 for a table and float32 otherwise.

    Raises:
      ValueError: no step at all, or more than the table has.

    >>> trailing(4, 1000)
    array([999, 749, 499, 249,  -1], dtype=int32)
    >>> trailing(2)
    array([1. , 0.5, 0. ], dtype=float32)
    """
    if num_train_steps is None:
        return uniform(_count("trailing", num_steps))
    num_steps = _count("trailing", num_steps, num_train_steps)
    stride = num_train_steps / num_steps
    return _table_grid(np.round(num_train_steps - stride * np.arange(num_steps)) - 1)


def leading(num_steps: int, num_train_steps: int, *, offset: int = 0) -> np.ndarray:
    """Evenly spaced from the cleanest step on, DDIM's original spacing.

        t_i = (N - 1 - i) floor(T / N) + offset

    The noisiest step of the table is left out (with one step, all but the cleanest are).

    Args:
      num_steps: N, from 1 to T.
      num_train_steps: T of the table.
      offset: added to every time, 0 or 1 as a rule.

    Returns:
      [N + 1] int32.

    Raises:
      ValueError: no step at all, more than the table has, or an offset that leaves the table.

    >>> leading(4, 1000, offset=1)
    array([751, 501, 251,   1,  -1], dtype=int32)
    """
    num_steps = _count("leading", num_steps, num_train_steps)
    times = np.arange(num_steps)[::-1] * (num_train_steps // num_steps) + offset
    if offset < 0 or times[0] >= num_train_steps:
        raise ValueError(
            f"leading: offset {offset} moves the first time to {times[0]}; "
            f"the table ends at {num_train_steps - 1}."
        )
    return _table_grid(times)


def linspace(num_steps: int, num_train_steps: int) -> np.ndarray:
    """Evenly spaced over both ends of a table: T - 1 and 0 are visited, the rest rounded.

    With one step only the cleanest is visited.

    Args:
      num_steps: from 1 to num_train_steps.
      num_train_steps: of the table.

    Returns:
      [num_steps + 1] int32.

    Raises:
      ValueError: no step at all, or more than the table has.

    >>> linspace(4, 1000)
    array([999, 666, 333,   0,  -1], dtype=int32)
    """
    num_steps = _count("linspace", num_steps, num_train_steps)
    return _table_grid(np.round(np.linspace(0, num_train_steps - 1, num_steps))[::-1])


def quadratic(num_steps: int, num_train_steps: int | None = None) -> np.ndarray:
    """Times that grow with the square, so that steps are short near the data.

        t_i = t_max ((N - i) / N)^2 in continuous time,
        t_i = round((T - 1) ((N - 1 - i) / (N - 1))^2), raised to N - 1 - i, in a table

    Raising keeps the steps of a table distinct. Source: DDIM, arXiv:2010.02502, Appendix D.2.

    Args:
      num_steps: N, from 1 to T.
      num_train_steps: T of a table; None for continuous time.

    Returns:
      [N + 1] times, int32 for a table and float32 otherwise.

    Raises:
      ValueError: no step at all, or more than the table has.

    >>> quadratic(4, 1000)
    array([999, 444, 111,   0,  -1], dtype=int32)
    >>> quadratic(2)
    array([1.  , 0.25, 0.  ], dtype=float32)
    """
    if num_train_steps is None:
        return uniform(_count("quadratic", num_steps)) ** 2
    num_steps = _count("quadratic", num_steps, num_train_steps)
    rank = np.arange(num_steps)
    fraction = rank / (num_steps - 1) if num_steps > 1 else np.ones(1)
    times = np.round((num_train_steps - 1) * fraction**2)
    return _table_grid(np.maximum(times, rank)[::-1])


def from_times(
    times: Sequence[float], num_train_steps: int | None = None, *, fractions: bool = False
) -> np.ndarray:
    """Any list of times, noise first; the clean end (-1, or 0.0) is appended if it is missing.

    Args:
      times: strictly decreasing; integers 0 .. T - 1 for a table, floats in [0, 1] otherwise.
      num_train_steps: T of a table; None for continuous time.
      fractions: floats are fractions of a table's steps, between which it interpolates.

    Returns:
      [N + 1] times, int32 for whole steps of a table and float32 otherwise.

    Raises:
      ValueError: no times, or not decreasing, or outside of the range.
      TypeError: fractions of a table's steps without `fractions`.

    >>> from_times([999, 500, 20], 1000)
    array([999, 500,  20,  -1], dtype=int32)
    """
    array = np.asarray(times)
    if array.ndim != 1 or array.size == 0 or not np.issubdtype(array.dtype, np.number):
        raise ValueError(
            f"from_times: times are {array.dtype} of shape {array.shape}; needed are numbers, [N]."
        )
    end, top = (0.0, 1.0) if num_train_steps is None else (-1, num_train_steps - 1)
    whole = np.issubdtype(array.dtype, np.integer)
    if num_train_steps is not None and not whole and not fractions:
        raise TypeError(f"from_times: a table takes integer steps, not {array.dtype}.")
    if array[-1] != end:
        array = np.append(array, end)
    # NaN fails every comparison
    if not (np.all(np.diff(array) < 0) and array[0] <= top and array[-1] >= end):
        raise ValueError(
            f"from_times: times must decrease strictly and lie in [{end}, {top}]: {list(times)}"
        )
    return array.astype(np.int32 if num_train_steps is not None and whole else np.float32)


SPACINGS = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "quadratic": quadratic,
}


def _table_grid(times: np.ndarray) -> np.ndarray:
    return np.append(times, -1).astype(np.int32)


def _count(name: str, num_steps: int, most: int | None = None) -> int:
    try:
        num_steps = operator.index(num_steps)
    except TypeError:
        raise TypeError(f"{name}: num_steps is {num_steps!r}; it must be an integer.") from None
    if num_steps < 1:
        raise ValueError(f"{name}: num_steps is {num_steps}; sampling needs at least one step.")
    if most is not None and num_steps > most:
        raise ValueError(
            f"{name}: num_steps is {num_steps}, but the table was trained with {most} steps."
        )
    return num_steps
