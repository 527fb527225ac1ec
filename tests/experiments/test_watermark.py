import io
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

import watermark

TEXT = "made by a model, 2026: größer"
PICTURES = load_sample_images().images


def through(image, kind, **options):
    """A picture written to a file of a kind and read again."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, kind, **options)
    return np.asarray(Image.open(file)).reshape(image.shape)


def psnr(one, other):
    return 10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2))


@pytest.mark.parametrize("picture", PICTURES)
def test_a_mark_is_not_seen_and_read_again_from_changed_pictures(picture):
    assert watermark.read(picture) is None
    marked = watermark.mark(picture, TEXT)
    assert psnr(marked, picture) > 40
    brighter = np.clip(marked.astype(float) * 1.04 + 6, 0, 255).astype(np.uint8)
    darker = np.clip(marked.astype(float) * 0.97 - 4, 0, 255).astype(np.uint8)
    changed = {
        "png": through(marked, "png"),
        "jpeg": through(marked, "jpeg", quality=90),
        "brighter": brighter,
        "darker": darker,
        "both": through(brighter, "jpeg", quality=90),
    }
    assert {kind: watermark.read(image) for kind, image in changed.items()} == dict.fromkeys(
        changed, TEXT
    )


def test_pictures_without_colours_are_marked():
    picture = PICTURES[0][:200, :301, 1:2]
    assert watermark.read(through(watermark.mark(picture, "grey"), "png")) == "grey"


@pytest.mark.parametrize("value", [0, 127, 255])
def test_flat_and_random_pictures_hold_no_text(value):
    assert watermark.read(np.full((128, 128, 3), value, np.uint8)) is None
    draw = np.random.default_rng(value).integers(0, 256, (128, 136, 3), np.uint8)
    assert watermark.read(draw) is None


def test_what_is_cut_off_is_lost():
    marked = watermark.mark(PICTURES[1], TEXT)
    assert watermark.read(np.ascontiguousarray(marked[3:, 5:])) is None


@pytest.mark.parametrize(
    ("text", "size", "reason"),
    [
        ("", 256, "1 to 64 bytes"),
        ("x" * 65, 512, "has 65"),
        ("hello", 64, "a watermark of 4 bytes"),
    ],
)
def test_texts_that_do_not_fit_are_refused(text, size, reason):
    with pytest.raises(ValueError, match=reason):
        watermark.mark(np.zeros((size, size, 3), np.uint8), text)


def test_the_script_says_what_it_finds(monkeypatch, tmp_path, capsys):
    Image.fromarray(watermark.mark(PICTURES[0], TEXT)).save(tmp_path / "marked.png")
    Image.fromarray(PICTURES[0]).save(tmp_path / "plain.jpg")
    files = [str(tmp_path / name) for name in ("marked.png", "plain.jpg")]
    monkeypatch.setattr(sys, "argv", ["watermark.py", *files])
    watermark.main()
    assert capsys.readouterr().out.splitlines() == [
        f"{files[0]}: {TEXT}",
        f"{files[1]}: no watermark",
    ]
