"""What the networks of diffusers' schedulers predict, as rows of `Parameterization`."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from diffjax.core import parameterizations
from diffjax.core.parameterizations import Parameterization
from diffjax.pretrained.weights import UnsupportedError

Config = Mapping[str, Any]


def prediction_of(config: Config) -> Parameterization:
    name = config["prediction_type"]
    rows = {
        "epsilon": parameterizations.eps,
        "sample": parameterizations.x0,
        "v_prediction": parameterizations.v,
        "flow_prediction": parameterizations.velocity,
    }
    if name not in rows:
        raise UnsupportedError(f"prediction_type is {name!r}; supported: {', '.join(rows)}.")
    return rows[name]


def edm_prediction(config) -> Parameterization:
    """EDM's preconditioning; "v_prediction" is the same with the sign of the network turned."""
    row = parameterizations.edm(config["sigma_data"])
    clock = config["clock"]
    row = row._replace(clock=lambda level: clock(level.sigma / level.alpha))
    if config["prediction_type"] == "epsilon":
        return row
    if config["prediction_type"] != "v_prediction":
        raise UnsupportedError(
            f"prediction_type is {config['prediction_type']!r}; supported: epsilon, v_prediction."
        )
    return row._replace(
        target=lambda level: tuple(-c for c in row.target(level)),
        estimate=lambda level: (row.estimate(level)[0], -row.estimate(level)[1]),
    )


def consistency_prediction(config) -> Parameterization:
    """Consistency models: EDM's inputs, and a boundary condition at sigma_min."""
    least, data = config["sigma_min"], config["sigma_data"]

    def estimate(level):
        excess = level.sigma - least
        skip = data**2 / (excess**2 + data**2)
        return skip, excess * data / jnp.hypot(level.sigma, data)

    def target(level):
        skip, out = estimate(level)
        return (1.0 - skip * level.alpha) / out, -skip * level.sigma / out

    return Parameterization(
        "consistency",
        target=target,
        estimate=estimate,
        in_scale=lambda level: 1.0 / jnp.hypot(level.sigma, data),
        clock=lambda level: config["clock"](level.sigma),
    )


def karras_ve_prediction(config) -> Parameterization:
    """The noise with its sign turned; the network is told sigma."""
    return Parameterization(
        "negative_eps",
        target=lambda level: (jnp.zeros_like(level.sigma), -jnp.ones_like(level.sigma)),
        estimate=lambda level: (1.0 / level.alpha, level.sigma / level.alpha),
        clock=lambda level: level.sigma,
    )
