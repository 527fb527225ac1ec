"""The pictures that a run leaves behind."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffjax.training.manifest import whole_file


def image_grid(images: np.ndarray, columns: int, *, scale: int = 1, gap: int = 1) -> Image.Image:
    """Arrange images in rows of `columns`.

    Args:
      images: [N, H, W, C] uint8 with 1 or 3 channels.
      columns: images in a row.
      scale: pixels that each pixel becomes.
      gap: pixels between images, before scaling.
    """
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    sheet = np.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 96, np.uint8
    )
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    picture = Image.fromarray(sheet[..., 0] if channels == 1 else sheet)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def fitting_scale(height: int, width: int) -> int:
    """How much to enlarge small images so that a person can see them."""
    return max(1, 32 // min(height, width))


def save_grid(path: Path, images: np.ndarray, columns: int) -> None:
    """Write a grid of images as PNG."""
    with whole_file(path) as draft:
        image_grid(images, columns, scale=fitting_scale(*images.shape[1:3])).save(draft)


def save_archive(path: Path, images: np.ndarray, labels: np.ndarray | None = None) -> None:
    """Write images [N, H, W, C] and, where there are any, their labels [N] as an .npz archive."""
    told: dict[str, Any] = {} if labels is None else {"labels": labels}
    with whole_file(path) as draft:
        np.savez_compressed(draft, images=images, **told)


def save_animation(path: Path, frames: Sequence[np.ndarray], columns: int) -> None:
    """Write grids [N, H, W, C], one for each frame, as an animated GIF that rests on its end."""
    # half the size of the grids: noise does not compress
    scale = max(1, fitting_scale(*frames[0].shape[1:3]) // 2)
    mode = "L" if frames[0].shape[-1] == 1 else "RGB"
    sheets = [image_grid(frame, columns, scale=scale).convert(mode) for frame in frames]
    durations = [60] * (len(sheets) - 1) + [2000]
    options: dict[str, Any] = {"duration": durations, "loop": 0, "optimize": False}
    with whole_file(path) as draft:
        sheets[0].save(draft, save_all=True, append_images=sheets[1:], **options)


def save_loss_curve(path: Path, steps: Sequence[float], losses: Sequence[float]) -> None:
    """Plot the training loss, and its running mean, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), constrained_layout=True)
    axes.plot(steps, losses, color="tab:blue", alpha=0.35, linewidth=1, label="logged")
    if len(losses) >= 10:
        width = max(len(losses) // 20, 2)
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        middle = steps[width // 2 : width // 2 + len(smooth)]
        axes.plot(middle, smooth, color="tab:blue", label=f"mean of {width}")
    axes.set(xlabel="training step", ylabel="loss", yscale="log", title="Training loss")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
