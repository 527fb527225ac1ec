"""The real UNet and the real loss on several devices; run by `test_sharding.py`.

Dropout, dropped labels and stratified times are on: every random draw belongs to its sample.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import pytest
import tiny_problem as tiny
from jax.sharding import PartitionSpec as P

import diffjax as dj
from diffjax.core.losses import min_snr, stratified
from diffjax.networks import UNetConfig, unet
from diffjax.training import init_train_state, make_mesh, make_train_step, shard_batch, shard_state

NETWORK = unet(
    UNetConfig(
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        attention=(True,),
        mid_block=False,
        num_groups=4,
        num_classes=10,
        cond_drop_prob=0.3,
        dropout=0.1,
        zero_init=False,
    )
)
LOSS = dj.diffusion_loss(NETWORK.apply, dj.cosine(), dj.v, weight=min_snr(5.0), times=stratified)
make = functools.partial(make_train_step, LOSS, tiny.SGD, ema_decay=(0.0, 0.9))
KEY = jax.random.key(3)


@jax.jit
def new_state():
    return init_train_state(NETWORK.init(jax.random.key(0)), tiny.SGD, ema_decay=(0.0, 0.9))


def make_batch():
    x0 = jax.random.normal(jax.random.key(1), (16, 4, 4, 1))
    return {"x0": x0, "labels": jnp.arange(16) % 10}


@functools.cache
def on_one_device():
    return jax.device_get(jax.jit(make())(new_state(), make_batch(), KEY))


def in_jit():
    mesh = make_mesh()
    return jax.jit(make())(shard_state(new_state(), mesh), shard_batch(make_batch(), mesh), KEY)


def in_pmap():
    step = jax.pmap(make(axis_name="data"), "data", in_axes=(None, 0, None))
    batch = jax.tree.map(lambda leaf: leaf.reshape(8, -1, *leaf.shape[1:]), make_batch())
    return jax.tree.map(lambda leaf: leaf[5], step(new_state(), batch, KEY))


def in_shard_map():
    step = jax.shard_map(
        make(axis_name="data"), mesh=make_mesh(), in_specs=(P(), P("data"), P()), out_specs=P()
    )
    return jax.jit(step)(new_state(), make_batch(), KEY)


@pytest.mark.parametrize("run", [in_jit, in_pmap, in_shard_map])
def test_eight_devices_equal_one(run):
    chex.assert_trees_all_close(jax.device_get(run()), on_one_device(), rtol=1e-4, atol=1e-5)
