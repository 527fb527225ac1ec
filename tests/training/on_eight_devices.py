"""Laws that need several devices; `test_sharding.py` runs this file in a process of its own.

By hand, with XLA_FLAGS=--xla_force_host_platform_device_count=8 in the environment:
pytest tests/training/on_eight_devices.py
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_problem as tiny
from jax.sharding import PartitionSpec as P

from diffjax.training.checkpoint import Checkpointer
from diffjax.training.sharding import (
    batch_sharding,
    fsdp,
    make_mesh,
    params_sharding,
    replicated,
    shard_batch,
    shard_state,
    state_sharding,
)
from diffjax.training.step import make_train_step

# plain SGD: the update is the gradient, which Adam would divide by its own rounding noise
make = functools.partial(make_train_step, tiny.loss, tiny.SGD, ema_decay=(0.0, 0.9))
make_adam = functools.partial(make_train_step, tiny.loss, tiny.ADAM, ema_decay=0.9)
KEY = jax.random.key(7)
SHARD_SMALL = fsdp(min_size=64)


@functools.cache
def mesh():
    return make_mesh()


@functools.cache
def on_one_device():
    return jax.device_get(jax.jit(make())(tiny.new_state(), tiny.make_batch(), KEY))


def assert_same(result):
    chex.assert_trees_all_close(jax.device_get(result), on_one_device(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_jit_over_eight_devices_equals_one(accumulate):
    step = jax.jit(make(accumulate=accumulate), donate_argnums=0)
    state = shard_state(tiny.new_state(), mesh())
    state, metrics = step(state, shard_batch(tiny.make_batch(), mesh()), KEY)
    assert_same((state, metrics))
    assert state.params["out"]["kernel"].sharding.is_fully_replicated
    step(state, shard_batch(tiny.make_batch(), mesh()), KEY)
    assert step._cache_size() == 1


def test_accumulation_moves_no_sample_between_devices():
    step = jax.jit(make(accumulate=2))
    state, batch = shard_state(tiny.new_state(), mesh()), shard_batch(tiny.make_batch(), mesh())
    program = step.lower(state, batch, KEY).compile().as_text()
    assert "all-reduce" in program
    assert not any(name in program for name in ("all-gather", "all-to-all", "collective-permute"))


def test_pmap_over_eight_devices_equals_one():
    step = jax.pmap(make(axis_name="data"), "data", in_axes=(0, 0, None), donate_argnums=0)
    split = lambda leaf: leaf.reshape(8, -1, *leaf.shape[1:])
    copies = jax.tree.map(lambda leaf: jnp.stack([leaf] * 8), tiny.new_state())
    result = step(copies, jax.tree.map(split, tiny.make_batch()), KEY)
    for device in (0, 7):
        assert_same(jax.tree.map(lambda leaf, d=device: leaf[d], result))


@pytest.mark.parametrize(("accumulate", "check_vma"), [(1, True), (2, True), (1, False)])
def test_shard_map_over_eight_devices_equals_one(accumulate, check_vma):
    step = jax.shard_map(
        make(axis_name="data", accumulate=accumulate),
        mesh=mesh(),
        in_specs=(P(), P("data"), P()),
        out_specs=P(),
        check_vma=check_vma,
    )
    assert_same(jax.jit(step)(tiny.new_state(), tiny.make_batch(), KEY))


@pytest.mark.parametrize(
    ("axes", "rules"),
    [
        ({"data": 8}, SHARD_SMALL),
        ({"data": 4, "model": 2}, [("inner/kernel", P(None, "model")), ("out", P("model"))]),
    ],
    ids=["fsdp", "tensor"],
)
def test_sharded_parameters_equal_replicated_ones(axes, rules):
    mesh = make_mesh(axes)
    sharding = state_sharding(jax.eval_shape(tiny.new_state), mesh, rules)
    step = jax.jit(make(), donate_argnums=0, out_shardings=(sharding, None))
    state = jax.jit(tiny.new_state, out_shardings=sharding)()
    state, metrics = step(state, shard_batch(tiny.make_batch(), mesh), KEY)
    assert_same((state, metrics))
    for tree in (state.params, state.ema["0.9"]):
        kernel = tree["inner"]["kernel"]
        assert not kernel.sharding.is_fully_replicated
        assert kernel.addressable_shards[0].data.size < kernel.size
    step(state, shard_batch(tiny.make_batch(), mesh), KEY)
    assert step._cache_size() == 1


def test_moments_are_split_like_their_parameter():
    state = tiny.new_state(tiny.ADAM, 0.9)
    placed = shard_state(state, mesh(), SHARD_SMALL)
    chex.assert_trees_all_equal(jax.device_get(placed), jax.device_get(state))
    kernel = placed.params["inner"]["kernel"].sharding
    moments = placed.opt_state[0]
    assert kernel.spec == P("data")
    assert moments.mu["inner"]["kernel"].sharding == kernel
    assert moments.nu["inner"]["kernel"].sharding == kernel
    assert moments.count.sharding == placed.step.sharding == replicated(mesh())
    assert placed.params["inner"]["bias"].sharding.is_fully_replicated


def test_a_checkpoint_moves_between_shardings_and_goes_on_the_same(tmp_path):
    step = jax.jit(make_adam())
    sharded = shard_state(tiny.new_state(tiny.ADAM, 0.9), mesh(), SHARD_SMALL)
    sharded, _ = step(sharded, shard_batch(tiny.make_batch(), mesh()), KEY)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(sharded, key=KEY)
    two = make_mesh(devices=jax.devices()[:2])
    like = shard_state(tiny.new_state(tiny.ADAM, 0.9), two)
    for template in (like, tiny.new_state(tiny.ADAM, 0.9), sharded):
        with Checkpointer(tmp_path) as checkpointer:
            restored, run = checkpointer.restore_latest(template)
        chex.assert_trees_all_equal(jax.device_get(restored), jax.device_get(sharded))
        assert jax.tree.map(lambda leaf: leaf.sharding, restored) == jax.tree.map(
            lambda leaf: leaf.sharding, template
        )
    assert run.step == 1


def test_batches_and_rules_that_do_not_fit_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"12 samples .* 8 devices.* 8 or 16"):
        shard_batch(tiny.make_batch(12), mesh())
    with pytest.raises(ValueError, match=r"do not fit 8 devices"):
        make_mesh({"data": 3})
    with pytest.raises(ValueError, match="named 'data'"):
        make_mesh({"model": 8})
    params = {"w": jnp.zeros((6, 16))}
    with pytest.raises(ValueError, match=r"'w' splits axis 0 into 8 parts"):
        params_sharding(params, mesh(), [("w", P("data"))])
    with pytest.raises(ValueError, match=r"'w' names the mesh axis 'model'"):
        params_sharding(params, mesh(), [("w", P("model"))])


def test_the_batch_is_split_in_order():
    batch = shard_batch({"labels": np.arange(16)}, mesh())
    assert batch["labels"].sharding == batch_sharding(mesh())
    shards = sorted(batch["labels"].addressable_shards, key=lambda shard: shard.device.id)
    np.testing.assert_array_equal([shard.data for shard in shards], np.arange(16).reshape(8, 2))
