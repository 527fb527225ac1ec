"""Attention maps replaced by the identity: the worse network of perturbed-attention guidance."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import make_denoiser, v
from diffjax.networks import UNetConfig, functional, unet
from diffjax.networks.unet_attention import SelfAttention
from diffjax.transforms import autoguidance

CONFIG = UNetConfig(
    block_out_channels=(8, 8),
    layers_per_block=1,
    attention=(True, False),
    num_groups=4,
    in_channels=1,
    out_channels=1,
    zero_init=False,
)
LEVEL = NoiseLevel(*jnp.array([0.5, 0.6, 0.8]))
CLOCK = jnp.full(2, 0.5)


def network(where):
    return unet(dataclasses.replace(CONFIG, identity_attention=where))


PARAMS = network("none").init(jax.random.key(0))
run = {where: jax.jit(network(where).apply) for where in ("none", "middle", "all")}


@pytest.mark.parametrize(("size", "equal"), [(2, True), (4, False)])
def test_with_one_position_in_the_middle_its_map_is_the_identity_anyway(size, equal):
    x = jax.random.normal(jax.random.key(1), (2, size, size, 1))
    plain, middle, everywhere = (run[where](PARAMS, x, CLOCK) for where in run)
    np.testing.assert_allclose(np.allclose(plain, middle, atol=1e-5), equal)
    assert not np.allclose(plain, everywhere, atol=1e-4)


def test_every_position_sees_itself_alone():
    make = lambda rngs: SelfAttention(
        8, num_groups=0, eps=1e-5, identity=True, zero=False, rngs=rngs
    )
    init, apply = functional(make)
    params = init(jax.random.key(2))
    x = jax.random.normal(jax.random.key(3), (1, 5, 8))
    moved = apply(params, x.at[0, 2].add(1.0))
    changed = np.any(np.asarray(moved != apply(params, x)), axis=(0, 2))
    np.testing.assert_array_equal(changed, np.arange(5) == 2)


def test_perturbed_attention_guidance_is_off_at_one_and_pushes_away_from_the_perturbed():
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 1))
    better, weaker = (make_denoiser(run[where], PARAMS, v) for where in ("none", "middle"))
    plain, perturbed = better(x, LEVEL), weaker(x, LEVEL)
    off, on = (autoguidance(better, weaker, guidance_scale=s)(x, LEVEL) for s in (1.0, 3.0))
    np.testing.assert_allclose(off, plain, atol=1e-6)
    np.testing.assert_allclose(on - plain, 2.0 * (plain - perturbed), atol=1e-5)


def test_an_unknown_place_is_refused():
    with pytest.raises(ValueError, match="identity_attention"):
        network("top")
