"""Semantic segmentation by models of transformers: tiny random ones, each with the image processor of its family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from transformers.models.beit.image_processing_pil_beit import BeitImageProcessorPil
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from prunus import PrunusError
from prunus.checkpoint import load_model
from prunus.tasks import Segmentation
from tests.lookers import masked

SIDE = 32
VIT = {
    "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24, "image_size": SIDE, "patch_size": 8,
    "num_labels": 4,
}  # fmt: skip


def segformer() -> Any:
    config = tf.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, num_labels=4,
    )  # fmt: skip
    return tf.SegformerForSemanticSegmentation(config), SegformerImageProcessorPil


def dpt() -> Any:
    config = tf.DPTConfig(
        **VIT, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, is_hybrid=False
    )
    return tf.DPTForSemanticSegmentation(config), DPTImageProcessorPil


def beit() -> Any:
    return tf.BeitForSemanticSegmentation(tf.BeitConfig(**VIT, out_indices=[1, 2, 3, 4])), BeitImageProcessorPil


def upernet() -> Any:
    backbone = tf.ConvNextConfig(
        depths=[1] * 4, hidden_sizes=[8] * 4, out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = tf.UperNetConfig(
        backbone_config=backbone, hidden_size=16, auxiliary_in_channels=8, auxiliary_channels=8, num_labels=4
    )
    return tf.UperNetForSemanticSegmentation(config), SegformerImageProcessorPil


@pytest.mark.parametrize("make", [segformer, dpt, beit, upernet])
def test_a_model_of_transformers_learns_and_is_measured(
    make: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    model, processor = make()
    model.save_pretrained(tmp_path / "model")
    processor(size={"height": SIDE, "width": SIDE}).save_pretrained(tmp_path / "model")
    file: Any = str(masked(tmp_path / "data"))
    task = Segmentation(train=file, evaluation=file, stride=SIDE // 2, mirror=True, ignore=(3,))
    task.check()
    task.check_model(tmp_path / "model")
    task, model = task.for_model(tmp_path / "model"), load_model(tmp_path / "model").eval()
    items: Any = task.train_data()
    batch = task.collate([items[0], items[3]])
    found = task.predict(model, batch)
    assert torch.equal(found.counted, batch["labels"] != 255)
    assert found.logits.shape == (2, SIDE, SIDE, 4)
    if make is segformer:  # others have an auxiliary loss beside it
        torch.testing.assert_close(found.loss, model(**batch).loss)
    found.loss.backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)
    metrics = task.evaluate(model, progress=False)
    assert 0 <= metrics["mean_iou_low"] <= metrics["mean_iou"] <= metrics["mean_iou_high"] <= 1


def test_a_model_that_says_masks_one_by_one_is_refused(tmp_path: Path) -> None:
    config = tf.Mask2FormerConfig(architectures=["Mask2FormerForUniversalSegmentation"])
    config.save_pretrained(tmp_path)
    with pytest.raises(PrunusError, match=r"Mask2FormerForUniversalSegmentation.*ForSemanticSegmentation"):
        Segmentation().check_model(tmp_path)
