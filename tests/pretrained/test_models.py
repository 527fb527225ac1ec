import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffjax.networks import UNetConfig, ddpm_celeba64, ddpm_cifar10, unet
from diffjax.networks.autoencoder_kl import AutoencoderKLConfig, autoencoder_kl
from diffjax.networks.controlnet import sd1_controlnet
from diffjax.networks.unet_latent_presets import sd1_unet, sd2_unet, sdxl_unet
from diffjax.pretrained import UnsupportedError, load_model, read_config, read_tensors, save_model
from diffjax.pretrained.architecture import describes, read_settings, write_settings
from diffjax.pretrained.autoencoders import AUTOENCODERS
from diffjax.pretrained.controlnet import CONTROLNET
from diffjax.pretrained.models import ARCHITECTURES
from diffjax.pretrained.text_encoders import TEXT_ENCODERS
from diffjax.pretrained.unet2d import UNET_2D
from diffjax.pretrained.unet_condition import UNET_CONDITION
from diffjax.pretrained.unet_video import UNET_3D, UNET_MOTION

REFERENCES = Path(__file__).parents[1] / "references" / "models"
FOLDERS = {path.parent.name: path for path in REFERENCES.glob("*/model")}


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_a_network_is_written_back_bit_by_bit(name, tmp_path):
    folder = FOLDERS[name]
    stored, settings = read_tensors(folder), read_config(folder)
    model = load_model(folder)
    save_model(tmp_path, model.config, model.params, dtype=next(iter(stored.values())).dtype)
    written = read_tensors(tmp_path)
    assert written.keys() == stored.keys()
    for key, tensor in stored.items():
        assert np.asarray(written[key]).tobytes() == np.asarray(tensor).tobytes(), key
        assert written[key].shape == tensor.shape
    again = read_config(tmp_path)
    differing = {key for key in again.keys() & settings.keys() if again[key] != settings[key]}
    # what null means there is written out
    assert {key for key in differing if settings[key] is not None} == set()


def test_a_tensor_that_is_not_there_is_named(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(FOLDERS["t2i_adapter_light"], folder)
    settings = read_config(folder) | {"num_res_blocks": 3}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"missing .*body\.0\.resnets\.2\.block1\.bias"):
        load_model(folder)


def test_a_caption_that_only_training_saw_is_not_needed(tmp_path):
    """The published files of PixArt have it."""
    source = REFERENCES.parent / "pipelines" / "pixart_alpha" / "pipeline" / "transformer"
    stored = {name: np.asarray(tensor) for name, tensor in read_tensors(source).items()}
    stored["caption_projection.y_embedding"] = np.ones((120, 32), np.float32)
    save_file(stored, tmp_path / "diffusion_pytorch_model.safetensors")
    shutil.copy(source / "config.json", tmp_path)
    found, expected = load_model(tmp_path).params, load_model(source).params
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("upcast", [True, False])
def test_what_overflows_in_half_precision_is_computed_in_float32(upcast, tmp_path):
    shape = {"block_out_channels": (8,), "num_groups": 4, "layers_per_block": 1}
    config = AutoencoderKLConfig(
        **shape, attention=(False,), up_attention=(False,), force_upcast=upcast
    )
    save_model(tmp_path, config, autoencoder_kl(config).init(jax.random.key(0)))
    found = load_model(tmp_path, dtype="float16", param_dtype="float16")
    assert found.config.dtype == ("float32" if upcast else "float16")
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {np.dtype("float16")}
    assert load_model(tmp_path, dtype="bfloat16").config.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("architecture", "key", "value"),
    [
        (UNET_CONDITION, "dual_cross_attention", True),
        (UNET_CONDITION, "attention_type", "gated"),
        (UNET_CONDITION, "time_embedding_act_fn", "gelu"),
        (UNET_CONDITION, "resnet_skip_time_act", True),
        (UNET_CONDITION, "norm_num_groups", None),
        (UNET_CONDITION, "mid_block_type", "UNetMidBlock3D"),
        (UNET_CONDITION, "down_block_types", ["KDownBlock2D"] * 4),
        (CONTROLNET, "encoder_hid_dim", 32),
        (CONTROLNET, "addition_embed_type", "image"),
        (UNET_3D, "attention_head_dim", [8, 8, 8, 8]),
        (UNET_3D, "act_fn", "gelu"),
        (UNET_MOTION, "transformer_layers_per_mid_block", 3),
        (UNET_MOTION, "encoder_hid_dim_type", "ip_image_proj"),
        (AUTOENCODERS[0], "act_fn", "elu"),
        (AUTOENCODERS[0], "up_block_types", ["UpBlock2D"]),
        (AUTOENCODERS[1], "lookup_from_codebook", True),
        (TEXT_ENCODERS[0], "hidden_act", "gelu_fast"),
        (TEXT_ENCODERS[4], "feed_forward_proj", "gated-elu"),
    ],
)
def test_what_a_network_cannot_follow_is_named(architecture, key, value):
    with pytest.raises(UnsupportedError) as error:
        read_settings(architecture, {key: value})
    assert key in str(error.value)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.class_name)
def test_values_of_another_type_end_in_one_sentence(architecture):
    """Whatever stands in config.json, it is followed or refused by a ValueError."""
    assert architecture.keys
    for name in architecture.keys:
        for value in (None, "x", -1, 0, [], {}, 3.5, [None], ["x"], True, [1, [2]]):
            with contextlib.suppress(ValueError):
                read_settings(architecture, {name: value})
    with pytest.raises(ValueError, match="mid_block_scale_factor is 0, which"):
        read_settings(UNET_2D, {"mid_block_scale_factor": 0})


def test_labels_that_a_controlnet_embeds_with_silu_are_refused_beside_another_activation():
    labels = {"class_embed_type": "timestep"}
    with pytest.raises(UnsupportedError, match="act_fn is 'gelu' beside class_embed_type"):
        read_settings(CONTROLNET, {**labels, "act_fn": "gelu"})
    assert read_settings(CONTROLNET, labels).encoder.class_embedding == "timestep"


def test_heads_in_an_order_of_their_own_are_refused_beside_attention_that_has_it():
    kinds = {"up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"]}
    heads = lambda *each: read_settings(UNET_CONDITION, {**kinds, "attention_head_dim": list(each)})
    with pytest.raises(UnsupportedError, match="the same in reverse"):
        heads(2, 4, 4, 8)
    assert heads(2, 4, 4, 2).head_dim == (2, 4, 4, 2)


def test_published_defaults_are_those_of_absent_keys():
    config = read_settings(UNET_CONDITION, {"cross_attention_dim": 768})
    assert config.block_out_channels == (320, 640, 1280, 1280)
    assert config.attention == ("transformer", "transformer", "transformer", False)
    assert config.up_attention == config.attention
    assert (config.context.num_heads, config.context.features) == (8, 768)
    assert read_settings(CONTROLNET, {}).encoder.mid_attention == "transformer"


def test_a_configuration_that_no_class_can_hold_is_refused(tmp_path):
    with pytest.raises(UnsupportedError, match=r"UNet2DModel: patch_size = 2$"):
        save_model(tmp_path, UNetConfig(patch_size=2), {})


def sd1_control(*, dtype, **changes):
    return sd1_controlnet(encoder=sd1_unet(**changes), dtype=dtype)


@pytest.mark.parametrize(
    "make", [ddpm_cifar10, ddpm_celeba64, sd1_unet, sd2_unet, sdxl_unet, sd1_control]
)
def test_published_shapes_have_a_class_whatever_training_adds(make):
    config = make(zero_init=False, remat=True, dtype="bfloat16")
    assert sum(describes(each, config) for each in ARCHITECTURES) == 1


@pytest.mark.parametrize("architecture", [UNET_2D, UNET_CONDITION, UNET_3D, UNET_MOTION])
def test_what_follows_from_other_fields_need_not_be_said(architecture):
    given = {"up_block_types": ["UpBlock2D", *["AttnUpBlock2D"] * 3]}
    given = {**given, "down_block_types": [*["AttnDownBlock2D"] * 3, "DownBlock2D"]}
    config = read_settings(architecture, given if architecture is UNET_2D else {})
    changes = {"up_attention": None, "upsample": "conv", "downsample": "conv"}
    implicit = replace(config, mid_residual_scale=None, **changes)
    assert describes(architecture, implicit)
    assert write_settings(architecture, implicit) == write_settings(architecture, config)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"scale_shift": True, "downsample": "resnet"}])
def test_a_network_trained_here_is_one_of_diffusers(changes, tmp_path):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    config = UNetConfig(
        sample_size=8,
        block_out_channels=(8, 16),
        attention=(False, True),
        layers_per_block=1,
        num_groups=4,
        head_dim=8,
        num_classes=3,
        cond_drop_prob=0.1,
        zero_init=False,
        **changes,
    )
    init, apply = unet(config)
    params = init(jax.random.key(0))
    save_model(tmp_path, config, params)
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path)
    draw = np.random.default_rng(0).standard_normal
    # the last label is the null label
    x, t, labels = draw((2, 8, 8, 3)).astype(np.float32), np.array([3, 700]), np.array([1, 3])
    with torch.no_grad():
        y = theirs(
            torch.tensor(np.moveaxis(x, -1, 1)), torch.tensor(t), class_labels=torch.tensor(labels)
        )
    expected = np.moveaxis(y.sample.numpy(), 1, -1)
    found = jax.jit(apply)(params, x, t, labels=labels)
    np.testing.assert_allclose(found, expected, atol=2e-5)
