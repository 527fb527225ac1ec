"""Contrastive training of a text encoder with an image encoder.

    logits_ij = scale <image_i, text_j>,    both of length 1
    loss_i    = (H(q_i, softmax_j logits_ij) + H(q_i, softmax_j logits_ji)) / 2

H is the cross-entropy and q_i even over the texts of the batch that equal text i: where captions
are few, a batch holds the same one several times.

Source: Learning Transferable Visual Models From Natural Language Supervision, arXiv:2103.00020,
figure 3.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffjax.core.keys import BatchKeys
from diffjax.core.samples import unit_length

# the logarithm of the scale begins so, and the scale never exceeds 100 (section 2.5 there)
FIRST_LOG_SCALE = math.log(1 / 0.07)
LARGEST_LOG_SCALE = math.log(100.0)


def contrastive_params(image: Any, text: Any) -> dict[str, Any]:
    """The params of `contrastive_loss` from those of the two encoders."""
    return {"image": image, "text": text, "log_scale": jnp.float32(FIRST_LOG_SCALE)}


def contrastive_loss(
    encode_image: Callable[[Any, Array], Array], encode_text: Callable[[Any, Array], Array]
) -> Callable[[Any, dict[str, Any], BatchKeys], tuple[Array, dict[str, Array]]]:
    """Every image is to find its text among those of the batch, and every text its image.

    Args:
      encode_image: (params, x0 [b, ...]) -> [b, features].
      encode_text: (params, tokens [b, L]) -> [b, features].

    Returns:
      `loss(params, batch, keys) -> (losses [b], metrics)` for `make_train_step`: params are those
      of `contrastive_params`, `batch` holds "x0" and "tokens". The metric `found` is 1 for images
      whose own text is the most similar one of the batch.

    >>> loss = contrastive_loss(lambda p, x0: x0, lambda p, tokens: 1.0 * tokens)
    >>> batch = {"x0": jnp.eye(3), "tokens": jnp.eye(3, dtype=int)}
    >>> loss(contrastive_params({}, {}), batch, None)[1]["found"].tolist()
    [1.0, 1.0, 1.0]
    """

    def loss(params: Any, batch: dict[str, Any], keys: BatchKeys) -> tuple[Array, dict[str, Array]]:
        tokens = batch["tokens"]
        image = unit_length(encode_image(params["image"], batch["x0"]))
        text = unit_length(encode_text(params["text"], tokens))
        scale = jnp.exp(jnp.minimum(params["log_scale"], LARGEST_LOG_SCALE))
        logits = scale * image @ text.T
        same = jnp.all(tokens[:, None] == tokens[None], axis=-1)
        wanted = same / jnp.sum(same, axis=1, keepdims=True)
        crossed = [
            -jnp.sum(wanted * jax.nn.log_softmax(each), axis=1) for each in (logits, logits.T)
        ]
        rows = jnp.arange(len(tokens))
        found = same[rows, jnp.argmax(logits, axis=1)].astype(jnp.float32)
        return 0.5 * (crossed[0] + crossed[1]), {"found": found}

    return loss
