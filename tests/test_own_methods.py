"""Pruners, allocations and repairs of strangers, used in Python: they compose with one another and with ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from prunus import PrunusError, SparseGPT, Training, WalkOptions, allocate, matrices, prune, repair, sparsity_of
from prunus.allocation import Allocator
from prunus.extensions import load_extension
from prunus.repair import Repair
from prunus.typed import known
from prunus.unstructured import Pruner, Scored
from tests.families import build

STRANGERS = Path(__file__).parent / "strangers"
QUIET = WalkOptions(progress=False, sequential=False)


def own(base: type[Any], kind: str, name: str) -> Any:
    load_extension(str(STRANGERS / f"own_{kind}.py"))
    return known(base, "method")[name]


def test_an_own_pruner_takes_what_it_says() -> None:
    contribution = own(Pruner, "pruner", "contribution")
    case = build("llama", 4)
    inputs = {"input_ids": case.inputs["input_ids"]}
    norms: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def listen(name: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            norms[name] = args[0].flatten(0, -2).square().sum(0), output.flatten(0, -2).square().sum(0)

        return hook

    before = {m.name: m.view(case.model).detach().clone() for m in matrices(case.model)}
    hooks = [case.model.get_submodule(name).register_forward_hook(listen(name)) for name in before]
    with torch.no_grad():
        case.model.eval()(**inputs)
    for hook in hooks:
        hook.remove()
    prune(case.model, contribution(sparsity=0.5), [inputs], options=QUIET)
    for m in matrices(case.model):
        given, gives = (norm.sqrt() for norm in norms[m.name])
        scores = before[m.name].abs() * given / gives[:, None].sqrt()
        lowest = scores.flatten().argsort()[: m.weights // 2]
        assert (m.view(case.model) == 0).flatten().nonzero().flatten().tolist() == sorted(lowest.tolist())


def test_own_allocations_and_repairs_go_with_everything() -> None:
    depth, vectors = own(Allocator, "allocator", "depth"), own(Repair, "repair", "vectors")
    case = build("llama", 4)
    plan = allocate(case.model, depth(sparsity=0.6, max_sparsity=0.9), progress=False)
    blocks: dict[str, float] = {m.block: m.sparsity for m in plan.matrices.values()}
    shares = list(blocks.values())
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]
    assert plan.history[0].settings["slope"] == 1.0
    prune(case.model, SparseGPT(), [case.inputs], plan, options=QUIET)
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    items = [{**{k: v[0] for k, v in case.inputs.items()}, "labels": case.inputs["input_ids"][0]}] * 4
    repair(case.model, vectors(), items, Training(steps=2, batch_size=2, learning_rate=1e-2, bf16=False))
    changed = {name for name, value in case.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(before[name].ndim == 1 for name in changed)
    record = sparsity_of(case.model)
    assert record is not None
    assert [(entry.step, entry.method) for entry in record.history] == [
        ("allocation", "depth"), ("prune", "sparsegpt"), ("repair", "vectors")
    ]  # fmt: skip
    assert all(parameter.requires_grad for parameter in case.model.parameters())


@pytest.mark.parametrize(
    "odd", [lambda w: w * torch.nan, lambda w: w[:1], lambda w: None, lambda w: w.abs().sum(1, keepdim=True)]
)
def test_scores_that_are_no_numbers_or_not_one_a_weight_are_refused(odd: Any) -> None:
    class Odd(Scored):
        method: Literal["odd"] = "odd"

        def scores(self, weight: torch.Tensor, known: Any) -> Any:
            return odd(weight)

    case = build("llama", 4)
    before = {name: weight.clone() for name, weight in case.model.state_dict().items()}
    with pytest.raises(PrunusError, match="method = 'odd': its scores must be numbers, one for each weight"):
        prune(case.model, Odd(sparsity=0.5), [{"input_ids": case.inputs["input_ids"]}], options=QUIET)
    assert all(torch.equal(weight, before[name]) for name, weight in case.model.state_dict().items())
