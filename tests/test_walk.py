"""The walk over every family: replay is exact, arguments are each block's own, padding is seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus import WalkOptions, Wanda, matrices, prune
from prunus.unstructured.spill import Spill
from prunus.unstructured.walk import Walk
from tests.families import FAMILIES, build


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors(item)]
    return []


def block_outputs(
    model: nn.Module, batches: list[dict[str, Tensor]], blocks: list[str]
) -> dict[str, list[list[Tensor]]]:
    """What every block returns in plain forward passes."""
    seen: dict[str, list[list[Tensor]]] = {path: [] for path in blocks}
    hooks = [
        model.get_submodule(path).register_forward_hook(
            lambda _module, _args, output, path=path: seen[path].append([t.clone() for t in tensors(output)])
        )
        for path in blocks
    ]
    with torch.no_grad():
        for batch in batches:
            seeded(model, batch)
    for hook in hooks:
        hook.remove()
    return seen


def seeded(model: nn.Module, batch: dict[str, Tensor]) -> object:
    """ViLT draws its patches at random."""
    torch.manual_seed(0)
    return model(**batch)


def blocks_of(model: nn.Module) -> list[str]:
    return list(dict.fromkeys(matrix.block for matrix in matrices(model)))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("activations", ["keep", "disk"])
def test_replay_is_exact(name: str, activations: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus.unstructured.spill.SMALL", 1)
    cases = [build(name, 7), build(name, 7)]
    model, batches = cases[0].model, [cases[0].inputs, cases[1].inputs]
    for value in batches[1].values():
        if value.is_floating_point():
            value.mul_(0.5)
    blocks = blocks_of(model)
    expected = block_outputs(model, batches, blocks)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    walked: dict[str, list[list[Tensor]]] = {path: [] for path in blocks}
    reached = [path for path in blocks if expected[path]]
    with Walk(model, batches, reached, seeded, spill=Spill(model, activations)) as walk:  # type: ignore[arg-type]
        for stop in walk:
            for visit in stop.visits:
                walked[stop.block].append([t.clone() for t in tensors(stop.run(visit))])
                stop.rest(visit)
    for path in reached:
        calls = len(expected[path]) // len(batches)
        firsts = [expected[path][index * calls] for index in range(len(batches))]
        for a, b in zip(firsts, walked[path], strict=True):
            assert len(a) == len(b) > 0
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True)), path
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    plan = prune(
        model, Wanda(sparsity=0.0), batches, include=[f"{p}.*" for p in reached], options=WalkOptions(progress=False)
    )
    assert plan.sparsity == 0
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
