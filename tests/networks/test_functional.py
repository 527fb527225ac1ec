import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffjax.networks import count_parameters, functional
from diffjax.networks.functional import flatten, unflatten
from diffjax.networks.initialization import fan_average, filled, standard_normal, uniform
from diffjax.networks.layers import Linear


class Tower(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([Linear(3, 4, rngs=rngs), Linear(4, 2, rngs=rngs)])

    def __call__(self, x, *, scale=1.0):
        return scale * self.layers[1](self.layers[0](x))


def test_params_are_plain_dicts_with_string_keys():
    params = functional(Tower).init(jax.random.key(0))
    assert set(flatten(params)) == {
        ("layers", place, name) for place in "01" for name in ("kernel", "bias")
    }
    assert type(params["layers"]) is dict
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))


def test_apply_computes_what_the_module_computes():
    init, apply = functional(Tower)
    params = init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (5, 3))
    first, second = params["layers"]["0"], params["layers"]["1"]
    hidden = x @ first["kernel"] + first["bias"]
    expected = 2.0 * (hidden @ second["kernel"] + second["bias"])
    np.testing.assert_allclose(apply(params, x, scale=2.0), expected, rtol=1e-5)


def test_modules_of_flax_itself_work_as_well():
    init, apply = functional(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
    params = init(jax.random.key(0))
    same = init(jax.random.key(0))
    chex.assert_trees_all_equal(params, same)
    assert float(jnp.abs(params["kernel"] - init(jax.random.key(1))["kernel"]).max()) > 0
    assert apply(params, jnp.ones((4, 3))).shape == (4, 2)


def test_shapes_and_count_come_without_computing():
    init, _ = functional(lambda rngs: Linear(10**6, 10**6, rngs=rngs))
    shapes = jax.eval_shape(init, jax.random.key(0))
    assert shapes["kernel"] == jax.ShapeDtypeStruct((10**6, 10**6), jnp.float32)
    assert count_parameters(shapes) == 10**12 + 10**6


def test_param_dtype_is_that_of_the_initial_params():
    init, _ = functional(Tower, param_dtype="bfloat16")
    chex.assert_trees_all_equal_dtypes(
        init(jax.random.key(0)), jax.tree.map(lambda _: jnp.bfloat16(0), init(jax.random.key(0)))
    )


def test_apply_holds_no_array_of_its_own():
    init, apply = functional(Tower)
    traced = jax.make_jaxpr(apply)(init(jax.random.key(0)), jnp.ones((1, 3)))
    assert traced.consts == []


def test_params_that_do_not_fit_are_named():
    init, apply = functional(Tower)
    flat = flatten(init(jax.random.key(0)))
    kernel = flat.pop(("layers", "0", "kernel"))
    flat["layers", "7", "kernel"] = kernel
    flat["layers", "1", "bias"] = jnp.zeros(9)
    with pytest.raises(ValueError) as error:
        apply(unflatten(flat), jnp.ones((1, 3)))
    assert "missing: layers.0.kernel" in str(error.value)
    assert "unexpected: layers.7.kernel" in str(error.value)
    assert "layers.1.bias (9,) instead of (2,)" in str(error.value)


def test_modules_with_state_are_refused():
    with pytest.raises(TypeError, match="BatchStat"):
        functional(lambda rngs: nnx.BatchNorm(3, rngs=rngs))


def test_a_module_in_the_place_of_its_builder_is_refused():
    with pytest.raises(TypeError, match=r"lambda rngs: Linear\(rngs=rngs\), not a module"):
        functional(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))


def test_laws_have_the_moments_that_they_promise():
    count = 100_000
    u = uniform(jax.random.key(0), (count,))
    law = fan_average((3, 3, 40, 20))
    variance = 2.0 / (9 * (40 + 20))
    for values, expected, fourth in ((law(u), variance, 1.8), (standard_normal(u), 1.0, 3.0)):
        assert bool(jnp.isfinite(values).all())
        # four standard errors of the mean and of the variance
        assert abs(float(values.mean())) < 4 * (expected / count) ** 0.5
        error = expected * ((fourth - 1) / count) ** 0.5
        assert abs(float(values.var()) - expected) < 4 * error
    assert float(jnp.abs(filled((3,), 2.0)[...] - 2.0).max()) == 0


def test_parameters_are_drawn_independently():
    params = functional(Tower).init(jax.random.key(0))
    a, b = params["layers"]["0"]["kernel"].ravel()[:8], params["layers"]["1"]["kernel"].ravel()[:8]
    assert abs(float(jnp.corrcoef(a, b)[0, 1])) < 0.99
