import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffjax.pretrained import read_config, read_tensors, to_params
from diffjax.pretrained.weights import channels_last


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


def test_parts_are_joined_and_half_precision_copies_left_out(tmp_path):
    save_file({"a": np.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": np.ones(3)}, tmp_path / "model-00002-of-00002.safetensors")
    save_file({"a": np.zeros(2, np.float16)}, tmp_path / "model.fp16.safetensors")
    tensors = read_tensors(tmp_path)
    assert set(tensors) == {"a", "b"}
    assert tensors["a"].dtype == np.float64
    save_file({"a": np.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="repeats tensors"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.ckpt", "model.pkl"])
def test_pickles_are_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=f"{name}.*run any program"):
        read_tensors(tmp_path)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        read_tensors(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no"):
        read_tensors(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00\x00")
    with pytest.raises(ValueError, match=r"model\.safetensors is not a readable"):
        read_tensors(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="must hold a JSON object"):
        read_config(tmp_path)
