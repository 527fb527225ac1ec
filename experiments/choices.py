"""Settings that name one of several functions: NAME, or NAME(KEY=VALUE, ...).

    cosine                                    a row of diffjax's tables, as it stands
    edm_sigmas(sigma_min=0.002, rho=7)        the same with other arguments
    my_losses:symmetric                       a function of the user's, from a module

So a configuration is text, and a new row of a table needs no new setting.
"""

import ast
import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from diffjax.core import densities, grids, parameterizations, schedules, sigma_grids
from diffjax.core.learned_schedule import learned_logsnr

SCHEDULES: dict[str, Callable[..., schedules.Schedule]] = {
    **schedules.SCHEDULES,
    "learned_logsnr": learned_logsnr,
}
# builders of what the tables of diffjax hold ready-made
PREDICTIONS: dict[str, Callable[..., parameterizations.Parameterization]] = {
    **{name: partial(lambda row, /: row, row)
       for name, row in parameterizations.PARAMETERIZATIONS.items()},
    "edm": parameterizations.edm,
}  # fmt: skip
DENSITIES = densities.DENSITIES
SPACINGS = grids.SPACINGS
RATIOS: dict[str, Callable[..., Any]] = {
    "karras": sigma_grids.karras_ratios,
    "exponential": sigma_grids.exponential_ratios,
    "beta": sigma_grids.beta_ratios,
    "shifted": sigma_grids.shifted_ratios,
    "aligned": sigma_grids.aligned_ratios,
}


def listed(text: str, table: Mapping[str, Any]) -> Any:
    """The help of a setting that names a row of a table."""
    words = f"{text}: {', '.join(table)}; arguments as in NAME(KEY=VALUE)"
    try:
        import tyro
    except ImportError:  # benchmark.py reads configurations where tyro is not installed
        return words
    return tyro.conf.arg(help=words)


def unprefixed() -> Any:
    """A setting of a part whose flag does not name the part: --NAME, not --PART.NAME."""
    try:
        import tyro
    except ImportError:
        return None
    return tyro.conf.arg(prefix_name=False)


def choose(what: str, name: str, table: Mapping[str, Any]) -> Any:
    """Look a name up; an unknown one is refused with the nearest that exists."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what} {name!r} is not one of {', '.join(table)}.{hint}")


def read_choice(what: str, text: str) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of a setting.

    Raises:
      ValueError: the text is neither NAME nor NAME(KEY=VALUE, ...) with plain values.

    >>> read_choice("schedule", "variance_exploding(sigma_max=100)")
    ('variance_exploding', {'sigma_max': 100})
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        if not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        return call.func.id, {str(key.arg): ast.literal_eval(key.value) for key in call.keywords}
    except (SyntaxError, ValueError):
        raise ValueError(f"{what} is {text!r}; expected NAME or NAME(KEY=VALUE, ...).") from None


def build(what: str, text: str, table: Mapping[str, Callable[..., Any]], **offered: Any) -> Any:
    """Call the function of a table that a setting names.

    Args:
      what: the setting, for messages.
      text: NAME or NAME(KEY=VALUE, ...).
      table: functions by name.
      **offered: further arguments, passed on if the function has them and the text does not.

    Raises:
      ValueError: the name or an argument is unknown, in which case the message has the nearest that
        exists; or an argument is missing or of another kind.

    >>> build("density", "log_normal(mean=0.0)", DENSITIES).mean
    0.0
    """
    name, given = read_choice(what, text)
    function = choose(what, name, table)
    accepted = inspect.signature(function).parameters
    for key in given:
        if key not in accepted:
            near = difflib.get_close_matches(key, accepted, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{what} {name} has no argument {key!r}.{hint}")
    wanted = {key: value for key, value in offered.items() if key in accepted}
    try:
        return function(**{**wanted, **given})
    except TypeError as error:
        raise ValueError(f"{what} {text!r} does not fit {name}: {error}.") from error


def load_function(what: str, name: str) -> Callable[..., Any]:
    """A function of the user's, MODULE:FUNCTION.

    Raises:
      ValueError: there is no such module or function.
    """
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{what} is {name!r}; expected MODULE:FUNCTION that Python can import ({error})."
        ) from None
