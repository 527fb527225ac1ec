"""Runs as folders of diffusers' format."""

import json
import sys
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_systems import draw_params

import diffjax as dj
import export_run
from config import Config, DiffusionConfig, ExpertsConfig, SamplingConfig
from configs import CONFIGS
from diffjax.networks import UNetConfig
from diffjax.networks.autoencoder_kl import AutoencoderKLConfig, autoencoder_kl
from diffjax.pipelines import make_plan, make_system
from diffjax.pretrained import UnsupportedError, load_components, read_scheduler, save_model
from model import SampleOptions, make_levels, make_schedule
from runs import Run, make_network

NETWORK = UNetConfig(
    sample_size=8, block_out_channels=(8, 16), attention=(False, True), layers_per_block=1,
    num_groups=4, head_dim=8,
)  # fmt: skip
LDM4 = CONFIGS["ldm4_celebahq"]


def run_of(**changes):
    config = replace(Config(network=NETWORK), **changes)
    network = make_network(config)
    return Run(config, network, draw_params(network, 0), 7)


@pytest.mark.parametrize(
    "diffusion",
    [
        DiffusionConfig(),
        DiffusionConfig(schedule="cosine_betas", prediction="v", num_train_steps=200),
        DiffusionConfig(prediction="v", zero_terminal_snr=True),
        LDM4.diffusion,
    ],
)
def test_schedulers_are_read_back_as_the_schedules_that_they_were(diffusion):
    settings = json.loads(json.dumps(export_run.scheduler_settings(Config(diffusion=diffusion))))
    scheduler, schedule = read_scheduler(settings), make_schedule(diffusion)
    np.testing.assert_allclose(scheduler.schedule.alpha, schedule.alpha, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scheduler.schedule.sigma, schedule.sigma, rtol=1e-4, atol=1e-6)
    row = {"eps": dj.eps, "v": dj.v}[diffusion.prediction]
    assert scheduler.parameterization is row
    grid = dj.trailing(20, num_train_steps=diffusion.num_train_steps)
    np.testing.assert_array_equal(scheduler.levels(20).t, grid)


@pytest.mark.parametrize("learned", [False, True])
def test_a_run_is_loaded_as_a_system_with_its_params(learned, tmp_path):
    run = run_of(diffusion=DiffusionConfig(learn_variance=learned))
    export_run.export_run(run, tmp_path, tmp_path / "model")
    parts = load_components(tmp_path / "model")
    system = make_system(parts)
    chex.assert_trees_all_equal(parts.params["unet"], run.params)
    assert system.learned_variance == learned
    assert system.size == (8, 8)


def latent_run(folder):
    """A run on latents of half the side, its folder, and the params of its autoencoder."""
    vae = AutoencoderKLConfig(
        sample_size=16, block_out_channels=(8, 8), layers_per_block=1, num_groups=4,
        attention=(False, False), up_attention=(False, False), mid_attention=False,
        scaling_factor=0.5,
    )  # fmt: skip
    save_model(folder / "autoencoder", vae, draw_params(autoencoder_kl(vae), 1))
    network = replace(NETWORK, in_channels=4, out_channels=4)
    sampling = SamplingConfig(clip=False)
    return run_of(network=network, latents=LDM4.latents, sampling=sampling)


def test_a_run_in_latent_space_takes_its_autoencoder_along(tmp_path):
    export_run.export_run(latent_run(tmp_path), tmp_path, tmp_path / "model")
    parts = load_components(tmp_path / "model")
    system = make_system(parts)
    assert (system.size, system.latent_shape(16, 16)) == ((16, 16), (8, 8, 4))
    images = jax.eval_shape(system.decode, parts.params, jnp.zeros((2, 8, 8, 4)))
    assert images.shape == (2, 16, 16, 3)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"diffusion": DiffusionConfig(schedule="cosine")}, "cosine is no table of betas"),
        ({"diffusion": DiffusionConfig(prediction="score")}, "score is not one of eps, x0, v"),
        ({"diffusion": CONFIGS["digits_ncsn"].diffusion}, "is no table of betas|preserve"),
        ({"network": replace(NETWORK, patch_size=2)}, "patch_size = 2"),
        ({"network": CONFIGS["ldm4_imagenet"].network}, "text encoder was trained here"),
        ({"experts": ExpertsConfig((0.5,))}, "the run has experts"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(changes, reason, tmp_path):
    run = Run(replace(Config(network=NETWORK), **changes), None, {}, 0)
    with pytest.raises((ValueError, UnsupportedError), match=reason):
        export_run.export_run(run, tmp_path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_folder_that_is_there_is_left_alone(monkeypatch, tmp_path):
    words = ["export_run.py", "--workdir", str(tmp_path), "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(FileExistsError, match="is there already"):
        export_run.main()


@pytest.mark.slow
@pytest.mark.parametrize("latent", [False, True])
def test_diffusers_makes_the_pictures_of_the_run(latent, monkeypatch, tmp_path):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    run = latent_run(tmp_path) if latent else run_of()
    export_run.export_run(run, tmp_path, tmp_path / "model")
    kind = diffusers.LDMPipeline if latent else diffusers.DDIMPipeline
    pipe = kind.from_pretrained(tmp_path / "model")
    size = run.config.network.in_channels, 8, 8
    drawn = torch.randn((2, *size), generator=torch.Generator().manual_seed(0))
    options = {"batch_size": 2, "num_inference_steps": 5, "output_type": "np"}
    # solvers here go on with the noise that belongs to the clipped x0
    options |= {} if latent else {"use_clipped_model_output": True}
    theirs = pipe(**options, generator=torch.Generator().manual_seed(0)).images

    parts = load_components(tmp_path / "model")
    system, plan = make_system(parts), make_plan(parts.schedulers["scheduler"], 5)
    levels = make_levels(SampleOptions(num_steps=5), make_schedule(run.config.diffusion))
    np.testing.assert_array_equal(levels.t, plan.levels.t)
    x, keys = jnp.moveaxis(jnp.asarray(drawn.numpy()), 1, -1), jax.random.split(jax.random.key(0))

    @jax.jit
    def ours(params, x):
        denoise = dj.make_denoiser(run.network.apply, params["unet"], dj.eps)
        denoise = dj.clip_denoised(denoise) if run.config.sampling.clip else denoise
        return system.decode(params, dj.sample(keys, x, denoise, dj.ddim(), levels))

    images = ours(parts.params, x)
    np.testing.assert_allclose(np.clip(images / 2 + 0.5, 0, 1), theirs, atol=1e-3)
    assert np.std(theirs) > 0.05
