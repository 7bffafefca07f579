"""Tensors and modules as they were before something was tried, kept until it has gone well."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig


class Undo:
    """Puts tensors back when an exception leaves the context.

    What is kept lies in an unnamed temporary file (`TMPDIR` says where), so that it costs no memory, and in memory only
    where there is no room for that file.

    Examples:
        >>> weight = torch.ones(2)
        >>> try:
        ...     with Undo() as undo:
        ...         undo.keep(weight)
        ...         raise KeyboardInterrupt(weight.zero_())
        ... except KeyboardInterrupt:
        ...     weight
        tensor([1., 1.])
    """

    def __init__(self) -> None:
        self._file: Any = None
        self._in_file: list[tuple[Tensor, int, torch.dtype, torch.Size]] = []
        self._in_memory: list[tuple[Tensor, Tensor]] = []
        self._end = 0

    def __enter__(self) -> Undo:
        with suppress(OSError):
            self._file = tempfile.TemporaryFile(prefix="prunus-undo-", buffering=0)
        return self

    def keep(self, tensor: Tensor) -> None:
        """Notes what a tensor holds now; of a parameter, wherever its data will be then."""
        now = tensor.detach()
        try:
            self._write(now)
        except OSError:
            self._in_memory.append((tensor, now.to("cpu", copy=True)))
            return
        self._in_file.append((tensor, self._end, now.dtype, now.shape))
        self._end += now.numel() * now.element_size()

    def restore(self) -> None:
        """Writes everything back."""
        for tensor, offset, dtype, shape in self._in_file:
            bytes_ = torch.empty(shape.numel() * dtype.itemsize, dtype=torch.uint8)
            self._file.seek(offset)
            _read(self._file, bytes_.numpy().data)
            tensor.data.copy_(bytes_.view(dtype).view(shape))
        for tensor, before in self._in_memory:
            tensor.data.copy_(before)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self.restore()
        finally:
            self._in_file.clear()
            self._in_memory.clear()
            if self._file is not None:
                self._file.close()

    def _write(self, tensor: Tensor) -> None:
        if self._file is None:
            raise OSError("there is no folder for temporary files")
        left = tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data
        self._file.seek(self._end)
        while left:
            left = left[self._file.write(left) :]


@contextmanager
def structure_kept(model: nn.Module) -> Iterator[None]:
    """Puts the modules of a model back when an exception leaves the context: their classes, attributes, parameters, hooks and configs.

    What their tensors hold is the business of `Undo`.

    Examples:
        >>> layer = nn.Linear(2, 2)
        >>> weight = layer.weight
        >>> with suppress(ValueError), structure_kept(layer):
        ...     layer.weight, layer.in_features = nn.Parameter(torch.ones(2, 1)), 1
        ...     raise ValueError
        >>> layer.weight is weight, layer.in_features
        (True, 2)
    """
    modules = [(module, type(module), _held(vars(module))) for module in model.modules()]
    configs: dict[int, tuple[PreTrainedConfig, dict[str, Any]]] = {}
    for module, _, _ in modules:
        _keep_config(vars(module).get("config"), configs)
    try:
        yield
    except BaseException:
        for module, kind, held in modules:
            module.__class__ = kind
            vars(module).clear()
            for name, (value, content) in held.items():
                vars(module)[name] = value
                if content is not None:
                    value.clear()
                    value.update(content)
        for config, entries in configs.values():
            vars(config).clear()
            vars(config).update(entries)
        raise


def _held(attributes: dict[str, Any]) -> dict[str, tuple[Any, dict[Any, Any] | None]]:
    """Attributes as they are, and what those of them hold that are dictionaries."""
    return {name: (value, dict(value) if isinstance(value, dict) else None) for name, value in attributes.items()}


def _keep_config(config: object, kept: dict[int, tuple[PreTrainedConfig, dict[str, Any]]]) -> None:
    if not isinstance(config, PreTrainedConfig) or id(config) in kept:
        return
    entries = {
        name: value if isinstance(value, PreTrainedConfig) else copy.deepcopy(value)
        for name, value in vars(config).items()
    }
    kept[id(config)] = config, entries
    for value in entries.values():
        _keep_config(value, kept)


def _read(file: FileIO, into: memoryview) -> None:
    while into:
        read = file.readinto(into)
        if not read:
            raise OSError("the temporary file has lost what was written to it")
        into = into[read:]
