"""The tensors in a published checkpoint file, read without running any code that it may hold."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from prunus.errors import LONGEST, PrunusError

WRAPPERS = ("model", "state_dict", "model_state_dict", "model_ema", "ema", "module")
"""Entries under which trainers save the weights beside their own state; the first that is there counts."""
PARALLEL = "module."
"""What `DataParallel` puts before every name."""
ZIP, PICKLE = b"PK\x03\x04", b"\x80"
"""How files of torch begin: since version 1.6, and before."""
STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32, "BoolStorage": torch.bool,
}  # fmt: skip
"""Types of stored tensors by the names that archives give them."""
CODE = "/code/"
"""Where TorchScript keeps what it compresses. It compresses no tensors."""
SCRIPT = "/constants.pkl"
"""The entry by which a TorchScript archive is told from a state dict."""


def read_tensors(file: str | Path) -> dict[str, Tensor]:
    """Published name → tensor, on the CPU. Large files stay on disk until their tensors are used.

    Args:
        file: of `torch.save` (`.pth`, `.pt`, `.bin`), a TorchScript archive, or `.safetensors`.

    Raises:
        PrunusError: there is no such file, it is damaged, holds code or pickled objects, or no tensors.
    """
    path = Path(file).expanduser()
    if path.is_dir():
        raise PrunusError("file", str(file), "it is a folder; give the published checkpoint file")
    try:
        with path.open("rb") as opened:
            begins = opened.read(9)
    except OSError as error:
        raise PrunusError("file", str(file), f"it cannot be read ({error.strerror}); give a checkpoint file") from None
    with torch.device("cpu"):  # also where a model is being built on another
        return _tensors(path, begins)


def _tensors(path: Path, begins: bytes) -> dict[str, Tensor]:
    file = str(path)
    if path.suffix == ".safetensors" or begins[8:] == b"{":  # after the length of its header
        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise PrunusError("file", file, f"it is damaged ({error}); download it again") from None
    if begins.startswith(ZIP):
        return _state(_read_zip(path), file)
    if begins[:1] == PICKLE:
        return _state(_read(path, mmap=False), file)
    raise PrunusError("file", file, "it is no file of torch.save and no safetensors; download it again")


def _read_zip(path: Path) -> object:
    try:
        with zipfile.ZipFile(path) as archive:
            script = next((name.removesuffix(SCRIPT) for name in archive.namelist() if name.endswith(SCRIPT)), None)
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
            if any(script is None or not name.startswith(script + CODE) for name in packed):
                raise PrunusError("file", str(path), "it is a compressed archive; give the checkpoint file itself")
            if script is not None:
                return _read_script(archive, script, path)
    except PrunusError:
        raise
    except (
        zipfile.BadZipFile,
        ValueError,
        NotImplementedError,
    ):  # also names that cannot be, and kinds of archives that nobody writes
        raise PrunusError("file", str(path), "it ends too early or is damaged; download it again") from None
    return _read(path, mmap=True)


def _read(path: Path, mmap: bool) -> object:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # settings that trainers save beside the weights
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise PrunusError(
            "file", str(path), "it holds pickled objects or code beside tensors, which is not run "
            f"({_reason(error)}); ask its publisher for the state dict alone",
        ) from None  # fmt: skip
    except MemoryError:
        raise
    except Exception as error:  # torch unpacks what it reads, and asserts what it has read
        raise PrunusError("file", str(path), f"it is damaged ({_reason(error)}); download it again") from None


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if "Unsupported" in line or "GLOBAL" in line), "".join(lines[:1]))
    return told[:160] or type(error).__name__


class _Shell:
    """An object of a TorchScript archive: its attributes, none of its code."""

    def __init__(self, *parts: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, Mapping):
            self.__dict__.update(state)


class _ScriptReader(pickle.Unpickler):
    """Reads the objects of a TorchScript archive as shells. The only functions that it calls are those of this class."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(BytesIO(archive.read(f"{root}/data.pkl")))
        self.archive, self.root = archive, root
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Shell
        if module == "torch" and name.endswith("Storage"):
            return name
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch.jit._pickle" and name.startswith(("build_", "restore_type_tag")):
            return _same
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a model")

    def persistent_load(self, saved: Any) -> Tensor:
        _, kind, key, *_ = saved
        if key not in self.storages:
            dtype = STORAGES[kind]
            data = bytearray(self.archive.read(f"{self.root}/data/{key}"))
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: object) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _same(value: object, *rest: object) -> object:
    return value


def _read_script(archive: zipfile.ZipFile, root: str, path: Path) -> dict[str, Tensor]:
    try:
        return dict(_tensors_in(_ScriptReader(archive, root).load(), ""))
    except Exception as error:  # whatever a damaged or hostile pickle makes of the reader
        raise PrunusError(
            "file", str(path), f"the TorchScript archive holds no plain model ({_reason(error)}); download it again"
        ) from None


def _tensors_in(shell: object, path: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(shell).items():
        if isinstance(value, Tensor):
            yield path + name, value
        elif isinstance(value, _Shell):
            yield from _tensors_in(value, f"{path}{name}.")


def _state(loaded: object, file: str) -> dict[str, Tensor]:
    """The state dict in what was loaded: itself, or an entry of what a trainer saved."""
    while isinstance(loaded, Mapping) and any(isinstance(loaded.get(name), Mapping) for name in WRAPPERS):
        loaded = next(loaded[name] for name in WRAPPERS if isinstance(loaded.get(name), Mapping))
    if not isinstance(loaded, Mapping):
        raise PrunusError("file", file, f"it holds a {type(loaded).__name__}, no weights by name")
    if not any(isinstance(value, Tensor) for value in loaded.values()):
        held = ", ".join(str(name) for name in loaded) or "nothing"
        raise PrunusError("file", file, f"it holds {held[:LONGEST]}, and no weights")
    others = ", ".join(str(name) for name, value in loaded.items() if not isinstance(value, Tensor))
    if others:
        raise PrunusError("file", file, f"among its weights are entries that are no tensors: {others[:LONGEST]}")
    named = {str(name): tensor for name, tensor in loaded.items()}
    if all(name.startswith(PARALLEL) for name in named):
        return {name.removeprefix(PARALLEL): tensor for name, tensor in named.items()}
    return named
