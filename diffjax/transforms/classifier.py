"""Classifier guidance: an unconditional denoiser and what another model says of the noisy x.

By Bayes' rule the score of p(x | y) is that of p(x) plus grad log p(y | x), and an estimate of x0
is a score: x0 = (x + sigma^2 score) / alpha. The classifier is one of noisy data: it is trained on
x at every level and told the clock, as the denoiser is (`classifier_loss`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffjax.core.levels import NoiseLevel, expand
from diffjax.core.losses import Loss
from diffjax.core.noising import TimeSampler, as_batch_keys, noise_batch, uniform
from diffjax.core.parameterizations import Denoiser, map_x0
from diffjax.core.schedules import Schedule
from diffjax.transforms.guidance import Scale, scale_at

# (x, level) -> [B] log p(y | x) of noisy data, up to a constant
LogProb = Callable[[Array, NoiseLevel], Array]


def classifier_guidance(denoise: Denoiser, log_prob: LogProb, *, guidance_scale: Scale) -> Denoiser:
    """Lean towards a condition by the gradient of its log-probability given noisy data.

        x0 = denoise(x) + guidance_scale (sigma^2 / alpha) grad_x log p(y | x, level)

    With the unconditional denoiser a scale of 1 is Bayes' rule and no more: the conditional
    denoiser, as at scale 1 of every guidance here; 0 is unconditional, above 1 sharpens. At pure
    noise (alpha = 0), where x tells nothing, nothing is added.
    Source: arXiv:2105.05233, Algorithm 2; for the score, arXiv:2011.13456, Section 5.

    Args:
      denoise: the unconditional denoiser.
      log_prob: (x, level) -> [B], differentiable in x: `class_log_prob` of a classifier, or any
        other model of noisy data.
      guidance_scale: a number, [B], or a function from the level to one; may be traced.

    >>> guided = classifier_guidance(
    ...     lambda x, level: x, lambda x, level: 3.0 * x.sum(-1), guidance_scale=1.0
    ... )
    >>> guided(jnp.zeros((1, 2)), NoiseLevel(*jnp.array([0.5, 0.5, 1.0])))
    Array([[6., 6.]], dtype=float32)
    """

    def guided(x: Array, level: NoiseLevel) -> Array:
        gradient = jax.grad(lambda x: total(log_prob(x, level), x, "log_prob"))(x)
        push = scale_at(guidance_scale, level, x) * gradient
        return map_x0(lambda x0: x0 + expand(score_gain(level), x) * push, denoise(x, level))

    return guided


def class_log_prob(apply: Callable[..., Array], params: Any, labels: Array) -> LogProb:
    """Log-probability of class labels according to a classifier of noisy data.

    Args:
      apply: `apply(params, x, t)` -> logits [B, classes]; t is the clock, [B].
      params: of the classifier.
      labels: [B] integers; the null label, equal to the number of classes, says nothing of x and
        has the log-probability 0.

    >>> log_prob = class_log_prob(lambda params, x, t: params * x, 1.0, jnp.array([0]))
    >>> log_prob(jnp.zeros((1, 4)), NoiseLevel(*jnp.ones(3))).round(4)
    Array([-1.3863], dtype=float32)
    """

    def log_prob(x: Array, level: NoiseLevel) -> Array:
        if labels.shape != x.shape[:1]:
            raise ValueError(
                f"There are {labels.shape} labels for the {x.shape[0]} samples of x; needed is one "
                "for each."
            )
        logits = apply(params, x, jnp.broadcast_to(level.t, x.shape[:1]))
        null = labels == logits.shape[-1]
        # beyond the classes, what is taken would be NaN
        rows = jnp.where(null, 0, labels)[:, None]
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), rows, axis=1)[:, 0]
        return jnp.where(null, 0.0, log_probs)

    return log_prob


def classifier_loss(
    apply: Callable[..., Array], schedule: Schedule, *, times: TimeSampler = uniform
) -> Loss:
    """The cross-entropy of a classifier of noisy data, for each sample of a batch.

        -log p(y | x_t),    t drawn at random

    Source: arXiv:2105.05233, Section 4.

    Args:
      apply: `apply(params, x, t, keys=[b] keys)` -> logits [b, classes].
      schedule: the forward process of the denoiser that it is to guide.
      times: the distribution of times.

    Returns:
      `loss(params, batch, keys) -> (losses [b], metrics)`: `batch` holds "x0" [b, ...] and
      "labels" [b]; the metrics are the accuracy, 0 or 1 for each sample.

    >>> from diffjax.core.schedules import cosine
    >>> loss = classifier_loss(lambda params, x, t, keys: params * x, cosine())
    >>> batch = {"x0": jnp.zeros((4, 10)), "labels": jnp.zeros(4, int)}
    >>> loss(0.0, batch, jax.random.key(0))[0].round(4)
    Array([2.3026, 2.3026, 2.3026, 2.3026], dtype=float32)
    """

    def loss(params: Any, batch, keys) -> tuple[Array, dict[str, Array]]:
        x0, labels = batch["x0"], batch["labels"]
        noised = noise_batch(x0, schedule, as_batch_keys(keys, x0), times)
        logits = apply(params, noised.x, noised.level.t, keys=noised.keys)
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
        right = jnp.argmax(logits, axis=1) == labels
        return -log_probs[:, 0], {"accuracy": right.astype(jnp.float32)}

    return loss


def score_gain(level: NoiseLevel) -> Array:
    """What x0 gains by a unit of score, sigma^2 / alpha; 0 at alpha = 0."""
    signal = level.alpha > 0
    # double where: the quotient of the untaken branch is infinite
    return jnp.where(signal, level.sigma**2 / jnp.where(signal, level.alpha, 1.0), 0.0)


def total(values: Array, x: Array, name: str) -> Array:
    """The sum of one number for each sample of x, which is what is differentiated.

    Raises:
      ValueError: the function `name` returned values of another shape than [B].
    """
    if values.shape != x.shape[:1]:
        raise ValueError(
            f"{name} returned the shape {values.shape} for {x.shape[0]} samples; it must be "
            f"{x.shape[:1]}, one number for each."
        )
    return jnp.sum(values)
