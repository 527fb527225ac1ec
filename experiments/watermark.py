"""An invisible watermark: a short text in the brightness of a picture, and the way to read it.

    python experiments/watermark.py FILE...

A few cosine coefficients c of each 8 x 8 block carry one bit b each: they are moved to the nearest
place of a grid that is shifted by half a step for a one,

    c' = step (round(c / step - b / 2) + b / 2),

which is read back as the sign of cos(2 pi c' / step). The bits of the text and of its checksum are
repeated over all blocks, and every bit is decided by the sum over its places. PNG, JPEG of good
quality and small changes of the brightness leave enough of them; cropping and resizing do not.

Source: quantisation index modulation, Chen and Wornell, IEEE Trans. Inf. Theory 47(4), 2001,
section III; in DCT blocks as in the watermarks of the first latent diffusion models.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image

from cli import parse_args, run_script

SIDE = 8  # of a block, JPEG's
# of coefficients; the error of a pixel is then 1.5 of 255 at the root of the mean square
STEP = 20.0
# the vertical and horizontal frequencies that carry bits: JPEG keeps them well
FREQUENCIES = ((1, 1), (1, 2), (2, 1), (2, 2))
MAX_BYTES = 64
VOTES = 4  # the least number of places of a bit
CHECKSUM = 4  # bytes
LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Args:
    """Read the invisible watermarks of pictures."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """pictures, as text_to_image.py --watermark writes them"""


def mark(image: np.ndarray, text: str) -> np.ndarray:
    """A picture with a text in it that is not seen.

    Args:
      image: [H, W, C] uint8, of one or three channels.
      text: up to 64 bytes in UTF-8.

    Raises:
      ValueError: the text is empty or too long, or does not fit into the picture.

    >>> picture = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    >>> read(mark(picture, "made by a model")), read(picture)
    ('made by a model', None)
    """
    height, width, _ = image.shape
    require_room(text, height, width)
    blocks = split(brightness(image))
    waves = basis()
    found = np.einsum("rcij,kij->rck", blocks, waves)
    bits = bits_of(text.encode())[places(found.size) % (8 * (len(text.encode()) + CHECKSUM))]
    half = 0.5 * bits.reshape(found.shape)
    moved = STEP * (np.round(found / STEP - half) + half) - found
    change = np.einsum("rck,kij->ricj", moved, waves)
    rows, columns = change.shape[0] * SIDE, change.shape[2] * SIDE
    marked = image.astype(np.float64)
    # the same in all channels changes the brightness by as much
    marked[:rows, :columns] += change.reshape(rows, columns, 1)
    return np.round(np.clip(marked, 0, 255)).astype(np.uint8)


def read(image: np.ndarray) -> str | None:
    """The text that `mark` put into a picture [H, W, C] uint8; None if there is none."""
    found = np.einsum("rcij,kij->rck", split(brightness(image)), basis()).ravel()
    votes, order = np.cos(2 * np.pi * found / STEP), places(found.size)
    for length in range(1, MAX_BYTES + 1):
        count = 8 * (length + CHECKSUM)
        if count * VOTES > found.size:
            break
        sums = np.bincount(order % count, votes, count)
        content = np.packbits(sums < 0).tobytes()
        text, checksum = content[:length], content[length:]
        if zlib.crc32(text).to_bytes(CHECKSUM) == checksum:
            return text.decode(errors="replace")
    return None


def require_room(text: str, height: int, width: int) -> None:
    """Raise a ValueError unless a picture of that size has room for the text."""
    count = len(text.encode())
    if not 0 < count <= MAX_BYTES:
        raise ValueError(f"a watermark has 1 to {MAX_BYTES} bytes; {text!r} has {count}")
    there = (height // SIDE) * (width // SIDE) * len(FREQUENCIES)
    if there < 8 * (count + CHECKSUM) * VOTES:
        most = max(there // (8 * VOTES) - CHECKSUM, 0)
        raise ValueError(
            f"a picture of {height} x {width} has room for a watermark of {most} bytes; {text!r} "
            f"has {count}"
        )


def brightness(image: np.ndarray) -> np.ndarray:
    """[H, W] float64 of a picture [H, W, C] uint8."""
    return image @ LUMA if image.shape[-1] == 3 else image[..., 0].astype(np.float64)


def split(plane: np.ndarray) -> np.ndarray:
    """The whole blocks of a plane, [rows, columns, 8, 8]."""
    rows, columns = plane.shape[0] // SIDE, plane.shape[1] // SIDE
    inside = plane[: rows * SIDE, : columns * SIDE]
    return inside.reshape(rows, SIDE, columns, SIDE).swapaxes(1, 2)


def basis() -> np.ndarray:
    """The cosine waves of the frequencies, orthonormal, [K, 8, 8]."""
    angles = np.pi / SIDE * (np.arange(SIDE) + 0.5)
    wave = lambda frequency: np.sqrt(2 / SIDE) * np.cos(frequency * angles)
    return np.stack([np.outer(wave(down), wave(right)) for down, right in FREQUENCIES])


def bits_of(content: bytes) -> np.ndarray:
    """The bits of a content and of its checksum."""
    whole = content + zlib.crc32(content).to_bytes(CHECKSUM)
    return np.unpackbits(np.frombuffer(whole, np.uint8))


def places(count: int) -> np.ndarray:
    """A fixed order of the places, so that each bit is spread over all of the picture."""
    return np.argsort(np.arange(count, dtype=np.uint32) * np.uint32(2654435761), kind="stable")


def main() -> None:
    args = parse_args(Args, description=__doc__)
    for file in args.files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is not a file")
        picture = Image.open(file)
        picture = picture if picture.mode == "L" else picture.convert("RGB")
        image = np.asarray(picture)
        text = read(image[..., None] if image.ndim == 2 else image)
        print(f"{file}: {'no watermark' if text is None else text}")


if __name__ == "__main__":
    run_script(main)
