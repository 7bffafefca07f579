"""Devices that are not there: tensors that say they are on one, and refuse to be mixed, as real ones do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Elsewhere(Tensor):
    """A tensor that says it is on another device; what it holds is `here`, on the CPU."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor, device: torch.device) -> Elsewhere:
        made = torch.Tensor._make_wrapper_subclass(cls, here.shape, dtype=here.dtype, device=device)
        made.here = here
        return made  # type: ignore[return-value]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.here}, {self.device})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


class _Factories(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


def run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Computes on the CPU and labels the result; two devices in one operation are refused unless one is a plain number."""
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    found = {leaf.device for leaf in leaves if not (leaf.ndim == 0 and leaf.device.type == "cpu")}
    moves = function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
    if len(found) > 1 and not moves:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {sorted(map(str, found))}")
    asked = kwargs.get("device")
    target = (
        torch.device(asked)
        if asked is not None
        else leaves[0].device
        if moves
        else next(iter(found), torch.device("cpu"))
    )
    here = {"device": torch.device("cpu")} if asked is not None else {}
    plain_args, plain_kwargs = pytree.tree_map_only(Elsewhere, lambda t: t.here, (args, kwargs))
    result = function(*plain_args, **{**plain_kwargs, **here})
    if target.type == "cpu":
        return result
    in_place = next((leaf for leaf in leaves if isinstance(leaf, Elsewhere) and leaf.here is result), None)
    if in_place is not None:
        return in_place
    return pytree.tree_map_only(Tensor, lambda t: Elsewhere(t, target), result)


def on(tensor: Tensor, device: str) -> Tensor:
    return Elsewhere(tensor, torch.device(device))


@contextmanager
def devices() -> Iterator[None]:
    """While the context is open, factory functions can make tensors there, too."""
    with _Factories():
        yield
