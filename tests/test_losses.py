"""The loss of a model on batches as processors make them: what is a target, and what is not."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from torch.nn import functional as F

from prunus import ECoFLaP, PrunusError, allocate
from prunus.losses import IGNORED, own_loss, own_prediction, placeholders, text_targets
from tests.families import build

SPECIAL = [5, 6, 7, 8, 100]
"""Placeholders in the families of the tests; 100 is above the vocabulary."""


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen2_5_vl", "blip2_opt", "llama"])
def test_placeholders_and_padding_are_no_targets(name: str) -> None:
    case = build(name, 7)
    batch = {key: value for key, value in case.inputs.items() if key != "labels"}
    ids, mask = batch["input_ids"], batch["attention_mask"]
    text = torch.tensor([[token not in SPECIAL for token in row] for row in ids.tolist()]) & (mask == 1)
    with torch.no_grad():
        prediction = own_prediction(case.model, batch)
        logits = case.model(**batch).logits[:, -ids.shape[1] :]
    assert torch.equal(prediction.counted, text[:, 1:])
    by_hand = F.cross_entropy(logits[:, :-1][text[:, 1:]], ids[:, 1:][text[:, 1:]])
    torch.testing.assert_close(prediction.loss, by_hand, rtol=1e-5, atol=1e-6)
    assert torch.equal(prediction.loss, own_loss(case.model, batch))


def test_which_tokens_are_placeholders_is_in_the_config() -> None:
    qwen = build("qwen2_vl", 7).model.config
    assert sorted(placeholders(qwen)) == [5, 6, 7, 8]
    assert placeholders(tf.LlamaConfig()) == []
    assert placeholders(None) == []
    ids = torch.tensor([[1, 7, 9]])
    assert text_targets(qwen, ids).tolist() == [[1, IGNORED, 9]]
    assert text_targets(None, ids, torch.tensor([[0, 1, 1]])).tolist() == [[IGNORED, 7, 9]]


def test_labels_that_are_given_are_the_callers() -> None:
    case = build("llava", 7)
    labels = case.inputs["input_ids"]
    with torch.no_grad():
        ours = own_loss(case.model, {**case.inputs, "labels": labels})
        theirs = case.model(**case.inputs, labels=labels).loss
    assert torch.equal(ours, theirs)


def test_a_batch_without_any_text_is_refused() -> None:
    case = build("llava", 7)
    ids = torch.full_like(case.inputs["input_ids"][:, :16], 7)
    batch = {"input_ids": ids, "pixel_values": case.inputs["pixel_values"]}
    with pytest.raises(PrunusError, match="no text in them"):
        allocate(case.model, ECoFLaP(sparsity=0.5), [batch], progress=False)
