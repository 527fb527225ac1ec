import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffjax.pretrained import read_config, read_tensors
from diffjax.pretrained.folders import weight_files, write_tensors


def names(folder, **options):
    return [file.name for file in weight_files(folder, **options)]


def write(folder, *files):
    """Files with one tensor each, named like the file."""
    for number, file in enumerate(files):
        save_file({f"{number}": np.ones(2)}, folder / file)


def test_shards_are_joined_and_variants_left_out(tmp_path):
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    write(tmp_path, *shards, "model.fp16.safetensors", "model.non_ema.safetensors")
    assert names(tmp_path) == shards
    assert names(tmp_path, variant="fp16") == ["model.fp16.safetensors"]
    assert set(read_tensors(tmp_path)) == {"0", "1"}
    save_file({"0": np.ones(2)}, tmp_path / shards[1])
    with pytest.raises(ValueError, match="repeats tensors"):
        read_tensors(tmp_path)


def test_weights_in_the_layout_of_others_are_left_alone(tmp_path):
    """As beside SDXL's repaired autoencoder; where there is no other file, any name will do."""
    write(tmp_path, "sdxl_vae.safetensors")
    assert names(tmp_path) == ["sdxl_vae.safetensors"]
    write(tmp_path, "diffusion_pytorch_model.safetensors", "sdxl.vae.safetensors")
    assert names(tmp_path) == ["diffusion_pytorch_model.safetensors"]


@pytest.mark.parametrize("pattern", ["m.fp16-0000{}-of-00002", "m-0000{}-of-00002.fp16"])
def test_variants_of_shards_have_either_name(tmp_path, pattern):
    files = [pattern.format(number) + ".safetensors" for number in (1, 2)]
    write(tmp_path, *files)
    assert names(tmp_path, variant="fp16") == files
    assert names(tmp_path) == files


def test_a_variant_that_is_missing_or_not_named_is_refused(tmp_path):
    write(tmp_path, "model.fp16.safetensors", "model.non_ema.safetensors")
    with pytest.raises(ValueError, match=r"variants \['fp16', 'non_ema'\]; name one"):
        weight_files(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no variant 'bf16'; there is .*'fp16'"):
        weight_files(tmp_path, variant="bf16")


def test_missing_shards_are_named(tmp_path):
    write(tmp_path, "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors")
    with pytest.raises(FileNotFoundError, match="lacks model-00002-of-00003"):
        weight_files(tmp_path)


def test_files_of_the_index_must_be_there_and_in_the_folder(tmp_path):
    write(tmp_path, "model.safetensors", "model.fp16.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"0": "model.safetensors", "1": "b.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"lacks b\.safetensors"):
        weight_files(tmp_path)
    assert names(tmp_path, variant="fp16") == ["model.fp16.safetensors"]
    for path in ("../model.safetensors", "/etc/passwd", "a/b.safetensors"):
        index.write_text(json.dumps({"weight_map": {"0": path}}))
        with pytest.raises(ValueError, match="outside its folder"):
            weight_files(tmp_path)
    for content in ("[]", "{", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'):
        index.write_text(content)
        with pytest.raises(ValueError, match=r"index\.json"):
            weight_files(tmp_path)


@pytest.mark.parametrize("limit", [10**10, 30, 1])
def test_written_tensors_are_read_again(tmp_path, limit):
    arrays = {name: np.full(3, i, np.float32) for i, name in enumerate("abcd")}
    options = {"stem": "model", "variant": "fp16", "max_file_size": limit}
    write_tensors(tmp_path, arrays, arrays.__getitem__, **options)
    count = {10**10: 1, 30: 2, 1: 4}[limit]
    files = names(tmp_path, variant="fp16")
    assert len(files) == count
    found = read_tensors(tmp_path, variant="fp16")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.asarray(found[name]), array)
    if count > 1:
        index = json.loads((tmp_path / "model.safetensors.index.fp16.json").read_text())
        assert index["metadata"]["total_size"] == 48
        assert index["weight_map"] == {name: found[name].path.name for name in arrays}


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.ckpt", "model.pkl"])
def test_pickles_are_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=f"{name}.*run any program.*convert"):
        read_tensors(tmp_path)


def test_missing_files_and_broken_configs_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        read_tensors(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no"):
        read_tensors(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="must hold a JSON object"):
        read_config(tmp_path)
