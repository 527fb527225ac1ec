"""Attacks on classifiers, which purification by a diffusion model is to undo.

An attack moves data within a ball that is too small to see, to where a classifier errs. Noise hides
the attack as it hides everything small, and a denoiser that knows the data draws clean data anew:
purification is `image_to_image` on the attacked data, from the level at which the noise outweighs
the attack (DiffPure, arXiv:2205.07460).

    attacked = pgd_attack(key, log_prob, x0, radius=0.2)
    purified = image_to_image(key, attacked, denoise, ddim(eta=1.0), levels, strength=0.3)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from diffjax.core.sampling import per_sample
from diffjax.transforms.classifier import total


def pgd_attack(
    key: Array,
    log_prob: Callable[[Array], Array],
    x0: Array,
    *,
    radius: ArrayLike,
    num_steps: int = 20,
    step_size: ArrayLike = 0.15,
    low: float = -1.0,
    high: float = 1.0,
) -> Array:
    """Projected gradient descent on the probability of the right class.

        x <- clip(x - step_size radius sign(grad log p(y | x)), x0 - radius, x0 + radius)

    from a random start in the ball, within the range of the data.
    Source: Madry et al., arXiv:1706.06083, Section 2.1 and Eq. 1.

    Args:
      key: one key, or [B] keys, one for each sample.
      log_prob: x [B, ...] -> [B] log p(y | x) of the right class y, differentiable.
      x0: [B, ...] clean data.
      radius: largest change of a number; 0 is off; may be traced.
      num_steps: of descent.
      step_size: of one step, as a share of the radius; may be traced.
      low, high: the range of the data.

    >>> attacked = pgd_attack(jax.random.key(0), lambda x: x.sum(-1), jnp.zeros((1, 2)), radius=0.1)
    >>> attacked.round(3)
    Array([[-0.1, -0.1]], dtype=float32)
    """
    slope = jax.grad(lambda x: total(log_prob(x), x, "log_prob"))
    # the ball within the range, so that one clip keeps to both
    smallest, largest = jnp.maximum(x0 - radius, low), jnp.minimum(x0 + radius, high)

    def descend(_, x: Array) -> Array:
        return jnp.clip(x - step_size * radius * jnp.sign(slope(x)), smallest, largest)

    draw = lambda key: jax.random.uniform(key, x0.shape[1:], x0.dtype)
    shares = jax.vmap(draw)(per_sample(key, x0.shape[0]))
    start = smallest + shares * (largest - smallest)
    return lax.fori_loop(0, num_steps, descend, start)
