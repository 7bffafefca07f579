"""BLIP for two images and a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as tf

from prunus import PrunusError, Search, UPop, anatomy, extract
from prunus.models import BlipForImagesAndTextClassification
from tests.families import Case, build


@pytest.fixture
def case() -> Case:
    return build("blip_nlvr", 3)


@torch.no_grad()
def test_each_image_has_a_cross_attention_of_its_own(case: Case) -> None:
    model, inputs = case.model, case.inputs
    both, same = model(**inputs).logits, inputs | {"pixel_values": inputs["pixel_values"].flip(1)}
    assert not torch.allclose(both, model(**same).logits)
    for layer in model.text_encoder.encoder.layer:
        cross = layer.crossattention
        for one, other in ((cross.self0, cross.self1), (cross.output.dense0, cross.output.dense1)):
            for first, second in zip(one.parameters(), other.parameters(), strict=True):
                first.data, second.data = second.data, first.data
        if cross.output.merge_layer is not None:
            halves = cross.output.merge_layer.weight.data.chunk(2, 1)
            cross.output.merge_layer.weight.data = torch.cat(halves[::-1], 1)
    torch.testing.assert_close(model(**same).logits, both)


@torch.no_grad()
def test_padding_and_the_first_token_do_not_count(case: Case) -> None:
    model, inputs = case.model, case.inputs
    ids = inputs["input_ids"].clone()
    ids[:, 0] += 1
    ids[inputs["attention_mask"] == 0] += 1
    torch.testing.assert_close(model(**inputs | {"input_ids": ids}).logits, model(**inputs).logits)
    assert torch.equal(ids[:, 0], inputs["input_ids"][:, 0] + 1)  # the caller's own stay


@pytest.mark.parametrize("images", [1, 3])
def test_a_text_is_about_two_images(case: Case, images: int) -> None:
    pixels = case.inputs["pixel_values"][:, :1].expand(-1, images, -1, -1, -1)
    for wrong in (pixels, case.inputs["pixel_values"].flatten(0, 1)):
        with pytest.raises(PrunusError, match="give two images to each of the 2 texts"):
            case.model(**case.inputs | {"pixel_values": wrong})


def test_upper_layers_merge() -> None:
    model = build("blip_nlvr", 3).model
    start = model.config.merge_from_layer
    merges = [layer.crossattention.output.merge_layer is not None for layer in model.text_encoder.encoder.layer]
    assert merges == [number >= start for number in range(len(merges))]


def test_it_is_searched_and_extracted(case: Case) -> None:
    model, batch = case.model, case.inputs | case.losses
    assert {unit.kind for unit in anatomy(model)} == {"attention", "cross0", "cross1", "mlp"}
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    search = Search(model, UPop(ratio=0.5, interval=1), total_steps=2)
    for _ in range(2):
        model(**batch).loss.backward()
        search.step()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        masked = model(**case.inputs).logits
        plan = search.plan()
        search.close()
        small = extract(model, plan)
        narrow = small(**case.inputs).logits
    torch.testing.assert_close(narrow, masked, rtol=1e-5, atol=1e-5)
    assert small.num_parameters() < model.num_parameters()


def test_auto_classes_know_it(case: Case, tmp_path: Path) -> None:
    case.model.save_pretrained(tmp_path)
    loaded = tf.AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is BlipForImagesAndTextClassification
    with torch.no_grad():
        assert torch.equal(loaded(**case.inputs).logits, case.model(**case.inputs).logits)
