"""The published models through the converters, against numbers of the published code: outputs, masks, their gradients, extraction."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunus import Plan, anatomy, extract
from prunus.structured.gates import Gates
from prunus.structured.scores import gate_gradient
from tests.published import RUNS, Fixture, deviation

OUTPUTS, GRADIENTS = 1e-4, 1e-3
"""Allowed deviations, relative to the largest value."""
SEP = 3
"""In the fixtures' vocabulary."""
PROMPT = 4
"""Tokens of the prompt that captions begin with."""


def check(fixture: Fixture, section: str, model: PreTrainedModel) -> None:
    """Compares all that a section holds with what the model returns."""
    expected = {
        name: t for name, t in fixture.section(section).items() if not name.startswith(("sparsity", "generate"))
    }
    assert expected
    with torch.no_grad():
        found = RUNS[fixture.name](model, fixture.section("in"))
    wrong = {name: error for name in expected if (error := deviation(found[name], expected[name])) > OUTPUTS}
    assert not wrong, wrong


def gated(fixture: Fixture, model: PreTrainedModel, values: dict[str, Tensor]) -> Gates:
    gates = Gates(model, anatomy(model).units)
    assert values.keys() == gates.values.keys()
    gates.set(values)
    return gates


@pytest.mark.parametrize("name", RUNS)
def test_the_converted_model_returns_what_the_published_one_does(name: str) -> None:
    fixture = Fixture(name)
    check(fixture, "plain", fixture.model())


@pytest.mark.parametrize("section", ["frac", "bin"])
@pytest.mark.parametrize("name", RUNS)
def test_masked_it_returns_what_the_published_search_model_does(name: str, section: str) -> None:
    fixture = Fixture(name)
    model = fixture.model()
    gated(fixture, model, fixture.by_unit(f"alpha_{section}", model))
    check(fixture, f"search_{section}", model)


@pytest.mark.parametrize("section", ["ones", "frac"])
@pytest.mark.parametrize("name", RUNS)
def test_gradients_of_the_masks_are_the_published_ones(name: str, section: str) -> None:
    fixture = Fixture(name)
    model = fixture.model()
    values = fixture.by_unit("alpha_frac", model)
    gates = gated(fixture, model, values if section == "frac" else {n: torch.ones_like(v) for n, v in values.items()})
    RUNS[name](model, fixture.section("in"))["loss"].backward()
    for unit, expected in fixture.by_unit(f"grad_{section}", model).items():
        found = gate_gradient(model, anatomy(model)[unit], gates.values[unit])
        assert found is not None
        assert deviation(found, expected) <= GRADIENTS, unit


@pytest.mark.parametrize("name", RUNS)
def test_extracted_and_loaded_it_returns_what_the_masked_model_does(name: str, tmp_path: Path) -> None:
    fixture = Fixture(name)
    model = fixture.model()
    masks = {unit: values.bool() for unit, values in fixture.by_unit("alpha_bin", model).items()}
    small = extract(model, Plan.from_masks(anatomy(model), masks))
    check(fixture, "search_bin", small)
    small.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    inputs = fixture.section("in")
    with torch.no_grad():
        first, second = (RUNS[name](each, inputs) for each in (small, loaded))
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in small.state_dict().items())
    assert all(deviation(second[key], first[key]) <= 1e-6 for key in first)


@pytest.mark.parametrize("section", ["reference_extracted", "reference_extracted_biasfix"])
@pytest.mark.parametrize("name", RUNS)
def test_compressed_checkpoints_compute_what_the_published_code_does_with_them(name: str, section: str) -> None:
    fixture = Fixture(name)
    check(fixture, section, fixture.model(fixture.extracted_state(lost_bias=section == "reference_extracted")))


def test_captions_are_the_published_ones() -> None:
    """Those that no [SEP] ends: since transformers 4.15 beams that end are ranked by their score per new token, without the prompt."""
    fixture = Fixture("blip_caption")
    model = fixture.model()
    model.config.text_config.sep_token_id = SEP
    expected = fixture.tensors["plain/generate_ids"]
    prompt = fixture.tensors["in/input_ids"][:1, :PROMPT].expand(len(expected), -1)
    prompt = torch.cat((prompt, torch.full((len(expected), 1), SEP)), 1)
    found = model.generate(
        pixel_values=fixture.tensors["in/image"], input_ids=prompt, num_beams=3, max_length=14, min_length=5
    )
    endless = (expected != SEP).all(1)
    assert endless.sum() == 2
    assert torch.equal(found[endless], expected[endless])


def test_answers_are_the_published_ones() -> None:
    fixture = Fixture("blip_vqa")
    model = fixture.model()
    model.config.text_config.sep_token_id = SEP
    inputs = {"input_ids": "question_ids", "attention_mask": "question_mask", "pixel_values": "image"}
    given = {ours: fixture.tensors[f"in/{theirs}"] for ours, theirs in inputs.items()}
    found = model.generate(**given, num_beams=3, max_length=10, min_length=1)
    assert torch.equal(found, fixture.tensors["plain/generate_ids"])
