"""Autoencoders and runs in their latent space, from the configuration to decoded samples."""

import dataclasses
import json
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reconstruct
import sample
import train
from autoencoding import (
    autoencoder_losses,
    find_autoencoder,
    load_autoencoder,
    make_encoder,
    save_autoencoder,
)
from choices import load_function
from config import DataConfig, LatentsConfig
from configs import CONFIGS
from diffjax import data
from diffjax.core.keys import batch_keys
from diffjax.networks import count_parameters
from diffjax.networks.autoencoder_kl import AutoencoderKLConfig, autoencoder_kl
from diffjax.networks.patch_discriminator import PatchDiscriminatorConfig
from diffjax.networks.vq import VQConfig, vq_autoencoder
from diffjax.pretrained import save_model
from diffjax.training import make_mesh
from latent_space import copy_autoencoder, load_latent_space, prepare_latents
from loop import claim_workdir, in_turn
from runs import image_shape, load_run, make_network

MESH = make_mesh()
LATENT = (4, 4, 2)
BACKBONE = {
    "in_channels": 1, "out_channels": 1, "block_out_channels": (4, 4), "layers_per_block": 1,
    "attention": (False, False), "up_attention": (False, False), "mid_attention": False,
    "num_groups": 2, "latent_channels": 2,
}  # fmt: skip
SHAPE = AutoencoderKLConfig(sample_size=8, force_upcast=False, **BACKBONE)
SOURCE = data.Arrays(np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1)).astype(np.uint8))

# parameters as the authors' programs count them, and the shape of what is trained on
PUBLISHED = {
    "autoencoder_kl_f8": (83_653_863 + 2_765_633, (256, 256, 3)),
    "autoencoder_kl_f4": (55_312_063 + 2_765_633, (256, 256, 3)),
    "ldm4_celebahq": (274_056_163, (64, 64, 3)),
    "ldm8_churches": (294_966_916, (32, 32, 4)),
    "ldm4_imagenet": (400_920_579 + 1001 * 512, (64, 64, 3)),
    "ldm8_imagenet": (394_984_196 + 1001 * 512, (32, 32, 4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_have_the_published_shapes(name):
    config, (count, shape) = CONFIGS[name], PUBLISHED[name]
    network = make_network(config)
    params = jax.eval_shape(network.init, jax.random.key(0))
    assert count_parameters(params) == count
    assert image_shape(config) == shape


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """The folder of a run with an autoencoder that learned nothing."""
    folder = tmp_path_factory.mktemp("autoencoder")
    settings = replace(CONFIGS["digits_autoencoder"].autoencoding, network=SHAPE)
    params = autoencoder_kl(SHAPE).init(jax.random.key(1))
    # of quite another scale than 1, as latents are
    params["quant_conv"]["kernel"] *= 5.0
    save_autoencoder(folder, settings, params, SOURCE, MESH)
    return folder


@pytest.fixture(scope="module")
def prepared(autoencoder, tmp_path_factory):
    """The folder of a run in latent space, its space and its encoded images."""
    folder = tmp_path_factory.mktemp("run")
    config = LatentsConfig(autoencoder=str(autoencoder))
    return folder, *prepare_latents(config, DataConfig(), SOURCE, folder, LATENT)


def test_latents_have_variance_one_under_the_measured_scale(prepared):
    _, space, latents = prepared
    # over all elements, mean not taken away channel by channel
    pooled = np.mean(latents.std**2 + latents.mean**2) - np.mean(latents.mean) ** 2
    np.testing.assert_allclose(np.sqrt(pooled) * space.scale, 1.0, rtol=1e-5)


def test_a_latent_space_decodes_what_was_encoded(prepared):
    folder, space, latents = prepared
    model = load_autoencoder(folder)
    means = np.stack([latents[i]["mean"] for i in range(8)])
    scaled = (means - space.shift) * space.scale
    decoded = space.decode(scaled)
    np.testing.assert_allclose(decoded, model.network.decode(model.params, means), atol=1e-5)
    # frames of a trajectory are decoded one by one
    frames = space.decode(np.stack([scaled, scaled])[:, :3])
    np.testing.assert_allclose(frames[1], decoded[:3], atol=1e-5)


def test_images_are_encoded_once_and_by_their_own_autoencoder(autoencoder, prepared, monkeypatch):
    folder, _, latents = prepared
    config = LatentsConfig(autoencoder=str(autoencoder))
    with monkeypatch.context() as patch:
        patch.setattr(data, "write_latents", None)  # a second time would fail
        again = prepare_latents(config, DataConfig(), SOURCE, folder, LATENT)[1]
    np.testing.assert_array_equal(again[7]["mean"], latents[7]["mean"])
    with pytest.raises(ValueError, match=r"latents of another data\. Delete it"):
        prepare_latents(config, DataConfig(split="train"), SOURCE, folder, LATENT)


@pytest.mark.slow
def test_mirrored_images_are_encoded_too(autoencoder, tmp_path):
    config = LatentsConfig(autoencoder=str(autoencoder), dtype="float16")
    _, latents = prepare_latents(config, DataConfig(flip=True), SOURCE, tmp_path, LATENT)
    assert len(latents) == 2 * len(SOURCE)
    model = load_autoencoder(tmp_path)
    mirror = SOURCE.images[3:4, :, ::-1] / np.float32(127.5) - np.float32(1)
    mean = model.network.encode(model.params, mirror).mean[0]
    np.testing.assert_allclose(latents[43]["mean"], mean, atol=0.02)


@pytest.mark.slow
def test_an_autoencoder_with_a_codebook_serves_as_well(tmp_path):
    config = VQConfig(**BACKBONE, codebook_size=16, codebook_dim=2, scaling_factor=0.5)
    network = vq_autoencoder(config)
    save_model(tmp_path / "vqvae", config, network.init(jax.random.key(0)))
    model = load_autoencoder(tmp_path)
    images = SOURCE.images[:2] / np.float32(127.5) - np.float32(1)
    mean, logvar = make_encoder(model, (8, 8, 1))(images)
    assert mean.shape == (2, 4, 4, 2)
    assert logvar.max() == -30.0
    copy_autoencoder(str(tmp_path), tmp_path / "run")
    space = load_latent_space(tmp_path / "run", LATENT)
    expected = network.decode(model.params, mean)
    np.testing.assert_allclose(space.decode(mean * 0.5), expected, atol=1e-5)


def test_what_is_no_autoencoder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no autoencoder"):
        find_autoencoder(tmp_path)
    with pytest.raises(ValueError, match="give --autoencoder FOLDER"):
        copy_autoencoder("", tmp_path)
    with pytest.raises(ValueError, match="MODULE:FUNCTION"):
        load_function("features", "nowhere:features")
    assert load_function("features", "math:floor")(1.5) == 1


def test_a_discriminator_joins_at_its_step():
    critic = PatchDiscriminatorConfig(in_channels=1, channels=4, num_layers=1, num_groups=2)
    config = replace(
        CONFIGS["digits_autoencoder"].autoencoding,
        network=SHAPE, discriminator=critic, discriminator_start=7,
    )  # fmt: skip
    losses = autoencoder_losses(config)
    assert sorted(losses) == [0, 7]
    network = make_network(replace(CONFIGS["digits_autoencoder"], autoencoding=config))
    params = jax.eval_shape(network.init, jax.random.key(0))
    batch, keys = {"x0": jnp.zeros((2, 8, 8, 1))}, batch_keys(jax.random.key(0), 2)
    metrics = {
        begin: jax.eval_shape(lambda p, loss=loss: loss(p, batch, keys), params)[1]
        for begin, loss in losses.items()
    }
    assert set(metrics[7]) - set(metrics[0]) == {"generator", "discriminator", "balance"}
    chex.assert_shape(list(metrics[7].values()), (2,))


def test_steps_are_taken_in_turn_also_by_a_run_that_goes_on():
    state = lambda n: type("State", (), {"step": n})
    steps = {0: lambda *_: "plain", 3: lambda *_: "both"}
    step = in_turn(steps)
    assert [step(state(n), None, None) for n in range(5)] == ["plain"] * 3 + ["both"] * 2
    assert in_turn(steps)(state(9), None, None) == "both"


def test_a_task_and_its_parts_belong_together():
    with pytest.raises(ValueError, match="by the task autoencode, and by no other"):
        replace(CONFIGS["digits_autoencoder"], task="denoise")


def test_the_command_line_names_the_autoencoder():
    config, _, _ = train.read_command_line(["digits_latent", "--autoencoder", "somewhere"])
    assert config.latents.autoencoder == "somewhere"
    assert dataclasses.asdict(config)["latents"]["path"] is None


@pytest.mark.slow
def test_from_training_an_autoencoder_to_decoded_samples(tmp_path, monkeypatch, capsys):
    def call(module, *words):
        monkeypatch.setattr("sys.argv", [f"{module.__name__}.py", *map(str, words)])
        module.main()

    first, second = tmp_path / "autoencoder", tmp_path / "latent"
    few = ("--batch-size", 8, "--num-steps", 6, "--log-every", 2, "--checkpoint-every", 3)
    small = [
        *("--autoencoding.network.block-out-channels", 8, 8, "--autoencoding.network.num-groups", 4)
    ]
    call(train, "digits_autoencoder", "--workdir", first, *few, *small)
    lines = [json.loads(line) for line in (first / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert {"error", "kl", "psnr", "loss"} <= set(lines[0])
    assert (first / "reconstructions.png").is_file()
    call(reconstruct, "--workdir", first, "--num-images", 20, "--split", "test")
    assert "dB over 20 images of digits test" in capsys.readouterr().out
    call(reconstruct, "--workdir", first, "--num-images", 20, "--output", tmp_path / "seen.npz")
    seen = data.npz(tmp_path / "seen.npz")
    assert (len(seen), seen.shape) == (20, (8, 8, 1))
    assert seen[7]["label"] == data.load("digits")[7]["label"]

    unet = ("--network.block-out-channels", 8, 8, "--network.num-groups", 4)
    words = ("digits_latent", "--autoencoder", first, "--workdir", second, *few, *unet)
    call(train, *words)
    assert (second / "samples_ddim.png").is_file()
    call(sample, "--workdir", second, "--num-samples", 20, "--output", tmp_path / "x.npz",
         "--num-steps", 3)  # fmt: skip
    with np.load(tmp_path / "x.npz") as archive:
        assert archive["images"].shape == (20, 8, 8, 1)
    with pytest.raises(ValueError, match="in the latent space of an autoencoder"):
        load_run(second, MESH)
    # the run stands by itself, and its settings hold
    (first / "autoencoder").rename(tmp_path / "elsewhere")
    call(train, *words)
    config, _, _ = train.read_command_line(list(map(str, (*words, "--latents.dtype", "float16"))))
    with pytest.raises(ValueError, match="dtype float32 -> float16"):
        claim_workdir(second, config)
