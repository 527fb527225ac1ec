"""Reference cases of kind "model": a saved network, its inputs and its outputs."""

from typing import Any

import jax
import numpy as np
from parity_cases import Case, Comparison, Unsupported, compare, first, last

from diffjax.networks import UNetConfig
from diffjax.networks.prior import to_embedding
from diffjax.pretrained import UnsupportedError, load_model


def check_model(case: Case) -> list[Comparison]:
    """Build the network that the case names, with its weights, and compare the outputs."""
    # "transformers.CLIPTextModel", "VQModel (MoVQ, norm_type spatial)"
    classes = [
        name.removeprefix("transformers.").split(" ")[0] for name in case.settings["classes"]
    ]
    for name in classes:
        if name not in NETWORKS:
            raise Unsupported(f"there is no network for class {name}")
    try:
        outputs = NETWORKS[classes[0]](case)
    except UnsupportedError as error:
        raise Unsupported(str(error)) from error
    absent = set(case.settings.get("outputs", ())) - case.outputs.keys()
    if absent:
        raise ValueError(f"outputs.npz lacks {', '.join(sorted(absent))}")
    tolerance = case.settings["tolerance"]["rtol"]
    return [
        compare(name, outputs[name], reference, tolerance)
        for name, reference in case.outputs.items()
    ]


def _unet2d(case: Case) -> dict[str, np.ndarray]:
    model = load_model(case.checkpoint)
    labels = case.inputs.get("class_labels")
    conditioning = {} if labels is None else {"labels": labels}
    x = last(case.inputs["sample"])
    t = np.broadcast_to(case.inputs["timestep"], x.shape[:1])
    y = jax.jit(model.network.apply)(model.params, x, t, **conditioning)
    return {"sample": first(y)}


def _unet_condition(case: Case) -> dict[str, np.ndarray]:
    model = load_model(case.checkpoint)
    x, t, given = last(case.inputs["sample"]), case.inputs["timestep"], _given(case, model.config)
    apply = jax.jit(model.network.apply)
    return {"sample": first(apply(model.params, x, t, **given))}


def _controlnet(case: Case) -> dict[str, np.ndarray]:
    model = load_model(case.checkpoint)
    x, t = last(case.inputs["sample"]), case.inputs["timestep"]
    given = _given(case, model.config.encoder)
    given["condition"] = last(case.inputs["controlnet_cond"])

    def both(params: Any, given: dict[str, Any]) -> Any:
        # one program, in which nearly everything is shared
        return [model.network.apply(params, x, t, **given, guess=guess) for guess in (False, True)]

    (kept, middle), (guessed, guessed_middle) = jax.jit(both)(model.params, given)
    return {
        **{f"down_{i}": first(each) for i, each in enumerate(kept)},
        "mid": first(middle),
        **{f"guess_down_{i}": first(each) for i, each in enumerate(guessed)},
        "guess_mid": first(guessed_middle),
    }


def _t2i_adapter(case: Case) -> dict[str, np.ndarray]:
    model = load_model(case.checkpoint)
    features = jax.jit(model.network.apply)(model.params, last(case.inputs["image"]))
    return {f"feature_{i}": first(each) for i, each in enumerate(features)}


def _unet_video(case: Case) -> dict[str, np.ndarray]:
    model = load_model(case.checkpoint)
    # batch, channels, frames, height, width
    x = np.moveaxis(case.inputs["sample"], 1, -1)
    given, t = _given(case, model.config), case.inputs["timestep"]
    y = jax.jit(model.network.apply)(model.params, x, t, **given)
    return {"sample": np.moveaxis(y, -1, 1)}


def _given(case: Case, config: UNetConfig) -> dict[str, Any]:
    """The arguments of a UNet besides the noisy input and the clock, by our names."""
    names = {
        "context": "encoder_hidden_states",
        "context_mask": "encoder_attention_mask",
        "pooled": "text_embeds",
        "time_ids": "time_ids",
        "image_embedding": "image_embeds",
        "time_cond": "timestep_cond",
    }
    takes = (*config.context.takes, *config.context.may_take)
    given = {
        name: case.inputs[key]
        for name, key in names.items()
        if key in case.inputs and name in takes
    }
    if "hint" in case.inputs:
        given["hint"] = last(case.inputs["hint"])
    if "class_labels" in case.inputs:
        given["labels"] = case.inputs["class_labels"]
    if "mid_res" in case.inputs:
        kept = [last(case.inputs[f"down_res{i}"]) for i in range(_count(case, "down_res"))]
        given["residuals"] = kept, last(case.inputs["mid_res"])
    return given


def _count(case: Case, stem: str) -> int:
    return sum(name.startswith(stem) for name in case.inputs)


def _unet1d(case: Case) -> dict[str, np.ndarray]:
    model = load_model(case.checkpoint)
    x, t = np.moveaxis(case.inputs["sample"], 1, 2), case.inputs["timestep"]
    y = jax.jit(model.network.apply)(model.params, x, t)
    return {"sample": np.moveaxis(y, 1, 2)}


def _hifigan(case: Case) -> dict[str, np.ndarray]:
    model = load_model(case.checkpoint)
    return {"waveform": jax.jit(model.network.apply)(model.params, case.inputs["spectrogram"])}


def _ldmbert(case: Case) -> dict[str, np.ndarray]:
    model = load_model(case.checkpoint)
    states = jax.jit(model.network.apply)(model.params, case.inputs["input_ids"])
    return {"last_hidden_state": states}


def _clip_text(case: Case) -> dict[str, np.ndarray]:
    model = load_model(case.checkpoint)
    found = jax.jit(model.network.apply)(model.params, case.inputs["input_ids"])
    states = {f"hidden_state_{i}": state for i, state in enumerate(found.hidden)}
    pooled = {"pooler_output": found.pooled, "text_embeds": found.pooled}
    return {"last_hidden_state": found.last, **states, **pooled}


def _clip_vision(case: Case) -> dict[str, np.ndarray]:
    model = load_model(case.checkpoint)
    found = jax.jit(model.network.apply)(model.params, last(case.inputs["pixel_values"]))
    return {
        "last_hidden_state": found.last,
        "hidden_state_penultimate": found.hidden[-2],
        "pooler_output": found.pooled,
        "image_embeds": found.pooled,
    }


def _autoencoder_kl(case: Case) -> dict[str, np.ndarray]:
    _, (_, encode, decode), params = load_model(case.checkpoint)
    mean, logvar = jax.jit(encode)(params, last(case.inputs["image"]))
    decode = jax.jit(decode)
    return {
        "mean": first(mean),
        "mode": first(mean),
        "logvar": first(logvar),
        "std": np.exp(0.5 * first(logvar)),
        "decoded": first(decode(params, last(case.inputs["latents"]))),
        "reconstruction": first(decode(params, mean)),
    }


def _autoencoder_tiny(case: Case) -> dict[str, np.ndarray]:
    _, (_, encode, decode), params = load_model(case.checkpoint)
    return {
        "encoded": first(jax.jit(encode)(params, last(case.inputs["image"]))),
        "decoded": first(jax.jit(decode)(params, last(case.inputs["latents"]))),
    }


def _vq(case: Case) -> dict[str, np.ndarray]:
    _, (_, encode, quantize, decode), params = load_model(case.checkpoint)
    z = jax.jit(encode)(params, last(case.inputs["image"]))
    decode, latents = jax.jit(decode, static_argnames="quantize"), last(case.inputs["latents"])
    codes = jax.jit(quantize)(params, latents)
    return {
        "encoded": first(z),
        "quantized": first(codes.quantized),
        "indices": codes.indices.ravel(),
        "decoded": first(decode(params, latents)),
        "decoded_not_quantized": first(decode(params, latents, quantize=False)),
        "reconstruction": first(decode(params, z)),
    }


def _clap_text(case: Case) -> dict[str, np.ndarray]:
    model = load_model(case.checkpoint)
    tokens, mask = case.inputs["input_ids"], case.inputs["attention_mask"]
    found = jax.jit(model.network.apply)(model.params, tokens, mask=mask)
    return {"last_hidden_state": found.last, "text_embeds": found.pooled}


def _t5(case: Case) -> dict[str, np.ndarray]:
    model = load_model(case.checkpoint)
    apply, tokens = jax.jit(model.network.apply), case.inputs["input_ids"]
    masked = apply(model.params, tokens, mask=case.inputs["attention_mask"])
    whole = apply(model.params, tokens)
    return {"last_hidden_state": masked, "last_hidden_state_no_mask": whole}


def _dit(case: Case) -> dict[str, np.ndarray]:
    model = load_model(case.checkpoint)
    x, t = last(case.inputs["hidden_states"]), case.inputs["timestep"]
    y = jax.jit(model.network.apply)(model.params, x, t, labels=case.inputs["class_labels"])
    return {"sample": first(y)}


def _mmdit(case: Case) -> dict[str, np.ndarray]:
    model = load_model(case.checkpoint)
    x, t = last(case.inputs["hidden_states"]), case.inputs["timestep"]
    y = jax.jit(model.network.apply)(model.params, x, t, **_text(case))
    return {"sample": first(y)}


def _flux(case: Case) -> dict[str, np.ndarray]:
    model = load_model(case.checkpoint)
    x, t = case.inputs["hidden_states"], case.inputs["timestep"]
    ids = {"image_ids": case.inputs["img_ids"], "text_ids": case.inputs["txt_ids"]}
    told = {name: case.inputs[name] for name in ("guidance",) if name in case.inputs}
    return {
        "sample": jax.jit(model.network.apply)(model.params, x, t, **_text(case), **ids, **told)
    }


def _pixart(case: Case) -> dict[str, np.ndarray]:
    model = load_model(case.checkpoint)
    x, t = last(case.inputs["hidden_states"]), case.inputs["timestep"]
    names = {
        "context": "encoder_hidden_states",
        "context_mask": "encoder_attention_mask",
        "resolution": "resolution",
        "aspect_ratio": "aspect_ratio",
    }
    given = {name: case.inputs[key] for name, key in names.items() if key in case.inputs}
    return {"sample": first(jax.jit(model.network.apply)(model.params, x, t, **given))}


def _prior(case: Case) -> dict[str, np.ndarray]:
    model = load_model(case.checkpoint)
    x, t = case.inputs["hidden_states"], case.inputs["timestep"]
    names = {
        "pooled": "proj_embedding",
        "context": "encoder_hidden_states",
        "context_mask": "attention_mask",
    }
    given = {name: case.inputs[key] for name, key in names.items() if key in case.inputs}
    y = jax.jit(model.network.apply)(model.params, x, t, **given)
    return {
        "predicted_image_embedding": y,
        "post_process_latents": to_embedding(model.params, y),
    }


def _image_and_text(case: Case) -> dict[str, np.ndarray]:
    model, image = load_model(case.checkpoint), case.inputs["image_embeddings"]
    # no image first, as in the two halves of guidance
    has_image = np.repeat([0.0, 1.0], len(image))
    text = case.inputs["prompt_embeds"], case.inputs["text_encoder_hidden_states"]
    told = jax.jit(model.network.apply)(
        model.params, np.tile(image, (2, 1)), *text, has_image=has_image
    )
    return told._asdict()


def _text(case: Case) -> dict[str, np.ndarray]:
    names = {"context": "encoder_hidden_states", "pooled": "pooled_projections"}
    return {name: case.inputs[theirs] for name, theirs in names.items()}


# class in case.json -> function from the case to its computed outputs
NETWORKS = {
    "AutoencoderKL": _autoencoder_kl,
    "AutoencoderTiny": _autoencoder_tiny,
    "CLIPTextModel": _clip_text,
    "CLIPTextModelWithProjection": _clip_text,
    "CLIPVisionModel": _clip_vision,
    "CLIPVisionModelWithProjection": _clip_vision,
    "ControlNetModel": _controlnet,
    "ClapTextModelWithProjection": _clap_text,
    "DiTTransformer2DModel": _dit,
    "LDMBertModel": _ldmbert,
    "SpeechT5HifiGan": _hifigan,
    "T5EncoderModel": _t5,
    "FluxTransformer2DModel": _flux,
    "PixArtTransformer2DModel": _pixart,
    "PriorTransformer": _prior,
    "SD3Transformer2DModel": _mmdit,
    "T2IAdapter": _t2i_adapter,
    "Transformer2DModel": lambda case: (
        _dit(case) if "class_labels" in case.inputs else _pixart(case)
    ),
    "UNet1DModel": _unet1d,
    "UnCLIPTextProjModel": _image_and_text,
    "UNet2DConditionModel": _unet_condition,
    "UNet2DModel": _unet2d,
    "UNet3DConditionModel": _unet_video,
    "UNetMotionModel": _unet_video,
    "VQModel": _vq,
}
