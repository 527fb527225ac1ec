import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffjax.pipelines import make_system
from diffjax.pretrained import (
    Components,
    UnsupportedError,
    load_components,
    load_model,
    read_scheduler,
)
from diffjax.pretrained.motion_adapter import load_motion_adapter, on_linear_betas
from diffjax.pretrained.unet2d import same_unet

TESTS = Path(__file__).parents[1]
ORACLES = Path(os.environ.get("DIFFJAX_ORACLES", TESTS.parents[1] / "shared" / "oracles"))
ANIMATEDIFF = ORACLES / "pipelines" / "animatediff" / "pipeline"
WEIGHTS = "diffusion_pytorch_model.safetensors"
ADAPTER = {
    "_class_name": "MotionAdapter",
    "block_out_channels": [8, 16],
    "motion_layers_per_block": 1,
    "motion_max_seq_length": 8,
    "motion_norm_num_groups": 8,
    "motion_num_attention_heads": 2,
}
SCHEDULERS = {
    "scheduler": read_scheduler({"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear"})
}


def write(folder, settings, tensors):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / WEIGHTS)
    return folder


def split(moving, folder):
    """A UNet of images and an adapter, as folders, from that of a UNet of videos."""
    settings = json.loads((moving / "config.json").read_text())
    tensors = load_file(moving / WEIGHTS)
    settings |= {"_class_name": "UNet2DConditionModel"}
    settings["attention_head_dim"] = settings.pop("num_attention_heads")
    for name in ("down_block_types", "up_block_types"):
        settings[name] = [block.replace("Motion", "2D") for block in settings[name]]
    of_motion = {name: each for name, each in tensors.items() if "motion_modules" in name}
    rest = {name: each for name, each in tensors.items() if name not in of_motion}
    return write(folder / "unet", settings, rest), write(folder / "motion", ADAPTER, of_motion)


@pytest.fixture(scope="module")
def moving():
    return TESTS / "references" / "models" / "unet_motion" / "model"


@pytest.fixture(scope="module")
def folders(moving, tmp_path_factory):
    return split(moving, tmp_path_factory.mktemp("split"))


@pytest.fixture(scope="module")
def parts(folders):
    model = {"unet": load_model(folders[0])}
    return Components("StableDiffusionPipeline", {}, model, {}, SCHEDULERS)


@pytest.fixture(scope="module")
def made(parts, folders):
    return load_motion_adapter(folders[1], parts)


def assert_same(found, whole):
    assert same_unet(found.config) == same_unet(whole.config)
    jax.tree.map(np.testing.assert_array_equal, found.params, whole.params)


def test_a_unet_and_an_adapter_are_the_unet_that_was_saved_with_both(made, moving):
    assert made.name == "AnimateDiffPipeline"
    assert_same(made.models["unet"], load_model(moving))
    # on the betas of the adapters
    levels = made.schedulers["scheduler"].levels(4)
    linear = read_scheduler({"_class_name": "DDIMScheduler", "beta_schedule": "linear"}).levels(4)
    np.testing.assert_array_equal(levels.alpha, linear.alpha)
    assert np.abs(levels.alpha - SCHEDULERS["scheduler"].levels(4).alpha).max() > 0.01


@pytest.mark.slow
@pytest.mark.skipif(not ANIMATEDIFF.is_dir(), reason="the reference cases are not here")
def test_an_adapter_that_diffusers_saved_makes_the_whole_system(tmp_path):
    whole = load_components(ANIMATEDIFF)
    unet, _ = split(ANIMATEDIFF / "unet", tmp_path)
    models = {**whole.models, "unet": load_model(unet)}
    plain = whole._replace(name="StableDiffusionPipeline", models=models)
    made = load_motion_adapter(ANIMATEDIFF / "motion_adapter", plain)
    assert_same(made.models["unet"], whole.models["unet"])
    system, same = (make_system(each, num_frames=3) for each in (made, whole))
    assert system.latent_shape(16, 16) == same.latent_shape(16, 16)
    assert made.schedulers["scheduler"].config == whole.schedulers["scheduler"].config


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"_class_name": "ControlNetModel"}, UnsupportedError, "holds a ControlNetModel"),
        ({"block_out_channels": [8, 8]}, ValueError, r"block_out_channels \(8, 8\); this one has"),
        ({"motion_norm_num_groups": 4}, ValueError, "for UNets of num_groups 4; this one has 8"),
        ({"conv_in_channels": 9}, UnsupportedError, "conv_in_channels is 9"),
        ({"motion_max_seq_length": 4}, ValueError, "wrong shape"),
        ({"use_motion_mid_block": False}, ValueError, "unexpected"),
    ],
)
def test_an_adapter_of_something_else_is_refused(parts, folders, tmp_path, changes, error, reason):
    adapter = write(tmp_path / "adapter", {**ADAPTER, **changes}, load_file(folders[1] / WEIGHTS))
    with pytest.raises(error, match=reason):
        load_motion_adapter(adapter, parts)


def test_a_model_that_an_adapter_does_not_fit_is_refused(parts, folders, made):
    with pytest.raises(ValueError, match="mixes frames already"):
        load_motion_adapter(folders[1], made)
    with pytest.raises(UnsupportedError, match="Stable Diffusion 1 or 2"):
        load_motion_adapter(folders[1], parts._replace(models={}))
    with pytest.raises(UnsupportedError, match="has no table of betas"):
        on_linear_betas(read_scheduler({"_class_name": "FlowMatchEulerDiscreteScheduler"}))
