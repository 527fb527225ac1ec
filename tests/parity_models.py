"""Reference cases of kind "model": a saved network, its inputs and its outputs."""

import jax
import numpy as np
from parity_cases import Case, Comparison, Unsupported, compare

from diffjax.networks import unet
from diffjax.pretrained import UnsupportedError, load_unet2d


def check_model(case: Case) -> list[Comparison]:
    """Build the network that the case names, with its weights, and compare the outputs."""
    for name in case.settings["classes"]:
        if name not in NETWORKS:
            raise Unsupported(f"there is no network for class {name}")
    try:
        outputs = NETWORKS[case.settings["classes"][0]](case)
    except UnsupportedError as error:
        raise Unsupported(str(error)) from error
    absent = set(case.settings.get("outputs", ())) - case.outputs.keys()
    if absent:
        raise ValueError(f"outputs.npz lacks {', '.join(sorted(absent))}")
    tolerance = case.settings["tolerance"]["rtol"]
    return [
        compare(name, outputs[name], reference, tolerance)
        for name, reference in case.outputs.items()
    ]


def _unet2d(case: Case) -> dict[str, np.ndarray]:
    config, params = load_unet2d(case.checkpoint)
    labels = case.inputs.get("class_labels")
    conditioning = {} if labels is None else {"labels": labels}
    x = np.moveaxis(case.inputs["sample"], 1, -1)
    t = np.broadcast_to(case.inputs["timestep"], x.shape[:1])
    y = jax.jit(unet(config).apply)(params, x, t, **conditioning)
    return {"sample": np.moveaxis(np.asarray(y), -1, 1)}


# class in case.json -> function from the case to its computed outputs
NETWORKS = {"UNet2DModel": _unet2d}
