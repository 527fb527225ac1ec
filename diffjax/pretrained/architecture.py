"""What a folder of one class of network means: its keys, its names, and the network they are of.

An `Architecture` is a table read in both directions. Its keys say which entry of config.json is
which field of the network's configuration, its names which part of a stored tensor's name is which
module.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from diffjax.networks.activations import ACTIVATIONS
from diffjax.pretrained.weights import UnsupportedError

# what a key may say that names an activation
ACTS = tuple(ACTIVATIONS)

# the two layers of diffusers' feed-forward networks, with a dropout between them -> ours
FEED_FORWARD = {
    f"{ff}.{theirs}": f"{ff}.{ours}"
    for ff in ("ff", "ff_context")
    for theirs, ours in (("net.0.proj", "linear_1"), ("net.2", "linear_2"))
}


# what functions of values raise where these are of another type than the class has there
MISFITS = (TypeError, AttributeError, ArithmeticError, LookupError)


class Key(NamedTuple):
    """One key of config.json.

    Attributes:
      default: what its absence means.
      field: of the network's configuration that has its value; None for a key that only must have
        a certain value.
      only: the values that the network can follow; None for all.
      read, write: from the value to that of the field, and back; read raises UnsupportedError.
      derived: the field is a property, which follows from others and must have this value.
    """

    default: Any
    field: str | None = None
    only: tuple | None = None
    read: Callable[[Any], Any] = lambda value: value
    write: Callable[[Any], Any] = lambda value: value
    derived: bool = False


class Architecture(NamedTuple):
    """A class of saved networks.

    Attributes:
      class_name: as config.json names it; several may share a name and differ in their keys.
      make: the frozen dataclass of the network's configuration.
      build: `build(config) -> network`, which has `init`.
      keys: of config.json; keys that are not listed are ignored.
      names: parts of stored names -> those of the network's torch names; see `renamer`.
      present: brings the names of older and newer files to those of `names`; None for a tensor
        that the network does not need.
      stem: of the weight files.
      fixed: further fields of the configuration, the same for all folders of the class.
      read: fields that follow from several keys, from the values of all keys.
      write: the inverse of `read`, the values of its keys from a configuration.
      same: a configuration of the same network in the spelling in which it is read; what only
        training needs is left out.
      overflows: whether the weights of a configuration make numbers too large for float16.
    """

    class_name: str
    make: type
    build: Callable[[Any], Any]
    keys: Mapping[str, Key]
    names: Mapping[str, str] = {}
    present: Callable[[str], str | None] = lambda name: name
    stem: str = "diffusion_pytorch_model"
    fixed: Mapping[str, Any] = {}
    read: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda saved: {}
    write: Callable[[Any], Mapping[str, Any]] = lambda config: {}
    same: Callable[[Any], Any] = lambda config: config
    overflows: Callable[[Any], bool] = lambda config: False


def read_settings(architecture: Architecture, settings: Mapping[str, Any], **options: Any) -> Any:
    """The network's configuration from the content of config.json.

    Args:
      options: further fields, dtype and param_dtype.

    Raises:
      UnsupportedError: names the key and the value that the network cannot follow.
      ValueError: the values do not fit each other.
    """
    values: dict[str, Any] = {}
    derived: dict[str, tuple[str, Any]] = {}
    saved = {
        name: _hashable(settings.get(name, key.default)) for name, key in architecture.keys.items()
    }
    for name, key in architecture.keys.items():
        if key.only is not None and saved[name] not in key.only:
            raise _unsupported(name, saved[name], *key.only)
        if key.field is not None:
            field_value = _value(architecture, name, saved[name])
            if key.derived:
                derived[name] = key.field, field_value
            else:
                values[key.field] = field_value
    try:
        values |= architecture.read(saved)
        config = architecture.make(**values, **architecture.fixed, **options)
        for name, (field, value) in derived.items():
            if value != getattr(config, field):
                supported = architecture.keys[name].write(getattr(config, field))
                raise _unsupported(name, settings.get(name), supported)
    except MISFITS as error:
        raise ValueError(f"config.json does not fit {architecture.class_name}: {error}") from error
    return config


def _value(architecture: Architecture, name: str, saved: Any) -> Any:
    """What the value of a key is for the network."""
    try:
        return architecture.keys[name].read(saved)
    except MISFITS as error:
        what = f"{name} is {saved!r}, which {architecture.class_name} cannot be"
        raise ValueError(f"config.json: {what}") from error


def write_settings(architecture: Architecture, config: Any) -> dict[str, Any]:
    """The content of config.json for a configuration, the inverse of `read_settings`."""
    settings: dict[str, Any] = (
        {"_class_name": architecture.class_name}
        if architecture.stem.startswith("diffusion")
        else {"architectures": [architecture.class_name]}
    )
    for name, key in architecture.keys.items():
        fixed = key.default if key.only is None or key.default in key.only else key.only[0]
        settings[name] = fixed if key.field is None else key.write(getattr(config, key.field))
    return {**settings, **architecture.write(config)}


def describes(architecture: Architecture, config: Any) -> bool:
    """Whether config.json of this class can hold the configuration."""
    return type(config) is architecture.make and misfit(architecture, config) is None


def misfit(architecture: Architecture, config: Any) -> str | None:
    """What of a configuration config.json of this class cannot hold; None if it can hold all."""
    options = {name: getattr(config, name) for name in ("dtype", "param_dtype")}
    try:
        again = read_settings(architecture, write_settings(architecture, config), **options)
    except UnsupportedError as error:
        return str(error)
    here, there = architecture.same(config), architecture.same(again)
    lost = [
        f"{field.name} = {getattr(here, field.name)!r}"
        for field in dataclasses.fields(here)
        if getattr(here, field.name) != getattr(there, field.name)
    ]
    return ", ".join(lost) or None


def _hashable(value: Any) -> Any:
    """Tuples for lists, at any depth."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _unsupported(name: str, value: Any, *supported: Any) -> UnsupportedError:
    return UnsupportedError(
        f"config.json: {name} is {value!r}; supported: {', '.join(map(repr, supported))}"
    )
