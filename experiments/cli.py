"""How a script of this folder starts and ends."""

import difflib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any


def run_script(main: Callable[[], int | None]) -> None:
    """Run `main`; an error ends the script with one line on stderr and status 1.

    Set DIFFJAX_TRACEBACK=1 to see where it came from.
    """
    try:
        status = main()
    except Exception as error:
        if os.environ.get("DIFFJAX_TRACEBACK"):
            raise
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        reason = " ".join(text.split()) or type(error).__name__
        print(f"{os.path.basename(sys.argv[0])}: error: {reason}", file=sys.stderr)
        # leave at once: background threads of a failed save must not hold the process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    sys.exit(status or 0)


def choose(what: str, name: str, table: Mapping[str, Any]) -> Any:
    """Look a name up; an unknown one is refused with the nearest that exists."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what} {name!r} is not one of {', '.join(table)}.{hint}")
