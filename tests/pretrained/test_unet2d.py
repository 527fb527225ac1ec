import json
import shutil
from pathlib import Path

import chex
import jax.numpy as jnp
import pytest
from safetensors.numpy import load_file, save_file

from diffjax.pretrained import UnsupportedError, load_model
from diffjax.pretrained.architecture import read_settings
from diffjax.pretrained.unet2d import OLD_ATTENTION_NAMES, UNET_2D

CASE = Path(__file__).parents[1] / "references" / "models" / "unet2d_ddpm" / "model"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def settings():
    return json.loads((CASE / "config.json").read_text())


def unet2d_config(settings):
    return read_settings(UNET_2D, settings)


@pytest.fixture
def copy(tmp_path):
    """A copy of the folder that a test may change."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", WEIGHTS):
        shutil.copyfile(CASE / name, folder / name)
    return folder


def test_old_attention_names_are_the_present_ones(copy):
    params = load_model(CASE).params
    tensors = load_file(copy / WEIGHTS)
    old_names = {new: old for old, new in OLD_ATTENTION_NAMES.items()}
    renamed = {}
    for name, tensor in tensors.items():
        for new, old in old_names.items():
            if f".{new}." in name:
                name = name.replace(f".{new}.", f".{old}.")
                tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        renamed[name] = tensor
    assert renamed.keys() != tensors.keys()
    save_file(renamed, copy / WEIGHTS)
    old = load_model(copy).params
    chex.assert_trees_all_equal(old, params)


def test_params_have_the_dtype_asked_for():
    config, _, params = load_model(CASE, param_dtype="bfloat16")
    assert config.param_dtype == "bfloat16"
    assert params["conv_in"]["kernel"].dtype == jnp.bfloat16


def test_weights_of_another_configuration_are_refused(copy):
    changed = settings() | {"block_out_channels": [16, 24], "norm_num_groups": 8}
    (copy / "config.json").write_text(json.dumps(changed))
    with pytest.raises(
        ValueError, match=r"wrong shape .*down_blocks\.1\.resnets\.0\.conv1\.weight"
    ):
        load_model(copy)
    changed = settings() | {"layers_per_block": 2}
    (copy / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"missing .*down_blocks\.0\.resnets\.1\.conv1\.bias"):
        load_model(copy)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("time_embedding_type", "fourrier"),
        ("act_fn", "tanh"),
        ("mid_block_type", "UNetMidBlock2DCrossAttn"),
        ("class_embed_type", "projection"),
        ("downsample_padding", 2),
        ("downsample_type", "fir"),
        ("resnet_time_scale_shift", "spatial"),
        ("layers_per_block", (1, 2)),
        ("norm_num_groups", None),
        ("up_block_types", ["CrossAttnUpBlock2D", "UpBlock2D"]),
        ("down_block_types", ["DownBlock2D", "KDownBlock2D"]),
    ],
)
def test_unsupported_settings_are_named_with_their_value(key, value):
    culprit = value[0] if key == "up_block_types" else value[1] if "down_block" in key else value
    with pytest.raises(UnsupportedError) as error:
        unet2d_config(settings() | {key: value})
    assert key in str(error.value)
    assert repr(culprit) in str(error.value)


def test_skip_blocks_beside_others_are_refused():
    mixed = {"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}
    with pytest.raises(UnsupportedError, match="mix Skip blocks with others"):
        unet2d_config(settings() | mixed)


def test_unknown_keys_are_ignored_and_missing_ones_have_defaults():
    assert unet2d_config(settings() | {"_note": 1, "foo": 2}) == unet2d_config(settings())
    config = unet2d_config({})
    assert config.block_out_channels == (224, 448, 672, 896)
    assert config.attention == (False, True, True, True)
    assert (config.head_dim, config.norm_eps, config.downsample_padding) == (8, 1e-5, 1)


def test_middle_attention_has_a_norm_of_its_own_rule():
    groups = lambda **changes: unet2d_config(settings() | changes).mid_attention_groups
    assert groups() is None
    assert groups(resnet_time_scale_shift="scale_shift") == 0
    assert groups(resnet_time_scale_shift="scale_shift", attn_norm_num_groups=4) == 4
