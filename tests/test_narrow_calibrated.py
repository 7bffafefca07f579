"""Narrowing from calibration alone: scores and fits against plain loops, and what must hold for every family."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import prunus
from prunus import (
    Calibrated,
    ChannelMagnitude,
    Everyone,
    Fluctuation,
    GradientTimesGate,
    PrunusError,
    SurgeonCost,
    WalkOptions,
    WeightedNorm,
    WithinComponent,
    WithinUnit,
    anatomy,
)
from prunus.anatomy import linears
from prunus.calibrated.allotting import in_channels
from prunus.calibrated.heads import with_heads
from prunus.calibrated.plain import knobs_for
from prunus.calibrated.refit import Moments
from prunus.recipe import parse_recipe
from prunus.run import run
from prunus.structured import Gates, Price, Storage, Whole, cost_of
from prunus.structured.gates import gates_of
from prunus.structured.selection import dearest
from prunus.unstructured import Gram, SquaredNorm, Statistics, Sum
from tests.families import FAMILIES, Case, build, one_half
from tests.test_equivalence import TOLERANCE, deviation, masked, outputs

QUIET = WalkOptions(progress=False)


def narrow(model: Any, inputs: Any, inplace: bool = False, **settings: Any) -> tuple[Any, prunus.Plan]:
    return prunus.narrow(model, Calibrated(**settings), [inputs], options=QUIET, inplace=inplace)


def unpadded(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: torch.ones_like(x) if "attention_mask" in name or name == "pixel_mask" else x
        for name, x in inputs.items()
    }


# the fit


def layer_and_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W (R, C), x (T, C), x' of the columns that stay (T, K), which columns."""
    torch.manual_seed(0)
    x = torch.randn(40, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64) + 1.5
    kept = torch.tensor([0, 2, 3, 6])
    other = x.clone()
    other[:, kept] += 0.3 * torch.randn(40, 4, dtype=torch.float64)
    return torch.randn(5, 8, dtype=torch.float64), x, other, kept


def moments(x: Tensor, after: Tensor, kept: Tensor) -> Moments:
    found = Moments.none(kept, x.shape[1])
    for part, other in zip(x.split(15), after.split(15), strict=True):
        found.add(part, other)
    return found


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("damping", [1e-5, 0.3])
def test_the_fit_is_the_least_of_all_consumers(with_bias: bool, damping: float) -> None:
    W, x, after, kept = layer_and_inputs()
    found = moments(x, after, kept)
    columns = (W[:, kept] + found.fitted_change(W.float(), damping, with_bias)).double()
    offset = found.fitted_bias(W.float(), columns.float()).double() if with_bias else torch.zeros(5)
    x_kept = after[:, kept]
    centre, target = (x_kept - x_kept.mean(0), x @ W.T) if with_bias else (x_kept, x @ W.T)
    penalty = damping * centre.square().sum(0).mean()
    # the same by a solver that knows nothing of Gram matrices: rows of data, then rows that hold the columns to W_K
    unknowns = torch.cat([x_kept, torch.ones(40, 1)], 1) if with_bias else x_kept
    hold = torch.zeros(4, unknowns.shape[1], dtype=torch.float64)
    hold[:, :4] = penalty.sqrt() * torch.eye(4)
    rows, values = torch.cat([unknowns, hold]), torch.cat([target, penalty.sqrt() * W[:, kept].T])
    expected = torch.linalg.lstsq(rows, values).solution.T
    torch.testing.assert_close(columns, expected[:, :4], rtol=1e-3, atol=1e-3)
    if with_bias:
        torch.testing.assert_close(offset, expected[:, 4], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("damping", [1e-4, 0.01, 1.0, 100.0])
def test_no_damping_makes_the_fit_worse_than_nothing(damping: float) -> None:
    W, x, after, kept = layer_and_inputs()
    found, target, x_kept = moments(x, after, kept), x @ W.T, after[:, kept]

    def error(columns: Tensor, offset: Tensor) -> float:
        return float((target - x_kept @ columns.T - offset).square().sum())

    none = error(W[:, kept], torch.zeros(5))
    bias = error(W[:, kept], found.fitted_bias(W.float(), W[:, kept].float()).double())
    fitted = (W[:, kept] + found.fitted_change(W.float(), damping, True)).float()
    both = error(fitted.double(), found.fitted_bias(W.float(), fitted).double())
    alone = error(W[:, kept] + found.fitted_change(W.float(), damping, False).double(), torch.zeros(5))
    assert both <= bias * (1 + 1e-5) <= none * (1 + 1e-4)
    assert alone <= none * (1 + 1e-5)


def test_moments_of_statistics_are_those_of_the_calls() -> None:
    _, x, _, kept = layer_and_inputs()
    known = Statistics((Gram, Sum), 5, 8)
    for part in x.split(15):
        known.add(part)
    one, other = moments(x, x, kept), Moments.of_columns(kept, known)
    assert one.tokens == other.tokens == 40
    for name in ("before", "after", "cross"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))
    torch.testing.assert_close(one.gram.triu(), other.gram.triu())


# the scores


def seen(needs: Any, columns: Tensor) -> tuple[Tensor, Tensor, Statistics, Tensor]:
    W, x, _, _ = layer_and_inputs()
    known = Statistics(needs, 5, 8)
    known.add(x[:15])
    known.add(x[15:], 5)
    return W.float(), columns, known, x


PAIRS = torch.tensor([[0, 4], [1, 5], [2, 6], [3, 7]])


def test_weighted_norms_are_those_of_a_plain_loop() -> None:
    W, columns, known, x = seen((SquaredNorm,), PAIRS)
    expected = [
        sum(abs(float(W[r, c])) * float((x[:, c] ** 2).sum() / 6) ** 0.5 for r in range(5) for c in pair)
        for pair in columns.tolist()
    ]
    torch.testing.assert_close(WeightedNorm().of_matrix(W, columns, known), torch.tensor(expected))


def test_fluctuations_are_those_of_a_plain_loop() -> None:
    W, columns, known, x = seen((SquaredNorm, Sum), PAIRS)
    expected = []
    for pair in columns.tolist():
        total = 0.0
        for c in pair:
            mean = sum(float(value) for value in x[:, c]) / 40
            total += sum((float(value) - mean) ** 2 for value in x[:, c]) / 40 * sum(float(w) ** 2 for w in W[:, c])
        expected.append(total)
    raw = torch.tensor(expected)
    torch.testing.assert_close(Fluctuation().of_matrix(W, columns, known), raw, rtol=1e-4, atol=1e-4)


def least_error(W: Tensor, H: Tensor, stays: list[int]) -> float:
    """½ min over W' of tr((W − W') H (W − W')ᵀ) with W' zero off `stays`: by solving for W'."""
    new = torch.zeros_like(W)
    new[:, stays] = torch.linalg.solve(H[stays][:, stays], (W @ H)[:, stays].T).T
    return float(((W - new) @ H * (W - new)).sum() / 2)


@pytest.mark.parametrize("columns", [torch.arange(8)[:, None], PAIRS], ids=["single", "pairs"])
def test_costs_of_the_surgeon_are_what_least_squares_loses(columns: Tensor) -> None:
    W, _, known, _ = seen((Gram,), columns)
    score = SurgeonCost(rounds=8, damping=1e-3)
    found = score.of_matrix(W, columns, known).double()
    raw, H = W.double(), known[Gram].value.double()
    whole = float((raw @ H * raw).sum() / 2)
    H = H + 1e-3 * H.diagonal().mean() * torch.eye(8)
    left, lost, highest = list(range(len(columns))), 0.0, 0.0
    expected = torch.zeros(len(columns), dtype=torch.float64)
    while left:  # one at a time: which of those that are left adds the least to the error of all that have gone
        costs = []
        for channel in left:
            stays = [c for other in left if other != channel for c in columns[other].tolist()]
            costs.append(least_error(raw, H, sorted(stays)) - lost)
        cheapest = min(range(len(left)), key=lambda place: costs[place])
        lost += costs[cheapest]
        highest = max(highest, costs[cheapest])
        expected[left.pop(cheapest)] = highest / whole
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_of_two_channels_that_say_the_same_one_is_cheap() -> None:
    torch.manual_seed(0)
    x, W = torch.randn(100, 4), torch.randn(6, 4)
    x[:, 3] = x[:, 0]
    known = Statistics((Gram,), 6, 4)
    known.add(x)
    costs = SurgeonCost(damping=1e-6).of_matrix(W, torch.arange(4)[:, None], known)
    low, high = sorted((float(costs[0]), float(costs[3])))
    assert low < 1e-3 * high


# families


@pytest.mark.parametrize("name", one_half(FAMILIES, 1))
def test_without_compensation_the_result_is_the_masked_model(name: str) -> None:
    case = build(name, 2)
    before = copy.deepcopy(case.model.state_dict())
    small, plan = narrow(
        case.model, case.inputs, ratio=0.3, score=WeightedNorm(), scope=Everyone(), compensation="none"
    )
    assert all(torch.equal(tensor, before[key]) for key, tensor in case.model.state_dict().items())
    units = anatomy(case.model).select()
    costs = {unit.name: unit.channel_cost for unit in units}
    total = sum(unit.channels * unit.channel_cost for unit in units)
    assert abs(plan.ratio - 0.3) * total <= max(costs.values()) / 2 + 1e-6
    assert prunus.plan_of(small) is not None
    masked(case.model, plan)
    with torch.no_grad():
        assert deviation(outputs(case.model(**case.inputs)), outputs(small(**case.inputs))) <= TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_a_fitted_model_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    case = build(name, 2)
    before = copy.deepcopy(case.model.state_dict())
    small, plan = narrow(case.model, case.inputs, ratio=0.3)
    assert all(torch.equal(tensor, before[key]) for key, tensor in case.model.state_dict().items())
    assert not any(True for _ in gates_of(small))
    small.save_pretrained(tmp_path)
    again = type(small).from_pretrained(tmp_path).eval()
    found = []
    for model in (small, again):
        torch.manual_seed(0)  # ViLT shuffles its patches
        with torch.no_grad():
            found.append(outputs(model(**case.inputs)))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert prunus.plan_of(again).history == plan.history  # type: ignore[union-attr]


@pytest.mark.parametrize("name", one_half(FAMILIES, 0))
def test_a_fit_never_adds_to_the_error_of_what_it_is_fitted_to(name: str) -> None:
    case = build(name, 2)
    inputs = unpadded(case.inputs)
    firsts = {unit.is_attention: unit for unit in reversed(anatomy(case.model).select()) if not unit.twins}
    for unit in firsts.values():
        path = f"{unit.path}.{unit.consumer.linear}"
        if linears(case.model, unit)[-1][1].is_fused:
            continue
        wanted = given_by(case.model, path, inputs)
        errors = []
        for compensation in ("none", "refit"):
            small, _ = narrow(case.model, inputs, ratio=0.5, include=(unit.name,), compensation=compensation)
            got = given_by(small, path, inputs)
            errors.append(sum(float((a - b).double().square().sum()) for a, b in zip(wanted, got, strict=True)))
        assert errors[1] <= errors[0] * (1 + 1e-4) + 1e-6, unit.name


@torch.no_grad()
def given_by(model: nn.Module, path: str, inputs: dict[str, Tensor]) -> list[Tensor]:
    """What the module at a path gives, call by call."""
    found: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_hook(lambda module, args, output: found.append(output.clone()))
    torch.manual_seed(0)  # ViLT shuffles its patches
    model(**inputs)
    handle.remove()
    return found


def test_channels_of_an_attention_are_worth_what_it_loses_without_each() -> None:
    case = build("llama", 2)
    inputs = unpadded(case.inputs)
    unit = next(unit for unit in anatomy(case.model) if unit.is_attention)
    path = f"{unit.path}.{unit.consumer.linear}"
    whole = torch.cat(given_by(case.model, path, inputs))
    losses = []
    for channel in range(unit.channels):
        masks = {unit.name: torch.arange(unit.channels) != channel}
        small = prunus.extract(case.model, prunus.Plan.from_masks(anatomy(case.model), masks))
        losses.append(float((torch.cat(given_by(small, path, inputs)) - whole).square().sum()))
    for score in (SurgeonCost(), Fluctuation(), WeightedNorm()):
        _, plan = narrow(case.model, inputs, ratio=1 / unit.channels, include=(unit.name,), score=score)
        assert set(range(unit.channels)) - set(plan.units[unit.name].kept) == {losses.index(min(losses))}


# budgets, settings, refusals


def test_budgets_in_parameters_are_met() -> None:
    case = build("llama", 2)
    most = anatomy(case.model).parameters - 400
    small, _ = narrow(case.model, case.inputs, max_parameters=most, compensation="none")
    dearest = max(unit.channel_cost for unit in anatomy(case.model))
    assert most - dearest < sum(p.numel() for p in small.parameters()) <= most


def test_budgets_in_multiply_accumulates_count_the_first_batch() -> None:
    from prunus.cost import multiply_accumulates

    case = build("vit", 2)
    total = multiply_accumulates(case.model, lambda: case.model(**case.inputs))["total"]
    small, _ = narrow(case.model, case.inputs, max_macs=int(0.8 * total), compensation="none")
    found = multiply_accumulates(small, lambda: small(**case.inputs))["total"]
    assert 0.7 * total < found <= 0.8 * total


def test_in_place_it_is_the_same_model() -> None:
    case = build("t5", 2)
    other, plan = narrow(case.model, case.inputs, ratio=0.3)
    same, again = narrow(case.model, case.inputs, inplace=True, ratio=0.3)
    assert same is case.model
    assert plan.units == again.units
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), same.parameters(), strict=True))


def test_bias_takes_the_means() -> None:
    case = build("vit", 2)
    inputs, unit = case.inputs, next(u for u in anatomy(case.model) if not u.is_attention)
    path = f"{unit.path}.{unit.consumer.linear}"
    small, _ = narrow(case.model, inputs, ratio=0.5, include=(unit.name,), compensation="bias", score=Fluctuation())
    wanted, got = (torch.cat([y.flatten(0, -2) for y in given_by(m, path, inputs)]) for m in (case.model, small))
    torch.testing.assert_close(got.mean(0), wanted.mean(0), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got, wanted, atol=1e-3)


def test_means_of_what_goes_are_those_of_the_dense_model() -> None:
    case = build("vit", 2)
    settings: dict[str, Any] = {"ratio": 0.5, "compensation": "bias"}
    small, plan = narrow(case.model, case.inputs, score=Fluctuation(), **settings)
    for unit in anatomy(case.model).select():
        path = f"{unit.path}.{unit.consumer.linear}"
        dense, narrowed, heard = case.model.get_submodule(path), small.get_submodule(path), list[Tensor]()
        handle = dense.register_forward_pre_hook(lambda module, args, heard=heard: heard.append(args[0].flatten(0, -2)))
        with torch.no_grad():
            case.model(**case.inputs)
        handle.remove()
        channels = unit.spread(torch.arange(unit.channels), unit.consumer.repeats, unit.consumer.order)
        gone = ~torch.isin(channels, torch.tensor(plan.units[unit.name].kept))
        expected = dense.bias + dense.weight[:, gone] @ torch.cat(heard).mean(0)[gone]
        torch.testing.assert_close(narrowed.bias, expected)
        assert torch.equal(narrowed.weight, dense.weight[:, ~gone])
        assert not torch.allclose(dense.bias, expected)
    method = Calibrated(score=ChannelMagnitude(), **settings)
    same, _ = prunus.narrow(case.model, method, [case.inputs], options=QUIET, plan=plan)  # by a walk for means alone
    assert all(torch.equal(one, other) for one, other in zip(small.parameters(), same.parameters(), strict=True))


def test_what_fails_in_the_middle_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from prunus.calibrated import narrowing

    case = build("llama", 2)
    before, calls = copy.deepcopy(case.model.state_dict()), 0

    def failing(*given: Any) -> None:
        nonlocal calls
        refit(*given)
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    refit = narrowing.refit
    monkeypatch.setattr(narrowing, "refit", failing)
    with pytest.raises(KeyboardInterrupt):
        narrow(case.model, case.inputs, ratio=0.3, inplace=True)
    assert calls == 2
    assert all(torch.equal(tensor, before[key]) for key, tensor in case.model.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in case.model.modules())


def test_what_fails_after_the_surgery_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from prunus.calibrated import narrowing
    from prunus.checkpoint import narrowed

    case = build("llama", 2)
    weights, config = dict(case.model.named_parameters()), copy.deepcopy(case.model.config.to_dict())
    before = copy.deepcopy(case.model.state_dict())
    optimizer = torch.optim.SGD(case.model.parameters(), 0.0)

    def failing(*given: Any) -> None:
        raise KeyboardInterrupt

    for module, name in ((narrowing, "make_plain"), (narrowed, "write_record"), (narrowed, "retire")):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, failing)
            with pytest.raises(KeyboardInterrupt):
                narrow(case.model, case.inputs, ratio=0.3, inplace=True, plain=name == "make_plain")
        now = dict(case.model.named_parameters())
        assert all(now[key] is weight for key, weight in weights.items())
        assert all(torch.equal(tensor, before[key]) for key, tensor in case.model.state_dict().items())
        assert case.model.config.to_dict() == config
        assert anatomy(case.model) == anatomy(build("llama", 2).model)
        assert prunus.plan_of(case.model) is None
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in case.model.modules())
        case.model(**case.inputs).logits.sum().backward()
        optimizer.step()  # its weights are the model's


def test_an_attention_that_no_batch_uses_is_named() -> None:
    case = build("blip_caption", 2)
    unused = next(unit for unit in anatomy(case.model) if "cross" in unit.component)

    def of_texts(model: Any, batch: Any) -> Any:
        return model.text_decoder(input_ids=batch["input_ids"])

    for score in (SurgeonCost(), ChannelMagnitude()):
        method = Calibrated(ratio=0.3, score=score, include=("text*",))
        with pytest.raises(PrunusError) as error:
            prunus.narrow(case.model, method, [case.inputs], call=of_texts, options=QUIET)
        assert error.value.field == "batches"
        assert unused.block in str(error.value.value)


@pytest.mark.parametrize("sequential", [True, False])
def test_what_others_hold_too_is_not_fitted(sequential: bool) -> None:
    case = build("llama", 2)
    mlps = [unit for unit in anatomy(case.model) if not unit.is_attention]
    assert len(mlps) > 1
    first, second = (case.model.get_submodule(f"{unit.path}.down_proj") for unit in mlps[:2])
    second.weight = first.weight  # what is given to them is another
    dense = first.weight.detach().clone()
    small, plan = prunus.narrow(
        case.model, Calibrated(ratio=0.4), [case.inputs], options=WalkOptions(progress=False, sequential=sequential)
    )
    for unit in mlps[:2]:
        kept = list(plan.units[unit.name].kept)
        assert torch.equal(small.get_submodule(f"{unit.path}.down_proj").weight, dense[:, kept])
    assert first.weight is second.weight


def test_momentum_copies_are_fitted_as_their_originals() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.copy = build("vit", 2).model, build("vit", 2).model

        def forward(self, **inputs: Tensor) -> Any:
            return self.own(**inputs)

    pair = prunus.mirrored(Pair().eval(), {"copy": "own"})
    small, _ = narrow(pair, build("vit", 2).inputs, ratio=0.4)
    followers = small.copy.state_dict()
    assert all(torch.equal(tensor, followers[key]) for key, tensor in small.own.state_dict().items())
    with torch.no_grad():
        for parameter in pair.copy.parameters():
            parameter.add_(1)
    lagging, _ = narrow(pair, build("vit", 2).inputs, ratio=0.4)
    followers = lagging.copy.state_dict()
    for key, tensor in lagging.own.state_dict().items():
        torch.testing.assert_close(tensor + 1, followers[key])


@pytest.mark.usefixtures("bf16_units")
def test_moments_are_fp32_while_blocks_run_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    from prunus.calibrated import ablation, compensating

    case, types = build("llama", 2), set()

    def watched(function: Any) -> Any:
        def run(*given: Any, **named: Any) -> Any:
            types.add((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
            return function(*given, **named)

        return run

    monkeypatch.setattr(ablation, "rows", watched(ablation.rows))
    monkeypatch.setattr(compensating, "add_call", watched(compensating.add_call))
    monkeypatch.setattr(compensating, "fit", watched(compensating.fit))
    heard = []
    handle = case.model.model.layers[0].mlp.register_forward_hook(
        lambda module, args, output: heard.append(output.dtype)
    )
    prunus.narrow(case.model, Calibrated(ratio=0.3), [case.inputs], options=WalkOptions(progress=False, bf16=True))
    handle.remove()
    assert types == {torch.float32}
    assert torch.bfloat16 in heard
    with torch.autocast("cpu", torch.bfloat16):  # the caller's own
        narrow(case.model, case.inputs, ratio=0.3)
    assert types == {torch.float32}


def test_few_sequences_say_what_channels_of_attentions_are_worth() -> None:
    case, runs = build("llama", 2), list[int]()
    unit = next(unit for unit in anatomy(case.model) if unit.is_attention)
    inputs = {name: x[:1].repeat(64, 1) for name, x in unpadded(case.inputs).items()}
    handle = case.model.get_submodule(unit.path).register_forward_pre_hook(
        lambda module, args, kwargs: runs.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    narrow(case.model, inputs, ratio=0.3, include=(unit.name,), compensation="none")
    handle.remove()
    assert runs.count(64 // (2 * unit.channels)) == unit.channels + 1  # one run shows that the batch can be taken apart
    assert runs.count(64) == 1


def test_nothing_is_computed_after_the_last_consumer_is_heard() -> None:
    case, calls = build("llama", 2), list[int]()
    layer = case.model.model.layers[0].mlp.down_proj
    handle = layer.register_forward_hook(lambda module, args, output: calls.append(1))
    left, plan = narrow(case.model, case.inputs, ratio=0.4)
    assert len(calls) == 2  # for the scores, and once it is fitted
    whole, _ = prunus.narrow(case.model, Calibrated(ratio=0.4), [case.inputs], options=QUIET, plan=plan)
    handle.remove()
    assert len(calls) == 4  # no earlier run says how often it is called
    assert all(torch.equal(one, other) for one, other in zip(left.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_plain_experts_have_widths_that_stock_kernels_multiply(name: str) -> None:
    case = build(name, 2)
    units = [unit for unit in anatomy(case.model) if unit.kind == "experts"]
    small, plan = narrow(case.model, case.inputs, ratio=0.4, plain=True, include=tuple(u.name for u in units))
    assert {len(unit.kept) % 8 for unit in plan.units.values()} == {0}
    stock = type(small)(copy.deepcopy(small.config)).eval()
    stock.load_state_dict(small.state_dict())
    with torch.no_grad():
        assert torch.equal(stock(**case.inputs).logits, small(**case.inputs).logits)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"ratio": 0.3, "compensation": "bias"}, "compensation"),
        ({"ratio": 0.99}, "ratio"),
        ({"max_parameters": 1}, "max_parameters"),
        ({"ratio": 0.3, "include": ("nothing",)}, "include"),
        ({}, "ratio"),
        ({"ratio": 0.3, "score": {"score": "nonsense"}}, "score.score"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], field: str) -> None:
    case = build("llama", 2)
    with pytest.raises(PrunusError) as error:
        narrow(case.model, case.inputs, **settings)
    assert error.value.field == field


def test_a_fit_does_not_fill_zeros() -> None:
    case = build("llama", 2)
    prunus.prune(case.model, prunus.Magnitude(sparsity=0.5), [case.inputs], options=QUIET)
    with pytest.raises(PrunusError, match="fill the zeros"):
        narrow(case.model, case.inputs, ratio=0.3)
    narrow(case.model, case.inputs, ratio=0.3, compensation="none", score=ChannelMagnitude())


def test_batches_are_needed() -> None:
    case = build("llama", 2)
    for batches in ([], [{}], case.inputs):
        with pytest.raises(PrunusError) as error:
            prunus.narrow(case.model, Calibrated(ratio=0.3), batches, options=QUIET)
        assert error.value.field == "batches"


# plain configs

LOADING = """
import sys, torch, transformers
for folder in sys.argv[1:]:
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()
    inputs = torch.load(f"{folder}/inputs.pt")
    with torch.no_grad():
        torch.save(model(**inputs).logits, f"{folder}/logits.pt")
assert "prunus" not in sys.modules
"""


def gemma3() -> Case:
    """With head width and kinds of layers in its config."""
    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(
        hidden_size=24, num_attention_heads=6, num_key_value_heads=3, head_dim=4, num_hidden_layers=3, intermediate_size=24, vocab_size=50,
        sliding_window=4, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    return Case(transformers.Gemma3ForCausalLM(config).eval(), {"input_ids": torch.randint(3, 50, (2, 8))})


@pytest.mark.long
def test_plain_results_load_where_prunus_is_not(tmp_path: Path) -> None:
    small, inputs, folders = {}, {}, []
    for name in ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "t5", "llava", "qwen2_5_vl"):
        case = gemma3() if name == "gemma3" else build(name, 0)
        channels = "widths" if name == "t5" else "heads"
        small[name], plan = narrow(case.model, case.inputs, ratio=0.4, plain=True, attention=channels)
        assert prunus.plan_of(small[name]) is None
        assert plan.ratio == pytest.approx(0.4, abs=0.02)
        attentions = [unit for unit in plan.units if "attn" in unit or "Attention" in unit]
        assert attentions or name == "qwen2_5_vl"  # whose heads follow from its hidden size
        assert all(len(plan.units[unit].kept) < plan.units[unit].channels for unit in attentions)
        folders.append(tmp_path / name)
        inputs[name] = case.inputs
        small[name].save_pretrained(folders[-1])
        torch.save(case.inputs, folders[-1] / "inputs.pt")
        assert "prunus" not in (folders[-1] / "config.json").read_text()
    subprocess.run(
        [sys.executable, "-c", LOADING, *map(str, folders)], check=True, env={**os.environ, "PYTHONPATH": ""}
    )
    for folder in folders:
        with torch.no_grad():
            assert torch.equal(torch.load(folder / "logits.pt"), small[folder.name](**inputs[folder.name]).logits)


@pytest.mark.parametrize(
    ("name", "entry"), [("llama", "intermediate_size"), ("t5", "d_ff"), ("vit", "intermediate_size")]
)
def test_a_plain_config_says_the_widths(name: str, entry: str) -> None:
    case = build(name, 2)
    small, plan = narrow(case.model, case.inputs, ratio=0.4, plain=True)
    mlps = [plan.units[unit.name] for unit in anatomy(case.model) if not unit.is_attention]
    assert {len(unit.kept) for unit in mlps} == {getattr(small.config, entry)}
    assert getattr(case.model.config, entry) == mlps[0].channels
    with torch.device("meta"):
        bare = type(small)(copy.deepcopy(small.config))
    assert {k: t.shape for k, t in bare.state_dict().items()} == {k: t.shape for k, t in small.state_dict().items()}


def test_an_entry_that_says_nothing_can_say_the_width() -> None:
    case = build("gpt2", 0)
    case.model.config.n_inner = None  # four times the width
    model = type(case.model)(case.model.config).eval()
    small, plan = narrow(model, case.inputs, ratio=0.3, plain=True)
    assert plan.ratio == pytest.approx(0.3, abs=0.03)
    assert small.config.n_inner == len(plan.units["transformer.h.0.mlp"].kept)
    stock = type(model)(type(model.config).from_dict(small.config.to_dict())).eval()
    stock.load_state_dict(small.state_dict())
    with torch.no_grad():
        assert torch.equal(stock(**case.inputs).logits, small(**case.inputs).logits)


def test_a_weight_that_is_no_number_is_named() -> None:
    case = build("llama", 2)
    case.model.model.layers[0].mlp.down_proj.weight.data[0, 0] = torch.nan
    for score in (SurgeonCost(), ChannelMagnitude()):
        with pytest.raises(PrunusError, match=r"down_proj.*NaN or infinity"):
            narrow(case.model, case.inputs, ratio=0.3, score=score)


def test_what_no_plain_config_can_say_is_refused_by_name() -> None:
    case = build("llama", 2)
    with pytest.raises(PrunusError, match="self_attn"):
        narrow(case.model, case.inputs, ratio=0.3, plain=True, include=("*.self_attn",))
    one = next(unit.name for unit in anatomy(case.model) if not unit.is_attention)
    if sum(not unit.is_attention for unit in anatomy(case.model)) > 1:
        with pytest.raises(PrunusError, match="select both"):
            narrow(case.model, case.inputs, ratio=0.3, plain=True, include=(one,))
    small, _ = narrow(case.model, case.inputs, ratio=0.3)
    with pytest.raises(PrunusError, match="narrowed already"):
        narrow(small, case.inputs, ratio=0.3, plain=True)


def test_whole_heads_are_what_is_left_of_the_model_without_them() -> None:
    case = gemma3()
    unit = next(unit for unit in with_heads(anatomy(case.model)) if unit.is_attention)
    small, plan = narrow(case.model, case.inputs, ratio=0.4, plain=True, attention="heads", compensation="none")
    assert small.config.num_attention_heads == 2 * small.config.num_key_value_heads == 4
    assert small.config.head_dim == 4
    gates = Gates(case.model, with_heads(anatomy(case.model)))
    gates.set({name: torch.zeros(u.channels).index_fill(0, torch.tensor(u.kept), 1) for name, u in plan.units.items()})
    with torch.no_grad():
        assert deviation(outputs(case.model(**case.inputs)), outputs(small(**case.inputs))) <= TOLERANCE
    gates.remove()
    assert unit.channel_cost == sum(24 * 4 * repeats for repeats in (2, 1, 1, 2))


def test_alignment_is_of_widths_and_not_of_heads() -> None:
    case = gemma3()
    units = with_heads(anatomy(case.model)).units
    total = sum(unit.channels * unit.channel_cost for unit in units)
    small, plan = narrow(
        case.model,
        case.inputs,
        ratio=0.4,
        plain=True,
        attention="heads",
        align=8,
        compensation="none",
        score=ChannelMagnitude(),
    )
    assert (small.config.num_key_value_heads, small.config.intermediate_size % 8) == (2, 0)
    step = 8 * sum(unit.channel_cost for unit in units if not unit.is_attention)
    assert abs(plan.ratio - 0.4) * total <= step
    most = anatomy(case.model).parameters - int(0.45 * total)
    small, _ = narrow(
        case.model,
        case.inputs,
        max_parameters=most,
        plain=True,
        attention="heads",
        align=16,
        compensation="none",
        score=ChannelMagnitude(),
    )
    assert small.num_parameters() <= most  # heads make up for what widths cannot lose
    with pytest.raises(PrunusError, match="ordinary config says"):
        narrow(
            case.model,
            case.inputs,
            max_parameters=most - int(0.15 * total),
            plain=True,
            attention="heads",
            align=16,
            score=ChannelMagnitude(),
        )


@pytest.mark.parametrize("name", ["llama", "clip", "t5"])
@pytest.mark.parametrize("scope", [WithinUnit(), WithinComponent()], ids=lambda scope: scope.scope)
def test_units_no_wider_than_a_step_stay_whole_and_the_others_make_up_for_them(name: str, scope: Any) -> None:
    units = anatomy(build(name, 0).model).units
    align = 8 if any(unit.channels <= 8 for unit in units) else 16
    costs = {unit.name: unit.channels * unit.channel_cost for unit in units}
    wide = {unit.name for unit in units if unit.channels > align}
    assert 0 < len(wide) < len(units)
    method = Calibrated(ratio=0.4 * sum(costs[one] for one in wide) / sum(costs.values()), scope=scope, align=align)
    scores = {unit.name: torch.rand(unit.channels, generator=torch.Generator().manual_seed(0)) for unit in units}
    kept = method.choose(scores, units)
    assert {one for one, mask in kept.items() if not mask.all()} == wide
    step = align * max(unit.channel_cost for unit in units)
    assert (
        abs(
            sum(int((~kept[unit.name]).sum()) * unit.channel_cost for unit in units) - method.goal * sum(costs.values())
        )
        <= step
    )
    with pytest.raises(PrunusError, match=r"at most 0\.0000 can go with min_channels=1 and align=128"):
        method.model_copy(update={"align": 128}).choose(scores, units)


def test_units_just_as_wide_as_a_step_stay_whole() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 2, "num_key_value_heads": 1}
    units = anatomy(
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_hidden_layers=2, vocab_size=20))
    ).units
    assert {unit.channels for unit in units if unit.is_attention} == {8}
    kept = Calibrated(ratio=0.3, align=8).choose({unit.name: torch.rand(unit.channels) for unit in units}, units)
    assert all(bool(kept[unit.name].all()) == unit.is_attention for unit in units)


def test_heads_that_no_config_says_are_refused() -> None:
    with pytest.raises(PrunusError, match="plain: true"):
        Calibrated(ratio=0.3, attention="heads")
    case = build("qwen2_5_vl", 0)
    name = next(unit.name for unit in anatomy(case.model) if unit.is_attention)
    with pytest.raises(PrunusError, match=name):
        narrow(case.model, case.inputs, ratio=0.3, plain=True, attention="heads", include=(name,))
    config = transformers.LlamaConfig(
        hidden_size=16, num_attention_heads=4, num_key_value_heads=4, head_dim=4, num_hidden_layers=1, intermediate_size=16, vocab_size=50
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    parts = with_heads(anatomy(model))
    (attention,) = (knob for knob in knobs_for(model, parts, parts.units, named=True) if knob.counts)
    assert attention.counts == (1, 2, 4)  # its config takes none that does not divide the hidden size


def test_plain_limits_are_not_passed() -> None:
    case = build("llama", 2)
    most = anatomy(case.model).parameters - 300
    small, _ = narrow(case.model, case.inputs, max_parameters=most, compensation="none", plain=True)
    mlps = [unit for unit in anatomy(case.model) if not unit.is_attention]
    step = sum(unit.channel_cost for unit in mlps)
    assert most - step < sum(p.numel() for p in small.parameters()) <= most


# recipes

VIT = """
model:
  random: {model_type: vit, architectures: [ViTForImageClassification], hidden_size: 32, num_attention_heads: 2, intermediate_size: 64,
    num_hidden_layers: 2, image_size: 28}
task: {name: noise, items: 16}
steps:
  - step: narrow
    method: {ratio: 0.4, score: {score: fluctuation}, scope: {scope: everyone}}
    calibration: {samples: 8, batch_size: 4}
  - {step: prune, method: {method: wanda, sparsity: 0.5}, calibration: {samples: 8, batch_size: 4}}
measure: {batch_size: 2, repeats: 1}
"""


@pytest.mark.long
def test_a_recipe_narrows_and_prunes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    report = run(parse_recipe(f"{VIT}output: {tmp_path / 'run'}", "recipe"))
    assert report.ratio == pytest.approx(0.4, abs=0.02)
    assert report.sparsity == pytest.approx(0.5, abs=0.01)
    assert prunus.Plan.load(tmp_path / "run" / "1-narrow" / "plan.json").history[0].step == "narrow"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("steps.0.method.include=[nothing]",), "nothing"),
        (("steps.0.method.min_channels=60",), "min_channels"),
        (("steps.0.method.score={score: nonsense}",), "surgeon"),
    ],
)
def test_a_recipe_says_before_anything_runs_what_cannot_be(changes: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(PrunusError, match=said):
        run(parse_recipe(f"{VIT}output: {tmp_path / 'run'}", "recipe", changes))
    assert not (tmp_path / "run" / "1-narrow").exists()


def test_a_refit_after_pruning_is_refused_when_the_recipe_is_read() -> None:
    text = VIT.replace("steps:", "steps:\n  - {step: prune, method: {method: wanda, sparsity: 0.5}}")
    with pytest.raises(PrunusError, match="fill the zeros"):
        parse_recipe(f"{text}output: nowhere", "recipe")


# gradients of gates, and shares that an allocation gives


def test_gradients_of_gates_are_what_the_loss_says() -> None:
    case = build("llama", 2)
    batches = [
        {**case.inputs, "labels": case.inputs["input_ids"]},
        {**unpadded(case.inputs), "labels": case.inputs["input_ids"]},
    ]
    method = Calibrated(ratio=0.3, score=GradientTimesGate(), compensation="none")
    before = [parameter.requires_grad for parameter in case.model.parameters()]
    found = prunus.score_channels(case.model, method, batches, options=QUIET).worth
    signed = method.model_copy(update={"score": GradientTimesGate(signed=True)})
    summed = prunus.score_channels(case.model, signed, batches, options=QUIET).worth
    assert [parameter.requires_grad for parameter in case.model.parameters()] == before
    assert all(parameter.grad is None for parameter in case.model.parameters())
    for unit in anatomy(case.model):
        gates = Gates(case.model, [unit])
        for channel in (0, unit.channels - 1):
            slopes = []
            for batch in batches:
                losses = []
                for step in (1e-2, -1e-2):
                    gates.set({unit.name: torch.ones(unit.channels).index_fill(0, torch.tensor([channel]), 1 + step)})
                    with torch.no_grad():
                        losses.append(float(case.model(**batch).loss))
                slopes.append((losses[0] - losses[1]) / 2e-2)
            assert float(found[unit.name][channel]) == pytest.approx(sum(map(abs, slopes)), rel=0.05, abs=1e-4)
            assert float(summed[unit.name][channel]) == pytest.approx(-sum(slopes), rel=0.05, abs=1e-4)
        gates.remove()
    with pytest.raises(PrunusError, match="own loss"):
        prunus.narrow(case.model, method, batches, call=lambda model, batch: model(**batch), options=QUIET)


def test_an_allocation_says_how_much_of_each_unit_goes() -> None:
    case = build("llama", 2)
    allocation = prunus.OWL()
    small, plan = narrow(
        case.model, case.inputs, ratio=0.3, allocation=allocation, compensation="none", include=("*.mlp",)
    )
    assert prunus.plan_of(small) is not None
    given = prunus.allocate(case.model, prunus.OWL(sparsity=0.3), [case.inputs], include=("*.mlp",), progress=False)
    shares = given.unit_ratios(anatomy(case.model))
    gone = {name: 1 - len(unit.kept) / unit.channels for name, unit in plan.units.items()}
    assert len(gone) > 1
    for name, share in gone.items():
        assert share == pytest.approx(shares[name], abs=0.6 / plan.units[name].channels + 0.01)
    batch = {**case.inputs, "labels": case.inputs["input_ids"]}
    other = prunus.ECoFLaP(order="first", max_sparsity=0.8)
    with pytest.raises(PrunusError, match="max_sparsity"):
        narrow(case.model, batch, ratio=0.82, allocation=other)
    small, plan = narrow(case.model, batch, ratio=0.3, allocation=other, compensation="none")
    units = anatomy(case.model).select()
    total = sum(unit.channels * unit.channel_cost for unit in units)
    assert abs(plan.ratio - 0.3) * total <= max(unit.channel_cost for unit in units) / 2 + 1e-6
    with pytest.raises(PrunusError, match="one width"):
        Calibrated(ratio=0.3, allocation=allocation, plain=True)
    with pytest.raises(PrunusError, match="leave scope out"):
        Calibrated(ratio=0.3, allocation=allocation, scope=Everyone())


@pytest.mark.parametrize("align", [1, 8])
@pytest.mark.parametrize("name", ["ratio", "max_parameters", "max_macs", "max_bytes", "max_milliseconds"])
def test_shares_of_an_allocation_come_to_every_kind_of_budget(name: str, align: int) -> None:
    config = transformers.LlamaConfig(
        hidden_size=24, num_attention_heads=6, num_key_value_heads=3, head_dim=16, num_hidden_layers=3, intermediate_size=77, vocab_size=50
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    parts = anatomy(model)
    whole = Whole(parts, model, lambda: model(input_ids=torch.arange(8)[None]))
    units, costs = parts.units, dict[str, list[float]]()
    if name == "max_milliseconds":  # the first channels to leave spare other times than the last ones
        costs = {unit.name: [1.0 + (place % 3) * unit.is_attention for place in range(unit.channels)] for unit in units}
        price = Price(1000.0, costs)
    else:
        price = whole.macs(units) if name == "max_macs" else whole.parameters(units)
        price = whole.bytes(units, Storage()) if name == "max_bytes" else price
    total = sum(cost_of(price.channel[unit.name], unit.channels) for unit in units)
    for ratio, wanted in ((0.2, (0.1, 0.3)), (0.5, (0.0, 0.9)), (0.7, (0.6, 0.99)))[: 3 if align == 1 else 1]:
        amount = ratio if name == "ratio" else int(price.total - ratio * total)
        settings: dict[str, Any] = {name: amount, "align": align}
        method = Calibrated(**settings)
        if not costs:
            fitted = method.fit(whole, units)
        else:
            fitted = method.model_copy(update={"ratio": (price.total - amount) / total})
            fitted._costs = costs
        given = {unit.name: wanted[place % 2] for place, unit in enumerate(units)}
        shares = in_channels(given, units, fitted)
        kept = fitted.model_copy(update={"scope": WithinUnit(ratios=shares)}).choose(
            {unit.name: torch.rand(unit.channels) for unit in units}, units
        )
        gone = {name: int((~mask).sum()) for name, mask in kept.items()}
        left = price.total - sum(cost_of(price.channel[unit.name], gone[unit.name]) for unit in units)
        step = dearest(price.channel.values()) * align
        assert -step <= left - (price.total - ratio * total if name == "ratio" else amount) <= step * (name == "ratio")
        assert {int(mask.sum()) % align for mask in kept.values() if not mask.all()} <= {0}
        attentions, mlps = (
            [gone[u.name] / u.channels for u in units if u.is_attention is side] for side in (True, False)
        )
        assert max(attentions) <= min(mlps) + align / 16


def test_no_unit_is_emptied_before_the_others() -> None:
    units = anatomy(build("llama", 2).model).units[:2]
    alike = [replace(unit, channels=100, span=1) for unit in units]
    a, b = (unit.name for unit in alike)
    shares = in_channels({a: 0.9, b: 0.3}, tuple(alike), Calibrated(ratio=0.8, cost="channels"))
    assert [shares[a], shares[b]] == pytest.approx([0.95, 0.65], abs=0.011)


@pytest.mark.parametrize(("quotas", "gone"), [((1.4, 0.6), (1, 1)), ((2.6, 0.4), (3, 0))])
def test_shares_come_to_whole_channels_by_webster_s_rule(quotas: tuple[float, float], gone: tuple[int, int]) -> None:
    units = tuple(replace(unit, channels=10, span=1) for unit in anatomy(build("llama", 2).model).units[:2])
    given = {unit.name: quota / 10 for unit, quota in zip(units, quotas, strict=True)}
    shares = in_channels(given, units, Calibrated(ratio=sum(gone) / 20, cost="channels"))
    assert [round(10 * shares[unit.name]) for unit in units] == list(gone)
