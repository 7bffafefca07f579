"""The graphs that a model is exported as: one forward pass, or the stages of generation, each with inputs to trace it with."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from prunus.batches import for_model
from prunus.modules import evaluating, quiet

FORWARD = "model"
"""The one graph of a forward pass, as transformers calls it."""
TARGETS = ("labels", "answers", "answer_weights", "return_loss", "loss_mask")
"""Of a batch, what only a loss needs."""


@dataclass(frozen=True)
class Stage:
    """A module and what it is called with."""

    module: nn.Module
    inputs: dict[str, Any]

    @cached_property
    def outputs(self) -> list[Tensor]:
        """The tensors that the module returns, those of its cache too, in the order of its outputs. What it is given stays as it is."""
        from transformers.exporters.exporter_dynamo import register_cache_pytrees_for_model

        register_cache_pytrees_for_model(self.module)  # before the first export nobody else has
        with torch.no_grad():
            return tensors_in(self.module(**copy.deepcopy(self.inputs)))


def tensors_in(output: object) -> list[Tensor]:
    """The tensors in what a model or a graph returns."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def stages(model: Any, batch: Mapping[str, Any], generation: bool) -> dict[str, Stage]:
    """What a model is exported as, by name.

    Args:
        batch: as a processor or a task makes it; targets are left out.
        generation: the stages of `generate`, each with a key-value cache as input and output, instead of one forward pass.
    """
    inputs = for_model({name: value for name, value in batch.items() if name not in TARGETS}, model)
    if not generation:
        return {FORWARD: Stage(model, _with_decoder(model, inputs, batch.get("labels")))}
    from transformers.exporters.utils import decompose_multimodal, decompose_prefill_decode, is_multimodal

    taken = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}
    found = decompose_prefill_decode(model, copy.deepcopy(taken), multi_token_decode=True)
    if is_multimodal(model):  # of the raw inputs: `generate` itself has encoded the images before it calls the model
        found = {**decompose_multimodal(model, copy.deepcopy(taken)), "decode": found["decode"]}
    return {name: Stage(module, dict(given)) for name, (module, given) in found.items()}


def _with_decoder(model: Any, inputs: dict[str, Any], labels: Tensor | None) -> dict[str, Any]:
    """Inputs of a forward pass: a decoder that reads what it has written is given the labels, or else the token it begins with."""
    text = model.config.get_text_config(decoder=True)
    encodes = model.config.is_encoder_decoder or text.is_encoder_decoder or hasattr(model, "text_decoder")
    takes = inspect.signature(model.forward).parameters
    if not encodes or "decoder_input_ids" not in takes or "decoder_input_ids" in inputs or "input_ids" not in inputs:
        return inputs
    if labels is not None and hasattr(model, "prepare_decoder_input_ids_from_labels"):
        ids = model.prepare_decoder_input_ids_from_labels(labels=labels.to(inputs["input_ids"].device))
    else:
        starts = (getattr(text, name, None) for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"))
        start = next((token for token in starts if token is not None), 0)
        ids = torch.full_like(inputs["input_ids"][:, :2], start)
    return {**inputs, "decoder_input_ids": ids}


def ready(model: Any, generation: bool) -> AbstractContextManager[None]:
    """Eval mode and, for one forward pass, no key-value cache."""
    return evaluating(model) if generation else quiet(model)
