import sys

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_systems import EDITORS, SIDE, save_editor, save_stable_diffusion

import edit
import edit_pretrained
import picture_models
from diffjax.core.keys import sample_keys
from diffjax.pipelines import encode, make_system
from diffjax.pretrained import load_components


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_stable_diffusion(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def run(monkeypatch, tmp_path, model, picture):
    """`run(command, *words)`: the pictures that the script writes, [N, H, W, 3]."""

    def edited(command, *words):
        output = tmp_path / "out"
        given = ["--model", str(model), "--image", str(picture), "--output", str(output)]
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
        monkeypatch.setattr(sys, "argv", ["edit.py", command, *given, *words])
        edit.main()
        files = sorted(output.glob("*.png"))
        return np.stack([np.asarray(Image.open(file)).astype(int) for file in files])

    return edited


@pytest.mark.slow
def test_commands_make_pictures_that_belong_to_their_seed(run):
    words = ["--prompt", "a red cat", "--num-steps", "2"]
    both = run("img2img", *words, "--num-images", "2", "--strength", "1.0")
    assert both.shape == (2, SIDE, SIDE, 3)
    assert np.abs(both[0] - both[1]).max() > 5
    again = run("img2img", *words, "--strength", "1.0")
    # the batch size may change the rounding of float32
    assert np.abs(again[0] - both[0]).max() <= 1


@pytest.mark.slow
def test_an_inversion_under_the_same_prompt_gives_nearly_the_same_picture(run, model, picture):
    words = ["--source-prompt", "a red cat", "--num-steps", "20", "--strength", "0.3"]
    kept = run("invert-edit", "--prompt", "a red cat", "--guidance-scale", "1", *words)
    other = run("invert-edit", "--prompt", "a blue dog", "--guidance-scale", "9", *words)
    # what the autoencoder makes of the picture
    parts = load_components(model)
    system, keys = make_system(parts), sample_keys(jax.random.key(0), np.arange(1))
    pixels = picture_models.read_picture(picture, (SIDE, SIDE))[None]
    again = jax.jit(lambda: system.decode(parts.params, encode(system, parts.params, keys, pixels)))
    again = np.clip(np.asarray(again()) * 127.5 + 127.5, 0, 255)
    assert np.abs(kept - again).mean() < 0.5 * np.abs(other - again).mean()


@pytest.mark.slow
def test_a_hole_of_nothing_keeps_all(run, tmp_path):
    words = ["--prompt", "a red cat", "--num-steps", "2", "--mask"]
    np.save(tmp_path / "none.npy", np.zeros((SIDE, SIDE)))
    Image.new("L", (4, 4)).save(tmp_path / "black.png")
    first = run("inpaint", *words, str(tmp_path / "none.npy"), "--prompt", "a blue dog")
    np.testing.assert_array_equal(first, run("inpaint", *words, str(tmp_path / "black.png")))


@pytest.mark.slow
@pytest.mark.parametrize("command", EDITORS)
def test_models_that_are_made_to_edit_see_the_picture(run, tmp_path, command):
    folder, black = save_editor(tmp_path / "editor", command), tmp_path / "black.png"
    Image.new("RGB", (SIDE, SIDE)).save(black)
    words = ["--model", str(folder), "--num-steps", "2"]
    words += [] if command == "vary" else ["--prompt", "a red cat"]
    seen = run(command, *words)
    assert seen.shape == (1, SIDE, SIDE, 3)
    other = run(command, *words, "--image", str(black))
    assert np.abs(seen - other).max() > 1


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["instruct"], "was not made for Instruct; it can do Img2img, Inpaint, InvertEdit"),
        (["enlarge"], "was not made for Enlarge"),
        (["vary"], "was not made for Vary"),
        (["img2img", "--image", "none.png"], "none.png is not a file"),
        (["img2img", "--strength", "0.01", "--num-steps", "3"], "at least one of the grid's 3"),
        (["invert-edit", "--solver", "dpmpp_2m"], "an inversion needs DDIM"),
        (["inpaint", "--mask", "middle"], "--mask is 'middle'"),
    ],
)
def test_what_cannot_be_done_is_refused(run, words, reason):
    with pytest.raises((ValueError, OSError)) as error:
        run(*words)
    assert reason in str(error.value)


def test_more_noise_than_a_model_was_trained_on_is_refused(run, tmp_path):
    folder = save_editor(tmp_path / "editor", "enlarge")
    with pytest.raises(ValueError, match="--noise-level is 351; this model takes 0 to 350"):
        run("enlarge", "--model", str(folder), "--noise-level", "351")


def test_masks_are_read_from_pictures(tmp_path):
    pixels = np.zeros((4, 4), np.uint8)
    pixels[:, 2:] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    mask = edit_pretrained.read_mask_or_picture(str(tmp_path / "mask.png"), (8, 8))
    np.testing.assert_array_equal(mask, np.repeat([[0, 0, 0, 0, 1, 1, 1, 1]], 8, axis=0))
