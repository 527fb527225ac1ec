"""A list of the files of a finished folder, with size and hash, to find damage before it is used.

Orbax gives back flipped bits of array data without a word, and its own marks of a finished save
survive the loss of the data. The manifest is written last, so that a folder without one was never
finished, and it is written atomically, so that there is no half of one.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Write `manifest.json` over all files now in the folder and below.

    Raises:
      OSError: a file cannot be read or the manifest not be written.
    """
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _hash(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_atomically(folder / MANIFEST, json.dumps({"files": files}, indent=1))


def find_damage(folder: Path, *, under: tuple[str, ...] = ("",)) -> str | None:
    """Compare a folder with its manifest.

    Args:
      folder: a folder that `write_manifest` has finished.
      under: check only files whose relative path begins so, such as `("ema/", "run.json")`.

    Returns:
      What is wrong with the first damaged file, or None if nothing is.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        listed = {name: (entry["size"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    for name, (size, digest) in listed.items():
        if name.startswith(under):
            damage = _compare(folder / name, size, digest)
            if damage:
                return f"{name} {damage}"
    return None


def write_atomically(path: Path, text: str) -> None:
    """Write a text file such that a crash leaves the old content or the new, never a part."""
    with whole_file(path) as draft:
        draft.write_text(text)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write to, with the same suffix, that becomes `path` once it is written.

    After an error or a crash `path` is what it was before.
    """
    draft = path.with_name(f"{path.stem}.tmp{path.suffix}")
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
        sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder, such as a rename just done, survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _compare(path: Path, size: int, digest: str) -> str | None:
    try:
        found = path.stat().st_size
        if found != size:
            return f"has {found} bytes instead of {size}"
        return None if _hash(path) == digest else "does not match its hash"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
