"""Settings inside a prompt, in the manner of hosted services.

    a red cat on a mat --ar 16:9 --seed 7 --no dogs, people --iw 0.6

| setting | is |
| --- | --- |
| --ar W:H | the shape of the image, at the area of the model's own |
| --seed N | the seed |
| --no THINGS | the negative prompt |
| --iw SHARE | how much a picture counts, in [0, 1): the scale of an image prompt where there is |
|            | one, otherwise what is kept of the initial image, strength = 1 - SHARE |
| --chaos N | how unlike each other the images are, in [0, 100]: share of noise of their own |
| --stylize N | guidance: 100 is what --guidance-scale says, 0 turns it off |
"""

import re
from typing import Any, NamedTuple

SETTINGS = ("ar", "seed", "no", "iw", "stylize", "chaos")


class PromptLine(NamedTuple):
    """A prompt and the settings in it, None where the line has none."""

    prompt: str
    aspect_ratio: float | None = None
    seed: int | None = None
    negative: str | None = None
    image_weight: float | None = None
    stylize: float | None = None
    chaos: float | None = None


def parse_prompt_line(line: str) -> PromptLine:
    """Split a line into the prompt and its settings.

    Raises:
      ValueError: a setting is unknown, occurs twice or has no proper value.

    >>> parse_prompt_line("a cat --ar 2:1 --no dogs, mats").negative
    'dogs, mats'
    """
    text, *parts = re.split(r"(?:^|\s)--(?=[a-z])", line)
    found: dict[str, str] = {}
    for part in parts:
        name, _, value = part.partition(" ")
        if name not in SETTINGS or name in found or not value.strip():
            raise ValueError(
                f"--{part.strip()} in the prompt is unknown, given twice or without a value; there "
                f"are {', '.join('--' + known for known in SETTINGS)}"
            )
        found[name] = value.strip()
    return PromptLine(
        text.strip(),
        aspect_ratio=_read(found, "ar", _ratio),
        seed=_read(found, "seed", int),
        negative=found.get("no"),
        image_weight=_read(found, "iw", lambda text: _within(float(text), 0.0, 0.99)),
        stylize=_read(found, "stylize", lambda text: _within(float(text), 0.0, 1000.0)),
        chaos=_read(found, "chaos", lambda text: _within(float(text), 0.0, 100.0)),
    )


def fit_size(size: tuple[int, int], ratio: float, multiple: int) -> tuple[int, int]:
    """The (height, width) of a ratio width / height with about the area of `size`.

    >>> fit_size((512, 512), 16 / 9, 64)
    (384, 704)
    """
    area = size[0] * size[1]
    sides = (area / ratio) ** 0.5, (area * ratio) ** 0.5
    height, width = (max(multiple, round(side / multiple) * multiple) for side in sides)
    return height, width


def _read(found: dict[str, str], name: str, read: Any) -> Any:
    if name not in found:
        return None
    try:
        return read(found[name])
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"--{name} {found[name]} in the prompt is no proper value") from None


def _ratio(text: str) -> float:
    width, height = text.split(":")
    return _within(float(width) / float(height), 0.1, 10.0)


def _within(value: float, low: float, high: float) -> float:
    if not low <= value <= high:
        raise ValueError
    return value
