"""Systems that make sounds, [B, samples, channels] in [-1, 1].

Where a system of images asks for the height and width of an image, that of a sound is its number of
samples and 1. What comes back may be a little longer, for networks halve evenly: cut it.

    samples = round(seconds * system.rate)
    sounds = txt2img(system, ..., height=samples, width=1)[:, :samples]
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from diffjax.networks.functional import Params
from diffjax.pipelines.stable_diffusion import unet_system
from diffjax.pipelines.system import Codec, Inputs, System, kl_codec, texts_of
from diffjax.pipelines.texts import tokenized
from diffjax.pretrained import Components, UnsupportedError


def dance_diffusion(parts: Components) -> System:
    """Dance Diffusion: a UNet on waveforms, told nothing.

    `prepare()`

    Raises:
      UnsupportedError: the folder does not say how many samples make a second.
    """
    model, scheduler = parts.models["unet"], parts.schedulers["scheduler"]
    config = model.config
    if config.sample_rate is None:
        raise UnsupportedError("config.json: sample_rate is missing; it says how long a sound is")

    def prepare(prompts: None = None, negative: None = None, **sizes: int) -> list[Inputs]:
        if prompts is not None or negative is not None:
            raise ValueError("this model takes no prompts")
        return [{}]

    return System(
        parameterization=scheduler.parameterization,
        learned_variance=False,
        prepare=prepare,
        condition=lambda params, inputs: inputs,
        apply=lambda params, x, t: model.network.apply(params["unet"], x, t),
        encode=lambda params, keys, sounds, normal: sounds,
        features=lambda params, sounds: sounds,
        decode=lambda params, x: x,
        latent_shape=lambda samples, _: (_rounded_up(samples, config.multiple), config.in_channels),
        size=(config.sample_size, 1),
        rate=config.sample_rate,
    )


def audioldm(parts: Components) -> System:
    """AudioLDM: a UNet on the latents of mel spectrograms, told what CLAP makes of a text.

        latents  --autoencoder-->  mel spectrogram  --vocoder-->  waveform

    `prepare(prompts, negative=None, *, height, width)`; CLAP makes one vector of a text, in which
    the emphasis of a word has no place.
    Source: arXiv:2301.12503.
    """
    network = parts.models["text_encoder"].network

    def prepare(
        prompts: Sequence[str],
        negative: Sequence[str | None] | None = None,
        **sizes: int,
    ) -> list[Inputs]:
        return tokenized(parts, "tokenizer", texts_of(prompts, negative))

    def condition(params: Params, inputs: Inputs) -> dict[str, Any]:
        ids, mask = inputs["tokenizer_ids"], inputs["tokenizer_mask"]
        vector = network.apply(params["text_encoder"], ids, mask=jnp.asarray(mask)).pooled
        length = jnp.linalg.norm(vector, axis=-1, keepdims=True)
        return {"labels": vector / jnp.maximum(length, 1e-12)}

    vocoder, side = parts.models["vocoder"].config, parts.models["unet"].config.sample_size
    system = unet_system(parts, spectrogram_codec(parts), prepare=prepare, condition=condition)
    return system._replace(
        size=(side * _vae_factor(parts) * vocoder.hop, 1), rate=vocoder.sampling_rate
    )


def spectrogram_codec(parts: Components) -> Codec:
    """The codec of an autoencoder of spectrograms, [B, time, mels, 1], with a vocoder behind it.

    What it encodes and sees are spectrograms; what it makes of latents are waveforms.
    """
    spectrograms, vocoder = kl_codec(parts), parts.models["vocoder"]
    hop, mels = vocoder.config.hop, vocoder.config.mels

    def decode(params: Params, latents: Array) -> Array:
        mel = spectrograms.decode(params, latents)[..., 0]
        return vocoder.network.apply(params["vocoder"], mel)[..., None]

    def latent_shape(samples: int, width: int) -> tuple[int, ...]:
        time = _rounded_up(samples, hop * _vae_factor(parts)) // hop
        return spectrograms.latent_shape(time, mels)

    return spectrograms._replace(decode=decode, latent_shape=latent_shape)


def _vae_factor(parts: Components) -> int:
    return 2 ** (len(parts.models["vae"].config.block_out_channels) - 1)


def _rounded_up(count: int, multiple: int) -> int:
    if count < 1:
        raise ValueError(f"a sound of {count} samples; needed is at least 1")
    return -(-count // multiple) * multiple
