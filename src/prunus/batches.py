"""Batches: whatever a model is called with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def call_with_batch(model: nn.Module, batch: Any, device: torch.device | None = None) -> object:
    """`model(**batch)`, or `model(batch)` if it is no mapping; its tensors as `for_model` makes them."""
    batch = for_model(batch, model, device)
    return model(**batch) if isinstance(batch, Mapping) else model(batch)


def for_model(batch: Any, model: nn.Module, device: torch.device | None = None) -> Any:
    """The batch as a model takes it: its tensors on a device, by default the model's, and floating ones in its type."""
    return _placed(batch, device or input_device(model), input_dtype(model))


def input_device(model: nn.Module) -> torch.device:
    """Where a model takes its inputs: the device of its weights or, of a model whose weights are elsewhere (offloaded), the
    one on which it runs."""
    runs_on = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    if runs_on is not None:
        return torch.device(runs_on)
    return next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))


def input_dtype(model: nn.Module) -> torch.dtype | None:
    """The type in which a model takes pixels, sounds or embeddings: that of its first convolution, which makes patches or
    frames, or else of its first floating parameter; None if it has none."""
    own = (m.weight for m in model.modules() if isinstance(m, CONVOLUTIONS) and isinstance(m.weight, Tensor))
    for weights in (own, model.parameters()):
        for weight in weights:
            if weight.is_floating_point():
                return weight.dtype
    return None


def _placed(batch: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    if isinstance(batch, Mapping):
        return {key: _placed(value, device, dtype) for key, value in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(_placed(item, device, dtype) for item in batch)
    if not isinstance(batch, Tensor):
        return batch
    return batch.to(device, dtype) if dtype is not None and batch.is_floating_point() else batch.to(device)
