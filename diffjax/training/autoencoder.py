"""Training of variational autoencoders: reconstruction, a bound on the latents, a discriminator.

For an image x, a draw z of its posterior q(z | x) and its reconstruction y = decode(z),

    E = mean |x - y| + perceptual_weight d(x, y)             the error, or with squares for |x - y|
    G = -mean D(y)                                           what the discriminator D makes of y
    loss = E + kl_weight KL(q || N(0, I)) / size(x) + lambda discriminator_weight G

The divergence is divided by the numbers of an image because E is a mean over them: kl_weight weighs
sums over an image, as published. lambda makes the two gradients at the weights w of the last layer
equally long,

    lambda = |dE/dw| / (|dG/dw| + 1e-4),    at most 1e4.

The discriminator looks at patches, and its own loss is the hinge

    1/2 mean max(0, 1 - D(x)) + 1/2 mean max(0, 1 + D(y)).

Both are trained in one step: the loss here is the sum of the two, in which no gradient of the first
reaches the discriminator and none of the second the autoencoder.

Source: VQGAN, arXiv:2012.09841, equations 3 to 7; Latent Diffusion, arXiv:2112.10752, appendix G.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from diffjax.core.keys import sample_keys
from diffjax.core.latents import Posterior, posterior_kl, sample_posterior
from diffjax.core.losses import Loss
from diffjax.core.noising import as_batch_keys
from diffjax.core.samples import mean_each, unit_length

Images = Array
# images [B, H, W, C] -> layers of features, each [B, h, w, channels]
Features = Callable[[Images], Sequence[Array]]

ERRORS: dict[str, Callable[[Array], Array]] = {"l1": jnp.abs, "l2": jnp.square}
PARTS = ("autoencoder", "discriminator")

# where the kernel of the decoder's last layer is
LAST_LAYER = ("decoder", "conv_out", "kernel")

_LARGEST_WEIGHT = 1e4


class Discriminator(NamedTuple):
    """A network that tells images from reconstructions.

    Attributes:
      apply: `apply(params, images) -> [B, h, w, 1]`, positive for what it takes for an image.
      weight: of its verdict against the error of reconstruction, where both are equally strong.
    """

    apply: Callable[[Any, Images], Array]
    weight: float = 0.5


def psnr(images: Images, others: Images) -> Array:
    """The peak signal-to-noise ratio for images in [-1, 1]: 10 log10(4 / mean squared difference).

    Args:
      images, others: [B, H, W, C].

    Returns:
      [B] decibels.

    >>> psnr(jnp.zeros((1, 2, 2, 3)), jnp.full((1, 2, 2, 3), 0.2)).round(2).tolist()
    [20.0]
    """
    return 10.0 * jnp.log10(4.0 / mean_each(jnp.square(images - others)))


def perceptual_distance(features: Features, images: Images, others: Images) -> Array:
    """How far apart two images are for a network that sees features in them, [B].

        d = sum over layers l of the mean over positions of |f_l(x) - f_l(y)|^2

    where f_l is the vector of features at a position, divided by its length.
    Source: LPIPS, arXiv:1801.03924, equation 1, with equal weights for all channels.

    Args:
      features: images [B, H, W, C] in [-1, 1] -> layers [B, h, w, channels].
      images, others: [B, H, W, C].

    >>> ramp = jnp.linspace(-1, 1, 16).reshape(1, 4, 4, 1)
    >>> both = lambda x: [jnp.concatenate([x, jnp.ones_like(x)], -1)]
    >>> perceptual_distance(both, ramp, ramp).tolist()
    [0.0]
    """
    layers = zip(features(images), features(others))
    differences = [
        jnp.square(unit_length(one) - unit_length(other)).sum(-1) for one, other in layers
    ]
    return sum((mean_each(each) for each in differences), start=jnp.zeros(len(images)))


def autoencoder_loss(
    encode: Callable[[Any, Images], Posterior],
    decode: Callable[[Any, Array], Images],
    *,
    error: str = "l1",
    kl_weight: float = 1e-6,
    features: Features | None = None,
    perceptual_weight: float = 1.0,
    discriminator: Discriminator | None = None,
    last_layer: Sequence[str] = LAST_LAYER,
) -> Loss:
    """The loss of an autoencoder, and of its discriminator where there is one.

    What it is stands at the top of this file. To let the discriminator begin later, train with
    the loss without it first, on the same params. lambda is that of the batch which one call sees:
    of each device's part in `pmap`, of each microbatch when gradients are accumulated.

    Args:
      encode: (params, images) -> Posterior.
      decode: (params, latents) -> images.
      error: "l1" or "l2".
      kl_weight: of the divergence, which is a sum over the latents, against a sum over an image.
      features: for the perceptual distance; None for none.
      perceptual_weight: of that distance.
      discriminator: None for none.
      last_layer: names that lead to the kernel of the last layer in the params of the autoencoder.

    Returns:
      `loss(params, batch, keys) -> (losses [b], metrics)` for `make_train_step`. Params are
      {"autoencoder": ..., "discriminator": ...}, without the latter if there is none to train;
      keys are one key or a `BatchKeys`.

    Raises:
      ValueError: no such error.

    >>> key = jax.random.key(0)
    >>> encode = lambda params, x: Posterior(x, jnp.full_like(x, -30.0))
    >>> loss = autoencoder_loss(encode, lambda params, z: z, kl_weight=0.0)
    >>> losses, metrics = loss({"autoencoder": {}}, {"x0": jnp.ones((2, 4, 4, 1))}, key)
    >>> losses.round(5).tolist()
    [0.0, 0.0]
    """
    if error not in ERRORS:
        raise ValueError(f"error is {error!r}; expected one of {', '.join(ERRORS)}.")

    def errors_of(images: Images, reconstructions: Images) -> Array:
        errors = mean_each(ERRORS[error](images - reconstructions))
        if features is None:
            return errors
        return errors + perceptual_weight * perceptual_distance(features, images, reconstructions)

    def loss(params, batch, keys):
        images, own = batch["x0"], params["autoencoder"]
        keys, posterior = as_batch_keys(keys, images), encode(own, images)
        z = sample_posterior(sample_keys(keys.key, keys.index), posterior)
        reconstructions = decode(own, z)
        errors, divergence = errors_of(images, reconstructions), posterior_kl(posterior)
        losses = errors + kl_weight * divergence / images[0].size
        metrics = {"error": errors, "kl": divergence, "psnr": psnr(images, reconstructions)}
        if discriminator is None:
            return losses, metrics

        judge, frozen = discriminator.apply, lax.stop_gradient(params["discriminator"])
        verdict = lambda y: -mean_each(judge(frozen, y))
        still, drawn = lax.stop_gradient((own, z))
        balance = _balance(
            lambda kernel: decode(_with(still, last_layer, kernel), drawn), _at(still, last_layer),
            lambda y: errors_of(images, y), verdict,
        )  # fmt: skip
        generator = verdict(reconstructions)
        told = hinge(judge, params["discriminator"], images, reconstructions)
        metrics |= {"generator": generator, "discriminator": told}
        metrics["balance"] = jnp.full_like(told, balance)
        return losses + balance * discriminator.weight * generator + told, metrics

    return loss


def hinge(
    apply: Callable[[Any, Images], Array], params: Any, images: Images, reconstructions: Images
) -> Array:
    """The loss of a discriminator for each image, [B]; nothing flows into the reconstructions."""
    real = apply(params, images)
    fake = apply(params, lax.stop_gradient(reconstructions))
    return 0.5 * (mean_each(jax.nn.relu(1.0 - real)) + mean_each(jax.nn.relu(1.0 + fake)))


def each_part(optimizer: Callable[[], optax.GradientTransformation]) -> Any:
    """An optimizer for params of several parts that gives each part an optimizer of its own.

    So neither the autoencoder's gradients nor its moments know of the discriminator's: clipping,
    which looks at all gradients at once, would let the one slow down the other.

    >>> params = {"autoencoder": jnp.ones(2), "discriminator": jnp.ones(2)}
    >>> clipped = each_part(lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)))
    >>> grads = {"autoencoder": jnp.array([0.0, 1.0]), "discriminator": jnp.array([0.0, 100.0])}
    >>> clipped.update(grads, clipped.init(params), params)[0]["autoencoder"].tolist()
    [-0.0, -1.0]
    """
    label = lambda params: {part: part for part in params}
    return optax.multi_transform({part: optimizer() for part in PARTS}, label)


def _balance(
    decode: Callable[[Array], Images],
    kernel: Array,
    errors_of: Callable[[Images], Array],
    verdict: Callable[[Images], Array],
) -> Array:
    """lambda: how much longer the gradient of the error is, at the kernel of the last layer.

    Only the last layer is gone back through: the two gradients at the images are pulled through it.
    """
    images, pull = jax.vjp(decode, kernel)
    lengths = [
        jnp.linalg.norm(pull(jax.grad(lambda y, f=f: jnp.mean(f(y)))(images))[0].ravel())
        for f in (errors_of, verdict)
    ]
    return jnp.minimum(lengths[0] / (lengths[1] + 1e-4), _LARGEST_WEIGHT)


def _at(params: Any, path: Sequence[str]) -> Any:
    for name in path:
        params = params[name]
    return params


def _with(params: Any, path: Sequence[str], leaf: Array) -> Any:
    if not path:
        return leaf
    return {**params, path[0]: _with(params[path[0]], path[1:], leaf)}
