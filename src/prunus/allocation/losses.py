"""The loss that allocation asks about, for models that do not say it by themselves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from prunus.batches import to_device
from prunus.errors import PrunusError

Loss = Callable[[nn.Module, Any], Tensor]
"""The training loss of a model on a batch, a scalar."""


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    """The model's own training loss: next tokens for decoders, contrastive for CLIP, whatever `labels` mean elsewhere.

    A batch without labels gets them where that is common use: a model with `return_loss` (CLIP, SigLIP) needs none, and
    for a causal decoder they are the tokens themselves, without padding.

    Raises:
        PrunusError: the model returns no loss.
    """
    if not isinstance(batch, Mapping):
        raise PrunusError("batches", type(batch).__name__, "give mappings of tensors, or a loss of your own")
    inputs = to_device(dict(batch), next(model.parameters()).device)
    parameters = inspect.signature(model.forward).parameters
    if "return_loss" in parameters:
        inputs.setdefault("return_loss", True)
    elif "labels" in parameters and "labels" not in inputs and _is_causal(model) and "input_ids" in inputs:
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        inputs["labels"] = ids if mask is None else ids.masked_fill(mask == 0, -100)
    loss: Tensor | None = getattr(model(**inputs), "loss", None)
    if loss is None:
        raise PrunusError(
            "loss", type(model).__name__, "the model returned none for these batches; add `labels` to them, or pass loss=function(model, batch)"
        )  # fmt: skip
    return loss.float()


def _is_causal(model: nn.Module) -> bool:
    config = getattr(model, "config", None)
    return not getattr(config, "is_encoder_decoder", False) and "ForCausalLM" in type(model).__name__
