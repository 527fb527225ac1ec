"""The diffusion transformer: what it is told, patches of any size, and three kinds of positions."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core.conditioning import with_image
from diffjax.networks import DiTConfig, dit
from diffjax.networks.attention import rotary_positions, rotate
from diffjax.networks.transformer import grid_positions

SIDE, PATCH = 6, 3
CONFIG = DiTConfig(
    sample_size=SIDE, patch_size=PATCH, in_channels=2 + 1, out_channels=2, num_layers=1,
    num_heads=2, head_dim=8, num_classes=4, context_features=5, cond_drop_prob=0.0,
)  # fmt: skip
X = jax.random.normal(jax.random.key(1), (3, SIDE, SIDE, 2))
GIVEN = {
    "labels": jnp.array([0, 2, 4]),
    "context": jax.random.normal(jax.random.key(2), (3, 4, 5)),
    "context_mask": jnp.array([[1.0, 1.0, 0.0, 0.0]] * 3),
    "image": jax.random.normal(jax.random.key(3), (3, SIDE, SIDE, 1)),
}
KINDS = {kind: dit(replace(CONFIG, positions=kind)) for kind in ("sines", "learned", "rotary")}


@pytest.fixture(scope="module")
def params():
    """Weights that all kinds share, none of them zero, and a table of positions."""
    fresh = jax.eval_shape(KINDS["sines"].init, jax.random.key(0))
    rng = np.random.default_rng(0)
    shared = jax.tree.map(lambda leaf: np.float32(0.3 * rng.normal(size=leaf.shape)), fresh)
    grid = SIDE // PATCH
    table = grid_positions(grid, grid, CONFIG.features, base_size=grid)
    return {kind: shared | ({"positions": table} if kind == "learned" else {}) for kind in KINDS}


@pytest.fixture(scope="module")
def told(params):
    """`told(kind, **changes)`: the network's output under the conditions with changes."""

    @jax.jit
    def all_kinds(params, x, given):
        t = jnp.arange(3.0)
        return {
            kind: with_image(network.apply)(params[kind], x, t, **given)
            for kind, network in KINDS.items()
        }

    def output(kind="sines", x=X, **changes):
        return np.asarray(all_kinds(params, x, {**GIVEN, **changes})[kind])

    return output


@pytest.mark.parametrize("name", GIVEN)
def test_each_condition_matters(told, name):
    changed = -GIVEN[name] if name == "image" else jnp.roll(GIVEN[name], 1, axis=-1)
    assert np.abs(told(**{name: changed}) - told()).max() > 1e-3


def test_hidden_tokens_do_not_matter(told):
    changed = GIVEN["context"].at[:, 2:].set(9.0)
    np.testing.assert_array_equal(told(context=changed), told())


def swapped(x):
    """The upper row of patches below the lower one."""
    return jnp.roll(x, PATCH, axis=1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_place_of_a_patch_matters(told, kind):
    moved = told(kind, x=swapped(X), image=swapped(GIVEN["image"]))
    assert np.abs(swapped(moved) - told(kind)).max() > 1e-3


def test_a_learned_table_of_sines_is_as_good_as_sines(told):
    np.testing.assert_allclose(told("learned"), told("sines"), atol=1e-5)


def test_rotary_attention_sees_differences_of_positions_alone():
    ids = jnp.array([[0, 0], [3, 1], [2, 5]])
    q, k = jax.random.normal(jax.random.key(4), (2, 1, 3, 2, 8))

    def logits(shift):
        rotary = rotary_positions(ids + jnp.array(shift), (4, 4))
        return jnp.einsum("blhd,bshd->bhls", rotate(q, rotary), rotate(k, rotary))

    np.testing.assert_allclose(logits([7, -4]), logits([0, 0]), atol=1e-5)
    assert np.abs(logits([0, 0]) - jnp.einsum("blhd,bshd->bhls", q, k)).max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_other_sizes_are_taken_and_training_starts_at_zero(kind):
    init, apply = dit(replace(CONFIG, positions=kind, num_classes=None, context_features=None))
    x = jnp.ones((2, 2 * SIDE, SIDE + PATCH, 3))
    run = lambda key: apply(init(key), x, jnp.ones(2))
    assert jax.eval_shape(run, jax.random.key(0)).shape == (*x.shape[:3], 2)
    if kind == "learned":  # the one that keeps a size
        np.testing.assert_array_equal(jax.jit(run)(jax.random.key(0)), 0.0)


def test_conditions_that_do_not_fit_are_refused():
    x, t = jnp.zeros((3, SIDE, SIDE, 3)), jnp.zeros(3)

    def shape(config, *names):
        init, apply = dit(config)
        given = {name: GIVEN[name] for name in names}
        return jax.eval_shape(lambda key: apply(init(key), x, t, **given), jax.random.key(0))

    with pytest.raises(ValueError, match="labels is missing, but the network needs labels"):
        shape(CONFIG, "context")
    bare = replace(CONFIG, context_features=None)
    with pytest.raises(ValueError, match=r"context is given, but .* context_features is None"):
        shape(bare, "labels", "context")
    with pytest.raises(ValueError, match="head_dim"):
        replace(CONFIG, positions="rotary", head_dim=6, num_heads=4)
