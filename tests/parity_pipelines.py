"""Reference cases of kind "pipeline": a saved system, prompts, and the images that it made.

Each run of a case is compiled whole. Noise is not drawn but replayed, and the latents behind every
step are compared as well as the images.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from parity_cases import Case, Comparison, KnownDifference, Unsupported, compare, first
from parity_runs import Recorder, Run, channels_first
from parity_tasks import TASKS

from diffjax.pipelines import SYSTEMS, make_system
from diffjax.pipelines.unclip import unclip
from diffjax.pretrained import Components, UnsupportedError, load_components
from diffjax.pretrained.lora import load_lora, merge_lora
from diffjax.pretrained.schedulers import read_scheduler


def check_pipeline(case: Case) -> list[Comparison]:
    """Make the images of every run of a case and compare them, and the latents on their way."""
    name = case.settings["classes"][0]
    if name not in TASKS:
        raise Unsupported(f"there is no system for the class {name}")
    found, differences = [], []
    try:
        parts = _parts(str(case.checkpoint))
        for run_name, settings in case.settings["runs"].items():
            recorder = Recorder()
            run = _run(case, settings, _with_lora(case, settings["call"], parts))
            found += _check_run(run, TASKS[name], run_name, recorder)
            differences += [f"{run_name}: {recorder.differs}"] if recorder.differs else []
    except UnsupportedError as error:
        raise Unsupported(str(error)) from error
    if differences and all(each.error <= each.tolerance for each in found):
        raise KnownDifference("; ".join(differences))
    return found


@functools.lru_cache(maxsize=2)
def _parts(checkpoint: str) -> Components:
    return load_components(checkpoint)


def _with_lora(case: Case, call: dict[str, Any], parts: Components) -> Components:
    """The parts with the LoRA of the case merged into them, where it has one."""
    if "lora" not in case.settings:
        return parts
    lora = load_lora(case.folder / case.settings["lora"]["file"], parts.models)
    scale = call.get("cross_attention_kwargs", {}).get("scale", 1.0)
    params = merge_lora(parts.params, lora, scale)
    models = {name: model._replace(params=params[name]) for name, model in parts.models.items()}
    return parts._replace(models=models)


def _run(case: Case, settings: dict[str, Any], parts: Components) -> Run:
    prefix = settings["prefix"]
    mine = lambda arrays: {
        key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)
    }
    schedulers = {
        name: read_scheduler({**config, "_class_name": kind})
        for name, (kind, config) in settings["scheduler"].items()
    }
    parts = parts._replace(schedulers={**parts.schedulers, **schedulers})
    # unCLIP is three systems
    builder = make_system if parts.name in SYSTEMS else lambda parts: unclip(parts).decoder
    system = builder(parts, **_options(settings["call"]))
    if settings["call"].get("output_type") == "latent":
        system = system._replace(decode=lambda params, latents: latents)
    return Run(
        call=settings["call"],
        inputs=mine(case.inputs),
        outputs=mine(case.outputs),
        parts=parts,
        system=system,
        scheduler=parts.schedulers.get("scheduler", next(iter(parts.schedulers.values()))),
        tolerance=case.settings["tolerance"]["rtol"],
    )


def _options(call: dict[str, Any]) -> dict[str, Any]:
    names = {"clip_skip": "skip", "num_frames": "num_frames"}
    return {ours: call[name] for name, ours in names.items() if name in call}


def _check_run(run: Run, task: Callable, name: str, recorder: Recorder) -> list[Comparison]:
    result = jax.block_until_ready(task(run, recorder))
    jax.effects_barrier()
    found = [compare(f"{name} result", _shown(run, result), run.outputs["result"], run.tolerance)]
    theirs = run.outputs.get("step_samples_out", ())
    if len(theirs) == len(recorder.latents):
        # the reference may carry the samples of both conditions
        found += [
            compare(f"{name} step {i}", here, there[: len(here)], run.tolerance)
            for i, (here, there) in enumerate(zip(recorder.latents, theirs))
        ]
    return found + [
        compare(f"{name} {key}", value, run.outputs[key], run.tolerance)
        for key, value in recorder.encodings.items()
        if key in run.outputs
    ]


def _shown(run: Run, images: jax.Array) -> np.ndarray:
    """Images as the reference shows them; latents and sounds as they are."""
    if run.call.get("output_type") == "latent":
        return first(images)
    if images.ndim == 3:
        sounds = np.clip(channels_first(images)[..., : run.size[0]], -1, 1)
        return sounds.reshape(run.outputs["result"].shape)
    return np.clip(np.asarray(images) / 2 + 0.5, 0, 1)
