"""Tensors as they were before something was tried, kept until it has gone well."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from io import FileIO
from types import TracebackType
from typing import Any

import torch
from torch import Tensor


class Undo:
    """Puts tensors back when an exception leaves the context.

    What is kept lies in an unnamed temporary file (`TMPDIR` says where), so that it costs no memory, and in memory only
    where there is no room for that file.

    Example:
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


def _read(file: FileIO, into: memoryview) -> None:
    while into:
        read = file.readinto(into)
        if not read:
            raise OSError("the temporary file has lost what was written to it")
        into = into[read:]
