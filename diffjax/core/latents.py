"""What the encoder of a variational autoencoder says of an image: a normal distribution of latents.

q(z | x) = N(mean, exp(logvar)),    independent in all elements
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from diffjax.core.keys import fold_in_each, normal_each, sample_keys
from diffjax.core.losses import Loss
from diffjax.core.noising import as_batch_keys

# of the draw of the latents; losses fold smaller numbers into the keys of a batch
_DRAW = 1000


class Posterior(NamedTuple):
    """A normal distribution of latents, independent in all elements.

    Attributes:
      mean, logvar: [B, h, w, latent_channels] float32; logvar is the logarithm of the variance.
    """

    mean: Array
    logvar: Array


def sample_posterior(keys: Array, posterior: Posterior) -> Array:
    """One draw for every sample: mean + exp(logvar / 2) eps.

    Args:
      keys: [B] PRNG keys.
      posterior: from `encode`.
    """
    eps = normal_each(keys, posterior.mean.shape[1:])
    return posterior.mean + jnp.exp(0.5 * posterior.logvar) * eps


def posterior_kl(posterior: Posterior) -> Array:
    """The Kullback-Leibler divergence from a standard normal distribution, [B] nats.

        1/2 sum(mean^2 + exp(logvar) - 1 - logvar)

    Source: Auto-Encoding Variational Bayes, arXiv:1312.6114, appendix B.
    """
    mean, logvar = posterior
    terms = jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar
    return 0.5 * terms.sum(tuple(range(1, mean.ndim)))


def latent_loss(loss: Loss, *, shift: Any = 0.0, scale: Any = 1.0) -> Loss:
    """A loss of data as one of latents that are drawn anew whenever an image comes up.

        x0 = (z - shift) scale,    z ~ N(x0 of the batch, exp(logvar of the batch))

    Source: Latent Diffusion, arXiv:2112.10752, appendix G.

    Args:
      loss: such as `diffusion_loss`.
      shift, scale: numbers, or one for each channel, that bring the latents to variance 1.

    Returns:
      A loss of batches with "logvar" beside "x0", which holds the means.

    >>> import jax
    >>> loss = latent_loss(lambda params, batch, keys: (batch["x0"][:, 0], {}), shift=1, scale=2)
    >>> batch = {"x0": jnp.full((2, 1), 3.0), "logvar": jnp.full((2, 1), -jnp.inf)}
    >>> loss(None, batch, jax.random.key(0))[0].tolist()
    [4.0, 4.0]
    """

    def of_drawn(params, batch, keys):
        rest = {name: value for name, value in batch.items() if name != "logvar"}
        given = as_batch_keys(keys, batch["x0"])
        own = fold_in_each(sample_keys(given.key, given.index), _DRAW)
        z = sample_posterior(own, Posterior(batch["x0"], batch["logvar"]))
        return loss(params, {**rest, "x0": (z - shift) * scale}, keys)

    return of_drawn
