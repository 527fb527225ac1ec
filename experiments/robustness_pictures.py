"""The pictures of robustness.py: attacked digits, and how often classifiers are right."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffjax.training.manifest import whole_file

# what each classifier is right about, by what it was given: a share for each seed
Accuracies = dict[str, np.ndarray]

NUM_SHOWN = 10
DIFFERENCES = 2.0  # times as strong as they are


def save_accuracies(path: Path, found: Accuracies) -> None:
    """Draw a dot for each classifier, their mean and the standard deviation between them."""
    figure = _figure((6.0, 1.0 + 0.5 * len(found)))
    _draw_accuracies(figure.subplots(), found)
    _save(path, figure)


def save_purification(
    path: Path,
    found: Accuracies,
    images: Sequence[np.ndarray],
    guesses: np.ndarray,
    labels: np.ndarray,
) -> None:
    """Draw digits before and after, what a classifier takes them for, and all accuracies.

    Args:
      path: FILE.png.
      found: as for `save_accuracies`.
      images: clean, attacked and purified ones, each [NUM_SHOWN, 8, 8, 1] in [-1, 1].
      guesses: [3, NUM_SHOWN], what they are taken for.
      labels: [NUM_SHOWN], what they are; wrong guesses are red.
    """
    clean, attacked, purified = images
    rows = {
        "clean": clean,
        "attacked": attacked,
        "purified": purified,
        "attacked - clean": DIFFERENCES * (attacked - clean),
        "purified - clean": DIFFERENCES * (purified - clean),
    }
    figure = _figure((12.0, 4.2))
    left, right = figure.subfigures(1, 2, width_ratios=(7, 5))
    for i, (panels, (name, row)) in enumerate(zip(left.subplots(5, NUM_SHOWN), rows.items())):
        for j, (axes, image) in enumerate(zip(panels, row)):
            axes.imshow(image[..., 0], cmap="gray", vmin=-1.0, vmax=1.0)
            axes.set(xticks=[], yticks=[])
            if i < len(guesses):
                colour = "black" if guesses[i, j] == labels[j] else "tab:red"
                axes.set_title(str(guesses[i, j]), fontsize=9, color=colour, pad=2)
        panels[0].set_ylabel(name, rotation=0, ha="right", va="center")
    _draw_accuracies(right.subplots(), found)
    _save(path, figure)


def _draw_accuracies(axes: Any, found: Accuracies) -> None:
    for place, values in enumerate(found.values()):
        percent = 100.0 * values
        axes.plot(percent, np.full(len(percent), place), "o", color="tab:blue", alpha=0.4)
        axes.errorbar(percent.mean(), place, xerr=percent.std(ddof=1), fmt="k|", capsize=4)
    axes.set_yticks(range(len(found)), found)
    axes.set(ylim=(len(found) - 0.5, -0.5), xlabel="accuracy, %")
    axes.grid(alpha=0.3)


def _figure(size: tuple[float, float]) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.figure(figsize=size, layout="constrained")


def _save(path: Path, figure: Any) -> None:
    import matplotlib.pyplot as plt

    with whole_file(path) as draft:
        figure.savefig(draft, dpi=80, format="png")
    plt.close(figure)
