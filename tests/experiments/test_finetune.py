"""Fine-tuning of a tiny Stable Diffusion: what each method trains, saves and refuses."""

import dataclasses
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_systems
from PIL import Image

import finetune
import text_to_image
from config import DataConfig
from diffjax.networks.functional import flatten
from diffjax.pipelines import make_system
from diffjax.pretrained import load_components, load_model
from diffjax.pretrained.lora import load_lora, merge_lora
from diffjax.pretrained.textual_inversion import load_embedding
from diffjax.training import init_train_state
from diffjax.training.frozen import make_frozen_step
from finetune_config import METHODS, PriorConfig, WordConfig
from finetune_data import (
    TEMPLATES,
    Both,
    crop_of,
    encode_captions,
    encode_examples,
    open_pictures,
    open_prior,
    with_conditions,
)
from finetuning import edges, make_tuning, save_system, split_pictures

ROOT = Path(__file__).parents[2]
SIZE = (tiny_systems.SIDE, tiny_systems.SIDE)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_systems.save_stable_diffusion(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def xl_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("xl")
    return tiny_systems.save_stable_diffusion(folder, kind="StableDiffusionXLPipeline")


@pytest.fixture(scope="module")
def parts(model):
    return load_components(model)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Four captioned pictures, 12 high and 8 wide."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0).integers
    lines = []
    for i in range(4):
        pixels = draw(0, 256, (12, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(
            json.dumps({"file_name": f"{i}.png", "text": f"a {'cat' if i % 2 else 'dog'}"})
        )
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def config_for(method, model, pictures, **changes):
    data = DataConfig(name="folder", path=str(pictures))
    return dataclasses.replace(METHODS[method], model=str(model), data=data, **changes)


def read(argv):
    return finetune.read_command_line(argv)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["dreambooth"], "method 'dreambooth' is not one of full, lora"),
        (["full"], "--model is needed"),
        (["full", "--model", "m", "--batch-size", "0"], "--batch-size is 0"),
        (["controlnet", "--model", "m", "--prior.prompt", "a dog"], "goes with full and lora"),
        (["lora", "--model", "m", "--prior.prompt", "a dog"], "needs --prompt"),
        (["controlnet", "--model", "m", "--train-text-encoder"], "--train-text-encoder goes with"),
        (["textual_inversion", "--model", "m", "--prompt", "a cat"], "lacks the word <new>"),
    ],
)
def test_command_lines_that_ask_for_the_impossible_are_refused(words, reason):
    with pytest.raises(ValueError, match=reason):
        read(words)


def test_every_setting_of_a_method_is_a_flag():
    config, _, workdir = read(
        ["lora", "--model", "m", "--lora.rank", "3", "--prior.prompt", "b", "--prompt", "a"]
    )
    assert (config.method, config.lora.rank, config.prior.prompt) == ("lora", 3, "b")
    assert str(workdir) == "runs/lora"


def test_pictures_are_told_with_their_captions_and_sizes(model, pictures, parts):
    system = make_system(parts)
    source = open_pictures(config_for("full", model, pictures), system)
    assert source.shape == (8, 8, 3)
    assert (source[1]["caption"], source[1]["size"]) == ("a cat", (12, 8))
    told = open_pictures(config_for("lora", model, pictures, prompt="a red dog"), system)
    assert told[1]["caption"] == "a red dog"
    inverted = open_pictures(config_for("textual_inversion", model, pictures), system)
    assert [inverted[i]["caption"] for i in range(2)] == [
        template.format("<new>") for template in TEMPLATES[:2]
    ]


def test_pictures_without_captions_need_a_prompt(model, tmp_path, parts):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="no captions; give --prompt"):
        open_pictures(config_for("full", model, tmp_path), make_system(parts))


def test_sdxl_is_told_the_size_and_the_crop_of_each_picture(xl_model, pictures):
    system = make_system(load_components(xl_model))
    source = open_pictures(config_for("full", xl_model, pictures), system)
    batch = encode_captions(system, *SIZE, ["a cat", "a dog"])
    batch |= encode_examples(system, *SIZE, [source[0], {}])
    # the middle 8 of 12 rows were kept, at their size
    np.testing.assert_array_equal(batch["time_ids"], [[12, 8, 2, 0, 8, 8], [8, 8, 0, 0, 8, 8]])
    assert crop_of((600, 400), (512, 512)) == (600, 400, 128, 0)


def test_pictures_of_the_class_come_in_turn_with_those_of_the_instance(model, pictures, parts):
    prior = PriorConfig(prompt="a dog", weight=0.3)
    config = config_for("lora", model, pictures, prompt="a red dog", prior=prior)
    system = make_system(parts)
    both = Both(open_pictures(config, system), open_prior(config, pictures, 8))
    assert len(both) == 8
    assert [both[i]["caption"] for i in range(4)] == ["a red dog", "a dog"] * 2
    weights = encode_examples(system, *SIZE, [both[0], both[1]])["loss_weight"]
    np.testing.assert_allclose(weights, [1.0, 0.3])


def test_pictures_that_steer_go_with_those_of_the_same_name(model, pictures, parts, tmp_path):
    source = open_pictures(config_for("controlnet", model, pictures), make_system(parts))
    for i in range(4):
        Image.new("RGB", (8, 8), (10 * i, 0, 0)).save(tmp_path / f"{i}.jpg", quality=100)
    pairs = with_conditions(source, str(tmp_path))
    assert pairs.shape == (8, 8, 6)
    np.testing.assert_array_equal(pairs[2]["image"][..., :3], source[2]["image"])
    np.testing.assert_allclose(pairs[2]["image"][..., 3], 20, atol=3)
    images, steering = split_pictures(jnp.array(pairs[2]["image"])[None] / 127.5 - 1.0)
    assert images.shape == steering.shape == (1, 8, 8, 3)
    np.testing.assert_allclose(steering[0, ..., 0], 20 / 255, atol=3 / 255)
    (tmp_path / "2.jpg").unlink()
    with pytest.raises(ValueError, match=r"lacks a picture for 1 of 4, such as 2\.png"):
        with_conditions(source, str(tmp_path))


def test_edges_are_where_the_brightness_changes():
    image = jnp.full((1, 6, 6, 3), -1.0).at[:, :, 3:].set(1.0)
    found = np.asarray(jax.jit(edges)(image))
    assert (found[:, :, 2:4] == 1.0).all()
    assert (found[:, :, [0, 1, 4, 5]] == 0.0).all()


def test_a_new_word_adds_rows_that_start_from_known_words(model, pictures, parts):
    word = WordConfig(token="<toy>", init="cat dog", num_vectors=3)
    tuning = make_tuning(config_for("textual_inversion", model, pictures, word=word), parts, model)
    cat, dog = parts.tokenizers["tokenizer"].encode("cat dog")
    before = parts.params["text_encoder"]["token_embedding"]["embedding"]
    ids = tuning.system.prepare(["<toy>"], height=8, width=8)[0]["tokenizer_ids"]
    np.testing.assert_array_equal(ids[0, 1:4], len(before) + np.arange(3))
    changed = tuning.join(jax.tree.map(lambda leaf: leaf + 1, tuning.trainable), tuning.frozen)
    flat, known = flatten(changed), flatten(parts.params)
    table = flat.pop(("text_encoder", "token_embedding", "embedding"))
    np.testing.assert_allclose(
        table, np.concatenate([before, before[np.array([cat, dog, cat])] + 1])
    )
    assert all(np.array_equal(flat[path], known[path]) for path in flat)


def test_a_saved_system_differs_from_its_origin_in_what_was_trained(model, parts, tmp_path):
    (model / "unet" / "old.bin").write_bytes(b"never copied")
    changed = jax.tree.map(lambda leaf: leaf + 1, parts.params["unet"])
    trained = {"unet": (parts.models["unet"].config, changed)}
    folder = save_system(model, tmp_path / "model", trained, None)
    (model / "unet" / "old.bin").unlink()
    for path in (path for path in model.rglob("*") if path.is_file()):
        copy = folder / path.relative_to(model)
        same = copy.read_bytes() == path.read_bytes()
        assert same or path.parent.name == "unet"
    assert sorted(path.name for path in (folder / "unet").iterdir()) == [
        "config.json", "diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    again = load_components(folder, only=["unet"]).params["unet"]
    assert all(np.array_equal(again_leaf, leaf) for again_leaf, leaf in
               zip(jax.tree.leaves(again), jax.tree.leaves(changed), strict=True))  # fmt: skip


def compiled_step(config, parts, folder):
    """A step of the configuration, and what it takes."""
    tuning = make_tuning(config, parts, folder)
    loss = finetune.make_loss(config, parts.schedulers["scheduler"], tuning, SIZE)
    optimizer = optax.adamw(1e-2)
    step = jax.jit(make_frozen_step(loss, optimizer, tuning.join, accumulate=config.accumulate))
    state = init_train_state(tuning.trainable, optimizer, ema_decay=())
    prompts = ["a cat", "a <new>", "a dog", "a red circle"]
    batch = {
        "x0": jax.random.normal(jax.random.key(0), (4, *SIZE, 3)),
        **encode_captions(tuning.system, *SIZE, prompts),
        **encode_examples(tuning.system, *SIZE, [{}] * 4),
    }
    return tuning, step, state, batch


def test_the_first_steps_of_lora_move_all_ups_and_then_all_downs(model, pictures, parts):
    config = config_for("lora", model, pictures)
    tuning, step, state, batch = compiled_step(config, parts, model)
    for moves in (("up",), ("up", "down")):
        before = flatten(state.params)
        state, metrics = step(state, tuning.frozen, batch, jax.random.key(1))
        after = flatten(state.params)
        moved = {path for path in after if np.abs(after[path] - before[path]).max() > 5e-3}
        assert moved == {path for path in after if path[-1] in moves}
        assert np.isfinite(metrics["loss"])


def test_a_controlnet_starts_as_the_way_down_of_the_unet_with_zeros_behind(
    model, pictures, parts, tmp_path
):
    tuning = make_tuning(config_for("controlnet", model, pictures), parts, model)
    unet = flatten(parts.params["unet"])
    for path, leaf in flatten(tuning.trainable["controlnet"]).items():
        if path in unet:
            np.testing.assert_array_equal(leaf, unet[path])
        elif path[0] != "controlnet_cond_embedding":
            assert not np.any(leaf)
    saved = load_model(tuning.save(tuning.trainable, tmp_path)).params
    chex.assert_trees_all_equal(saved, tuning.trainable["controlnet"])
    assert {path[0] for path in unet} - {"up_blocks", "conv_norm_out", "conv_out"} <= set(
        tuning.trainable["controlnet"]
    )


@pytest.mark.slow
def test_a_new_controlnet_leaves_the_prediction_as_it_is(model, pictures, parts):
    tuning = make_tuning(config_for("controlnet", model, pictures), parts, model)
    batch = tuning.see({
        "x0": jax.random.normal(jax.random.key(0), (2, *SIZE, 3)),
        **encode_captions(tuning.system, *SIZE, ["a cat", "a dog"]),
    })  # fmt: skip
    x, t = jax.random.normal(jax.random.key(1), (2, 4, 4, 4)), jnp.array([3.0, 700.0])

    @partial(jax.jit, static_argnums=0)
    def predict(system, params, inputs):
        return system.apply(params, x, t, **system.condition(params, inputs))

    inputs = {name: each for name, each in batch.items() if name != "x0"}
    steered = predict(tuning.system, tuning.join(tuning.trainable, tuning.frozen), inputs)
    plain = predict(make_system(parts), parts.params, inputs)
    # two programs round differently
    np.testing.assert_allclose(steered, plain, rtol=1e-5, atol=1e-5)
    assert np.abs(plain).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("method", "xl"), [("full", False), *((each, True) for each in METHODS)])
def test_every_option_goes_with_every_method(method, xl, model, xl_model, pictures):
    folder = xl_model if xl else model
    config = config_for(
        method, folder, pictures, noise_offset=0.1, accumulate=2, dtype="bfloat16", remat=True,
        weight="min_snr(gamma=5)",
    )  # fmt: skip
    parts = load_components(folder, dtype="bfloat16")
    tuning, step, state, batch = compiled_step(config, parts, folder)
    after, metrics = step(state, tuning.frozen, batch, jax.random.key(1))
    assert np.isfinite(metrics["loss"])
    assert metrics["grad_norm"] > 0
    chex.assert_trees_all_equal_shapes_and_dtypes(after.params, tuning.trainable)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(tuning.frozen)} == {"bfloat16"}


def run(monkeypatch, workdir, method, model, pictures, *words):
    """Run the script in this process; the lines of its metrics."""
    given = ["--model", model, "--data.path", pictures, "--workdir", workdir, *words]
    small = ["--batch-size", 2, "--log-every", 1, "--optimizer.learning-rate", 0.01]
    monkeypatch.setattr(sys, "argv", list(map(str, ["finetune.py", method, *given, *small])))
    finetune.main()
    return [json.loads(line) for line in (workdir / "metrics.jsonl").open()]


def draw(monkeypatch, output, model, *words):
    """The picture that text_to_image.py makes."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(output / "compiled"))
    given = ["--model", model, "--output", output, "--num-steps", 2, *words]
    monkeypatch.setattr(sys, "argv", list(map(str, ["text_to_image.py", *given])))
    text_to_image.main()
    return np.asarray(Image.open(output / "000000_0000.png")).astype(int)


@pytest.mark.slow
def test_a_model_that_is_trained_in_two_runs_is_the_one_of_a_single_run_and_loads(
    monkeypatch, model, pictures, tmp_path
):
    words = ["--preview.num-images", 0, "--checkpoint-every", 2]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    lines = run(monkeypatch, whole, "full", model, pictures, *words, "--num-steps", 4)
    run(monkeypatch, parted, "full", model, pictures, *words, "--num-steps", 2)
    again = run(monkeypatch, parted, "full", model, pictures, *words, "--num-steps", 4)
    assert [line["loss"] for line in again] == [line["loss"] for line in lines]
    weights = "model/unet/diffusion_pytorch_model.safetensors"
    assert (whole / weights).read_bytes() == (parted / weights).read_bytes()
    before = draw(monkeypatch, tmp_path / "a", model, "--prompt", "a cat")
    after = draw(monkeypatch, tmp_path / "b", whole / "model", "--prompt", "a cat")
    assert np.abs(after - before).max() > 0

    diffusers = pytest.importorskip("diffusers")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(whole / "model")
    assert pipe("a cat", num_inference_steps=2, height=8, width=8).images


@pytest.mark.slow
def test_dreambooth_makes_what_it_lacks_of_the_class_and_its_lora_loads(
    monkeypatch, model, pictures, tmp_path
):
    words = ["--prompt", "a red cat", "--prior.prompt", "a cat", "--prior.num-images", 3]
    words += ["--preview.num-images", 3, "--preview.num-steps", 2, "--train-text-encoder"]
    run(monkeypatch, tmp_path, "lora", model, pictures, *words, "--num-steps", 3)
    assert len(list((tmp_path / "prior").glob("made_*.png"))) == 3
    assert (tmp_path / "samples.png").is_file()
    file = tmp_path / "lora.safetensors"
    before = draw(monkeypatch, tmp_path / "a", model, "--prompt", "a cat")
    after = draw(monkeypatch, tmp_path / "b", model, "--prompt", "a cat", "--lora", file)
    assert np.abs(after - before).max() > 0

    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(model)
    pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    pipe.fuse_lora()
    parts = load_components(model)
    merged = flatten(merge_lora(parts.params, load_lora(file, parts.models)))
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
    theirs = pipe.unet.get_submodule(name).weight.detach().numpy()
    ours = merged[("unet", *name.split("."), "kernel")]
    np.testing.assert_allclose(theirs, ours.T, atol=1e-6)
    assert np.abs(ours - flatten(parts.params)["unet", *name.split("."), "kernel"]).max() > 1e-4


@pytest.mark.slow
def test_a_word_that_was_learned_is_one_of_prompts(monkeypatch, model, pictures, tmp_path):
    words = ["--word.token", "<toy>", "--word.init", "cat dog", "--word.num-vectors", 2]
    words += ["--preview.num-images", 0, "--num-steps", 2]
    run(monkeypatch, tmp_path, "textual_inversion", model, pictures, *words)
    file = tmp_path / "toy.safetensors"
    known = draw(monkeypatch, tmp_path / "a", model, "--prompt", "a cat dog")
    words = ["--prompt", "a <toy>", "--embedding", file]
    learned = draw(monkeypatch, tmp_path / "b", model, *words)
    assert np.abs(learned - known).max() > 0

    diffusers = pytest.importorskip("diffusers")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(model)
    pipe.load_textual_inversion(tmp_path, weight_name="toy.safetensors")
    table = pipe.text_encoder.get_input_embeddings().weight.detach().numpy()
    more = load_embedding(file, load_components(model)).models["text_encoder"]
    np.testing.assert_array_equal(table, more.params["token_embedding"]["embedding"])


@pytest.mark.slow
def test_a_controlnet_that_was_trained_loads(monkeypatch, model, pictures, tmp_path):
    words = ["--preview.num-images", 2, "--preview.num-steps", 2, "--num-steps", 2]
    run(monkeypatch, tmp_path, "controlnet", model, pictures, *words)
    steering = load_model(tmp_path / "controlnet")
    assert np.abs(steering.params["controlnet_mid_block"]["kernel"]).max() > 0
    assert (tmp_path / "samples.png").is_file()

    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.ControlNetModel.from_pretrained(tmp_path / "controlnet")
    weight = theirs.controlnet_mid_block.weight.detach().numpy()
    np.testing.assert_array_equal(
        weight[..., 0, 0].T, steering.params["controlnet_mid_block"]["kernel"][0, 0]
    )


@pytest.mark.slow
def test_several_devices_train_like_one(model, pictures, tmp_path):
    losses = {}
    for devices in (1, 4):
        workdir = tmp_path / str(devices)
        words = ["--model", model, "--data.path", pictures, "--workdir", workdir]
        words += ["--num-steps", 2, "--log-every", 1, "--preview.num-images", 0, "--fsdp"]
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
        script = [sys.executable, ROOT / "experiments" / "finetune.py", "lora", *words]
        subprocess.run(list(map(str, script)), env=environment, check=True)
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
        losses[devices] = [line["grad_norm"] for line in lines]
    np.testing.assert_allclose(losses[4], losses[1], rtol=1e-4)
