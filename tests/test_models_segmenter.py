"""Segmenter against the published code: masks, loss, gates and their gradients, what is extracted; and images of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation, ViTConfig

from prunus import PrunusError, anatomy, extract, load_model
from prunus.models import SegmenterConfig, SegmenterForSemanticSegmentation
from prunus.structured.gates import Gates
from tests.families import IMAGE, build
from tests.published import Fixture
from tests.test_equivalence import random_plan

PUBLISHED = Fixture("segmenter", 12, {r"(.*\.attn)\.alpha": r"\1.proj.weight", r"(.*\.mlp)\.alpha": r"\1.fc2.weight"})


def computed(model: Any) -> dict[str, torch.Tensor]:
    """What the fixture says of a model."""
    given = PUBLISHED.section("in")
    outputs = model(given["image"], labels=given["segmentation"])
    features = model.encoder(given["image"])
    patches = model.decoder(features[:, 1:]).mT.unflatten(-1, (4, 4))
    odd = model(given["image_odd"]).logits
    return {
        "masks": outputs.logits,
        "loss": outputs.loss,
        "masks_odd": odd,
        "encoder_features": features,
        "decoder_masks": patches,
    }


def test_it_computes_what_the_published_code_does() -> None:
    PUBLISHED.check("plain", **computed(PUBLISHED.model()))


@pytest.mark.parametrize("masks", ["frac", "bin"])
def test_gates_do_what_the_published_masks_do(masks: str) -> None:
    model = PUBLISHED.model()
    Gates(model, anatomy(model)).set(PUBLISHED.gates(model, f"alpha_{masks}"))
    PUBLISHED.check(f"search_{masks}", **computed(model))


@pytest.mark.parametrize("masks", ["ones", "frac"])
def test_gradients_of_gates_are_those_of_the_published_masks(masks: str) -> None:
    model = PUBLISHED.model()
    gates = Gates(model, anatomy(model))
    if masks == "frac":
        gates.set(PUBLISHED.gates(model, "alpha_frac"))
    given = PUBLISHED.section("in")
    model(given["image"], labels=given["segmentation"]).loss.backward()
    PUBLISHED.check_gradients(model, gates, f"grad_{masks}")


def test_what_is_extracted_is_the_published_extraction() -> None:
    model = PUBLISHED.model()
    PUBLISHED.check("reference_extracted", **computed(extract(model, PUBLISHED.plan(model))))


def test_a_published_compressed_checkpoint_computes_what_its_evaluation_did() -> None:
    PUBLISHED.check("reference_extracted", **computed(PUBLISHED.model(**PUBLISHED.section("extracted_sd"))))


def test_a_folder_is_loaded_by_name_and_by_the_auto_class(tmp_path: Path) -> None:
    case = build("segmenter", 3)
    small = extract(case.model, random_plan(case.model, 3))
    small.save_pretrained(tmp_path)
    expected = small(**case.inputs).logits
    for loaded in (load_model(tmp_path), AutoModelForSemanticSegmentation.from_pretrained(tmp_path)):
        assert type(loaded) is SegmenterForSemanticSegmentation
        assert torch.equal(loaded.eval()(**case.inputs).logits, expected)


def test_large_images_are_looked_at_in_crops() -> None:
    model = build("segmenter", 7).model
    pixels = torch.randn(2, 3, IMAGE + 6, IMAGE)
    with torch.no_grad():
        upper, lower = (model(pixels[:, :, rows]).logits for rows in (slice(0, IMAGE), slice(6, None)))
    found = model.segment(pixels)
    torch.testing.assert_close(found[:, :, :6], upper[:, :, :6])
    torch.testing.assert_close(found[:, :, 6:IMAGE], (upper[:, :, 6:] + lower[:, :, :-6]) / 2)
    torch.testing.assert_close(found[:, :, IMAGE:], lower[:, :, -6:])
    torch.testing.assert_close(model.segment(pixels, crop=100), model(pixels).logits)
    for bad in ({"crop": 0}, {"crop": 8, "stride": 9}, {"stride": 0}):
        with pytest.raises(PrunusError):
            model.segment(pixels, **bad)


def test_pixels_that_are_not_counted_change_no_loss() -> None:
    case = build("segmenter", 4)
    labels = case.losses["labels"]
    logits = case.model(**case.inputs).logits
    counted = labels != case.model.config.semantic_loss_ignore_index
    expected = -logits.log_softmax(1).gather(1, torch.where(counted, labels, 0)[:, None])[:, 0][counted].mean()
    torch.testing.assert_close(case.model(**case.inputs, labels=labels.byte()).loss, expected)
    assert torch.equal(case.model(**case.inputs, return_dict=False)[0], logits)


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
