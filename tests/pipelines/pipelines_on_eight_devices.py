"""Laws of whole systems on several devices; `test_devices.py` runs this file in its own process.

By hand, with XLA_FLAGS=--xla_force_host_platform_device_count=8 in the environment:
pytest tests/pipelines/pipelines_on_eight_devices.py
"""

from functools import partial
from pathlib import Path

import jax
import numpy as np

import diffjax as dj
from diffjax.core.keys import sample_keys
from diffjax.pipelines import make_plan, make_system, txt2img
from diffjax.pretrained import load_components
from diffjax.training import batch_sharding, make_mesh, replicated

FOLDER = Path(__file__).parents[1] / "references" / "pipelines" / "pixart_alpha" / "pipeline"
PROMPTS = ["a photo of the cat", "the cat and dog on a mat!"] * 4


def test_a_seed_gives_the_same_images_on_one_device_and_on_eight():
    parts = load_components(FOLDER)
    system = make_system(parts)
    height, width = system.size
    plan = make_plan(parts.schedulers["scheduler"], 2, grid=system.grid(height, width, 2))
    guidance = partial(dj.classifier_free, guidance_scale=3.0)
    # text encoding, loop and decoding in one program
    run = jax.jit(
        partial(txt2img, system, solver=plan.solver, height=height, width=width, guidance=guidance)
    )
    conditions = system.prepare(PROMPTS, [None] * 8, height=height, width=width)
    keys = sample_keys(jax.random.key(3), np.arange(8))

    def images(count):
        mesh = make_mesh(devices=jax.devices()[:count])
        params, levels = jax.device_put((parts.params, plan.levels), replicated(mesh))
        given = jax.device_put((keys, conditions), batch_sharding(mesh))
        made = run(params, *given, levels=levels)
        assert len(made.addressable_shards) == count
        assert {len(shard.data) for shard in made.addressable_shards} == {8 // count}
        return np.asarray(made)

    one, eight = images(1), images(8)
    assert np.abs(one[0] - one[2]).max() > 0.05  # of the same prompt
    np.testing.assert_allclose(eight, one, atol=1e-4)
