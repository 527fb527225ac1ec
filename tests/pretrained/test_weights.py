import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffjax.pretrained import read_tensors, to_params
from diffjax.pretrained.weights import channels_last, from_params, renamer


def test_channels_move_to_the_end_and_kernels_keep_their_axes():
    weight = np.random.default_rng(0).standard_normal((5, 4, 3, 2))
    moved = channels_last(weight, 4)
    assert moved.shape == (3, 2, 4, 5)
    assert moved[2, 1, 3, 0] == weight[0, 3, 2, 1]


def test_every_kind_of_tensor_finds_its_place():
    shapes = {
        "conv": {"kernel": jnp.zeros((3, 2, 4)), "bias": jnp.zeros(4)},
        "norm": {"scale": jnp.zeros(4), "bias": jnp.zeros(4)},
        "table": {"embedding": jnp.zeros((6, 2))},
        "layers": {"0": {"kernel": jnp.zeros((2, 3))}},
    }
    rng = np.random.default_rng(0)
    stored = {
        "conv.weight": rng.standard_normal((4, 2, 3)),
        "conv.bias": rng.standard_normal(4),
        "norm.weight": rng.standard_normal(4),
        "norm.bias": rng.standard_normal(4),
        "table.weight": rng.standard_normal((6, 2)),
        "layers.0.weight": rng.standard_normal((3, 2, 1, 1)),
    }
    params = to_params(stored, shapes)
    assert params["conv"]["kernel"].dtype == jnp.float32
    expected = np.einsum("oik->kio", stored["conv.weight"]).astype(np.float32)
    np.testing.assert_array_equal(params["conv"]["kernel"], expected)
    np.testing.assert_array_equal(params["norm"]["scale"], stored["norm.weight"].astype(np.float32))
    np.testing.assert_array_equal(
        params["table"]["embedding"], stored["table.weight"].astype(np.float32)
    )
    linear = stored["layers.0.weight"][:, :, 0, 0].T.astype(np.float32)
    np.testing.assert_array_equal(params["layers"]["0"]["kernel"], linear)


def test_every_misfit_is_listed():
    shapes = {name: {"bias": jnp.zeros(2)} for name in ("a", "b", "c")}
    stored = {"a.bias": np.zeros(3), "c.bias": np.zeros(2), "d.bias": np.zeros(2)}
    with pytest.raises(ValueError) as error:
        to_params(stored, shapes)
    message = str(error.value)
    assert "missing (1): b.bias" in message
    assert "unexpected (1): d.bias" in message
    assert "wrong shape (1): a.bias (3,), the network needs (2,)" in message


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_stored_dtypes_are_read_exactly(tmp_path, dtype):
    values = np.array([1.5, -0.25, 3.0], dtype)
    save_file({"a.bias": values}, tmp_path / "model.safetensors")
    params = to_params(read_tensors(tmp_path), {"a": {"bias": jnp.zeros(3)}})
    np.testing.assert_array_equal(params["a"]["bias"], np.array([1.5, -0.25, 3.0], np.float32))


def test_shapes_are_compared_before_any_tensor_is_read():
    class Unreadable:
        def __init__(self, shape):
            self.shape = shape

        def __array__(self, dtype=None, copy=None):
            raise AssertionError("read")

    shapes = {"a": {"kernel": jnp.zeros((3, 3, 2, 4))}, "b": {"kernel": jnp.zeros((2, 4))}}
    with pytest.raises(ValueError, match=r"wrong shape \(1\): a\.weight \(4, 2, 3, 2\)"):
        to_params({"a.weight": Unreadable((4, 2, 3, 2)), "b.weight": Unreadable((4, 2, 1))}, shapes)


def test_tensors_without_use_are_left_out_and_tied_ones_must_be_equal():
    rename = lambda name: {"twin.bias": "a.bias", "rest": None}.get(name, name)
    shapes = {"a": {"bias": jnp.zeros(2)}}
    stored = {"a.bias": np.ones(2), "twin.bias": np.ones(2), "rest": np.ones(9)}
    np.testing.assert_array_equal(to_params(stored, shapes, rename=rename)["a"]["bias"], 1.0)
    with pytest.raises(ValueError, match=r"a\.bias and twin\.bias should be equal"):
        to_params(stored | {"twin.bias": np.zeros(2)}, shapes, rename=rename)


def test_params_go_where_the_shardings_say():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {"a": {"kernel": jnp.zeros((2, 3), jnp.bfloat16)}}
    weight = np.arange(6.0).reshape(3, 2)
    params = to_params({"a.weight": weight}, shapes, shardings={"a": {"kernel": sharding}})
    assert params["a"]["kernel"].sharding == sharding
    assert params["a"]["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(params["a"]["kernel"], weight.T)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3), (130, 70, 3, 2), (5, 4, 3, 2, 2)])
def test_params_become_the_tensors_that_they_were_made_from(shape):
    stored = {
        "conv.weight": np.random.default_rng(0).standard_normal(shape).astype(np.float32),
        "conv.bias": np.arange(shape[0], dtype=np.float32),
        "table": np.ones((2, 3), np.float32),
    }
    kernel = jnp.zeros((*shape[2:], shape[1], shape[0]))
    shapes = {"conv": {"kernel": kernel, "bias": jnp.zeros(shape[0])}, "table": jnp.zeros((2, 3))}
    found, read = from_params(to_params(stored, shapes))
    assert found.keys() == stored.keys()
    for name, array in stored.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(read(name), array)
    np.testing.assert_array_equal(
        channels_last(stored["conv.weight"], len(shape)),
        np.moveaxis(stored["conv.weight"], (0, 1), (-1, -2)),
    )


def test_names_are_replaced_in_whole_parts_and_back():
    table = {"ff.net.0.proj": "ff.linear_1", "ff": "other", "q": "to_q"}
    rename = renamer(table)
    name = "blocks.0.ff.net.0.proj.weight"
    assert rename(name) == "blocks.0.ff.linear_1.weight"
    assert rename("ff.q.bias") == "other.to_q.bias"
    assert rename("aff.qq") == "aff.qq"
    back = renamer({here: stored for stored, here in table.items()})
    assert back(rename(name)) == name
