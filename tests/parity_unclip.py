"""unCLIP's three systems in turn, each recorded by itself and compared under its scheduler."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from parity_cases import Unsupported, first
from parity_runs import Recorder, Run, keys_of, replay

from diffjax.core.sampling import Solver
from diffjax.pipelines import make_plan, txt2img
from diffjax.pipelines.unclip import enlarged, unclip, with_embedding
from diffjax.pretrained import scheduler_tables as tables
from diffjax.pretrained.schedulers import Scheduler
from diffjax.transforms import classifier_free


def _rounded_level(current, next_):
    """A level as UnCLIPScheduler's float32 subtractions leave it."""
    beta = 1.0 - (current.alpha / next_.alpha) ** 2
    return current._replace(alpha=next_.alpha * jnp.sqrt(1.0 - beta))


def _rounded_weight(scheduler: Scheduler) -> np.float32:
    """The weight of x0 in its last step, one but for rounding."""
    beta = tables.betas(scheduler.config)[0]
    return beta / (np.float32(1.0) - (np.float32(1.0) - beta))


def run_unclip(run: Run, recorder: Recorder) -> jax.Array:
    """Prior, decoder and enlarger, each recorded by itself and compared under its scheduler."""
    stages = unclip(run.parts)
    drawn = iter(run.draws_in_order())
    prompts = run.call["prompt"]
    if stages.prior is None:
        raise Unsupported("there is no prior in the folder")
    conditions = stages.prior.prepare(prompts, [None] * len(prompts), height=1, width=1)
    scales = {
        "prior": run.call.get("prior_guidance_scale", 4.0),
        "decoder": run.call.get("decoder_guidance_scale", 8.0),
    }

    def stage(name: str, count: int, conditions: list) -> jax.Array:
        system = getattr(stages, "enlarger" if name == "super_res" else name)
        scheduler = run.parts.schedulers[f"{name}_scheduler"]
        plan = make_plan(scheduler, count)
        # the last step draws nothing
        start, *noises = [next(drawn) for _ in range(count)]
        noises = jnp.stack([*noises, np.zeros_like(start)])
        held: list[Any] = []
        solver = scheduler.solver(plan.levels, normal=lambda *_: noises[held[-1]])
        kept: list[np.ndarray] = []

        weight = _rounded_weight(scheduler)

        def step(keys, x, i, denoise, current, next_):
            held.append(i)
            told = lambda x, level: denoise(x, current)
            x, _ = solver.step(keys, x, (), told, _rounded_level(current, next_), next_)
            x = jnp.where(i == count - 1, weight * x, x)
            io_callback(lambda x: kept.append(np.asarray(x)), None, x, ordered=True)
            return x, i + 1

        images = jax.jit(
            lambda params, keys, conditions: txt2img(
                system,
                params,
                keys,
                conditions,
                solver=Solver(lambda x: 0, step),
                levels=plan.levels,
                height=system.size[0],
                width=system.size[1],
                guidance=(
                    partial(classifier_free, guidance_scale=scales[name])
                    if len(conditions) > 1
                    else None
                ),
                normal=replay(start),
            )
        )(run.parts.params, keys_of(run), conditions)
        jax.effects_barrier()
        theirs = run.outputs[f"{name}_scheduler_step_samples_out"]
        layout = first if theirs.ndim == 5 else np.asarray
        recorder.encodings.update({f"{name} step {i}": layout(x) for i, x in enumerate(kept)})
        run.outputs.update({f"{name} step {i}": x for i, x in enumerate(theirs)})
        return images

    recorder.differ("unclip-cancellation")
    embedding = stage("prior", run.call["prior_num_inference_steps"], conditions)
    told = with_embedding(conditions, embedding)
    small = stage("decoder", run.call["decoder_num_inference_steps"], told)
    large = enlarged(small, *stages.enlarger.size)
    return stage("super_res", run.call["super_res_num_inference_steps"], large)
