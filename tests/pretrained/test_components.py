import json
import pickle

import pytest
from safetensors.numpy import save_file

from diffjax.pretrained import UnsupportedError
from diffjax.pretrained.components import load_components, read_model_index


def write_index(folder, **entries):
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.30"} | entries
    (folder / "model_index.json").write_text(json.dumps(index))


def test_parts_and_settings_are_told_apart(tmp_path):
    write_index(tmp_path, unet=["diffusers", "UNet2DModel"], safety_checker=[None, None], flag=True)
    name, parts, settings = read_model_index(tmp_path)
    assert name == "StableDiffusionPipeline"
    assert (parts, settings) == ({"unet": "UNet2DModel"}, {"flag": True})


@pytest.mark.parametrize("part", ["../vae", "/etc", "..", ".", "", "a/b", "link"])
def test_parts_outside_the_folder_are_refused(tmp_path, part):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "link").symlink_to(tmp_path)
    write_index(tmp_path / "model", **{part: ["diffusers", "AutoencoderKL"]})
    with pytest.raises(ValueError, match="outside its folder"):
        load_components(tmp_path / "model")


def test_code_in_a_folder_is_never_run(tmp_path):
    (tmp_path / "pipeline.py").write_text("raise SystemExit")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    write_index(tmp_path, unet=["pipeline", "MyUNet"])
    with pytest.raises(UnsupportedError, match="'MyUNet'; the nearest name is"):
        load_components(tmp_path)


def test_pickles_are_refused_by_name_and_by_content(tmp_path):
    vae = tmp_path / "vae"
    vae.mkdir()
    write_index(tmp_path, vae=["diffusers", "AutoencoderKL"])
    (vae / "config.json").write_text(json.dumps({"norm_num_groups": 8}))
    (vae / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(FileNotFoundError, match=r"a pickle can run any program.*save_file"):
        load_components(tmp_path)
    weights = vae / "diffusion_pytorch_model.safetensors"
    for content, kind in ((pickle.dumps({"a": 1}), "a pickle"), (b"PK\x03\x04" + bytes(60), "zip")):
        weights.write_bytes(content)
        with pytest.raises(ValueError, match=kind):
            load_components(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "not valid JSON"), ("[]", "must hold a JSON object"), ("{}", "names no class")],
)
def test_a_malformed_index_ends_in_one_line(tmp_path, content, reason):
    (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(ValueError, match=reason) as error:
        load_components(tmp_path)
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no model_index\.json"):
        load_components(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_components(tmp_path / "none")
    write_index(tmp_path, vae=["diffusers", "AutoencoderKL"])
    with pytest.raises(FileNotFoundError, match="names vae"):
        load_components(tmp_path)
    with pytest.raises(ValueError, match=r"no part 'vea'; the nearest name is \['vae'\]"):
        load_components(tmp_path, only=["vea"])
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model_index.json").unlink()
    with pytest.raises(FileNotFoundError, match="load_model"):
        load_components(tmp_path)


def test_a_variant_that_no_part_has_is_refused(tmp_path):
    write_index(tmp_path, unet=["diffusers", "UNet2DModel"], vae=["diffusers", "AutoencoderKL"])
    for part, ending in (("unet", ".fp16"), ("vae", "")):
        (tmp_path / part).mkdir()
        save_file({}, tmp_path / part / f"diffusion_pytorch_model{ending}.safetensors")
    with pytest.raises(FileNotFoundError, match="no variant 'fp61'; there is fp16"):
        load_components(tmp_path, variant="fp61")
    # one part has it: what is wrong is found later, in the part itself
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load_components(tmp_path, variant="fp16")
