"""How a script of this folder starts and ends."""

import contextlib
import dataclasses
import io
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro


def run_script(main: Callable[[], None]) -> None:
    """Run `main`; an error ends the script with one line on stderr and status 1.

    Set DIFFJAX_TRACEBACK=1 to see where it came from.
    """
    warnings.showwarning = lambda message, *_: _say("warning", str(message))
    status: Any = 0
    try:
        main()
    except SystemExit as stop:
        status = stop.code or 0
    except Exception as error:
        if os.environ.get("DIFFJAX_TRACEBACK"):
            raise
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        _say("error", text or type(error).__name__)
        status = 1
    sys.stdout.flush()
    # leave at once: threads that still read or write must not hold or crash the process
    os._exit(status)


def parse_args(cls: Any, *, args: Sequence[str] | None = None, **options: Any) -> Any:
    """Read the command line into a dataclass by tyro, its complaints put into one line.

    Args:
      cls: the dataclass.
      args: the words of the command line, without the script.
      **options: of `tyro.cli`, such as `default` and `description`.

    Raises:
      ValueError: a setting is NaN, or a seed is negative or too large.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed = tyro.cli(cls, args=args, console_outputs=True, **options)
    except SystemExit as stop:
        if stop.code:
            # the words of a box drawing, without its frame
            _say("error", re.sub(r"[\u2500-\u257f]+", " ", complaint.getvalue()))
        raise
    _check_numbers(parsed)
    return parsed


def _check_numbers(part: Any, prefix: str = "--") -> None:
    """What no script can work with, whatever the setting."""
    for field in dataclasses.fields(part):
        value: Any = getattr(part, field.name)
        flag = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            # the two halves of a training run have flags without their names
            _check_numbers(value, prefix if field.name in ("config", "run") else f"{flag}.")
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, float) and math.isnan(number) for number in numbers):
            raise ValueError(f"{flag} is {value}; it must be a number.")
        if field.name == "seed" and value not in range(2**63):
            raise ValueError(f"{flag} is {value}; seeds are 0 to 2^63 - 1.")


def check_counts(settings: Any, *names: str, least: int = 1) -> None:
    """Refuse numbers of things below the least, by their flags."""
    for name in names:
        if getattr(settings, name) < least:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} is {getattr(settings, name)}; it must be at least {least}.")


def prepare_output(path: Path, *suffixes: str, flag: str = "--output") -> Path:
    """Make the folder of an output; refuse before any work what could not be written after it.

    Raises:
      ValueError: the path has none of the suffixes.
      OSError: its folder cannot be made or written to.
    """
    if path.suffix not in suffixes:
        expected = " or ".join(f"FILE{suffix}" for suffix in suffixes)
        raise ValueError(f"{flag} is {path}; expected {expected}.")
    with contextlib.suppress(FileExistsError, NotADirectoryError):
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{flag} is {path}, which cannot be written.")
    return path


def _say(kind: str, text: str) -> None:
    script = os.path.basename(sys.argv[0])
    print(f"{script}: {kind}: {' '.join(text.split())}", file=sys.stderr, flush=True)
