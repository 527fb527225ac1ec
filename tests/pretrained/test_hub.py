import sys
from types import SimpleNamespace

import pytest

from diffjax.pretrained import find_folder
from diffjax.pretrained.hub import weights_to_fetch

# as of a repository of Stable Diffusion
FILES = [
    "model_index.json",
    "whole.safetensors",
    "safety_checker/model.safetensors",
    "text_encoder/model.safetensors",
    "text_encoder/pytorch_model.bin",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with that repository; what it was asked for."""
    asked = []

    def download(name, **options):
        asked.append(options)
        if options.get("local_files_only") and not tmp_path.is_dir():
            raise OSError
        return str(tmp_path)

    def list_files(self, name, *, revision):
        if name == "no/where":
            raise ConnectionError
        return FILES

    api = type("HfApi", (), {"list_repo_files": list_files})
    fake = SimpleNamespace(HfApi=api, snapshot_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return asked


def test_a_folder_is_taken_as_it_is_and_a_path_never_for_a_repository(tmp_path, hub):
    assert find_folder(tmp_path) == tmp_path
    for name in ("./none", "/no/where", "one-word", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="is not a folder"):
            find_folder(name)
    assert not hub


def test_one_copy_of_the_weights_that_are_needed_is_fetched():
    plain = ["text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors"]
    half = [plain[0], "unet/diffusion_pytorch_model.fp16.safetensors"]
    assert weights_to_fetch(FILES) == weights_to_fetch(FILES, "bf16") == plain
    assert weights_to_fetch(FILES, "fp16") == half
    # one network, with the same weights for another program
    control = ["config.json", "diffusion_pytorch_model.safetensors", "control.safetensors"]
    assert weights_to_fetch(control) == control[1:2]


def test_of_a_repository_no_pickles_are_fetched(hub, tmp_path):
    assert find_folder("owner/name", variant="fp16") == tmp_path
    (options,) = hub
    patterns = options["allow_patterns"]
    assert patterns[-2:] == weights_to_fetch(FILES, "fp16")
    assert not any(pattern.endswith((".bin", "*.safetensors")) for pattern in patterns)


def test_without_the_hub_what_was_fetched_before_is_taken(hub, tmp_path):
    assert find_folder("no/where") == tmp_path
    tmp_path.rmdir()
    with pytest.raises(FileNotFoundError, match=r"nor in the local cache.*ConnectionError"):
        find_folder("no/where")
    assert all(options["local_files_only"] for options in hub)


def test_without_the_package_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'diffjax\[hub\]'"):
        find_folder("owner/name")
