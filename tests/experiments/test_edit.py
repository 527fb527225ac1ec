"""The editing script, on a run whose network is a formula."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import edit
import jobs
from config import TextConfig
from configs import CONFIGS
from diffjax.networks import ContextConfig, Functional
from diffjax.networks.clip import CLIPTextConfig, CLIPVisionConfig, clip_text, clip_vision
from diffjax.pretrained import save_model
from diffjax.transforms import patch_statistics
from embeddings import load_embedding
from runs import Run

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)


def apply(params, x, t, *, labels):
    """v of images that are grey, lighter for larger labels."""
    return params * x - 0.1 * labels[:, None, None, None].astype(x.dtype)


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Run a command on three images; what it wrote."""
    run = Run(CONFIGS["digits"], Functional(lambda key: 0.3, apply), jnp.array(0.3), 1)
    monkeypatch.setattr(jobs, "load_run", lambda *_, **__: run)
    np.savez(tmp_path / "in.npz", images=IMAGES, labels=np.array([0, 3, 9]))

    def call(command, *words, output="out.npz"):
        given = {"--input": tmp_path / "in.npz", "--num-steps": 6}
        given |= dict(zip(words[::2], words[1::2]))
        flags = [str(word) for pair in given.items() for word in pair]
        target = tmp_path / output
        argv = ["edit.py", command, "--workdir", "run", "--output", str(target), *flags]
        monkeypatch.setattr("sys.argv", argv)
        edit.main()
        return (
            np.load(target)["images"] if target.suffix == ".npz" else np.asarray(Image.open(target))
        )

    return call


def test_inpainting_paints_where_the_mask_says(call, tmp_path):
    hole = np.zeros((8, 8))
    hole[1:3, 5:] = 1.0
    np.save(tmp_path / "mask.npy", hole)
    images = call("inpaint", "--mask", tmp_path / "mask.npy", "--jump-length", 2)
    changed = np.any(images != IMAGES, axis=(0, 3))
    np.testing.assert_array_equal(changed, hole.astype(bool))


def test_filling_keeps_every_number_that_is_not_missing(call, tmp_path):
    holes = IMAGES.astype(np.float32)
    holes[:, ::2, 1::3] = np.nan
    np.savez(tmp_path / "holes.npz", images=holes, labels=np.array([0, 3, 9]))
    images = call("fill", "--input", tmp_path / "holes.npz", "--jump-length", 2)
    known = ~np.isnan(holes)
    np.testing.assert_array_equal(images[known], IMAGES[known])
    with pytest.raises(ValueError, match="misses nothing"):
        call("fill")


def test_outpainting_keeps_the_image_in_the_middle(call):
    images = call("outpaint", "--width", 20, "--height", 12, "--jump-length", 2)
    assert images.shape == (3, 12, 20, 1)
    np.testing.assert_array_equal(images[:, 2:10, 6:14], IMAGES)


def test_varying_restyling_and_inverting_depend_on_the_labels(call):
    for command in ("img2img", "invert-edit", "style"):
        same, other = call(command), call(command, "--labels", "9", "--guidance-scale", 2.0)
        assert same.shape == IMAGES.shape
        assert np.mean(other[0]) > np.mean(same[0])


def test_style_from_inverted_images_gives_them_back_where_nothing_is_asked(call):
    start = "--start", "inversion", "--num-steps", 100
    off, on = (call("style", *start, "--step-size", size) for size in (0.0, 2.0))
    np.testing.assert_allclose(off.astype(int), IMAGES, atol=4)

    def distance(images):
        statistics = patch_statistics(images / 127.5 - 1.0)
        return np.linalg.norm(statistics - statistics[0], axis=1)

    assert np.all(distance(on)[1:] < distance(off)[1:])


TINY = {"hidden_size": 8, "intermediate_size": 8, "num_layers": 1, "num_heads": 1}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder with an image encoder, its network and params."""
    folder = tmp_path_factory.mktemp("encoder")
    config = CLIPVisionConfig(**TINY, image_size=8, patch_size=4)
    network = clip_vision(config)
    params = network.init(jax.random.key(0))
    save_model(folder, config, params)
    return folder, network, params


def test_a_style_is_what_an_image_encoder_sees_in_common(call, encoder, tmp_path):
    params, embed = load_embedding(encoder[0])

    def apart(size):
        images = call("style", "--embedding", encoder[0], "--num-images", 2, "--step-size", size)
        first, second = embed(params, images / 127.5 - 1.0)
        return np.mean(np.square(first - second))

    assert apart(20.0) < 0.5 * apart(0.0)
    config = CLIPTextConfig(**TINY, vocab_size=9)
    save_model(tmp_path / "text", config, clip_text(config).init(jax.random.key(0)))
    with pytest.raises(ValueError, match="holds a CLIPTextConfig; needed is an image encoder"):
        call("style", "--embedding", tmp_path / "text")


def test_an_embedding_scales_pixels_as_its_folder_says(encoder):
    folder, network, params = encoder
    images = np.broadcast_to(IMAGES / 127.5 - 1.0, (3, 8, 8, 3)).astype(np.float32)
    by_clip = load_embedding(folder).embed(params, images)
    scaling = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(scaling))
    found = load_embedding(folder).embed(params, images)
    # [0, 1] less one half, divided by one half: the images as they are
    pooled = network.apply(params, images).pooled
    directions = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    np.testing.assert_allclose(found, np.sqrt(8) * directions, atol=1e-5)
    assert np.abs(found - by_clip).max() > 0.01


def test_guidances_of_estimates_and_of_solvers_steer_an_edit(call):
    plain = call("img2img", "--labels", "9")
    for guidance in ("apg", "cfg_plus_plus"):
        guided = call("img2img", "--labels", "9", "--guidance", guidance, "--guidance-scale", 0.5)
        assert np.any(guided != plain), guidance
    composed = call("img2img", "--labels", "9 AND 3:0")
    np.testing.assert_allclose(composed.astype(int), plain, atol=1)
    for command in ("denoise", "outpaint", "style"):
        with pytest.raises(ValueError, match="needs guided estimates"):
            call(command, "--guidance", "cfg_plus_plus")


def test_captions_say_what_to_make(call, monkeypatch, tmp_path):
    """A run with captions, whose network is as bright as its text is long."""
    config, told = CONFIGS["digits"], {"context": ContextConfig(features=2)}
    network = dataclasses.replace(config.network, num_classes=None, cond_drop_prob=0.0, **told)
    config = dataclasses.replace(config, network=network, text=TextConfig(features=2))
    apply = lambda params, x, t, *, context: params * x - context[:, None]
    run = Run(config, Functional(None, apply), jnp.array(0.3), 1)
    monkeypatch.setattr(jobs, "load_run", lambda *_, **__: run)
    encode = lambda texts: {"context": np.array([[[0.1 * len(t)]] for t in texts], np.float32)}
    monkeypatch.setattr(jobs, "load_text", lambda workdir: encode)
    captions = np.array(["a", "bbb", "ccccc"])
    np.savez(tmp_path / "told.npz", images=np.full((3, 8, 8, 1), 128, np.uint8), captions=captions)
    own = call("img2img", "--input", tmp_path / "told.npz")
    assert np.all(np.diff(own.mean(axis=(1, 2, 3))) > 0)
    asked = call("img2img", "--input", tmp_path / "told.npz", "--prompt", "bbb")
    np.testing.assert_array_equal(asked[1], own[1])
    assert asked[0].mean() > own[0].mean()
    both = call("img2img", "--input", tmp_path / "told.npz", "--prompt", "bbb AND a:0")
    np.testing.assert_allclose(both.astype(int), asked, atol=1)
    with pytest.raises(ValueError, match="give --prompt"):
        call("img2img", "--input", tmp_path / "told.npz", "--labels", "3")


def test_denoising_with_the_noise_that_there_is_and_one_estimated(call, capsys):
    assert call("denoise", "--noise-std", 0.3).shape == IMAGES.shape
    assert call("denoise", "--add-noise", 0.3).shape == IMAGES.shape
    assert "noise of standard deviation" in capsys.readouterr().out


def test_a_picture_has_a_row_for_each_stage(call):
    picture = call("inpaint", "--num-images", 2, "--jump-length", 2, output="out.png")
    assert picture.shape == ((3 * 9 - 1) * 4, (2 * 9 - 1) * 4)
    # a canvas is enlarged as its tiles would be
    canvas = call("outpaint", "--width", 40, "--num-images", 2, output="out.png")
    assert canvas.shape == ((2 * 9 - 1) * 4, (2 * 41 - 1) * 4)


def test_enlarged_images_have_the_means_of_the_small_ones(call, tmp_path):
    means = IMAGES.reshape(3, 4, 2, 4, 2, 1).mean(axis=(2, 4))
    labels = {"labels": np.array([0, 3, 9])}
    np.savez(tmp_path / "small.npz", images=means.astype(np.float32), **labels)
    large, small = (
        call("enlarge", "--method", "ddnm", "--input", tmp_path / f"{name}.npz")
        for name in ("in", "small")
    )
    np.testing.assert_allclose(large.astype(int), small, atol=1)
    found = large.reshape(3, 4, 2, 4, 2, 1).mean(axis=(2, 4))
    np.testing.assert_allclose(found, means, atol=1.0)


def test_coloured_images_have_the_luminance_of_the_grey_ones(call, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="images of 1 channels; colouring needs one whose images"):
        call("colourise")
    network = dataclasses.replace(CONFIGS["digits"].network, in_channels=3, out_channels=3)
    config = dataclasses.replace(CONFIGS["digits"], network=network)
    tint = jnp.array([0.3, 0.0, -0.3])
    reddish = lambda params, x, t, *, labels: params * x - tint
    run = Run(config, Functional(None, reddish), jnp.array(0.3), 1)
    monkeypatch.setattr(jobs, "load_run", lambda *_, **__: run)
    grey = 96.0 + IMAGES / np.float32(4.0)
    np.savez(tmp_path / "grey.npz", images=grey, labels=np.array([0, 3, 9]))
    images = call("colourise", "--input", tmp_path / "grey.npz", "--num-steps", 30)
    # the luma of ITU-R BT.601, but for noise of two standard deviations of --sigma-y
    np.testing.assert_allclose(images @ [0.299, 0.587, 0.114], grey[..., 0], atol=2 * 0.02 * 127.5)
    assert images[..., 0].mean() > images[..., 2].mean() + 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("inpaint", "--mask", "middle"), "--mask is 'middle'; it must be one of left, right"),
        (("img2img", "--strength", 1.5), "strength is 1.5"),
        (("img2img", "--labels", "11"), "classes of this run are 0 to 9"),
        (("style", "--style", 5), "there are 3 images"),
        (("outpaint", "--width", 4), "do not cover a canvas"),
        (("outpaint", "--width", 0), "do not cover a canvas"),
        (("denoise", "--num-steps", 0), "at least 1"),
        (("enlarge", "--factor", 3), "--factor is 3; it must be at least 2 and divide the sides"),
        (("enlarge", "--factor", 0), "--factor is 0"),
        (("enlarge", "--method", "pgdm"), "Did you mean 'pigdm'"),
        (("enlarge", "--sigma-y", -1), "--sigma-y is -1.0"),
        (("enlarge", "--guidance", "cfg_plus_plus"), "enlarging needs guided estimates"),
        (("img2img", "--prompt", "a red circle"), "without captions"),
        (("img2img", "--negative-prompt", "a red circle"), "without captions"),
        (("inpaint", "--jump-length", 7), "for a grid of 6 steps"),
        (("img2img", "--input", "holes.npz"), r"misses numbers \(NaN\); `edit.py fill`"),
        (("img2img", "--input", "few_captions.npz"), "fewer captions than images"),
        (("img2img", "--input", "words.npz"), "images are <U3; expected levels"),
    ],
)
def test_what_cannot_be_is_refused(call, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    np.savez("holes.npz", images=np.where(IMAGES < 9, np.nan, IMAGES))
    np.savez("few_captions.npz", images=IMAGES, captions=["a circle"])
    np.savez("words.npz", images=np.array(["one"]))
    with pytest.raises(ValueError, match=message):
        call(*words)


def test_images_and_masks_of_another_size_are_refused(call, tmp_path):
    np.savez(tmp_path / "wide.npz", images=np.zeros((2, 8, 9, 1), np.uint8))
    with pytest.raises(ValueError, match=r"images are \(8, 9, 1\), but this run makes \(8, 8, 1\)"):
        call("img2img", "--input", tmp_path / "wide.npz")
    with pytest.raises(ValueError, match=r"makes \(8, 8, 1\)\. It can also be given \(4, 4, 1\)"):
        call("enlarge", "--input", tmp_path / "wide.npz")
    np.save(tmp_path / "mask.npy", np.zeros((8, 9)))
    with pytest.raises(ValueError, match=r"has the shape \(8, 9\); this run's images need"):
        call("inpaint", "--mask", tmp_path / "mask.npy")
    np.save(tmp_path / "mask.npy", np.full((8, 8), 0.5))
    with pytest.raises(ValueError, match="other values than 1, to paint, and 0, to keep"):
        call("inpaint", "--mask", tmp_path / "mask.npy")
    (tmp_path / "mask.npy").write_text("no array")
    for name in ("mask.npy", "nowhere.npy"):
        with pytest.raises(ValueError, match=f"{name} is no file that numpy.save wrote"):
            call("inpaint", "--mask", tmp_path / name)


def test_guidance_needs_an_unconditional_estimate(monkeypatch, call):
    config = CONFIGS["digits"]
    certain = dataclasses.replace(config.network, cond_drop_prob=0.0)
    run = Run(dataclasses.replace(config, network=certain), Functional(None, apply), 0.3, 1)
    monkeypatch.setattr(jobs, "load_run", lambda *_, **__: run)
    with pytest.raises(ValueError, match="no unconditional estimate"):
        call("img2img", "--guidance-scale", 2.0)
    with pytest.raises(ValueError, match="Name the classes"):
        call("img2img", "--labels", "none")


def test_every_command_has_a_function():
    assert set(edit.COMMANDS) == set(edit.Args.__args__)
    assert edit.read_mask("left", (4, 6)).sum() == 12
    assert edit.read_mask("center", (3, 3)).all()
