"""Segmenter: its folders, its loss, images of any size."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForSemanticSegmentation, ViTConfig

from prunus import extract, load_model
from prunus.models import SegmenterConfig, SegmenterForSemanticSegmentation
from tests.families import build
from tests.test_equivalence import random_plan


def test_a_folder_is_loaded_by_name_and_by_the_auto_class(tmp_path: Path) -> None:
    case = build("segmenter", 3)
    small = extract(case.model, random_plan(case.model, 3))
    small.save_pretrained(tmp_path)
    expected = small(**case.inputs).logits
    for loaded in (load_model(tmp_path), AutoModelForSemanticSegmentation.from_pretrained(tmp_path)):
        assert type(loaded) is SegmenterForSemanticSegmentation
        assert torch.equal(loaded.eval()(**case.inputs).logits, expected)


def test_pixels_that_are_not_counted_change_no_loss() -> None:
    case = build("segmenter", 4)
    labels = case.losses["labels"]
    logits = case.model(**case.inputs).logits
    counted = labels != case.model.config.semantic_loss_ignore_index
    expected = -logits.log_softmax(1).gather(1, torch.where(counted, labels, 0)[:, None])[:, 0][counted].mean()
    torch.testing.assert_close(case.model(**case.inputs, labels=labels.byte()).loss, expected)


def test_positions_are_stretched_along_the_side_that_is_longer() -> None:
    """Twice the rows: every column of the new table is the old one at half steps, and a row's values keep their order."""
    case = build("segmenter", 5)
    embeddings = case.model.encoder.embeddings
    table = embeddings.position_embeddings
    sides = [side // embeddings.patch_size for side in embeddings.image_size]
    assert embeddings.interpolate_pos_encoding(table, *embeddings.image_size) is table
    taller = embeddings.interpolate_pos_encoding(table, 2 * embeddings.image_size[0], embeddings.image_size[1])
    old = table[0, 1:].unflatten(0, sides)
    new = taller[0, 1:].unflatten(0, (2 * sides[0], sides[1]))
    assert torch.equal(taller[:, 0], table[:, 0])
    torch.testing.assert_close(new[1], 0.75 * old[0] + 0.25 * old[1])
    torch.testing.assert_close(new[2], 0.25 * old[0] + 0.75 * old[1])


def test_the_decoder_is_as_wide_as_the_encoder_unless_it_is_said() -> None:
    config = SegmenterConfig(vision_config={"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 30})
    assert isinstance(config.decoder_config, ViTConfig)
    assert (config.decoder_config.hidden_size, config.decoder_config.num_hidden_layers) == (24, 2)
    config = SegmenterConfig(
        vision_config=config.vision_config, decoder_config={"hidden_size": 8, "num_attention_heads": 1}
    )
    assert (config.decoder_config.hidden_size, config.decoder_config.intermediate_size) == (8, 30)
    again = SegmenterConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
