"""Batches: whatever a model is called with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def call_with_batch(model: nn.Module, batch: Any, device: torch.device | None = None) -> object:
    """`model(**batch)`, or `model(batch)` if it is no mapping; its tensors on the device, by default the model's."""
    device = device or next(model.parameters()).device
    batch = to_device(batch, device)
    return model(**batch) if isinstance(batch, Mapping) else model(batch)


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on a device."""
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    return batch.to(device) if isinstance(batch, Tensor) else batch
