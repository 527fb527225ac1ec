import json
from functools import partial

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffjax.networks import unet
from diffjax.networks.autoencoder_kl import AutoencoderKLConfig, autoencoder_kl
from diffjax.networks.clip import CLIPTextConfig, clip_text
from diffjax.networks.unet_context import ContextConfig
from diffjax.networks.unet_latent_presets import sd1_unet
from diffjax.pretrained import (
    UnsupportedError,
    load_components,
    load_model,
    read_tensors,
    save_model,
)
from diffjax.pretrained.single_file import SingleFile

TEXT = CLIPTextConfig(
    vocab_size=9, hidden_size=4, intermediate_size=8, num_heads=2, num_layers=2, max_positions=4
)
PARTS = {
    # attention in the second level alone, as SDXL has none in its first
    "unet": sd1_unet(
        block_out_channels=(8, 8, 16),
        attention=(False, "transformer", False),
        num_groups=4,
        sample_size=8,
        context=ContextConfig(
            features=4,
            num_heads=2,
            added="text_time",
            added_features=16,
            time_id_features=4,
            linear_projection=True,
        ),
    ),
    "vae": AutoencoderKLConfig(
        block_out_channels=(8, 16),
        attention=(False, False),
        up_attention=(False, False),
        num_groups=4,
        layers_per_block=1,
    ),
    "text_encoder": TEXT,
    "text_encoder_2": CLIPTextConfig(**{**vars(TEXT), "projection_dim": 6}),
}
BUILD = {
    "unet": unet,
    "vae": autoencoder_kl,
    "text_encoder": clip_text,
    "text_encoder_2": clip_text,
}
CLASSES = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
}


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """A folder with random weights, and the same in one file."""
    folder, draw = tmp_path_factory.mktemp("system"), np.random.default_rng(0).standard_normal
    for part, config in PARTS.items():
        shapes = jax.eval_shape(BUILD[part](config).init, jax.random.key(0))
        params = jax.tree.map(lambda leaf: draw(leaf.shape).astype(np.float32), shapes)
        save_model(folder / part, config, params)
    index = {part: ["", name] for part, name in CLASSES.items()}
    index |= {"_class_name": "StableDiffusionXLPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))
    whole = {}
    for part, prefix, old in (
        ("unet", "model.diffusion_model.", old_unet_name),
        ("vae", "first_stage_model.", old_autoencoder_name),
        ("text_encoder", "conditioner.embedders.0.transformer.", lambda name: name),
    ):
        tensors = load_file(next((folder / part).glob("*.safetensors")))
        for name, tensor in tensors.items():
            if part == "vae" and ".attentions." in name and tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
            whole[prefix + old(name)] = tensor
    second = load_file(folder / "text_encoder_2" / "model.safetensors")
    whole |= {f"conditioner.embedders.1.model.{k}": v for k, v in old_clip(second).items()}
    whole |= {"model_ema.decay": np.ones(1), "alphas_cumprod": np.ones(4)}
    save_file(whole, folder / "whole.safetensors")
    return folder


def old_unet_name(name):
    """Written for two residual blocks a level, three levels, attention in the second."""
    first, *rest = name.split(".")
    if first in ("down_blocks", "up_blocks"):
        level, kind, i, *rest = int(rest[0]), rest[1], int(rest[2]), *rest[3:]
        if first == "down_blocks":
            at = 3 * level + (3 if kind == "downsamplers" else i + 1)
            place = ["input_blocks", str(at), "1" if kind == "attentions" else "0"]
            rest = ["op", *rest[1:]] if kind == "downsamplers" else rest
        else:
            at = 3 * level + (2 if kind == "upsamplers" else i)
            last = "2" if level == 1 else "1"
            which = {"resnets": "0", "attentions": "1", "upsamplers": last}[kind]
            place = ["output_blocks", str(at), which]
    elif first == "mid_block":
        place = ["middle_block", "1" if rest[0] == "attentions" else str(2 * int(rest[1]))]
        kind, rest = rest[0], rest[2:]
    else:
        kind = None
        place = {
            "conv_in": ["input_blocks.0.0"],
            "conv_norm_out": ["out.0"],
            "conv_out": ["out.2"],
            "time_embedding": ["time_embed"],
            "add_embedding": ["label_emb.0"],
        }[first]
        if rest[0] in ("linear_1", "linear_2"):
            rest = [str(2 * int(rest[0][-1]) - 2), *rest[1:]]
    if kind == "resnets":
        inside = {
            "norm1": "in_layers.0",
            "conv1": "in_layers.2",
            "time_emb_proj": "emb_layers.1",
            "norm2": "out_layers.0",
            "conv2": "out_layers.3",
            "conv_shortcut": "skip_connection",
        }
        rest = [inside[rest[0]], *rest[1:]]
    return ".".join([*place, *rest])


def old_autoencoder_name(name):
    """Written for two levels, of which the finest is the last on the way up."""
    side, first, *rest = name.split(".")
    if side in ("quant_conv", "post_quant_conv"):
        return name
    if first in ("down_blocks", "up_blocks"):
        level = int(rest[0]) if first == "down_blocks" else 1 - int(rest[0])
        kind = {"resnets": f"block.{rest[2]}", "downsamplers": "downsample"}
        inside = kind.get(rest[1], "upsample")
        end = ".".join(rest[3:]).replace("conv_shortcut", "nin_shortcut")
        return f"{side}.{first[:-7]}.{level}.{inside}.{end}"
    if first == "mid_block" and rest[0] == "resnets":
        return f"{side}.mid.block_{int(rest[1]) + 1}.{'.'.join(rest[2:])}"
    if first == "mid_block":
        old = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}
        return f"{side}.mid.attn_1.{old[rest[2]]}.{rest[-1]}"
    return f"{side}.{first.replace('conv_norm_out', 'norm_out')}.{rest[0]}"


def old_clip(tensors):
    found = {"logit_scale": np.ones(())}
    for name, tensor in tensors.items():
        name = name.removeprefix("text_model.")
        if name == "text_projection.weight":
            found["text_projection"] = np.ascontiguousarray(tensor.T)
        elif name.startswith("encoder.layers"):
            layer, rest = name.split(".")[2], ".".join(name.split(".")[3:])
            at = f"transformer.resblocks.{layer}"
            if ".q_proj." in name:
                three = [
                    tensors[f"text_model.{name}".replace("q_proj", f"{e}_proj")] for e in "qkv"
                ]
                found[f"{at}.attn.in_proj_{name.split('.')[-1]}"] = np.concatenate(three)
            elif ".k_proj." not in name and ".v_proj." not in name:
                rest = rest.replace("self_attn", "attn").replace("layer_norm", "ln_")
                rest = rest.replace("fc1", "c_fc").replace("fc2", "c_proj")
                found[f"{at}.{rest}"] = tensor
        else:
            old = {
                "embeddings.token_embedding.weight": "token_embedding.weight",
                "embeddings.position_embedding.weight": "positional_embedding",
                "final_layer_norm.weight": "ln_final.weight",
                "final_layer_norm.bias": "ln_final.bias",
            }
            found[old[name]] = tensor
    # files have a layer more than models keep
    more = {k.replace("resblocks.1", "resblocks.2"): v for k, v in found.items() if "blocks.1" in k}
    return found | more


@pytest.mark.parametrize("part", list(PARTS))
def test_one_file_holds_what_a_folder_holds(system, part):
    found = SingleFile(system / "whole.safetensors").tensors(part, PARTS[part])
    expected = read_tensors(system / part)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # pointwise layers are convolutions there
        here = np.asarray(found[name]).reshape(tensor.shape)
        np.testing.assert_array_equal(here, tensor, err_msg=name)


@pytest.mark.parametrize(
    ("release", "prefix", "part"),
    [
        ("Stable Diffusion 1", "cond_stage_model.transformer.", "text_encoder"),
        ("Stable Diffusion 2", "cond_stage_model.model.", "text_encoder"),
        ("SDXL", "conditioner.embedders.0.transformer.", "text_encoder"),
        ("SDXL", "conditioner.embedders.1.model.", "text_encoder_2"),
        ("SDXL's refiner", "conditioner.embedders.0.model.", "text_encoder_2"),
    ],
)
def test_text_encoders_are_found_where_each_release_has_them(
    system, tmp_path, release, prefix, part
):
    tensors = load_file(system / part / "model.safetensors")
    if prefix.endswith(".model."):
        # files of OpenCLIP have a projection, whether or not the system uses it
        tensors = {"text_projection": np.ones((4, 6), np.float32), **old_clip(tensors)}
    else:
        tensors["text_model.embeddings.position_ids"] = np.arange(4)[None]
    whole = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    whole["model.diffusion_model.out.2.bias"] = np.ones(4, np.float32)
    file = tmp_path / f"{release}.safetensors"
    save_file(whole, file)
    found = load_model(system / part, tensors=partial(SingleFile(file).tensors, part))
    chex.assert_trees_all_equal(found.params, load_model(system / part).params)
    (other,) = {"text_encoder", "text_encoder_2"} - {part}
    with pytest.raises(UnsupportedError, match=f"holds no part '{other}'"):
        SingleFile(file).tensors(other, PARTS[other])


def test_a_system_takes_its_weights_from_one_file(system):
    part, file = "text_encoder_2", system / "whole.safetensors"
    parts = load_components(system, single_file=file, only=[part])
    chex.assert_trees_all_equal(parts.models[part].params, load_model(system / part).params)


def test_other_files_and_absent_parts_are_refused(system, tmp_path):
    save_file({"a.weight": np.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UnsupportedError, match="no checkpoint in the layout of latent diffusion"):
        SingleFile(tmp_path / "other.safetensors")
    with pytest.raises(UnsupportedError, match="holds no part 'image_encoder'"):
        SingleFile(system / "whole.safetensors").tensors("image_encoder", TEXT)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["unet", "vae"])
def test_diffusers_reads_the_same_names(system, part):
    convert = pytest.importorskip("diffusers.loaders.single_file_utils")
    run = {"unet": convert.convert_ldm_unet_checkpoint, "vae": convert.convert_ldm_vae_checkpoint}
    whole = load_file(system / "whole.safetensors")
    settings = json.loads((system / part / "config.json").read_text())
    theirs = run[part](whole, settings)
    ours = SingleFile(system / "whole.safetensors").tensors(part, PARTS[part])
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(np.asarray(ours[name]).squeeze(), np.squeeze(tensor))
