"""Folders by name: those of this machine, and repositories of the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path

from diffjax.pretrained.components import MODEL_INDEX, NOT_NEEDED
from diffjax.pretrained.folders import copies_of

# files that are fetched whatever the weights: configurations, tokenizers
_NOTES = ("*.json", "*.txt", "*.model")


def find_folder(
    name: str | Path, *, revision: str | None = None, variant: str | None = None
) -> Path:
    """A folder itself, or the local copy of a Hugging Face repository of that name.

    What the local cache lacks is downloaded, if the package huggingface_hub is there and the hub
    can be reached: of the weights one copy and only safetensors, never pickles.

    Args:
      name: of a folder, or OWNER/NAME.
      revision: of a repository.
      variant: which copy of its weights, where it has several; see `read_tensors`.

    Raises:
      FileNotFoundError: there is no such folder, and no such repository can be had.
    """
    folder = Path(name).expanduser()
    if folder.exists() or str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
        if not folder.is_dir():
            raise FileNotFoundError(f"{name} is not a folder")
        return folder
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError as error:
        raise FileNotFoundError(
            f"{name} is not a folder here; to fetch a repository of that name from the hub, "
            "pip install 'diffjax[hub]'"
        ) from error
    try:
        files = HfApi().list_repo_files(str(name), revision=revision)
        wanted = [*_NOTES, *weights_to_fetch(files, variant)]
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=wanted))
    except Exception as error:
        try:
            # without the hub, what was fetched before
            local = snapshot_download(str(name), revision=revision, local_files_only=True)
        except Exception:
            raise FileNotFoundError(
                f"{name} is neither a folder here nor in the local cache, and the hub did not give "
                f"it: {type(error).__name__}"
            ) from error
        return Path(local)


def weights_to_fetch(files: Sequence[str], variant: str | None = None) -> list[str]:
    """Of a repository's files, the weights that are read: one copy, none of parts not needed.

    >>> files = ["model_index.json", "whole.safetensors", "unet/model.safetensors"]
    >>> weights_to_fetch([*files, "unet/model.fp16.safetensors"], "fp16")
    ['unet/model.fp16.safetensors']
    """
    folders: dict[str, list[str]] = {}
    for file in files:
        place, _, name = file.rpartition("/")
        if name.endswith(".safetensors"):
            folders.setdefault(place, []).append(name)
    # one network has its weights at the top; there a system has copies for other programs
    parts = [part for part in folders if part and part not in NOT_NEEDED and "/" not in part]
    fetched = []
    for place in parts if MODEL_INDEX in files else [""]:
        copies = copies_of(folders.get(place, ()))
        every = [name for names in copies.values() for name in names]
        for name in copies.get(variant) or copies.get(None) or every:
            fetched.append(f"{place}/{name}".lstrip("/"))
    return fetched
