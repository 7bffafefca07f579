"""Batches: whatever a model is called with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def call_with_batch(model: nn.Module, batch: Any, device: torch.device | None = None) -> object:
    """`model(**batch)`, or `model(batch)` if it is no mapping; its tensors on the device, by default the model's."""
    batch = to_device(batch, device or input_device(model))
    return model(**batch) if isinstance(batch, Mapping) else model(batch)


def input_device(model: nn.Module) -> torch.device:
    """Where a model takes its inputs: the device of its weights or, of a model whose weights are elsewhere (offloaded), the
    one on which it runs."""
    runs_on = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    if runs_on is not None:
        return torch.device(runs_on)
    return next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on a device."""
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    return batch.to(device) if isinstance(batch, Tensor) else batch
