"""What a model says about a batch: its training loss, and the logits behind it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.batches import check_batch, for_model, naming_batch
from prunus.errors import PrunusError

IGNORED = -100
"""The label of a position that no loss counts."""

PLACEHOLDER = re.compile(
    r"(image|video|audio|vision|visual|speech|frame)(_[a-z]+)*_token_(id|index)|(boi|eoi|boa|eoa)_token_(id|index)"
)
"""Names in a config of tokens that stand where images, videos or sounds are put in, begin or end."""

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


def refuse_no_function(loss: object) -> None:
    """Refuses what is no loss.

    Raises:
        PrunusError: see above.
    """
    if not callable(loss):
        raise PrunusError("loss", loss, "give a function(model, batch) that returns the training loss")


def scalar(loss: Loss, model: nn.Module, batch: Any) -> Tensor:
    """What a loss, of whoever's, gives for a batch.

    Raises:
        PrunusError: it is not one number.
    """
    found: Any = loss(model, batch)
    if isinstance(found, int | float):
        return torch.tensor(float(found))
    if not isinstance(found, Tensor) or found.numel() != 1:
        what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise PrunusError("loss", what, "it must return one number for a batch, the training loss")
    return found


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    """The model's own training loss: next tokens for decoders, contrastive for CLIP, whatever `labels` mean elsewhere.

    A batch without labels gets them where that is common use: a model with `return_loss` (CLIP, SigLIP) needs none, and
    for a causal decoder they are its `text_targets`.

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


def text_targets(config: Any, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Labels of a decoder that reads these tokens, (B, T): the tokens themselves, but for padding and for those that only hold
    the place of an image, a video or a sound.

    Args:
        config: of the model.
        ids: (B, T).
        mask: (B, T), zero at padding; None has none.
    """
    hidden = torch.isin(ids, torch.tensor(placeholders(config), device=ids.device))
    if mask is not None and mask.shape == ids.shape:
        hidden |= mask == 0
    return ids.masked_fill(hidden, IGNORED)


def placeholders(config: Any) -> list[int]:
    """Ids of the tokens that hold the place of an image, a video or a sound, or mark its beginning and end."""
    parts = [part for part in (config, getattr(config, "text_config", None)) if part is not None]
    named = [value for part in parts for name, value in vars(part).items() if PLACEHOLDER.fullmatch(name)]
    return [value for value in named if isinstance(value, int)]


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
        labels = text_targets(getattr(model, "config", None), inputs["input_ids"], inputs.get("attention_mask"))
        if not bool((labels[:, 1:] != IGNORED).any()):
            raise PrunusError("batches", "input_ids", "no text in them predicts text; give some, or labels of your own")
        inputs["labels"] = labels
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
