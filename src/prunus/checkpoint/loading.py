"""Models by hub id or folder, of the class that their config names, with weights or without."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedModel

from prunus.checkpoint.checksums import verify, weight_files
from prunus.checkpoint.described import restore_records
from prunus.checkpoint.plausible import bounded, check_config, memory, read_config, reason, understood
from prunus.checkpoint.shards import Shards
from prunus.errors import PrunusError
from prunus.extensions import load_installed


def load_model(path: str | Path) -> PreTrainedModel:
    """A model from a hub id or folder, by the class its config names, from safetensors, with every weight from its files.

    Raises:
        PrunusError: there is no such model, its class is unknown, a weight is missing, or a file is damaged or
            differs from its checksum.
    """
    config, cls = _config_and_named_class(path)
    if Path(path).is_dir():
        _refuse_without_weights(Path(path))
        verify(path, with_config=not restore_records(Path(path), config))
    loaded: PreTrainedModel = _read(path, config, cls)
    return loaded


def without_weights(folder: Path) -> tuple[PreTrainedModel, Shards]:
    """What `load_model` gives, but for the weights that are in files: they are on the meta device, in the type in which
    the model wants them. With the files that transformers would read.

    It is transformers' own loading, given the shapes and types of the files' tensors instead of their bytes.

    Raises:
        PrunusError: as `load_model`; the weights are quantised.
    """
    if not folder.is_dir():
        raise PrunusError("source", str(folder), "there is no such folder; fetch the model, and give its folder")
    config, cls = _config_and_named_class(folder)
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        method = dict(quantised).get("quant_method", "quantization_config")
        raise PrunusError(
            "model", str(folder), f"its weights are quantised ({method}); prune the dense model, then quantise"
        )
    _refuse_without_weights(folder)
    shards: list[Shards] = []

    def load(model: Any, state_dict: Any, checkpoint_files: Any, load_config: Any, *more: Any) -> Any:
        files = [Path(file) for file in checkpoint_files]
        for file in files:
            if not file.is_relative_to(folder) or ".." in file.relative_to(folder).parts:
                raise PrunusError(
                    "weights", str(file), "the index names a file outside the folder; save the model again"
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
    model = _read(folder, config, reader)
    model.__class__ = cls
    return model, shards[0]


def _read(path: str | Path, config: Any, cls: Any) -> Any:
    """transformers' loading, from safetensors and nothing else, and of nothing but what is there."""
    too_large = "its config asks for many more weights than its files hold; one of them is damaged"
    limit = _elements_in(Path(path), config) if Path(path).is_dir() else math.inf
    with understood(str(path), config.to_dict(), "load the model"), bounded(limit, too_large, "model", str(path)):
        model, said = cls.from_pretrained(
            path, config=config, output_loading_info=True, use_safetensors=True, trust_remote_code=False
        )
    missing = sorted(said["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} others" if missing[1:] else ""
        raise PrunusError("weights", missing[0], f"no file in {path} holds it{more}; save the model again")
    return model


def _refuse_without_weights(folder: Path) -> None:
    if not weight_files(folder):
        raise PrunusError(
            "model", str(folder), "the folder has no *.safetensors files, and no others are opened; save the model with save_pretrained"
        )  # fmt: skip


def _elements_in(folder: Path, config: Any) -> float:
    """How many elements a model may have that is loaded from a folder: one takes a byte in files, or less where it is packed,
    and tied weights are built twice."""
    packed = getattr(config, "quantization_config", None) is not None
    return (16 if packed else 4) * sum(
        file.stat().st_size for file in weight_files(folder) if file.is_file()
    ) + 1_000_000


def local_folder(path: str | Path) -> Path:
    """The folder of a model, which is fetched if the path is a hub id.

    Raises:
        PrunusError: it is neither the folder of a model nor a hub id that can be reached.
    """
    if Path(path).is_dir():
        _refuse_without_config(Path(path))
        return Path(path)
    try:
        return Path(snapshot_download(str(path), ignore_patterns=["*.bin", "*.gguf", "*.onnx", "*.h5", "*.msgpack"]))
    except (OSError, ValueError) as error:
        raise PrunusError(
            "model", str(path), f"it is no local folder or hub id that can be reached: {reason(error)}"
        ) from None


def _refuse_without_config(folder: Path) -> None:
    if not (folder / "config.json").exists():
        raise PrunusError("model", str(folder), "the folder has no config.json; give a folder made by save_pretrained")


def bare_model(path: str) -> PreTrainedModel:
    """A model built from its config alone, without weights; call it under `torch.device("meta")`.

    Raises:
        PrunusError: there is no such config, its class is unknown, or it cannot be built.
    """
    return _built(*_config_and_class(path), str(path))


def random_model(config: dict[str, Any]) -> PreTrainedModel:
    """A model with random weights from a config as data, with `model_type` and `architectures`.

    Raises:
        PrunusError: the config is none that transformers knows or can build, or the model is larger than this machine's memory.
    """
    field = "model.random"
    if not isinstance(config.get("model_type"), str):
        raise PrunusError(f"{field}.model_type", config.get("model_type"), "name the type of the model, such as blip")
    check_config(config, field)
    _ask_packages(config)
    with tempfile.TemporaryDirectory() as folder, understood(field, config):
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        read = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        cls = _class_of(read)
        if cls is None and read.architectures:
            raise PrunusError(
                f"{field}.architectures", read.architectures, "transformers has no such model class; import what defines it (--import)"
            )  # fmt: skip
        too_large = f"its weights do not fit into the {memory() >> 30} GB of this machine"
        with torch.device("meta"), bounded(memory() / 4, too_large, field, config["model_type"]):
            _built(read, cls, field)
        return _built(AutoConfig.from_pretrained(folder, trust_remote_code=False), cls, field)


def _built(config: Any, cls: Any, source: str) -> PreTrainedModel:
    with understood(source, config.to_dict()), bounded(math.inf, "", source):
        model: PreTrainedModel = transformers.AutoModel.from_config(config) if cls is None else cls(config)
        return model


def _config_and_named_class(path: str | Path) -> tuple[Any, Any]:
    """The config at a path, and the class that it names.

    Raises:
        PrunusError: there is none, or it is unknown.
    """
    config, cls = _config_and_class(path)
    if cls is None:
        name = config.architectures
        raise PrunusError(
            "model", str(path), f"its config names the class {name}, which transformers does not have; import what defines it "
            "(--import)",
        )  # fmt: skip
    return config, cls


def _config_and_class(path: str | Path) -> tuple[Any, Any]:
    """The config at a path, and the class it names; None if it names none that is known."""
    path = Path(path) if os.path.exists(path) else path
    entries: dict[str, Any] = {}
    if isinstance(path, Path):
        if path.is_dir():
            _refuse_without_config(path)
        entries = read_config(path / "config.json" if path.is_dir() else path)
    try:
        with understood(str(path), entries, "read the config"):
            _ask_packages(entries)
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except PrunusError as error:
        if isinstance(path, Path):
            raise
        remedy = f"it is no local folder, config file or hub id that can be reached: {error.remedy}"
        raise PrunusError("model", path, remedy) from None
    return config, _class_of(config)


def _ask_packages(entries: Mapping[str, Any]) -> None:
    """Lets installed packages define their models, where a config is of a type that is not known yet."""
    if entries.get("model_type") not in CONFIG_MAPPING:
        load_installed()


def _class_of(config: Any) -> Any:
    """The class that a config names: one of transformers, or one of somebody's own that is imported and whose config class
    is registered (`AutoConfig.register`); None if there is none of that name."""
    name = (config.architectures or [None])[0]
    cls = getattr(transformers, name, None) if isinstance(name, str) else None
    if isinstance(cls, type) and issubclass(cls, PreTrainedModel):
        return cls
    own = [one for one in _subclasses(PreTrainedModel) if one.__name__ == name and one.config_class is type(config)]
    first = [one for one in own if not any(other in own for other in one.__mro__[1:])]  # not those of `without_weights`
    return first[-1] if first else None


def _subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    for one in cls.__subclasses__():
        yield one
        yield from _subclasses(one)
