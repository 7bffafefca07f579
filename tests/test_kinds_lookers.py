"""Kinds of models that classify, compare, judge and segment pictures, on tiny ones of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from prunus import PrunusError, load_model
from prunus.data import IGNORED
from prunus.models import families
from prunus.tasks.kinds import BlipMatching, Classifier, DualEncoder, Labeller, PairReader, Segmenting, Towers, kind_of
from prunus.tasks.kinds.parts import image_processor, image_size, pixels, taken_size
from tests.lookers import COLOURS, SIDE, VOCABULARY, masked, picture, saved

PICTURES = [picture(colour) for colour in COLOURS]
TEXTS = [f"a photo of {colour}" for colour in COLOURS]


def made(name: str, folder: Path, base: Any = Labeller) -> tuple[Any, Any]:
    """A kind and its model."""
    path = saved(name, folder)
    return kind_of(base, str(path)), load_model(path).eval()


@pytest.mark.parametrize(
    ("name", "base", "cls"),
    [
        ("vit", Labeller, Classifier), ("clip", Labeller, Towers), ("siglip", DualEncoder, Towers), ("clip_retrieval", DualEncoder, Towers), ("two_encoders", DualEncoder, Towers),
        ("blip_retrieval", DualEncoder, BlipMatching), ("blip_itm", Labeller, BlipMatching), ("blip_nlvr", PairReader, PairReader),
        ("segmenter", Segmenting, Segmenting),
    ],
)  # fmt: skip
def test_a_model_is_of_one_kind_and_its_processor_is_saved(name: str, base: Any, cls: type, tmp_path: Path) -> None:
    kind, model = made(name, tmp_path / "model", base)
    assert type(kind) is cls
    kind.check()
    assert kind.size == (SIDE, SIDE)
    (tmp_path / "copy").mkdir()
    model.save_pretrained(tmp_path / "copy")
    kind.save(tmp_path / "copy")
    again = kind_of(base, str(tmp_path / "copy"))
    image = Image.linear_gradient("L").convert("RGB")
    parts = [getattr(one, "pictures", one.processor) for one in (kind, again)]
    assert torch.equal(pixels(parts[0], [image]), pixels(parts[1], [image]))
    if hasattr(kind, "words"):
        assert kind.tokens(TEXTS)["input_ids"].tolist() == again.tokens(TEXTS)["input_ids"].tolist()
    with pytest.raises(PrunusError, match="does not know how such a model"):
        kind_of(Classifier if cls is not Classifier else DualEncoder, str(tmp_path / "model"))


def test_pictures_without_a_processor_are_resized_and_normalised(tmp_path: Path) -> None:
    kind, _ = made("vit", tmp_path)
    values = pixels(kind.processor, [Image.new("RGB", (50, 30), (255, 0, 51))])
    assert values.shape == (1, 3, SIDE, SIDE)
    assert values[0, :, 3, 3].tolist() == pytest.approx([1, -1, -0.6], abs=1e-5)
    with pytest.raises(PrunusError, match="does not say how large"):
        image_size(type("Config", (), {"model_type": "llama"}))


def test_sized_pictures_are_neither_resized_nor_cut(tmp_path: Path) -> None:
    from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil

    processor = DeiTImageProcessorPil(size={"height": 18, "width": 18}, crop_size={"height": 16, "width": 16})
    assert taken_size(processor) == (16, 16)
    image = Image.linear_gradient("L").convert("RGB").resize((16, 16))
    sized, cut = pixels(processor, [image], sized=True), pixels(processor, [image])
    assert sized.shape == cut.shape
    expected = (torch.from_numpy(np.array(image)[..., 0]) / 255 - 0.5) / 0.5
    torch.testing.assert_close(sized[0, 0], expected)
    assert not torch.allclose(sized, cut)
    processor.save_pretrained(tmp_path)
    assert type(image_processor([str(tmp_path)], None)) is DeiTImageProcessorPil


def test_a_classifier_learns_and_says_the_model_s_numbers(tmp_path: Path) -> None:
    kind, model = made("vit", tmp_path)
    logits = kind.look(model, PICTURES)
    assert torch.equal(kind.compare(model, logits, None, ()), logits)
    batch = kind.labelled(PICTURES, [0, 1, 2, 3], None, ())
    expected = model(pixel_values=batch["pixel_values"], labels=torch.arange(4)).loss
    torch.testing.assert_close(kind.predict(model, batch).loss, expected)
    smooth = F.cross_entropy(logits, torch.arange(4), label_smoothing=0.1)
    kind.smoothing = 0.1
    torch.testing.assert_close(kind.predict(model, batch).loss, smooth)
    kind.config.id2label = {0: "Green", 1: "blue, azure", 2: "red", 3: "white"}
    names = list(COLOURS)
    assert kind.labelled(PICTURES, [0, 1, 2, 3], names, ())["labels"].tolist() == [2, 0, 1, 3]
    assert torch.equal(kind.compare(model, logits, names, ()), logits[:, [2, 0, 1, 3]])
    with pytest.raises(PrunusError, match="'teal': the model calls no class so"):
        kind.check_classes(["red", "green", "teal"], ())
    kind.by_names = False
    assert kind.labelled(PICTURES, [0, 1, 2, 3], ["teal", *names[1:]], ())["labels"].tolist() == [0, 1, 2, 3]
    kind.by_names = True
    kind.config.id2label[3] = "Red"  # of two, none is meant
    del kind.known
    with pytest.raises(PrunusError, match="'red': the model calls no class so"):
        kind.places(names)
    with pytest.raises(PrunusError, match="the model knows 4 classes"):
        kind.labelled(PICTURES, [0, 1, 2, 4], None, ())
    with pytest.raises(PrunusError, match="the model knows 4"):
        kind.check_classes(["a", "b", "c", "d", "e"], ())
    kind.config.id2label = {place: f"LABEL_{place}" for place in range(4)}
    del kind.known
    assert kind.places(names) is None
    with pytest.raises(PrunusError, match="leave the templates out"):
        kind.check_classes(None, ["a {}"])


@pytest.mark.parametrize("name", ["clip", "siglip", "clip_retrieval", "blip_retrieval", "blip_itm", "two_encoders"])
def test_pairs_compare_as_the_model_compares_them(name: str, tmp_path: Path) -> None:
    kind, model = made(name, tmp_path)
    images, _ = kind.embed_images(model, PICTURES)
    texts = kind.embed_texts(model, TEXTS)
    batch = kind.batch(PICTURES, TEXTS, [0, 1, 2, 3])
    assert ("labels" in batch) == (name in ("clip_retrieval", "blip_retrieval"))
    batch.pop("labels", None)
    with torch.no_grad():
        if name.startswith("blip"):
            expected = model(
                **{k: batch[k] for k in ("input_ids", "attention_mask", "pixel_values")}, use_itm_head=False
            ).itm_score
        else:
            found = model(**batch)
            expected = found.image_embeds @ found.text_embeds.T
    torch.testing.assert_close(images @ texts.T, expected, atol=1e-5, rtol=1e-5)
    short = kind.tokens(["a photo of a plain red picture"], 4)["input_ids"]
    assert short.shape == (1, 4)


def test_a_siglip_s_texts_are_all_as_long_as_its_positions(tmp_path: Path) -> None:
    kind, _ = made("siglip", tmp_path)
    assert kind.tokens(TEXTS)["input_ids"].shape == (4, 12)


def test_texts_longer_than_the_positions_are_cut(tmp_path: Path) -> None:
    kind, model = made("clip", tmp_path)
    assert kind.embed_texts(model, ["a " * 50]).shape == (1, 8)


@pytest.mark.parametrize("name", ["blip_retrieval", "blip_itm"])
def test_a_blip_matches_pairs_as_its_forward_does(name: str, tmp_path: Path) -> None:
    kind, model = made(name, tmp_path)
    _, states = kind.embed_images(model, PICTURES)
    tokens = kind.tokens(TEXTS)
    found = kind.match(model, states, dict(tokens))
    with torch.no_grad():
        inputs = {k: tokens[k] for k in ("input_ids", "attention_mask")}
        expected = model(**inputs, pixel_values=pixels(kind.pictures, PICTURES)).itm_score[:, 1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert tokens["input_ids"][0, 0] == 2
    assert model.config.text_config.vocab_size == len(VOCABULARY)


def test_zero_shot_scores_are_cosines_with_the_mean_of_sentences(tmp_path: Path) -> None:
    kind, model = made("clip", tmp_path)
    seen = kind.look(model, PICTURES)
    templates = ["a photo of {}", "plain {}"]
    found = kind.compare(model, seen, list(COLOURS), templates)
    for place, colour in enumerate(COLOURS):
        mean = sum(kind.embed_texts(model, [template.format(colour)])[0] for template in templates)
        torch.testing.assert_close(found[:, place], seen @ F.normalize(mean, dim=0))
    assert kind.labelled(PICTURES, [1, 1, 0, 3], list(COLOURS), templates)["input_ids"].tolist() == (
        kind.tokens([f"a photo of {c}" for c in ("green", "green", "red", "white")])["input_ids"].tolist()
    )
    with pytest.raises(PrunusError, match="by their names"):
        kind.check_classes(None, ())
    with pytest.raises(PrunusError, match="write it in each"):
        kind.check_classes(["red"], ["a photo"])


def test_a_reader_of_pairs_keeps_their_order(tmp_path: Path) -> None:
    kind, model = made("blip_nlvr", tmp_path, PairReader)
    pairs = [(PICTURES[0], PICTURES[1]), (PICTURES[2], PICTURES[3])]
    batch = kind.batch(pairs, TEXTS[:2], [True, False])
    assert batch["pixel_values"].shape == (2, 2, 3, SIDE, SIDE)
    for row, pair in enumerate(pairs):
        for place, image in enumerate(pair):
            assert torch.equal(batch["pixel_values"][row, place], pixels(kind.pictures, [image])[0])
    assert batch["labels"].tolist() == [1, 0]
    logits = kind.logits(model, pairs, TEXTS[:2])
    expected = F.cross_entropy(logits, batch["labels"])
    torch.testing.assert_close(kind.predict(model, batch).loss, expected)


def test_a_segmenter_s_loss_counts_only_what_counts(tmp_path: Path) -> None:
    kind, model = made("segmenter", tmp_path, Segmenting)
    images = [picture(colour, SIDE, SIDE) for colour in ("red", "blue")]
    masks = torch.randint(4, (2, SIDE, SIDE))
    masks[:, :5] = IGNORED
    batch = kind.batch(images, list(masks))
    expected = model(**batch).loss
    found = kind.predict(model, batch)
    torch.testing.assert_close(found.loss, expected)
    assert found.logits.shape == (2, SIDE, SIDE, 4)
    assert torch.equal(found.counted, masks != IGNORED)


def test_likelihoods_are_those_of_the_picture_whichever_way_it_is_looked_at(tmp_path: Path) -> None:
    kind, model = made("segmenter", tmp_path, Segmenting)
    image = Image.open(masked(tmp_path / "data").parent / "3.png").convert("RGB").resize((40, 20))
    found = kind.likelihoods(model, image, (30, 60), SIDE, False)
    assert found.shape == (4, 30, 60)
    torch.testing.assert_close(found.sum(0), torch.ones(30, 60))
    flip = Image.Transpose.FLIP_LEFT_RIGHT
    other = kind.likelihoods(model, image.transpose(flip), (30, 60), SIDE, True)
    with torch.no_grad():
        direct = model.segment(pixels(kind.processor, [image], sized=True), SIDE, SIDE)
    expected = F.interpolate(direct, size=(30, 60), mode="bilinear", align_corners=False)[0].softmax(0)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(other.flip(-1), expected)
    small = kind.likelihoods(model, picture("red", 5, 9), (9, 5), 4, False)
    assert small.shape == (4, 9, 5)


@pytest.mark.parametrize(
    ("family", "mean", "size"),
    [
        ("deit", [0.485, 0.456, 0.406], 256),
        ("segmenter", [0.5] * 3, 224),
        ("clip", [0.48145466, 0.4578275, 0.40821073], 224),
    ],
)
def test_a_converted_model_s_pictures_are_normalised_as_its_authors_do(
    family: str, mean: list[float], size: int
) -> None:
    made = families()[family].image_processor(224)
    assert list(made.image_mean) == pytest.approx(mean)
    assert made.size.height == size
    assert taken_size(made) == (224, 224)
    assert pixels(made, [picture("red", 300, 260)]).shape == (1, 3, 224, 224)


def test_a_vilt_reads_two_pictures_of_any_size_as_its_forward_does(tmp_path: Path) -> None:
    kind, model = made("vilt_nlvr", tmp_path, PairReader)
    pairs = [[picture("red", 30, 20), picture("blue", 20, 40)], [picture("green"), picture("white")]]
    said = ["the left is red", "the left is blue and the right is red"]
    batch = kind.batch(pairs, said, [1, 0])
    assert batch["pixel_values"].shape[:2] == batch["pixel_mask"].shape[:2] == (2, 2)
    with torch.no_grad():
        torch.testing.assert_close(kind.predict(model, batch).loss, model(**batch).loss)
        alone = [kind.logits(model, [pair], [one])[0] for pair, one in zip(pairs, said, strict=True)]
        swapped = kind.logits(model, [pairs[0][::-1]], said[:1])[0]
    torch.testing.assert_close(kind.logits(model, pairs, said), torch.stack(alone), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(alone[0], swapped, atol=1e-3)
    thin = [[picture("red", 400, 1), picture("blue", 1, 300)]]
    assert kind.logits(model, thin, said[:1]).isfinite().all()
