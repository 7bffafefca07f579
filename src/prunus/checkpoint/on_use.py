"""Parameters whose bytes come when somebody computes with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

Fill = Callable[[nn.Parameter], None]


class OnUse(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While the context is open, a parameter is filled before the first operation that is given it, or a view of it,
    whoever's parameter it is.

    Parameters have their shape, type and device all along; only their storage comes and goes.

    Args:
        parameters: all of them empty (`hollow`).
        fill: writes the values into a parameter that has just got its memory.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], fill: Fill):
        super().__init__()  # type: ignore[no-untyped-call]
        self._fill = fill
        self._empty = {parameter.untyped_storage()._cdata: parameter for parameter in parameters}
        self._full: dict[int, nn.Parameter] = {}

    def fill(self, parameter: nn.Parameter) -> None:
        """Fills a parameter, unless it is full."""
        key = parameter.untyped_storage()._cdata
        if self._empty.pop(key, None) is not None:
            self._full[key] = parameter
            parameter.untyped_storage().resize_(parameter.numel() * parameter.itemsize)
            with torch.no_grad():
                self._fill(parameter)

    def release(self) -> None:
        """Gives the memory of all parameters back."""
        for parameter in self._full.values():
            parameter.untyped_storage().resize_(0)
        self._empty |= self._full
        self._full.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._empty:
            self._fill_within((args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _fill_within(self, value: Any) -> None:
        if isinstance(value, Tensor):
            if value.layout is torch.strided and value.device.type != "meta":
                found = self._empty.get(value.untyped_storage()._cdata)
                if found is not None:
                    self.fill(found)
        elif isinstance(value, Mapping):
            for item in value.values():
                self._fill_within(item)
        elif isinstance(value, list | tuple):
            for item in value:
                self._fill_within(item)


def hollow(like: Tensor, device: torch.device) -> nn.Parameter:
    """An empty parameter of the shape and type of another, on a device."""
    tensor = torch.empty_like(like, device=device)
    tensor.untyped_storage().resize_(0)
    return nn.Parameter(tensor, requires_grad=like.requires_grad)
