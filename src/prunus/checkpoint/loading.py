"""Models by hub id or folder, of the class that their config names, with weights or without."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import PreTrainedModel

from prunus.checkpoint.shards import Shards
from prunus.errors import PrunusError


def load_model(path: str | Path) -> PreTrainedModel:
    """A model from a hub id or folder, by the class its config names.

    Raises:
        PrunusError: there is no such model, its class is none of transformers', its config or files are damaged, or a
            weight is missing.
    """
    cls = _named_class(path)
    with _clear_errors(path):
        model, info = cls.from_pretrained(path, output_loading_info=True)
    _refuse_missing(path, info)
    loaded: PreTrainedModel = model
    return loaded


def without_weights(folder: Path) -> tuple[PreTrainedModel, Shards]:
    """What `load_model` gives, but for the weights that are in files: they are on the meta device, in the type in which
    the model wants them. With the files that transformers would read.

    It is transformers' own loading, given the shapes and types of the files' tensors instead of their bytes.

    Raises:
        PrunusError: as `load_model`; the weights are no safetensors files.
    """
    cls = _named_class(folder)
    shards: list[Shards] = []

    def load(model: Any, state_dict: Any, checkpoint_files: Any, load_config: Any, *more: Any) -> Any:
        files = [Path(file) for file in checkpoint_files]
        if any(file.suffix != ".safetensors" for file in files):
            raise PrunusError(
                "model", str(folder), "the folder has no *.safetensors files; save the model with save_pretrained first"
            )
        shards.append(Shards(folder, [str(file.relative_to(folder)) for file in files]))
        places = shards[0].places
        empty = {name: torch.empty(place.shape, dtype=place.dtype, device="meta") for name, place in places.items()}
        on_meta = dataclasses.replace(load_config, device_map={"": "meta"})
        return cls._load_pretrained_model(model, empty, None, on_meta, *more)

    members = {
        "_load_pretrained_model": staticmethod(load),
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
    }
    reader: Any = type(cls.__name__, (cls,), members)
    with _clear_errors(folder):
        model, info = reader.from_pretrained(folder, output_loading_info=True)
    model.__class__ = cls
    _refuse_missing(folder, info)
    return model, shards[0]


def local_folder(path: str | Path) -> Path:
    """The folder of a model, which is fetched if the path is a hub id.

    Raises:
        PrunusError: it is neither a folder nor a hub id that can be reached.
    """
    if Path(path).is_dir():
        return Path(path)
    try:
        return Path(snapshot_download(str(path), ignore_patterns=["*.bin", "*.gguf", "*.onnx", "*.h5", "*.msgpack"]))
    except (OSError, ValueError) as error:
        raise PrunusError(
            "model", str(path), f"it is no local folder or hub id that can be reached: {_reason(error)}"
        ) from None


def bare_model(path: str) -> PreTrainedModel:
    """A model built from its config alone, without weights; call it under `torch.device("meta")`.

    Raises:
        PrunusError: there is no such config, or transformers cannot build a model of it.
    """
    config, cls = _config_and_class(path)
    with _clear_errors(path):
        if cls is not None:
            model: PreTrainedModel = cls(config)
            return model
        auto: PreTrainedModel = transformers.AutoModel.from_config(config)
        return auto


def random_model(config: dict[str, Any]) -> PreTrainedModel:
    """A model with random weights from a config as data, with `model_type` and `architectures`.

    Raises:
        PrunusError: the config is none that transformers knows, or can build a model of.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        try:
            return bare_model(folder)
        except PrunusError as error:
            raise PrunusError("model.random", config.get("model_type"), error.remedy) from None


def _named_class(path: str | Path) -> Any:
    """The class that the config at a path names.

    Raises:
        PrunusError: there is none, or it is none of transformers'.
    """
    config, cls = _config_and_class(path)
    if cls is None:
        name = config.architectures
        raise PrunusError("model", str(path), f"its config names the class {name}, which transformers does not have")
    return cls


def _config_and_class(path: str | Path) -> tuple[Any, Any]:
    """The config at a path, and the transformers class it names; None if it names none that exists."""
    if Path(path).is_dir() and not (Path(path) / "config.json").exists():
        raise PrunusError("model", str(path), "the folder has no config.json; give a folder made by save_pretrained")
    try:
        config = transformers.AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        remedy = f"it is no local folder, config file or hub id that can be reached: {_reason(error)}"
        raise PrunusError("model", str(path), remedy) from None
    except Exception as error:
        raise PrunusError("model", str(path), f"its config.json is damaged: {_reason(error)}") from None
    names = config.architectures
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise PrunusError("architectures", names, f"a list with the name of a class is wanted in {path}")
    cls = getattr(transformers, names[0], None) if names else None
    return config, cls if isinstance(cls, type) and issubclass(cls, PreTrainedModel) else None


@contextmanager
def _clear_errors(path: str | Path) -> Iterator[None]:
    """What goes wrong in transformers while it builds or loads a model is the config's fault, or the files'."""
    try:
        yield
    except PrunusError:
        raise
    except SafetensorError as error:
        raise PrunusError("weights", str(path), f"a file is damaged ({_reason(error)}); save the model again") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {_reason(error)}"
        raise PrunusError("model", str(path), f"transformers cannot make the model of it ({reason})") from error


def _refuse_missing(path: str | Path, info: dict[str, Any]) -> None:
    missing = sorted(info["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} others" if missing[1:] else ""
        raise PrunusError("weights", missing[0], f"no file in {path} holds it{more}; save the model again")


def _reason(error: Exception) -> str:
    """The first two lines: of a config's validation, the second says what is wrong with the field that the first names."""
    return " ".join(line.strip() for line in str(error).splitlines()[:2])
