"""Weights that a model has lost by being narrowed in place, and the optimisers that still hold them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from prunus.errors import PrunusError

_RETIRED: WeakValueDictionary[int, Tensor] = WeakValueDictionary()


def retire(weights: Iterable[Tensor]) -> None:
    """Refuses, from now on, the steps of every optimiser that holds one of these: it would go on training them, and the model
    would stand still without a word."""
    if not hasattr(_refuse, "handle"):
        _refuse.handle = register_optimizer_step_pre_hook(_refuse)  # type: ignore[attr-defined]
    _RETIRED.update({id(weight): weight for weight in weights})


def reinstate(weights: Iterable[Tensor]) -> None:
    """Lets these be trained again: they are a model's once more."""
    for weight in weights:
        _RETIRED.pop(id(weight), None)


def _refuse(optimizer: Optimizer, *_: Any) -> None:
    if _RETIRED and any(
        _RETIRED.get(id(weight)) is weight for group in optimizer.param_groups for weight in group["params"]
    ):
        raise PrunusError(
            "optimizer", type(optimizer).__name__, "it holds weights from before the model was narrowed in place, so it would train "
            "nothing; make a new one over model.parameters()",
        )  # fmt: skip
