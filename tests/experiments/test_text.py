"""A run's text encoder comes back as it was trained; the check of prompts tells them apart."""

import dataclasses
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import check_shapes
import sample
import train
from config import Config, TextConfig
from configs import CONFIGS
from diffjax import data
from diffjax.core.conditioning import with_drops
from diffjax.data.shapes import COLOURS, RELATIONS, Scene
from diffjax.metrics.objects import find_objects
from diffjax.networks import Functional
from diffjax.pretrained import load_model
from diffjax.training import make_mesh
from model import sampling_defaults
from runs import image_shape
from samplers import make_sampler
from text import load_text, prepare_text, text_condition

TINY = TextConfig(
    features=8, num_layers=1, num_heads=2, num_captions=400, batch_size=8, num_steps=3
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a text encoder, and what encodes its texts."""
    folder = tmp_path_factory.mktemp("run")
    return folder, prepare_text(TINY, data.shapes(), folder, seed=0)


def test_a_text_encoder_is_trained_once_and_comes_back_from_its_files(run, monkeypatch):
    folder, encode = run
    monkeypatch.setattr("text.train_encoders", None)  # a second training would fail
    again = prepare_text(TINY, data.shapes(), folder, seed=0)
    one, other = (function(["two red circles", ""]) for function in (encode, again))
    assert one["context"].shape == (2, TINY.max_tokens, TINY.features)
    np.testing.assert_array_equal(one["context_mask"].sum(axis=1), [5, 2])
    # beside it the image encoder, which was given images in [-1, 1]
    seen = load_model(folder / "image_encoder").config
    assert (seen.image_size, seen.projection_dim) == (24, TINY.features)
    scaling = json.loads((folder / "image_encoder" / "preprocessor_config.json").read_text())
    assert scaling == {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    for name, rows in one.items():
        np.testing.assert_array_equal(rows, other[name])


@pytest.mark.slow
def test_a_text_encoder_learns_the_words_of_both_captions_of_a_mixture(tmp_path):
    config = dataclasses.replace(TINY, max_tokens=28)
    encode = prepare_text(config, data.shapes(), tmp_path, seed=0, long_captions=0.95)
    example = data.shapes()[0]
    assert encode([example["caption"], example["long_caption"]])["context"].shape == (2, 28, 8)
    short = prepare_text(config, data.shapes(), tmp_path / "short", seed=0)
    with pytest.raises(ValueError, match="which this model was not trained on"):
        short([example["long_caption"]])


def test_texts_are_encoded_the_same_alone_and_together(run):
    _, encode = run
    texts = ["a blue square", "two small red circles left of a blue square", "a blue square"]
    together = load_text(run[0])(texts)
    for index, text in enumerate(texts):
        for name, rows in encode([text]).items():
            np.testing.assert_allclose(together[name][index], rows[0], atol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "a pink circle"], "'pink'"),
        (["--prompt", "a red circle left of a blue square left of a circle"], "at most 10"),
        (["--prompt", "a red circle", "--negative-prompt", "fog"], "'fog'"),
        ([], "give --prompt"),
    ],
)
def test_prompts_that_the_run_cannot_draw_are_refused(run, words, message):
    args = sample.parse_args(sample.Args, args=["--workdir", str(run[0]), *words])
    with pytest.raises(ValueError, match=message):
        sample.read_prompts(args, CONFIGS["shapes_text"])


def test_a_prompt_for_a_run_without_captions_is_refused():
    args = sample.parse_args(sample.Args, args=["--workdir", "x", "--prompt", "a red circle"])
    with pytest.raises(ValueError, match="without captions"):
        sample.read_prompts(args, CONFIGS["digits"])


def test_an_encoder_that_does_not_fit_the_network_or_the_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"text.features is 64"):
        Config(text=TextConfig())
    digits = data.arrays(np.zeros((4, 8, 8, 1), np.uint8))
    with pytest.raises(ValueError, match="no captions"):
        prepare_text(TINY, digits, tmp_path, seed=0)


def affine(params, x, t, *, context, context_mask, keys=None):
    """The least network that listens to a text."""
    told = jnp.sum(context * context_mask[..., None], axis=(1, 2)) / 10.0
    return 0.1 * x + told[:, None, None, None]


def test_a_negative_prompt_that_equals_the_prompt_cancels_guidance(run):
    _, encode = run
    config = CONFIGS["shapes_text"]
    network = Functional(lambda key: {}, affine)
    texts = encode(["two red circles", "a blue square"])
    positions, key = np.arange(2), jax.random.key(0)

    def images(scale, text):
        options = sampling_defaults(config, guidance_scale=scale, num_steps=3, clip=False)
        generate = make_sampler(config, network, options, make_mesh(), text=text)
        return np.asarray(generate({}, key, positions, None, texts))

    plain = images(1.0, text_condition(encode))
    # the first image's prompt is the negative one of both
    guided = images(3.0, text_condition(encode, text="two red circles"))
    np.testing.assert_allclose(guided[0], plain[0], atol=1e-5)
    assert np.abs(guided[1] - plain[1]).max() > 1e-3
    assert plain.shape == (2, *image_shape(config))


def test_a_text_that_training_drops_is_the_empty_one(run):
    _, encode = run
    texts = encode(["two red circles", "a blue square"])
    always = with_drops(affine, [text_condition(encode, drop_prob=1.0)])
    x, keys = jnp.ones((2, 4, 4, 3)), jax.random.split(jax.random.key(0), 2)
    np.testing.assert_allclose(
        always({}, x, None, keys=keys, **texts), affine({}, x, None, **encode(["", ""])), rtol=1e-6
    )


@pytest.mark.slow
def test_the_scripts_train_sample_and_check_a_run(run, tmp_path, monkeypatch, capsys):
    # the least network, and a text encoder that is there already: the scripts are tested here
    shutil.copytree(run[0], tmp_path / "run")
    scaled = lambda params, x, t, **told: params["scale"] * affine({}, x, t, **told)
    least = Functional(lambda key: {"scale": jnp.array(0.5)}, scaled)
    monkeypatch.setattr("train.make_network", lambda config: least)
    monkeypatch.setattr("runs.make_network", lambda config: least)

    def call(module, *words):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *words])
        module.main()
        return capsys.readouterr().out

    folder = ("--workdir", str(tmp_path / "run"))
    sizes = ("--text.features", "8", "--network.context.features", "8", "--batch-size", "4")
    call(train, "shapes_text", *folder, *sizes, "--num-steps", "2", "--sampling.num-steps", "3")
    assert (tmp_path / "run" / "samples_ddim.png").is_file()
    words = ("--prompt", "two red circles", "--negative-prompt", "a blue square")
    assert "Wrote 5 images" in call(sample, *folder, *words, "--num-samples", "5")
    out = call(check_shapes, *folder, "--num-prompts", "6", "--batch-size", "4")
    assert "relation" in out
    figures = json.loads((tmp_path / "run" / "check_shapes.json").read_text())
    assert figures["real, held_out"]["all"]["share"] == 1.0
    assert figures["seen"]["all"]["prompts"] == 6


def found(source, index):
    return find_objects(source[index]["image"], COLOURS)


@pytest.mark.parametrize("split", check_shapes.SPLITS)
def test_the_pictures_of_the_data_set_meet_their_captions(split):
    source = data.shapes(split)
    for index in range(100):
        assert all(check_shapes.check(source.scene(index), found(source, index)).values())


def changed(scene, **changes):
    first, *rest = scene.groups
    return dataclasses.replace(scene, groups=(dataclasses.replace(first, **changes), *rest))


def test_each_quantity_of_a_prompt_is_missed_by_a_picture_of_another():
    source = data.shapes("seen")
    other = {"small": "large", "large": "small", "circle": "square", "square": "triangle"}
    opposite = dict(zip(RELATIONS, ("right of", "left of", "below", "above")))
    for index in range(60):
        scene, objects = source.scene(index), found(source, index)
        first = scene.groups[0]
        wrong = {
            "shape": changed(scene, shape=other.get(first.shape, "circle")),
            "count": changed(scene, number=first.number % 3 + 1),
            "size": changed(scene, size=other[first.size]) if first.named else None,
        }
        if scene.relation is not None:
            wrong["relation"] = dataclasses.replace(scene, relation=opposite[scene.relation])
        for name, asked in wrong.items():
            if asked is not None:
                missed = {key for key, met in check_shapes.check(asked, objects).items() if not met}
                assert missed == {name, "all"}, str(scene)
        unused = next(c for c in COLOURS if c not in {group.colour for group in scene.groups})
        assert not check_shapes.check(changed(scene, colour=unused), objects)["colour"]


def test_nothing_is_met_by_an_empty_picture():
    source = data.shapes("seen")
    for index in range(30):
        scene: Scene = source.scene(index)
        assert not any(check_shapes.check(scene, []).values())


def test_shares_count_only_prompts_that_say_something():
    source = data.shapes("seen")
    scenes = [source.scene(index) for index in range(50)]
    images = np.stack([source[index]["image"] for index in range(50)])
    images[:10] = 255
    figures = check_shapes.shares(scenes, images)
    assert figures["colour"] == {
        "share": 0.8,
        "stderr": pytest.approx(np.sqrt(0.16 / 50)),
        "prompts": 50,
    }
    assert figures["relation"]["prompts"] == sum(scene.relation is not None for scene in scenes)
