"""Systems in diffusers' format with random weights, small enough to train in a test."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from diffjax.networks import unet
from diffjax.networks.autoencoder_kl import AutoencoderKLConfig, autoencoder_kl
from diffjax.networks.clip import CLIPTextConfig, CLIPVisionConfig, clip_text, clip_vision
from diffjax.networks.controlnet import controlnet
from diffjax.networks.functional import Functional, Params, flatten, unflatten
from diffjax.networks.prior import PriorConfig, prior
from diffjax.networks.t2i_adapter import T2IAdapterConfig, t2i_adapter
from diffjax.networks.unclip import ImageAndTextConfig, image_and_text
from diffjax.networks.unet_config import UNetConfig
from diffjax.networks.unet_context import ContextConfig
from diffjax.networks.unet_latent_presets import sd1_unet
from diffjax.networks.unet_waveform import WaveformUNetConfig, unet_waveform
from diffjax.pretrained import load_model, save_model
from diffjax.pretrained.controlnet import controlnet_of_unet

SIDE = 8  # of the images; their latents have half of it
WORDS = ("a", "cat", "dog", "red", "blue", "circle")
MARKS = ("<|startoftext|>", "<|endoftext|>")
FEATURES = 8


# what edits pictures -> its class, and how its UNet differs
EDITORS = {
    "instruct": ("StableDiffusionInstructPix2PixPipeline", {"in_channels": 8}),
    "inpaint": ("StableDiffusionInpaintPipeline", {"in_channels": 9}),
    "enlarge": ("StableDiffusionUpscalePipeline", {"in_channels": 7, "num_classes": 1000}),
    "vary": ("StableDiffusionImageVariationPipeline", {}),
}


# text encoders, and sizes that the UNet is told
KINDS = {
    "StableDiffusionPipeline": (("",), 0),
    "StableDiffusionXLPipeline": (("", "_2"), 6),
    "StableDiffusionXLImg2ImgPipeline": (("_2",), 5),  # the refiner
}


def save_stable_diffusion(
    folder: Path, *, kind: str = "StableDiffusionPipeline", prediction: str = "epsilon",
    seed: int = 0, **changes: Any,
) -> Path:  # fmt: skip
    """Write a tiny Stable Diffusion of some kind into a new folder, with changes of its UNet."""
    encoders, sizes = KINDS[kind]
    added = {"added": "text_time", "added_features": FEATURES + sizes * 4, "time_id_features": 4}
    context = ContextConfig(
        features=FEATURES * len(encoders), num_heads=2, **(added if sizes else {})
    )
    network = sd1_unet(
        sample_size=SIDE // 2, block_out_channels=(8,), layers_per_block=1, num_groups=4,
        attention=("transformer",), up_attention=("transformer",), context=context,
        # what a folder of diffusers says in so many words
        head_dim=2, mid_residual_scale=1.0, downsample=("conv",), upsample=("conv",), **changes,
    )  # fmt: skip
    vae = AutoencoderKLConfig(
        sample_size=SIDE, block_out_channels=(8, 8), layers_per_block=1, num_groups=4,
        attention=(False, False), up_attention=(False, False), mid_attention=False,
    )  # fmt: skip
    scheduler = {
        "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "prediction_type": prediction, "steps_offset": 1,
        "clip_sample": False, "set_alpha_to_one": False,
    }  # fmt: skip
    parts = {"unet": (network, unet(network)), "vae": (vae, autoencoder_kl(vae))}
    for end in encoders:
        text = _text_config(projected=end == "_2")
        parts[f"text_encoder{end}"] = (text, clip_text(text))
        _save_tokenizer(folder / f"tokenizer{end}")
    for number, (name, (config, made)) in enumerate(parts.items(), start=seed):
        save_model(folder / name, config, draw_params(made, number))
    _write(folder / "scheduler" / "scheduler_config.json", scheduler)
    _write(folder / "model_index.json", _index(parts, kind))
    return folder


def save_editor(folder: Path, command: str) -> Path:
    """Write a tiny model that a command of edit.py is for into a new folder."""
    name, changes = EDITORS[command]
    save_stable_diffusion(folder, **changes)
    index = json.loads((folder / "model_index.json").read_text()) | {"_class_name": name}
    if command == "enlarge":
        index |= {"low_res_scheduler": ["diffusers", "DDPMScheduler"], "max_noise_level": 350}
        noising = {"_class_name": "DDPMScheduler"}
        _write(folder / "low_res_scheduler" / "scheduler_config.json", noising)
    if command == "vary":
        seen = draw_params(clip_vision(_vision_config()), 12)
        save_model(folder / "image_encoder", _vision_config(), seen)
        index["image_encoder"] = ["transformers", "CLIPVisionModelWithProjection"]
        del index["text_encoder"], index["tokenizer"]
    _write(folder / "model_index.json", index)
    return folder


def save_steering(folder: Path, model: Path) -> tuple[Path, Path]:
    """Write a ControlNet and a T2I-Adapter for a tiny Stable Diffusion into a new folder."""
    unet_config = load_model(model / "unet").config
    control = controlnet_of_unet(unet_config, condition_widths=(4, 4))
    adapter = T2IAdapterConfig(channels=unet_config.block_out_channels, num_blocks=1, factor=2)
    save_model(folder / "controlnet", control, draw_params(controlnet(control), 10))
    save_model(folder / "adapter", adapter, draw_params(t2i_adapter(adapter), 11))
    return folder / "controlnet", folder / "adapter"


def save_ip_adapter(folder: Path, model: Path) -> Path:
    """Write an IP-Adapter for a tiny Stable Diffusion, and its image encoder, into a new folder."""
    context = load_model(model / "unet").config.context
    routes = flatten(load_model(model / "unet").params)
    widths = [shape.shape for route, shape in routes.items() if route[-3:-1] == ("attn2", "to_k")]
    draw = lambda *shape: np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)
    tensors = {
        "proj.weight": draw(4 * context.width, FEATURES),
        "proj.bias": draw(4 * context.width),
    }
    tensors |= {"norm.weight": draw(context.width), "norm.bias": draw(context.width)}
    tensors = {f"image_proj.{name}": each for name, each in tensors.items()}
    for i, (width, features) in enumerate(widths):
        for name in ("to_k_ip", "to_v_ip"):
            tensors[f"ip_adapter.{2 * i + 1}.{name}.weight"] = draw(features, width)
    save_model(
        folder / "image_encoder", _vision_config(), draw_params(clip_vision(_vision_config()), 12)
    )
    save_file(tensors, folder / "adapter.safetensors")
    return folder


def save_unclip(folder: Path, *, varies: bool = False) -> Path:
    """Write a tiny unCLIP into a new folder, or one that makes variations of pictures."""
    blocks = {
        "block_out_channels": (8, 16), "layers_per_block": 1, "num_groups": 4, "head_dim": 2,
        "norm_eps": 1e-5, "mid_residual_scale": 1.0, "downsample": ("resnet", "resnet"),
        "upsample": ("resnet", "resnet"), "downsample_padding": 1, "flip_sin_to_cos": True,
        "freq_shift": 0, "zero_init": False,
    }  # fmt: skip
    seeing = (False, "extended")
    decoder = UNetConfig(
        sample_size=SIDE, out_channels=6, scale_shift=True, class_embedding="identity",
        attention=seeing, up_attention=seeing, mid_attention="extended",
        context=ContextConfig(features=FEATURES, num_heads=2), **blocks,
    )  # fmt: skip
    enlarger = UNetConfig(
        sample_size=2 * SIDE, in_channels=6, attention=(False, False), up_attention=(False, False),
        **blocks,
    )  # fmt: skip
    text, joined = _text_config(projected=True), ImageAndTextConfig(FEATURES, 32, FEATURES)
    parts = {
        "decoder": (decoder, unet(decoder)),
        "super_res_first": (enlarger, unet(enlarger)),
        "super_res_last": (enlarger, unet(enlarger)),
        "text_encoder": (text, clip_text(text)),
        "text_proj": (joined, image_and_text(joined)),
    }
    if varies:
        parts["image_encoder"] = (_vision_config(), clip_vision(_vision_config()))
    else:
        embeddings = PriorConfig(
            num_layers=1, num_heads=2, head_dim=4, embedding_dim=FEATURES, num_embeddings=16
        )
        parts["prior"] = (embeddings, prior(embeddings))
    for number, (name, (config, made)) in enumerate(parts.items()):
        save_model(folder / name, config, draw_params(made, number))
    _save_tokenizer(folder / "tokenizer")
    schedulers = {
        "prior": {"prediction_type": "sample", "clip_sample_range": 5.0},
        "decoder": {"variance_type": "learned_range"},
        "super_res": {},
    }
    for name, settings in schedulers.items():
        settings = {"_class_name": "UnCLIPScheduler", **settings}
        _write(folder / f"{name}_scheduler" / "scheduler_config.json", settings)
    classes = {
        "decoder": "UNet2DConditionModel", "text_encoder": "CLIPTextModelWithProjection",
        "text_proj": "UnCLIPTextProjModel", "image_encoder": "CLIPVisionModelWithProjection",
        "prior": "PriorTransformer", "super_res_first": "UNet2DModel",
        "super_res_last": "UNet2DModel",
    }  # fmt: skip
    index = {name: ["diffusers", classes[name]] for name in parts}
    index |= {f"{name}_scheduler": ["diffusers", "UnCLIPScheduler"] for name in schedulers}
    index |= {"tokenizer": ["transformers", "CLIPTokenizer"]}
    name = "UnCLIPImageVariationPipeline" if varies else "UnCLIPPipeline"
    _write(folder / "model_index.json", {"_class_name": name, **index})
    return folder


def save_dance_diffusion(folder: Path) -> Path:
    """Write a tiny model of sounds, 32 samples of two channels, into a new folder."""
    config = WaveformUNetConfig(
        sample_size=32, sample_rate=32, block_out_channels=(32, 32), attention=(False, True),
        up_attention=(False, True),
    )  # fmt: skip
    save_model(folder / "unet", config, draw_params(unet_waveform(config), 0))
    scheduler = {"_class_name": "IPNDMScheduler"}
    _write(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {"unet": ["diffusers", "UNet1DModel"], "scheduler": ["diffusers", "IPNDMScheduler"]}
    _write(folder / "model_index.json", {"_class_name": "DanceDiffusionPipeline", **index})
    return folder


def draw_params(network: Functional, seed: int) -> Params:
    """Random params without compiling anything; none is zero but the biases."""
    draw = np.random.default_rng(seed).normal
    shapes = flatten(jax.eval_shape(network.init, jax.random.key(0)))

    def leaf(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name in ("bias", "scale"):
            return np.full(shape, float(name == "scale"), np.float32)
        return (draw(size=shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)

    return unflatten({path: leaf(path[-1], each.shape) for path, each in shapes.items()})


def _vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=FEATURES, intermediate_size=16, num_layers=1, num_heads=2, image_size=8,
        patch_size=4, projection_dim=FEATURES,
    )  # fmt: skip


def _text_config(projected: bool) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(_vocabulary()[0]), hidden_size=FEATURES, intermediate_size=16, num_layers=1,
        num_heads=2, max_positions=16, eos_token=_vocabulary()[0][MARKS[1]],
        projection_dim=FEATURES if projected else None,
    )  # fmt: skip


def _index(parts: dict, kind: str) -> dict:
    encoders = [name for name in parts if name.startswith("text_encoder")]
    tokenizers = [name.replace("text_encoder", "tokenizer") for name in encoders]
    projected = {"text_encoder_2": "CLIPTextModelWithProjection"}
    first = kind == "StableDiffusionPipeline"
    return {
        "_class_name": kind,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        **{name: ["transformers", projected.get(name, "CLIPTextModel")] for name in encoders},
        **{name: ["transformers", "CLIPTokenizer"] for name in tokenizers},
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        **({"requires_aesthetics_score": True} if KINDS[kind][1] == 5 else {}),
        **({"safety_checker": [None, None], "requires_safety_checker": False} if first else {}),
    }


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Letters, and the words as pairs that grow to them from the left."""
    letters = [chr(i) for i in range(33, 127)]
    tokens, merges = [*letters, *(f"{letter}</w>" for letter in letters)], []
    for word in WORDS:
        *pieces, last = word
        grown = ""
        for piece in [*pieces, f"{last}</w>"]:
            if grown and grown + piece not in tokens:
                merges.append((grown, piece))
                tokens.append(grown + piece)
            grown += piece
    return {token: i for i, token in enumerate([*tokens, *MARKS])}, merges


def _save_tokenizer(folder: Path) -> None:
    vocabulary, merges = _vocabulary()
    _write(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    notes = {"bos_token": MARKS[0], "eos_token": MARKS[1], "pad_token": MARKS[1]}
    notes |= {"unk_token": MARKS[1], "model_max_length": 16, "tokenizer_class": "CLIPTokenizer"}
    _write(folder / "tokenizer_config.json", notes)


def _write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
