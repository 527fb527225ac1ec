"""The text encoder of a run with captions: trained on them first, then left as it is.

tokenizer/tokenizer.json     whole words, as the library `tokenizers` stores them
text_encoder/                a CLIP text encoder, in the format of transformers
image_encoder/               the CLIP image encoder by contrast with which it learned, likewise

All lie in the run folder. Training and sampling need the first two; edit.py can match the style of
images by the third.
"""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from tqdm import tqdm

from config import TextConfig
from diffjax import data
from diffjax.core.conditioning import Condition
from diffjax.data.captions import all_captions, check_captions
from diffjax.data.words import END, encode_words, read_words, train_words
from diffjax.networks.clip import CLIPTextConfig, CLIPVisionConfig, clip_text, clip_vision
from diffjax.pretrained import load_model, save_model
from diffjax.training import init_train_state, make_train_step
from diffjax.training.contrastive import contrastive_loss, contrastive_params
from diffjax.training.manifest import write_atomically

TOKENIZER = Path("tokenizer") / "tokenizer.json"
ENCODER = "text_encoder"
IMAGE_ENCODER = "image_encoder"
# of an image encoder: what is taken from pixels in [0, 1], and what the rest is divided by
PREPROCESSOR = "preprocessor_config.json"
PIXELS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}

# texts -> {"context": [B, L, features], "context_mask": [B, L]}
EncodeTexts = Callable[[Sequence[str]], dict[str, np.ndarray]]


def prepare_text(
    config: TextConfig,
    source: data.Source,
    workdir: Path,
    seed: int,
    *,
    long_captions: float = 0.0,
) -> EncodeTexts:
    """The text encoder of a run folder; trained if it is not there yet.

    Args:
      config: of the text encoder.
      source: of images with captions.
      workdir: the run folder.
      seed: of the training.
      long_captions: probability of the long captions among those it is trained on.
    """
    check_captions(source[0], long_captions)
    if not (workdir / ENCODER).is_dir():
        tokenizer = train_words(
            text
            for i in range(config.num_captions)
            for text in all_captions(source[i], long_captions)
        )
        (workdir / TOKENIZER).parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(workdir / TOKENIZER))
        print(f"Training a text encoder of {config.num_steps} steps first", file=sys.stderr)
        text, image, params = train_encoders(config, tokenizer, source, seed, long_captions)
        save_whole(workdir / IMAGE_ENCODER, image, params["image"], PIXELS)
        # last: with it there, nothing is trained again
        save_whole(workdir / ENCODER, text, params["text"])
    return load_text(workdir)


def save_whole(folder: Path, config: Any, params: Any, pixels: Any = None) -> None:
    """Save a network whole or not at all, and how images become what it is given."""
    draft = folder.with_suffix(".tmp")
    for old in (draft, folder):
        shutil.rmtree(old, ignore_errors=True)
    save_model(draft, config, params)
    if pixels is not None:
        write_atomically(draft / PREPROCESSOR, json.dumps(pixels, indent=2) + "\n")
    os.rename(draft, folder)


def load_text(workdir: Path) -> EncodeTexts:
    """The text encoder of a run, with its tokenizer: a function that remembers what it encoded.

    It refuses prompts that are too long, and words that were in no caption.
    """
    tokenizer = read_words(workdir / TOKENIZER)
    encoder = load_model(workdir / ENCODER)
    length = encoder.config.max_positions
    # the last layer but one, as in Stable Diffusion 2: the last keeps what tells images apart,
    # colours above all, and less of where things are
    run = jax.jit(lambda params, tokens: encoder.network.apply(params, tokens, skip=1).last)
    known: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def encode(texts: Sequence[str]) -> dict[str, np.ndarray]:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            tokens, masks = encode_words(tokenizer, new, length)
            # few sizes, so that few are compiled
            filled = np.pad(tokens, ((0, -len(new) % 64), (0, 0)))
            states = np.asarray(run(encoder.params, filled))
            known.update({text: (states[i], masks[i]) for i, text in enumerate(new)})
        context, masks = zip(*(known[text] for text in texts))
        return {"context": np.stack(context), "context_mask": np.stack(masks)}

    return encode


def text_condition(encode: EncodeTexts, drop_prob: float = 0.0, *, text: str = "") -> Condition:
    """The condition that is a text; told nothing, a network sees the empty one, or `text`."""
    return Condition({name: rows[0] for name, rows in encode([text]).items()}, drop_prob)


def train_encoders(
    config: TextConfig,
    tokenizer: Any,
    source: data.Source,
    seed: int,
    long_captions: float = 0.0,
) -> tuple[CLIPTextConfig, CLIPVisionConfig, Any]:
    """Train a text and an image encoder by contrast; configurations, params {"text", "image"}."""
    of_text, of_image = encoder_shapes(config, tokenizer, source)
    text, vision = clip_text(of_text), clip_vision(of_image)
    text_key, image_key, key = jax.random.split(jax.random.key(seed), 3)
    params = contrastive_params(vision.init(image_key), text.init(text_key))
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.num_steps // 6, config.num_steps
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.99))
    pooled = lambda apply: lambda params, given: apply(params, given).pooled
    loss = contrastive_loss(pooled(vision.apply), pooled(text.apply))
    step = jax.jit(make_train_step(loss, optimizer, ema_decay=()), donate_argnums=0)
    state = init_train_state(params, optimizer, ema_decay=())
    tokens = lambda texts: {"tokens": encode_words(tokenizer, texts, config.max_tokens)[0]}
    # whole batches, with several processes as well: each trains the same encoder
    batches = data.batches(
        source, config.batch_size, seed=seed, labels=False,
        encode_captions=tokens, long_captions=long_captions, process=(0, 1),
    )  # fmt: skip
    progress = tqdm(total=config.num_steps, unit="step", disable=jax.process_index() != 0)
    with progress as bar, contextlib.closing(batches):
        for _ in range(config.num_steps):
            state, metrics = step(state, next(batches), key)
            bar.set_postfix(found=f"{float(metrics['found']):.2f}")
            bar.update(1)
    return of_text, of_image, state.params


def encoder_shapes(
    config: TextConfig, tokenizer: Any, source: data.Source
) -> tuple[CLIPTextConfig, CLIPVisionConfig]:
    """The shapes of the two encoders."""
    shape: dict[str, Any] = {
        "hidden_size": config.features,
        "intermediate_size": 4 * config.features,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "projection_dim": config.features,
    }
    of_text = CLIPTextConfig(
        **shape,
        vocab_size=tokenizer.get_vocab_size(),
        max_positions=config.max_tokens,
        eos_token=tokenizer.token_to_id(END),
    )
    side, _, channels = source.shape
    of_image = CLIPVisionConfig(
        **shape, image_size=side, in_channels=channels, patch_size=config.patch_size
    )
    return of_text, of_image
