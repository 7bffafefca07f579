"""A checksum per tensor, in a side file of the checkpoint: what was changed on disk does not load in silence.

`prunus-checksums.json` also holds one per entry of `config.json`, since a weight means nothing without it. Stock transformers
knows nothing of the file; our own verbs compare before they read a weight.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open

from prunus.errors import PrunusError
from prunus.storage import refuse_newer, write_text

CHECKSUMS = "prunus-checksums.json"
FORMAT = "prunus.checksums/1"
UNCHECKED = frozenset({"_name_or_path", "transformers_version"})
"""Entries of a config that say nothing about the model."""
MEANT = f"take a copy that is whole; if it was changed on purpose, delete {CHECKSUMS}"
CHUNK = 1 << 20


class Checksum(BaseModel):
    """What is known of one tensor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: str
    """As safetensors calls it: F32, BF16."""
    shape: tuple[int, ...]
    sha256: str


class Checksums(BaseModel):
    """The side file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["prunus.checksums/1"] = "prunus.checksums/1"
    config: dict[str, str]
    """Entry of `config.json` → sha256 of its canonical JSON."""
    tensors: dict[str, Checksum]


def write_checksums(folder: str | Path) -> None:
    """Notes what a checkpoint folder holds; an earlier note is replaced.

    Raises:
        PrunusError: a weight file is damaged.
    """
    folder = Path(folder)
    noted = Checksums(config=_config(folder), tensors=_tensors(folder))
    write_text(folder / CHECKSUMS, noted.model_dump_json(indent=1) + "\n")


def verify(folder: str | Path, with_config: bool = True) -> bool:
    """Compares a checkpoint folder with its checksums, a megabyte in memory at a time.

    Args:
        with_config: compare the entries of its config, too.

    Returns:
        Whether the folder has checksums; nothing is known of one that has none.

    Raises:
        PrunusError: a tensor differs in bits, type or shape, is missing or unknown, a file is damaged, or the config says
            something else. The error names the tensor and its file, or the entry of the config.
    """
    folder = Path(folder)
    side = folder / CHECKSUMS
    if not side.exists():
        return False
    try:
        text = side.read_text(encoding="utf-8")
        refuse_newer("checksums", text[:200], FORMAT)
        noted = Checksums.model_validate_json(text)
    except PrunusError:
        raise
    except (OSError, ValidationError, ValueError):
        raise PrunusError("checksums", str(side), f"the file is damaged; {MEANT}") from None
    if with_config:
        _compare_config(noted.config, _config(folder), folder / "config.json")
    files = {name: file for file in weight_files(folder) for name in _entries(file)}
    missing = next((name for name in noted.tensors if name not in files), None)
    unknown = next((name for name in files if name not in noted.tensors), None)
    if missing is not None:
        instead = f", {files[unknown]} holds an unknown {unknown} instead" if unknown is not None else ""
        raise PrunusError("weights", missing, f"no file in {folder} holds it{instead}; {MEANT}")
    if unknown is not None:
        raise PrunusError("weights", unknown, f"{files[unknown]} held no such tensor when it was saved; {MEANT}")
    for name, found in _sums(folder):
        wanted = noted.tensors[name]
        for what in ("dtype", "shape", "sha256"):
            if getattr(found, what) != getattr(wanted, what):
                said = "its bits have" if what == "sha256" else f"its {what} has"
                raise PrunusError("weights", name, f"{said} changed in {files[name]} since it was saved; {MEANT}")
    return True


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that a folder's weights lie in: as transformers looks for them, or else all there are."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return (single,)
    if not index.exists():
        return tuple(sorted(folder.glob("*.safetensors")))
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        files = tuple(sorted(folder / name for name in names))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise PrunusError("weights", str(index), "the index is damaged; save the model again") from None
    outside = next((file for file in files if file.parent != folder), None)
    if outside is not None:
        raise PrunusError("weights", str(index), f"it names {outside}, which is no file of the folder")
    return files


def _entries(file: Path) -> Mapping[str, Mapping[str, Any]]:
    """The header of a safetensors file that is whole: name → dtype, shape, data_offsets from the file's beginning."""
    if not file.is_file():
        raise PrunusError("weights", str(file), "there is no such file; save the model again")
    try:
        with safe_open(str(file), framework="pt"):  # checks types, shapes, offsets and the length
            pass
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise PrunusError("weights", str(file), f"the file is damaged ({error}); save the model again") from None
    header.pop("__metadata__", None)
    base = 8 + length
    return {
        name: {**entry, "data_offsets": [base + offset for offset in entry["data_offsets"]]}
        for name, entry in header.items()
    }


def _sums(folder: Path) -> Iterator[tuple[str, Checksum]]:
    for path in weight_files(folder):
        entries = _entries(path)
        with open(path, "rb") as file:
            for name, entry in entries.items():
                start, stop = entry["data_offsets"]
                file.seek(start)
                digest = hashlib.sha256()
                for place in range(start, stop, CHUNK):
                    digest.update(file.read(min(CHUNK, stop - place)))
                yield name, Checksum(dtype=entry["dtype"], shape=entry["shape"], sha256=digest.hexdigest())


def _tensors(folder: Path) -> dict[str, Checksum]:
    return dict(_sums(folder))


def _config(folder: Path) -> dict[str, str]:
    path = folder / "config.json"
    if not path.exists():
        return {}
    try:
        config = dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        raise PrunusError("config", str(path), "it is no JSON object; save the model again") from None
    return {
        name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
        for name, value in config.items()
        if name not in UNCHECKED
    }


def _compare_config(noted: Mapping[str, str], found: Mapping[str, str], path: Path) -> None:
    for name in [*noted, *found]:
        if noted.get(name) != found.get(name):
            said = "is gone" if name not in found else "is new" if name not in noted else "has changed"
            raise PrunusError(f"config.{name}", str(path), f"it {said} since the model was saved; {MEANT}")
