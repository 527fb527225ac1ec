import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffjax.pretrained.tensor_files import read_tensor_file, write_tensor_file

ARRAYS = {
    "half": np.arange(6, dtype=np.float16).reshape(2, 3),
    "brain": np.arange(3).astype(ml_dtypes.bfloat16),
    "full": np.full((2, 0, 4), 1.5, np.float32),
    "scalar": np.full((), 2.5),
    "numbers": np.arange(5),
    "flags": np.array([True, False]),
}


def write(path, arrays):
    write_tensor_file(path, arrays, arrays.__getitem__)


def assert_equal(found, arrays):
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(np.asarray(found[name]), array)


def test_files_of_the_safetensors_library_are_read(tmp_path):
    save_file(ARRAYS, tmp_path / "a.safetensors", metadata={"format": "pt"})
    assert_equal(read_tensor_file(tmp_path / "a.safetensors"), ARRAYS)


def test_the_safetensors_library_reads_our_files(tmp_path):
    write(tmp_path / "a.safetensors", ARRAYS)
    assert_equal(load_file(tmp_path / "a.safetensors"), ARRAYS)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def write_raw(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + text + data)


def entry(shape, offsets, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


TWELVE = bytes(12)

# what is wrong -> the header, the data, the length that the file claims, a part of the message
DAMAGED = {
    "longer than the file": ({}, b"", 10**6, "would have 1000000 bytes in a file of 10"),
    "longer than any": ({}, b"", 2**63, "would have"),
    "no JSON": (b"{]", b"", None, "not valid JSON"),
    "no text": (b"\xff\xfe{}", b"", None, "not valid JSON"),
    "bottomless": (b"[" * 10**5, b"", None, "not valid JSON"),
    "no object": ([1], b"", None, "a JSON list"),
    "a name twice": (b'{"a": 1, "a": 2}', b"", None, "occurs twice"),
    "no entry": ({"a": 5}, b"", None, "lacks dtype"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [3]}}, TWELVE, None, "lacks dtype"),
    "one offset": ({"a": entry([3], [0])}, TWELVE, None, "lacks dtype"),
    "negative shape": ({"a": entry([-3], [0, 12])}, TWELVE, None, "natural numbers"),
    "text for a shape": ({"a": entry("abc", [0, 12])}, TWELVE, None, "natural numbers"),
    "fraction": ({"a": entry([1.5], [0, 12])}, TWELVE, None, "natural numbers"),
    "true": ({"a": entry([True], [0, 4])}, bytes(4), None, "natural numbers"),
    "unknown dtype": ({"a": entry([3], [0, 12], "F33")}, TWELVE, None, "dtype 'F33'"),
    "too large a shape": ({"a": entry([10**9, 10**9], [0, 12])}, TWELVE, None, "would have 12"),
    "cut off": ({"a": entry([3], [0, 12])}, bytes(11), None, "the file has 11"),
    "more than claimed": ({"a": entry([3], [0, 12])}, bytes(13), None, "the file has 13"),
    "gap": ({"a": entry([1], [0, 4]), "b": entry([1], [8, 12])}, TWELVE, None, "its place is 4"),
    "overlap": ({"a": entry([2], [0, 8]), "b": entry([2], [4, 12])}, TWELVE, None, "place is 8"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_end_in_one_clear_line(tmp_path, name):
    header, data, length, message = DAMAGED[name]
    path = tmp_path / "a.safetensors"
    write_raw(path, header, data, length)
    with pytest.raises(ValueError) as error:
        read_tensor_file(path)
    text = str(error.value)
    assert text.startswith(str(path))
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize("length", [0, 3, 7, 8])
def test_the_beginning_of_a_file_alone_is_damaged(tmp_path, length):
    write(tmp_path / "a.safetensors", {"a": np.ones(3, np.float32)})
    path = tmp_path / "b.safetensors"
    path.write_bytes((tmp_path / "a.safetensors").read_bytes()[:length])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        read_tensor_file(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02}q\x00X\x04\x00\x00\x00aaaaq\x01K\x01s.", "a pickle: .*convert it"),
        (b"PK\x03\x04\x00\x00\x08\x08" + bytes(50), "torch.save .*convert it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_other_formats_are_known_by_their_beginning(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_tensor_file(path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, {"a": np.ones(3, np.float32)})
    shapes = dict.fromkeys("ab", np.zeros(3, np.float32))

    def read(name):
        if name == "b":
            raise KeyboardInterrupt
        return shapes[name]

    with pytest.raises(KeyboardInterrupt):
        write_tensor_file(path, shapes, read)
    assert_equal(read_tensor_file(path), {"a": np.ones(3, np.float32)})
