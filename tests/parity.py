"""Compare networks and solvers with reference cases.

    python tests/parity.py FOLDER...

A folder is one case, or holds cases at any depth. For each case a line of JSON is printed:

    case, status, error, tolerance, reason

status is `pass`, `fail`, `unsupported` (the project has no such thing) or `known_difference` (the
project departs from the reference on purpose). error is that of the array nearest to its tolerance
or furthest beyond it, relative to the largest absolute value of the reference, and null where the
arrays cannot be compared. reason explains every status but `pass`. The exit status is 1 if a case
failed and 2 if a folder holds none.
"""

import json
import math
import sys
from pathlib import Path

import jax
from parity_cases import Comparison, KnownDifference, Unsupported, find_cases, read_case
from parity_models import check_model
from parity_pipelines import check_pipeline
from parity_schedulers import check_scheduler

# kind in case.json -> function from the case to its comparisons
KINDS = {"model": check_model, "pipeline": check_pipeline, "scheduler": check_scheduler}


def check(folder: Path) -> dict:
    """Check one case; never raises, a case that cannot be read or run fails with the reason."""
    line = {"case": folder.name, "status": "fail", "error": None, "tolerance": None, "reason": ""}
    try:
        case = read_case(folder)
        line["case"] = case.settings.get("case", folder.name)
        kind = case.settings["kind"]
        if kind not in KINDS:
            raise Unsupported(f"there are no checks for kind {kind}")
        with jax.default_matmul_precision("highest"):
            return {**line, **judge(KINDS[kind](case))}
    except Unsupported as difference:
        return {**line, "status": "unsupported", "reason": str(difference)}
    except KnownDifference as difference:
        return {**line, "status": "known_difference", "reason": str(difference)}
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")
        return {**line, "reason": reason}


def judge(comparisons: list[Comparison]) -> dict:
    """The status of a case, from the array that is nearest to its tolerance or furthest beyond."""
    if not comparisons:
        raise ValueError("the case holds no outputs to compare")
    # a tolerance of 0 asks for equality
    worst = max(comparisons, key=lambda each: each.error / max(each.tolerance, 1e-12))
    found = {"error": worst.error, "tolerance": worst.tolerance}
    if worst.error <= worst.tolerance:
        return {**found, "status": "pass"}
    if math.isinf(worst.error):
        found["error"] = None  # JSON has no infinity
    return {**found, "status": "fail", "reason": f"{worst.name} is off"}


def main(arguments: list[str]) -> int:
    """Check every case in the given folders and return the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    failed = False
    for argument in arguments:
        cases = find_cases(Path(argument))
        if not cases:
            print(f"{argument} holds no case.json at any depth", file=sys.stderr)
            return 2
        for folder in cases:
            line = check(folder)
            print(json.dumps(line), flush=True)
            failed |= line["status"] == "fail"
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
