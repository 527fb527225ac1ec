import json
import os
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_systems
from PIL import Image
from tiny_systems import SIDE

import diffjax as dj
import export_sampler
import text_to_image
import watermark
from diffjax.core.keys import sample_keys
from diffjax.networks.image_tokens import ImageTokensConfig
from diffjax.pipelines import (
    make_plan,
    make_system,
    sample_embedding,
    sample_images,
    start_noise,
    unclip,
    walk,
)
from diffjax.pretrained import Components, Model, load_components
from diffjax.pretrained.ip_adapter import IMAGE_TOKENS
from picture_models import seen_in
from prompt_line import fit_size, parse_prompt_line

MODEL = Path(__file__).parents[1] / "references" / "pipelines" / "pixart_alpha" / "pipeline"
PICTURE = next(map(str, Path(__file__).parents[2].glob("docs/pictures/*.png")))


def make(monkeypatch, output, *words):
    """Run the script in this process; the pictures and their settings by name."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(output / "compiled"))
    monkeypatch.setattr(
        sys, "argv", ["text_to_image.py", "--model", str(MODEL), "--output", str(output), *words]
    )
    text_to_image.main()
    found = {path.name: Image.open(path) for path in sorted(output.glob("*.png"))}
    return {
        name: (np.asarray(picture), json.loads(picture.info["diffjax"]))
        for name, picture in found.items()
    }


@pytest.mark.slow
def test_pictures_belong_to_their_seed_and_say_how_they_were_made(monkeypatch, tmp_path, capfd):
    words = ["--prompt", "a photo of the (cat:1.3) --no ugly --seed 3", "--num-steps", "3"]
    three = make(monkeypatch, tmp_path / "a", *words, "--num-images", "3", "--batch-size", "2")
    assert list(three) == ["000003_0000.png", "000003_0001.png", "000003_0002.png"]
    said = capfd.readouterr().err
    assert said.index("loading") < said.index("compiling") < said.index("sampling")
    two = make(monkeypatch, tmp_path / "b", *words, "--num-images", "2", "--batch-size", "1")
    for name in two:
        # the batch size may change the rounding of float32
        assert np.abs(three[name][0].astype(int) - two[name][0]).max() <= 1
    assert np.abs(three["000003_0000.png"][0].astype(int) - three["000003_0001.png"][0]).max() > 5
    settings = three["000003_0002.png"][1]
    expected = {"prompt": "a photo of the (cat:1.3)", "negative_prompt": "ugly", "seed": 3}
    assert expected.items() <= settings.items()
    assert (settings["index"], settings["height"], settings["num_steps"]) == (2, 16, 3)


@pytest.mark.slow
def test_a_sampler_in_one_file_needs_jax_alone(monkeypatch, tmp_path):
    words = ["--prompt", "a cat", "--num-steps", "2", "--batch-size", "2", "--dtype", "bfloat16"]
    pytest.importorskip("flatbuffers")
    images = make(monkeypatch, tmp_path, *words, "--num-images", "2")
    file = tmp_path / "sampler.npz"
    make(monkeypatch, tmp_path, *words, "--export", str(file))
    doc = str(export_sampler.__doc__)
    program = textwrap.dedent(doc[doc.index("    import") : doc.index("JAX needs")])
    program = program.replace('"sampler.npz"', repr(str(file)))
    alone = "import sys; assert not {'diffjax', 'flax'} & sys.modules.keys()"
    save = f"np.save({str(tmp_path / 'images.npy')!r}, images)"
    run = [sys.executable, "-c", "\n".join([program, alone, save])]
    environment = {name: each for name, each in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(run, check=True, timeout=300, env=environment, cwd=tmp_path)
    found = np.load(tmp_path / "images.npy")
    expected = np.stack([image for image, _ in images.values()])
    # one program and three round differently in bfloat16
    assert np.abs(found.astype(int) - expected).mean() < 2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_makes_nearly_the_same_pictures(monkeypatch, tmp_path, dtype):
    model = tiny_systems.save_stable_diffusion(tmp_path / "model")
    words = ["--model", str(model), "--prompt", "a cat", "--num-steps", "2"]
    half, _ = make(monkeypatch, tmp_path / "a", *words, "--dtype", dtype)["000000_0000.png"]
    whole, _ = make(monkeypatch, tmp_path / "b", *words)["000000_0000.png"]
    assert np.abs(half.astype(int) - whole).mean() < 3


@pytest.mark.slow
def test_a_watermark_is_in_the_pixels(monkeypatch, tmp_path):
    words = ["--prompt", "a cat", "--num-steps", "1", "--height", "96", "--width", "96"]
    plain, _ = make(monkeypatch, tmp_path / "a", *words)["000000_0000.png"]
    marked, _ = make(monkeypatch, tmp_path / "b", *words, "--watermark", "ours")["000000_0000.png"]
    assert (watermark.read(plain), watermark.read(marked)) == (None, "ours")


@pytest.mark.slow
def test_noise_in_common_and_masks(monkeypatch, tmp_path):
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / "image.png")
    Image.new("L", (16, 16), 0).save(tmp_path / "nowhere.png")
    Image.new("L", (16, 16), 255).save(tmp_path / "everywhere.png")
    settings = ["--num-steps", "2", "--num-images", "2"]
    run = lambda name, *words: [
        image.astype(int)
        for image, _ in make(monkeypatch, tmp_path / name, *settings, *words).values()
    ]
    first, second = run("plain", "--prompt", "a cat")
    assert np.abs(first - second).max() > 5
    same, again = run("alike", "--prompt", "a cat --chaos 0")
    assert np.abs(same - again).max() <= 1
    start = ["--image", str(tmp_path / "image.png"), "--mask"]
    painted = run("a", *start, str(tmp_path / "everywhere.png"), "--prompt", "a cat")
    np.testing.assert_allclose(painted, [first, second], atol=1)
    kept = run("b", *start, str(tmp_path / "nowhere.png"), "--prompt", "a cat")
    others = run("c", *start, str(tmp_path / "nowhere.png"), "--prompt", "two dogs")
    np.testing.assert_allclose(kept, others, atol=1)


@pytest.mark.slow
def test_pictures_steer_through_controlnets_and_adapters(monkeypatch, tmp_path):
    model = tiny_systems.save_stable_diffusion(tmp_path / "model")
    control, adapter = tiny_systems.save_steering(tmp_path / "steering", model)
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "edges.png")
    words = ["--model", str(model), "--prompt", "a cat", "--num-steps", "2"]
    see = ["--control-image", *[str(tmp_path / "edges.png")] * 2]
    see += ["--controlnet", str(control), str(adapter), "--controlnet-scale"]
    run = lambda name, *more: make(monkeypatch, tmp_path / name, *words, *more)["000000_0000.png"]
    plain, _ = run("a")
    off, _ = run("b", *see, "0")
    np.testing.assert_allclose(off.astype(int), plain.astype(int), atol=1)
    first, settings = run("c", *see, "1", "0")
    second, _ = run("d", *see, "0", "1")
    assert settings["controlnet_scale"] == [1.0, 0.0]
    for one, other in ((first, plain), (second, plain), (first, second)):
        assert np.abs(one.astype(int) - other).max() > 1


@pytest.mark.slow
def test_a_refiner_goes_on_where_the_model_stops(monkeypatch, tmp_path):
    model, refiner = (
        tiny_systems.save_stable_diffusion(tmp_path / kind, kind=kind)
        for kind in ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline")
    )
    words = ["--model", str(model), "--prompt", "a cat", "--num-steps", "5", "--guidance-scale"]
    words += ["3", "--refiner", str(refiner), "--refiner-start"]
    run = lambda share: make(monkeypatch, tmp_path / share, *words, share)["000000_0000.png"][0]

    def by_hand(share):
        x = jax.random.key(0)
        for folder, part in ((model, (0.0, share)), (refiner, (share, 1.0))):
            parts = load_components(folder)
            system, plan = (
                make_system(parts),
                make_plan(parts.schedulers["scheduler"], 5, part=part),
            )
            told = system.prepare(["a cat"], [None], height=SIDE, width=SIDE)
            keys = sample_keys(jax.random.key(0), np.arange(1))
            x = start_noise(system, keys, SIDE, SIDE) if folder == model else x
            guidance = partial(dj.classifier_free, guidance_scale=3.0)
            options = {"solver": plan.solver, "levels": plan.levels, "guidance": guidance}
            x = walk(system, parts.params, keys, told, x, **options)
        # the autoencoder is the model's
        return pixels_of(load_components(model), x)

    early, late = run("0.3"), run("0.7")
    np.testing.assert_allclose(early.astype(int), by_hand(0.3), atol=1)
    np.testing.assert_allclose(late.astype(int), by_hand(0.7), atol=1)
    assert np.abs(early.astype(int) - late).max() > 5


@pytest.mark.slow
def test_prior_decoder_and_enlarger_of_unclip_make_a_picture(monkeypatch, tmp_path):
    model = tiny_systems.save_unclip(tmp_path / "model")
    words = ["--model", str(model), "--num-steps", "3", "--prior-steps", "2"]
    words += ["--enlarger-steps", "2", "--prompt"]
    run = lambda name, *more: make(monkeypatch, tmp_path / name, *words, *more)["000000_0000.png"]
    plain, settings = run("a", "a cat")
    assert (plain.shape, settings["height"]) == ((2 * SIDE, 2 * SIDE, 3), 2 * SIDE)
    by_hand = unclip_by_hand(model, 7.0)
    np.testing.assert_allclose(plain.astype(int), by_hand, atol=1)
    for more in (["a dog"], ["a cat", "--prior-scale", "1"], ["a cat", "--guidance-scale", "1"]):
        assert np.abs(run(more[-1], *more)[0].astype(int) - plain).max() > 2
    apg, _ = run("apg", "a cat", "--guidance", "apg(parallel=1.0)", "--solver", "UnCLIPScheduler")
    np.testing.assert_allclose(apg.astype(int), plain, atol=1)


def unclip_by_hand(model, scale):
    """The picture of "a cat" by the three systems in turn."""
    parts = load_components(model)
    stages = unclip(parts)
    key = sample_keys(jax.random.key(0), np.arange(1))
    plans = [
        make_plan(parts.schedulers[f"{name}_scheduler"], steps)
        for name, steps in (("prior", 2), ("decoder", 3), ("super_res", 2))
    ]
    told = stages.decoder.prepare(["a cat"], [None], height=SIDE, width=SIDE)

    @jax.jit
    def run(params):
        guidance = lambda scale: {"guidance": partial(dj.classifier_free, guidance_scale=scale)}
        embedding = sample_embedding(stages.prior, params, key, told, plans[0], **guidance(4.0))
        given = params, key, told, embedding, plans[1:]
        return sample_images(stages, *given, **guidance(scale))

    return np.round(np.clip(np.asarray(run(parts.params))[0] * 127.5 + 127.5, 0, 255)).astype(int)


@pytest.mark.slow
def test_unclip_varies_a_picture(monkeypatch, tmp_path):
    model = tiny_systems.save_unclip(tmp_path / "model", varies=True)
    words = ["--model", str(model), "--num-steps", "2", "--enlarger-steps", "2"]
    draw = np.random.default_rng(0)
    for name in ("one", "other"):
        pixels = draw.integers(0, 255, (12, 9, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    one, other = (
        make(monkeypatch, tmp_path / name, *words, "--image", str(tmp_path / f"{name}.png"))
        for name in ("one", "other")
    )
    assert np.abs(one["000000_0000.png"][0].astype(int) - other["000000_0000.png"][0]).max() > 1


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--image", PICTURE], "--image needs variations"),
        (["--height", "64"], "--height does not go with UnCLIPPipeline"),
        (["--prompt", "a cat --ar 2:1"], "--ar does not go with UnCLIPPipeline"),
        (["--enlarger-steps", "1"], "needs at least 2"),
        (["--tile", "64"], "has no variational autoencoder"),
        (["--guidance", "self_attention"], "read in UNets; UnCLIPPipeline has none"),
        (["--control-image", PICTURE], "--control-image does not go with UnCLIPPipeline"),
    ],
)
def test_unclip_refuses_the_settings_of_other_models(
    monkeypatch, tmp_path, unclip_folder, words, reason
):
    with pytest.raises(ValueError) as error:
        make(monkeypatch, tmp_path, "--model", str(unclip_folder), *words)
    assert reason in str(error.value)


@pytest.fixture(scope="module")
def unclip_folder(tmp_path_factory):
    return tiny_systems.save_unclip(tmp_path_factory.mktemp("unclip") / "model")


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory):
    return tiny_systems.save_stable_diffusion(tmp_path_factory.mktemp("sd") / "model")


@pytest.mark.slow
def test_saved_models_take_every_guidance(monkeypatch, tmp_path, stable_diffusion):
    """Off where it should be, and as the library's by default."""
    weaker = tiny_systems.save_stable_diffusion(tmp_path / "weaker", seed=9)
    words = ["--model", str(stable_diffusion), "--prompt", "a cat", "--num-steps", "2"]

    def run(*more):
        name = "_".join(more) or "plain"
        found = make(monkeypatch, tmp_path / name.replace("/", "_")[-200:], *words, *more)
        return found["000000_0000.png"][0].astype(int)

    plain, guided = run("--guidance-scale", "1"), run()
    np.testing.assert_array_equal(run("--guidance", "classifier_free"), guided)
    np.testing.assert_allclose(run("--guidance-interval", "0", "0"), plain, atol=1)
    assert np.abs(guided - plain).max() > 5
    others = [
        ["perturbed_attention"],
        ["self_attention"],
        ["autoguidance", "--weaker", str(weaker)],
    ]
    for name in others:
        led = run("--guidance", *name, "--guidance-scale", "4")
        assert np.abs(led - plain).max() > 1
        both = run("--guidance", *name, "--guidance-scale", "1", "--prompt-scale", "7")
        np.testing.assert_allclose(both, guided, atol=1)
    assert (run("--guidance", "cfg_plus_plus", "--guidance-scale", "0.8") != plain).any()
    limits = ["--threshold", "static(low=-0.1, high=0.1)"]
    assert np.abs(run(*limits) - guided).max() > 1


@pytest.mark.slow
def test_a_picture_to_see_and_one_to_follow_go_together(monkeypatch, tmp_path, stable_diffusion):
    control, _ = tiny_systems.save_steering(tmp_path / "steering", stable_diffusion)
    adapter = tiny_systems.save_ip_adapter(tmp_path / "adapter", stable_diffusion)
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "edges.png")
    words = ["--model", str(stable_diffusion), "--prompt", "a cat", "--num-steps", "2"]
    follow = ["--controlnet", str(control), "--control-image", str(tmp_path / "edges.png")]
    see = ["--ip-adapter", str(adapter / "adapter.safetensors"), "--image-prompt", PICTURE]
    see += ["--image-encoder", str(adapter / "image_encoder")]
    strengths = ["--image-scale", "0", "--controlnet-scale", "0"]

    def run(name, *more):
        found = make(monkeypatch, tmp_path / name, *words, *more)
        return found["000000_0000.png"][0].astype(int)

    plain, followed, seen = run("a"), run("b", *follow), run("c", *see)
    both = run("d", *see, *follow)
    for one, other in ((both, followed), (both, seen), (both, plain)):
        assert np.abs(one - other).max() > 1
    np.testing.assert_allclose(run("e", *see, *follow, *strengths[:2]), followed, atol=1)
    np.testing.assert_allclose(run("f", *see, *follow, *strengths[2:]), seen, atol=1)


def test_embeddings_of_faces_are_read_from_files(tmp_path):
    model = Model(ImageTokensConfig(5, 6, hidden=10), None, {})
    parts = Components("P", {}, {IMAGE_TOKENS: model}, {}, {})
    np.save(tmp_path / "face.npy", np.arange(5.0))
    seen, nothing = seen_in(tmp_path / "face.npy", tmp_path, parts)
    np.testing.assert_array_equal(seen, np.arange(5.0)[None])
    np.testing.assert_array_equal(nothing, np.zeros((1, 5)))
    with pytest.raises(ValueError, match=r"needs a FILE\.npy with an embedding of 5 numbers"):
        seen_in(Path(PICTURE), tmp_path, parts)
    np.save(tmp_path / "long.npy", np.arange(6.0))
    with pytest.raises(ValueError, match=r"shape \(6,\); this IP-Adapter sees 5 numbers"):
        seen_in(tmp_path / "long.npy", tmp_path, parts)


def pixels_of(parts, latents):
    image = make_system(parts).decode(parts.params, latents)[0]
    return np.round(np.clip(np.asarray(image) * 127.5 + 127.5, 0, 255)).astype(int)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--prompt", "a cat --speed 9"], "--speed 9 in the prompt is unknown"),
        (["--chaos", "101"], "--chaos is 101"),
        (["--mask", "none.png"], "none.png is not a file"),
        (["--mask", __file__], "--mask needs --image"),
        (["--ip-adapter", __file__], "--ip-adapter needs --image-prompt"),
        (["--controlnet", "none"], "--controlnet needs --control-image"),
        (["--control-image", "none.png"], "--control-image none.png is not a file"),
        (["--control-image", PICTURE, "--controlnet-scale", "1", "2"], "2 numbers for 1 pictures"),
        (["--control-image", PICTURE], "has no UNet; ControlNets"),
        (["--controlnet", "none", "--control-image", PICTURE], "none is not a folder"),
        (["--single-file", __file__], "not a readable safetensors file"),
        (["--refiner", "none"], "none is not a folder"),
        (["--refiner-start", "1"], "--refiner-start is 1.0; it must be in (0, 1)"),
        (["--refiner", str(MODEL)], "it and the model need a UNet of latents"),
        (["--tile", "3"], "a tile of 3 pixels is 1 latents a side"),
        (["--watermark", "made here"], "a picture of 16 x 16 has room for a watermark of 0 bytes"),
        (["--export", "sampler.zip"], "expected FILE.npz"),
        (["--num-steps", "0"], "--num-steps is 0"),
        (["--image", "none.png"], "none.png is not a file"),
        (["--height", "17"], "multiples of 2"),
        (["--lora", "none.safetensors:0.5"], "none.safetensors is not a file"),
        (["--solver", "NoScheduler"], "no solver for the scheduler class 'NoScheduler'"),
        (["--solver", "dpmpp_2n"], "Did you mean 'dpmpp_2"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(monkeypatch, tmp_path, words, reason):
    with pytest.raises((ValueError, OSError)) as error:
        make(monkeypatch, tmp_path, *words)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_in_a_prompt():
    line = parse_prompt_line(
        "a red cat --ar 16:9 --no dogs, people --iw 0.25 --stylize 50 --chaos 20"
    )
    assert line.prompt == "a red cat"
    assert line.negative == "dogs, people"
    assert line.aspect_ratio == pytest.approx(16 / 9)
    assert (line.seed, line.image_weight, line.stylize) == (None, 0.25, 50.0)
    assert line.chaos == 20.0
    assert parse_prompt_line("a well-known cat -- and a dog").prompt.endswith("a dog")


@pytest.mark.parametrize(
    "line", ["a --ar 16", "a --ar 1:0", "a --seed x", "a --iw 2", "a --no", "a --seed 1 --seed 2"]
)
def test_settings_without_a_proper_value_are_refused(line):
    with pytest.raises(ValueError, match="in the prompt is"):
        parse_prompt_line(line)


@pytest.mark.parametrize("ratio", [1.0, 16 / 9, 2 / 3, 3.0])
def test_a_size_has_the_shape_that_is_asked_for_and_the_area_of_the_model(ratio):
    height, width = fit_size((512, 512), ratio, 64)
    assert height % 64 == width % 64 == 0
    assert width / height == pytest.approx(ratio, rel=0.2)
    assert height * width == pytest.approx(512**2, rel=0.2)
