"""Masked ≡ extracted, and everything that must hold for every family."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunus import Plan, anatomy, extract
from prunus.structured.gates import Gates
from tests.families import FAMILIES, LEFT_DENSE, WITH_EXPERTS, build, one_half

TOLERANCE = 1e-5


def outputs(result: Any) -> list[torch.Tensor]:
    """Every float tensor of a model's output, nested ones too."""
    if torch.is_tensor(result):
        return [result] if result.is_floating_point() else []
    if hasattr(result, "to_tuple"):
        result = result.to_tuple()
    if isinstance(result, tuple | list):
        return [tensor for part in result for tensor in outputs(part)]
    return []


def random_plan(model: torch.nn.Module, seed: int) -> Plan:
    """A random choice of channels in every unit, from one to all of them."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    parts, masks = anatomy(model), {}
    for unit in parts:
        mask = torch.rand(unit.channels, generator=generator) < rng.choice((0.2, 0.5, 0.8, 1.0))
        mask[rng.randrange(unit.channels)] = True
        masks[unit.name] = mask
    return Plan.from_masks(parts, masks)


def masked(model: torch.nn.Module, plan: Plan) -> Gates:
    units = anatomy(model).units
    gates = Gates(model, units)
    gates.set({unit.name: torch.zeros(unit.channels).index_fill_(0, plan.kept(unit), 1.0) for unit in units})
    return gates


def deviation(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    """Largest absolute difference, relative to the scale of the outputs where that exceeds one."""
    assert [t.shape for t in first] == [t.shape for t in second]
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1.0)) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", [*FAMILIES, *WITH_EXPERTS])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_extracted_model_computes_what_the_masked_one_does(name: str, seed: int) -> None:
    case = build(name, seed)
    plan = random_plan(case.model, seed)
    small = extract(case.model, plan)
    masked(case.model, plan)
    with torch.no_grad():
        wide, narrow = outputs(case.model(**case.inputs)), outputs(small(**case.inputs))
    assert wide
    assert deviation(wide, narrow) <= TOLERANCE
    if case.generate is not None:
        for use_cache in (True, False):
            arguments = {**case.generate, "do_sample": False, "use_cache": use_cache}
            assert torch.equal(case.model.generate(**arguments), small.generate(**arguments))


@pytest.mark.parametrize("name", one_half([*FAMILIES, *WITH_EXPERTS], 0))
def test_gradients_flow_in_the_extracted_model_and_agree(name: str) -> None:
    case = build(name, 1)
    plan = random_plan(case.model, 1)
    small = extract(case.model, plan)
    masked(case.model, plan)
    gradients = []
    for model in (case.model, small):
        model.zero_grad()
        sum(tensor.float().square().mean() for tensor in outputs(model(**case.inputs))).backward()
        gradients.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    wide, narrow = gradients
    assert set(narrow) == set(wide)
    sliced = {id(p) for u in anatomy(case.model) for p in case.model.get_submodule(u.path).parameters()}
    untouched = [k for k, p in case.model.named_parameters() if id(p) not in sliced and k in wide]
    assert deviation([wide[k] for k in untouched], [narrow[k] for k in untouched]) <= 1e-4


@pytest.mark.parametrize("name", [*FAMILIES, *WITH_EXPERTS])
def test_everything_is_mapped_or_named(name: str) -> None:
    model = build(name, 0).model
    parts = anatomy(model)
    assert len(parts) > 0
    assert parts.prunable + sum(parts.dense.values()) == parts.parameters == sum(parts.tower_parameters.values())
    assert {part.type for part in parts.unmapped} <= LEFT_DENSE.get(name, set())
    with torch.device("meta"):
        bare = type(model)(copy.deepcopy(model.config))
    assert [(u.name, u.channels) for u in anatomy(bare)] == [(u.name, u.channels) for u in parts]


@pytest.mark.parametrize("name", ["blip_vqa", "llama", "t5", "qwen2_vl"])
def test_a_model_can_be_narrowed_twice(name: str) -> None:
    case = build(name, 3)
    first = random_plan(case.model, 3)
    once = extract(case.model, first)
    second = random_plan(once, 4)
    twice = extract(once, second)
    at_once = extract(case.model, second.after(first))
    with torch.no_grad():
        assert deviation(outputs(twice(**case.inputs)), outputs(at_once(**case.inputs))) <= TOLERANCE
