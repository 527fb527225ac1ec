"""Reference cases on disk: reading one, and comparing arrays with it.

A case is a folder with case.json, inputs.npz and outputs.npz. case.json names its kind and, where
there is one, a checkpoint: a path relative to the root of the set that the case belongs to.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """One reference case.

    Attributes:
      folder: where it lies.
      settings: the content of case.json.
      checkpoint: the folder with the saved model; the case's own if it names none.
      inputs, outputs: the arrays of inputs.npz and outputs.npz.
    """

    folder: Path
    settings: dict[str, Any]
    checkpoint: Path
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


class Comparison(NamedTuple):
    """How far one computed array is from its reference, and how far it may be."""

    name: str
    error: float
    tolerance: float


class Unsupported(Exception):
    """The case asks for something that the project does not have; the message says what."""


class KnownDifference(Exception):
    """The project differs from the reference on purpose; the message says why."""


def find_cases(folder: Path) -> list[Path]:
    """The folder itself if it is a case, otherwise all cases in it at any depth."""
    if (folder / "case.json").is_file():
        return [folder]
    return sorted(path.parent for path in folder.rglob("case.json"))


def read_case(folder: Path) -> Case:
    """Read a case; raises an exception that says what is wrong with its files."""
    settings = json.loads((folder / "case.json").read_text())
    return Case(
        folder=folder,
        settings=settings,
        checkpoint=_find_checkpoint(folder, settings.get("checkpoint")),
        inputs=_read_arrays(folder / "inputs.npz"),
        outputs=_read_arrays(folder / "outputs.npz"),
    )


def compare(name: str, computed: Any, reference: np.ndarray, tolerance: float) -> Comparison:
    """The largest difference, relative to the largest absolute value of the reference.

    Arrays of different shape are infinitely far apart, and so is a NaN from a number. NaN and
    infinities at the same places in both are equal.
    """
    computed = np.asarray(computed)
    if computed.shape != reference.shape:
        return Comparison(f"{name} {computed.shape} != {reference.shape}", np.inf, tolerance)
    computed, reference = computed.astype(np.float64), reference.astype(np.float64)
    finite = np.isfinite(reference)
    if not np.array_equal(computed[~finite], reference[~finite], equal_nan=True):
        return Comparison(name, np.inf, tolerance)
    computed, reference = computed[finite], reference[finite]
    if not np.isfinite(computed).all():
        return Comparison(name, np.inf, tolerance)
    if computed.size == 0:
        return Comparison(name, 0.0, tolerance)
    scale = np.abs(reference).max() or 1.0
    return Comparison(name, float(np.abs(computed - reference).max() / scale), tolerance)


def last(array: Any) -> np.ndarray:
    """Images with channels last, from channels first."""
    return np.moveaxis(np.asarray(array), -3, -1)


def first(array: Any) -> np.ndarray:
    """Images with channels first, from channels last."""
    return np.moveaxis(np.asarray(array), -1, -3)


def _find_checkpoint(folder: Path, relative: str | None) -> Path:
    """Walk up from the case until the path exists; a case alone keeps it beside its case.json."""
    if relative is None:
        return folder
    beside = folder / Path(relative).name
    candidates = [root / relative for root in folder.resolve().parents] + [beside]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"the checkpoint {relative} is in no folder above {folder}")


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
