"""What a model says about a batch: its training loss, and the logits behind it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.batches import check_batch, for_model, naming_batch
from prunus.errors import PrunusError

IGNORED = -100
"""The label of a position that no loss counts."""

Loss = Callable[[nn.Module, Any], Tensor]
"""The training loss of a model on a batch, a scalar."""


@dataclass(frozen=True)
class Prediction:
    """The training loss of a batch, the logits (…, V), and which of their positions predict a target, bool (…)."""

    loss: Tensor
    logits: Tensor
    counted: Tensor


Predict = Callable[[nn.Module, Any], Prediction]
"""What a model predicts for a batch."""


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    """The model's own training loss: next tokens for decoders, contrastive for CLIP, whatever `labels` mean elsewhere.

    A batch without labels gets them where that is common use: a model with `return_loss` (CLIP, SigLIP) needs none, and
    for a causal decoder they are the tokens themselves, without padding.

    Raises:
        PrunusError: the model returns no loss.
    """
    return _outputs(model, batch)[0].loss.float()  # type: ignore[no-any-return]


def own_prediction(model: nn.Module, batch: Any) -> Prediction:
    """As `own_loss`, with the logits: of next tokens where the model is a causal decoder, of labels elsewhere, of all pairs
    for CLIP.

    Raises:
        PrunusError: the model returns no loss, or no logits that fit its labels.
    """
    outputs, inputs = _outputs(model, batch)
    if getattr(outputs, "logits_per_image", None) is not None:
        pairs = torch.cat([outputs.logits_per_image, outputs.logits_per_text])
        return Prediction(outputs.loss.float(), pairs, torch.ones_like(pairs[:, 0], dtype=torch.bool))
    logits: Any = getattr(outputs, "logits", None)
    labels = inputs.get("labels")
    if isinstance(logits, Tensor) and isinstance(labels, Tensor):
        if _is_causal(model) and labels.ndim == 2:
            length = labels.shape[1]
            return next_tokens(outputs.loss.float(), logits[:, -length:], labels)
        if labels.shape == logits.shape[:-1]:
            return Prediction(outputs.loss.float(), logits, labels != IGNORED)
    raise PrunusError(
        "predict", type(model).__name__, "its logits do not belong to its labels one by one; pass predict=function(model, batch)"
    )  # fmt: skip


def next_tokens(loss: Tensor, logits_BTV: Tensor, labels_BT: Tensor) -> Prediction:
    """The prediction of a decoder whose logits at t are about the label at t + 1."""
    return Prediction(loss, logits_BTV[:, :-1], labels_BT[:, 1:] != IGNORED)


def _outputs(model: nn.Module, batch: Any) -> tuple[Any, dict[str, Any]]:
    check_batch(batch)
    if not isinstance(batch, Mapping):
        raise PrunusError("batches", type(batch).__name__, "give mappings of tensors, or a loss of your own")
    inputs = for_model(dict(batch), model)
    parameters = inspect.signature(model.forward).parameters
    if "return_loss" in parameters:
        inputs.setdefault("return_loss", True)
    elif "labels" in parameters and "labels" not in inputs and _is_causal(model) and "input_ids" in inputs:
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        inputs["labels"] = ids if mask is None else ids.masked_fill(mask == 0, IGNORED)
    with naming_batch():
        outputs = model(**inputs)
    if getattr(outputs, "loss", None) is None:
        raise PrunusError(
            "loss", type(model).__name__, "the model returned none for these batches; add `labels` to them, or pass a loss of your own"
        )  # fmt: skip
    return outputs, inputs


def _is_causal(model: nn.Module) -> bool:
    """Whether labels are the model's own input tokens, one step ahead."""
    config: Any = getattr(model, "config", None)
    text = getattr(config, "text_config", None) or config
    encodes = any(getattr(part, "is_encoder_decoder", False) for part in (config, text))
    return not encodes and bool(getattr(model, "can_generate", lambda: False)())
