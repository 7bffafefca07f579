"""Models by hub id or folder, of the class that their config names, with weights or without."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import snapshot_download
from transformers import PreTrainedModel

from prunus.errors import PrunusError


def load_model(path: str | Path) -> PreTrainedModel:
    """A model from a hub id or folder, by the class its config names.

    Raises:
        PrunusError: there is no such model, or its class is none of transformers'.
    """
    if Path(path).is_dir() and not (Path(path) / "config.json").exists():
        raise PrunusError("model", str(path), "the folder has no config.json; give a folder made by save_pretrained")
    config, cls = _config_and_class(path)
    if cls is None:
        name = config.architectures
        raise PrunusError("model", str(path), f"its config names the class {name}, which transformers does not have")
    model: PreTrainedModel = cls.from_pretrained(path)
    return model


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
        reason = str(error).split("\n", maxsplit=1)[0]
        raise PrunusError(
            "model", str(path), f"it is no local folder or hub id that can be reached: {reason}"
        ) from None


def bare_model(path: str) -> PreTrainedModel:
    """A model built from its config alone, without weights; call it under `torch.device("meta")`.

    Raises:
        PrunusError: there is no such config, or its class is none of transformers'.
    """
    config, cls = _config_and_class(path)
    if cls is not None:
        model: PreTrainedModel = cls(config)
        return model
    auto: PreTrainedModel = transformers.AutoModel.from_config(config)
    return auto


def random_model(config: dict[str, Any]) -> PreTrainedModel:
    """A model with random weights from a config as data, with `model_type` and `architectures`.

    Raises:
        PrunusError: the config is none that transformers knows.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        try:
            return bare_model(folder)
        except PrunusError as error:
            raise PrunusError("model.random", config.get("model_type"), error.remedy) from None


def _config_and_class(path: str | Path) -> tuple[Any, Any]:
    """The config at a path, and the transformers class it names; None if it names none that exists."""
    try:
        config = transformers.AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        remedy = f"it is no local folder, config file or hub id that can be reached: {reason}"
        raise PrunusError("model", str(path), remedy) from None
    name = (config.architectures or [None])[0]
    return config, getattr(transformers, name, None) if name else None
