"""What a network is told: several conditions at once, each of which training may leave out.

A network takes its conditions by name, as arrays [B, ...]: labels, vectors, tokens with a mask,
images. Leaving one out means to give its null value instead: the null label, zeros, the tokens and
the mask of an empty text. So a dropped condition is exactly the null condition, and the estimate
without it, of which guidance needs one, is the same network told nothing.

    label = Condition({"labels": 10}, drop_prob=0.1)
    text = Condition({"context": empty, "context_mask": mask_of_empty}, drop_prob=0.1)
    loss = diffusion_loss(with_drops(apply, [label, text]), schedule)

Source: Classifier-Free Diffusion Guidance, arXiv:2207.12598, Algorithm 1.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax.core.keys import fold_in_each
from diffjax.core.levels import select

Conditioning = dict[str, Array]

# the drops have a stream of keys of their own, which the network's own splits do not reach
_DROPS = 2**31 - 1


class Condition(NamedTuple):
    """Arrays that a network is told together, and what they are where it is told nothing.

    Attributes:
      null: for each name the null value of one sample, or a number for all of its entries.
      drop_prob: with which probability training gives a sample the null values.
    """

    null: Mapping[str, ArrayLike]
    drop_prob: float = 0.0


def told_nothing(conditioning: Conditioning, conditions: Sequence[Condition]) -> Conditioning:
    """The conditioning with the null values of some conditions; the others stay as they are.

    >>> told_nothing({"labels": jnp.array([3, 1])}, [Condition({"labels": 10})])
    {'labels': Array([10, 10], dtype=int32)}
    """
    _check_names(conditioning, conditions)
    nulls = {name: null for condition in conditions for name, null in condition.null.items()}
    fill = lambda array, null: jnp.broadcast_to(jnp.asarray(null, array.dtype), array.shape)
    return {
        name: fill(array, nulls[name]) if name in nulls else array
        for name, array in conditioning.items()
    }


def with_drops(
    apply: Callable[..., Array], conditions: Sequence[Condition]
) -> Callable[..., Array]:
    """A network that is told nothing of each condition now and then, in training.

    Every condition is dropped for each sample on its own, as the sample's key says; the arrays of
    one condition are dropped together. Without keys, when sampling, nothing is dropped.

    Args:
      apply: `apply(params, x, t, keys=[B] keys or None, **conditioning)`.
      conditions: with their probabilities; what is not among them is never dropped.

    Raises:
      ValueError: a probability outside [0, 1], a name that stands in two conditions or, when it is
        called, one that the conditioning lacks.

    >>> apply = with_drops(lambda params, x, t, keys, labels: labels,
    ...                    [Condition({"labels": 10}, drop_prob=1.0)])
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> apply({}, None, None, keys=keys, labels=jnp.array([3, 1]))
    Array([10, 10], dtype=int32)
    """
    for condition in conditions:
        if not 0 <= condition.drop_prob <= 1:
            raise ValueError(f"drop_prob is {condition.drop_prob}; it must be in [0, 1].")
    names = [name for condition in conditions for name in condition.null]
    if len(names) != len(set(names)):
        raise ValueError(f"The conditions hold {names}; each array belongs to one of them.")

    def dropping(
        params: Any, x: Array, t: Array, *, keys: Array | None = None, **conditioning: Array
    ) -> Array:
        if keys is not None:
            own = fold_in_each(keys, _DROPS)
            for number, condition in enumerate(conditions):
                if condition.drop_prob:
                    drop = dropped(fold_in_each(own, number), condition.drop_prob)
                    conditioning = _replace(conditioning, condition, drop)
        return apply(params, x, t, keys=keys, **conditioning)

    return dropping


def dropped(keys: Array, prob: float) -> Array:
    """Which samples are told nothing, each with the probability `prob`: [B] bool from [B] keys."""
    return jax.vmap(lambda key: jax.random.bernoulli(key, prob))(keys)


def with_image(apply: Callable[..., Array], name: str = "image") -> Callable[..., Array]:
    """A network that is told an image, as further channels behind those of x.

    The network underneath has as many more `in_channels` as the image has; the image has the height
    and width of x (enlarge a small one first).
    Source: Palette, arXiv:2111.05826, section 3; SR3, arXiv:2104.07636, section 3.

    Args:
      apply: the network of all the channels.
      name: of the argument [B, H, W, channels] that holds the image.

    Raises:
      ValueError: when it is called, the image is missing or has other sides than x.

    >>> apply = with_image(lambda params, x, t, keys: x)
    >>> apply({}, jnp.zeros((1, 4, 4, 3)), None, image=jnp.ones((1, 4, 4, 1))).shape
    (1, 4, 4, 4)
    """

    def told(
        params: Any, x: Array, t: Array, *, keys: Array | None = None, **conditioning: Array
    ) -> Array:
        if name not in conditioning:
            raise ValueError(f"The network is told an image; give {name}, with the sides of x.")
        image = conditioning.pop(name)
        if image.shape[:-1] != x.shape[:-1]:
            raise ValueError(
                f"{name} is {image.shape} and x {x.shape}; they differ in channels alone: resize "
                f"the image to {x.shape[1:-1]}."
            )
        both = jnp.concatenate([x, image.astype(x.dtype)], axis=-1)
        return apply(params, both, t, keys=keys, **conditioning)

    return told


def _replace(conditioning: Conditioning, condition: Condition, drop: Array) -> Conditioning:
    """The conditioning with the null values of one condition where `drop`, [B], says so."""
    empty = told_nothing(conditioning, [condition])
    # what is not about the condition may be anything, such as the pictures of a ControlNet
    about = {name: conditioning[name] for name in condition.null}
    return {**conditioning, **select(drop, {name: empty[name] for name in about}, about)}


def _check_names(conditioning: Conditioning, conditions: Sequence[Condition]) -> None:
    missing = {name for condition in conditions for name in condition.null} - set(conditioning)
    if missing:
        raise ValueError(
            f"There is a null value of {sorted(missing)[0]!r}, but the conditioning holds "
            f"{sorted(conditioning)}."
        )
