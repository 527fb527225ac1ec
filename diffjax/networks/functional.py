"""The boundary between Flax modules and plain functions.

Outside this file and the network definitions nothing knows of Flax: a network is a pair of pure
functions over params, nested dicts with string keys,

    params = init(key),    y = apply(params, x, t, **conditioning),

to which `jax.jit`, `jax.grad`, optax and checkpoints apply as they are.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from diffjax.networks.initialization import Law, ShapesOnly, uniform

Params = dict[str, Any]


class Functional(NamedTuple):
    """A network as two pure functions.

    Attributes:
      init: `init(key) -> params`; `jax.eval_shape(init, key)` gives the shapes without computing.
      apply: `apply(params, *inputs, **conditioning) -> array`, the call of the module.
    """

    init: Callable[[Array], Params]
    apply: Callable[..., Array]


def functional(
    make: Callable[[nnx.Rngs], Any],
    *,
    param_dtype: Any = "float32",
    call: Callable[..., Array] = lambda module, *inputs, **rest: module(*inputs, **rest),
) -> Functional:
    """Turn a Flax NNX module into a pair of pure functions over plain dicts.

    The module must keep its arrays in `nnx.Param` alone: no batch statistics, no stored random
    state. It is built abstractly here, so that `apply` never creates parameters and no array is
    baked into a compiled program.

    Args:
      make: builds the module from `nnx.Rngs`. Where every parameter was made by
        `initialization.parameter`, it is called only once, abstractly; otherwise also by `init`.
      param_dtype: in which `init` returns the floating parameters.
      call: (module, *inputs, **conditioning) -> array, what `apply` computes; the module's own call
        by default.

    Returns:
      `Functional(init, apply)`. Params have the attribute names of the module as keys, positions
      in lists as strings: `params["down_blocks"]["0"]["resnets"]["1"]["conv1"]["kernel"]`.

    Raises:
      TypeError: `make` is a module itself, or the module holds state of another kind than
        `nnx.Param`.

    >>> init, apply = functional(lambda rngs: nnx.Linear(2, 3, rngs=rngs))
    >>> params = init(jax.random.key(0))
    >>> apply(params, jnp.ones((4, 2))).shape
    (4, 3)
    """
    if isinstance(make, nnx.Module):
        raise TypeError(
            "functional takes a function that builds a module from nnx.Rngs, such as "
            f"lambda rngs: {type(make).__name__}(rngs=rngs), not a module."
        )
    graph, template = nnx.split(nnx.eval_shape(lambda: make(ShapesOnly(0))))
    variables = {_names(path): (path, variable) for path, variable in nnx.to_flat_state(template)}
    _require_params_only(variables)
    laws = {name: variable.get_metadata("law", None) for name, (_, variable) in variables.items()}
    shapes = {name: variable.get_value().shape for name, (_, variable) in variables.items()}

    def build(key: Array) -> dict[tuple[str, ...], Array]:
        state = nnx.to_flat_state(nnx.state(make(nnx.Rngs(key))))
        return {_names(path): variable.get_value() for path, variable in state}

    draw = build if None in laws.values() else jax.jit(lambda key: _draw(key, laws, shapes))

    def init(key: Array) -> Params:
        return unflatten({name: _cast(array, param_dtype) for name, array in draw(key).items()})

    def apply(params: Params, *inputs: Any, **conditioning: Any) -> Array:
        flat = flatten(params)
        require_matching(flat, shapes)
        state = [
            (path, variable.replace(flat[name])) for name, (path, variable) in variables.items()
        ]
        module = nnx.merge(graph, nnx.from_flat_state(state))
        return call(module, *inputs, **conditioning)

    return Functional(init, apply)


def count_parameters(params: Any) -> int:
    """The number of scalars in a tree of arrays, or of shapes as `jax.eval_shape` returns them.

    >>> count_parameters({"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)})
    16
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def flatten(params: Params, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Nested dicts as one dict from paths to leaves.

    >>> flatten({"a": {"b": 1}, "c": 2})
    {('a', 'b'): 1, ('c',): 2}
    """
    flat = {}
    for name, value in params.items():
        path = (*prefix, name)
        flat.update(flatten(value, path) if isinstance(value, dict) else {path: value})
    return flat


def unflatten(flat: dict[tuple[str, ...], Any]) -> Params:
    """Undo `flatten`.

    >>> unflatten({('a', 'b'): 1, ('c',): 2})
    {'a': {'b': 1}, 'c': 2}
    """
    params: Params = {}
    for path, leaf in flat.items():
        node = params
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return params


def require_matching(
    flat: dict[tuple[str, ...], Any], shapes: dict[tuple[str, ...], tuple]
) -> None:
    """Compare params with the shapes that a network needs, and name every difference.

    Raises:
      ValueError: lists the missing, the unexpected and the wrongly shaped parameters.
    """
    missing = [".".join(path) for path in shapes.keys() - flat.keys()]
    unexpected = [".".join(path) for path in flat.keys() - shapes.keys()]
    misshaped = [
        f"{'.'.join(path)} {tuple(flat[path].shape)} instead of {tuple(shape)}"
        for path, shape in shapes.items()
        if path in flat and tuple(flat[path].shape) != tuple(shape)
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "wrong shape": misshaped}
    found = [f"{kind}: {', '.join(sorted(names))}" for kind, names in kinds.items() if names]
    if found:
        raise ValueError(f"params do not fit the network. {'; '.join(found)}")


def _draw(
    key: Array, laws: dict[tuple[str, ...], Law], shapes: dict[tuple[str, ...], tuple[int, ...]]
) -> dict[tuple[str, ...], Array]:
    """The initial values of all parameters, from one draw of uniform numbers."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    numbers = lax.split(uniform(key, (sum(sizes),)), sizes)
    return {
        name: laws[name](lax.reshape(part, shape))
        for (name, shape), part in zip(shapes.items(), numbers)
    }


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(str(part) for part in path)


def _cast(array: Array, dtype: Any) -> Array:
    return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _require_params_only(variables: dict) -> None:
    others = [
        f"{'.'.join(name)} ({type(variable).__name__})"
        for name, (_, variable) in variables.items()
        if not isinstance(variable, nnx.Param)
    ]
    if others:
        raise TypeError(
            f"functional() needs modules whose arrays are all nnx.Param; found "
            f"{', '.join(others)}. "
            "Pass random keys and statistics as arguments of the call instead"
        )
