"""One search, every method: three choices that compose, presets as names for cells, gates that train, rates that wait, other budgets."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from transformers.optimization import Adafactor

from prunus import (
    AtEnd,
    Chance,
    Closing,
    ComponentRatios,
    Composed,
    Everyone,
    GateGradient,
    Importance,
    IterativeMagnitude,
    IterativeSTE,
    MaskBased,
    Plan,
    Progressive,
    PrunusError,
    RateGate,
    Rounds,
    Scope,
    Search,
    SearchMethod,
    StraightThrough,
    Structured,
    Taylor,
    TrainedGate,
    Unified,
    UPop,
    WeightMagnitude,
    WithinComponent,
    WithinUnit,
    anatomy,
    extract,
    load_model,
)
from prunus.cost import channel_macs, multiply_accumulates
from prunus.recipe import Recipe
from prunus.run import run
from prunus.steps import SearchStep
from prunus.structured.gates import Gates
from prunus.structured.scores import gate_gradient
from prunus.tasks import EasyVQA, Noise
from tests.families import FAMILIES, WITH_COPIES, WITH_EXPERTS, build, one_half
from tests.test_equivalence import TOLERANCE, deviation, outputs
from tests.test_search import _trainer, gate_by_hand, loss_of
from tests.test_structured_formulas import feed, kept, model_of

STEPS = 6
PRESETS: dict[str, SearchMethod] = {
    "upop": UPop(ratio=0.4, interval=2),
    "mask_based": MaskBased(ratio=0.4, l1_mlp=0.01),
    "unified": Unified(ratio=0.4, l1_mlp=0.01),
    "component_ratios": ComponentRatios(ratios={"*": 0.4}),
    "iterative_magnitude": IterativeMagnitude(ratio=0.4, rounds=3),
    "iterative_ste": IterativeSTE(ratio=0.4, rounds=3, l1_mlp=0.01),
}
IMPORTANCES = (GateGradient(), TrainedGate(l1_mlp=0.01), WeightMagnitude(), Taylor(), Chance(seed=3))
SCOPES = (Everyone(), WithinComponent(), WithinUnit())
CLOSINGS = (Progressive(interval=2), AtEnd(), Rounds(rounds=3), StraightThrough(rounds=3))


class Loop:
    """A training loop with a search in it, which can be taken up by another one."""

    def __init__(self, case: Any, method: SearchMethod, gate_rate: float = 0.05):
        self.case, self.method = case, method
        self.optimizer = torch.optim.AdamW(case.model.parameters(), lr=1e-3)
        self.search = Search(case.model, method, STEPS, optimizer=self.optimizer)
        if self.search._optimizer is not None:
            self.search._optimizer._rate = gate_rate  # six steps have to move a gate

    def run(self, steps: int) -> Loop:
        for _ in range(steps):
            torch.manual_seed(self.search.steps_done)  # ViLT draws which patches it looks at
            loss_of(self.case).backward()
            self.search.step()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return self


def within_a_channel(search: Search, ratio: float) -> bool:
    costs = search._fitted.unit_costs(search.units)
    total = sum(costs[unit.name] * unit.channels for unit in search.units)
    return abs(search.ratio - ratio) <= max(costs.values()) / total + 1e-12


def ends_the_same(loop: Loop) -> None:
    """Gates are binary, and what is extracted computes what the search left, whether or not gates are still on the model."""
    search, case = loop.search, loop.case
    assert all(set(gate.unique().tolist()) <= {0.0, 1.0} for gate in search.gates.values.values())
    with torch.no_grad():
        wide = outputs(case.model(**case.inputs))
        assert deviation(wide, outputs(extract(case.model, search.plan())(**case.inputs))) <= TOLERANCE
        search.close()
        assert deviation(wide, outputs(extract(case.model, search.plan())(**case.inputs))) <= TOLERANCE


# Every preset on every family


@pytest.mark.long
@pytest.mark.parametrize("name", [*FAMILIES, *WITH_EXPERTS])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_search_keeps_its_budget_extracts_exactly_and_resumes_bit_for_bit(preset: str, name: str) -> None:
    method = PRESETS[preset]
    loop = Loop(build(name, 5), method).run(3)
    loop.search.close()
    resumed = Loop(copy.deepcopy(loop.case), method)
    resumed.optimizer.load_state_dict(copy.deepcopy(loop.optimizer.state_dict()))
    resumed.search.load_state(loop.search.state(), "memory")
    whole = Loop(build(name, 5), method).run(STEPS)
    resumed.run(STEPS - 3)
    assert resumed.search.plan() == whole.search.plan()
    assert resumed.search.course == whole.search.course
    for (key, one), (_, other) in zip(
        whole.case.model.state_dict().items(), resumed.case.model.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), key
    assert within_a_channel(whole.search, 0.4)
    with torch.no_grad():
        before = outputs(whole.case.model(**whole.case.inputs))
    ends_the_same(whole)
    assert all(tensor.isfinite().all() for tensor in before)


# Every cell on one family


@pytest.mark.parametrize(
    ("importance", "scope", "closing"), list(itertools.product(IMPORTANCES, SCOPES, CLOSINGS)),
    ids=lambda part: part.importance if hasattr(part, "importance") else getattr(part, "scope", getattr(part, "closing", "")),
)  # fmt: skip
def test_every_cell_keeps_its_budget_and_extracts_exactly(importance: Any, scope: Any, closing: Any) -> None:
    method = Structured(ratio=0.4, importance=importance, scope=scope, closing=closing, hold=0.17)
    loop = Loop(build("blip_caption", 6), method).run(STEPS)
    assert loop.search.course[-1][0] == 5, "the sixth step is the hold phase"
    assert within_a_channel(loop.search, 0.4)
    ends_the_same(loop)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_a_name_for_its_three_parts(preset: str) -> None:
    method: Any = PRESETS[preset]
    spelled = Structured(
        **dict(zip(("importance", "scope", "closing"), method.parts(), strict=True)), ratio=method.ratio
    )
    named, written = (Loop(build("blip_vqa", 8), one).run(STEPS) for one in (method, spelled))
    assert named.search.plan().units == written.search.plan().units
    assert named.search.course == written.search.course
    for kind, tensors in named.search.method_state.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, written.search.method_state[kind][name])
    for (key, one), (_, other) in zip(
        named.case.model.state_dict().items(), written.case.model.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), key


# Gates that train


@pytest.mark.parametrize("name", one_half([*FAMILIES, *WITH_EXPERTS], 1))
def test_the_gradient_of_a_gate_is_autograds_whatever_the_gate_is(name: str) -> None:
    """Against ζ as a parameter that multiplies the outputs of the producers in plain torch."""
    case = build(name, 12)
    units = anatomy(case.model).units
    generator = torch.Generator().manual_seed(12)
    values = {}
    for unit in units:
        zeta = torch.rand(unit.channels, generator=generator)
        zeta[torch.randperm(unit.channels, generator=generator)[0]] = 0.0
        zeta[torch.randperm(unit.channels, generator=generator)[0]] = -0.5
        zeta[torch.randperm(unit.channels, generator=generator)[0]] = 1.0
        values[unit.name] = zeta
    gates = Gates(case.model, units, exact=True)
    gates.set(values)
    loss_of(case).backward()
    gates.take_gradients()
    found = {unit.name: gate_gradient(case.model, unit, gates.values[unit.name]) for unit in units}
    gates.remove()

    explicit = {name: nn.Parameter(zeta.clone()) for name, zeta in values.items()}
    for unit in units:
        gate_by_hand(case.model, unit, explicit[unit.name])
    loss_of(case).backward()
    for unit in units:
        ours, theirs = found[unit.name], explicit[unit.name].grad
        assert (ours is None) == (theirs is None), unit.name
        if ours is not None and theirs is not None:
            assert deviation([ours], [theirs]) <= 1e-5, unit.name


def zeta_model(weights: list[float]) -> nn.Module:
    """An MLP of one input whose loss below is Σ ζ_j w_j + b: ∂L/∂ζ_j = w_j."""
    model = model_of({"mlp": len(weights)})
    hidden = model.get_submodule("mlp")
    hidden.fc1.weight.data = torch.tensor(weights)[:, None]
    return model


def linear_loss(model: nn.Module) -> Tensor:
    return model.get_submodule("mlp").fc1(torch.ones(1, 1)).sum()  # type: ignore[operator, no-any-return]


def test_gates_step_by_the_gradient_of_the_loss_and_of_their_l1_term() -> None:
    """SGD of rate .5 on the model, .1 on gates: ζ ← 1 − .1 (w + .01 sign ζ), then again with sign ζ as it is."""
    model = zeta_model([3.0, 20.0, -1.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    method = Unified(ratio=0.5, l1_mlp=0.01, gate_learning_rate=0.1)
    search = Search(model, method, 3, optimizer=optimizer)
    linear_loss(model).backward()
    search.step()
    expected = [1 - 0.1 * 3.01, 1 - 0.1 * 20.01, 1 + 0.1 * 0.99]
    assert search.gates.values["mlp"].tolist() == pytest.approx(expected)
    assert search.masks["mlp"].all()
    assert search.course == []
    model.zero_grad()
    linear_loss(model).backward()
    search.step()
    expected = [z - 0.1 * (w + 0.01 * math.copysign(1, z)) for z, w in zip(expected, [3.0, 20.0, -1.0], strict=True)]
    assert search.gates.values["mlp"].tolist() == pytest.approx(expected)
    assert expected[1] < 0, "a gate that has crossed zero is driven back to it"


def test_gates_take_the_optimisers_settings_but_for_their_own_rate_and_decay() -> None:
    """SGD with momentum .9 and decay .5: gates have the momentum, no decay, and a rate that falls as that of the first group does."""
    model = zeta_model([1.0, 1.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (t + 1))
    search = Search(model, Unified(ratio=0.5, l1_mlp=0.0), 9, optimizer=optimizer)
    zeta, momentum = 1.0, 0.0
    for t in range(3):
        model.zero_grad()
        linear_loss(model).backward()
        search.step()
        optimizer.step()
        model.get_submodule("mlp").fc1.weight.data.fill_(1.0)
        schedule.step()
        momentum = 0.9 * momentum + 1.0
        zeta -= 0.1 / (t + 1) * momentum
    assert search.gates.values["mlp"].tolist() == pytest.approx([zeta, zeta])

    model = zeta_model([0.0, 0.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.9)
    decayed = Search(model, Unified(ratio=0.5, l1_mlp=0.0, gate_weight_decay=0.5), 9, optimizer=optimizer)
    linear_loss(decayed.model).backward()
    decayed.step()
    assert decayed.gates.values["mlp"].tolist() == pytest.approx([0.95, 0.95])


def test_both_l1_terms_are_equal_at_the_start_unless_they_are_given() -> None:
    """4 attention channels and 10 of MLPs: w_a = 2e-4 · 10 / 4. For BLIP-NLVR the paper's numbers: 3,072 and 73,728, 4.8e-3 and 2e-4."""
    units = anatomy(model_of({"attention": 4, "a.mlp": 6, "b.mlp": 4})).units
    assert TrainedGate().l1_weights(units) == {"attention": pytest.approx(5e-4), "a.mlp": 2e-4, "b.mlp": 2e-4}
    given = TrainedGate(l1_mlp=0.1, l1_attention=0.0)
    assert given.l1_weights(units) == {"attention": 0.0, "a.mlp": 0.1, "b.mlp": 0.1}
    assert TrainedGate(l1_mlp=0.1).l1_weights(units[:1]) == {"attention": 0.1}
    nlvr = anatomy(model_of({"attention": 3072, "mlp": 73728})).units
    assert TrainedGate().l1_weights(nlvr)["attention"] == pytest.approx(4.8e-3)


def test_trained_gates_go_by_their_size_and_stay_with_their_value() -> None:
    """ζ = (.7, .98, .9): of |ζ| the first goes, and .98 and .9 become part of the weights."""
    model = zeta_model([3.0, 0.2, 1.0])
    weights = model.get_submodule("mlp").fc1.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    search = Search(model, MaskBased(ratio=0.34, l1_mlp=0.0), 1, optimizer=optimizer)
    linear_loss(model).backward()
    search.step()
    assert kept(search) == {"mlp": [1, 2]}
    assert search.course == [(1, pytest.approx(0.34), pytest.approx(1 / 3))]
    folded = weights * torch.tensor([[1.0], [0.98], [0.9]])
    torch.testing.assert_close(model.get_submodule("mlp").fc1.weight.detach(), folded)
    assert search.gates.values["mlp"].tolist() == [0.0, 1.0, 1.0]


def test_a_negative_gate_is_as_large_as_it_is_far_from_zero() -> None:
    model = zeta_model([20.0, 8.0, 5.0])  # ζ = −1, .2 and .5
    search = Search(model, MaskBased(ratio=0.34, l1_mlp=0.0), 1, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    linear_loss(model).backward()
    search.step()
    assert kept(search) == {"mlp": [0, 2]}
    assert model.get_submodule("mlp").fc1.weight.flatten().tolist() == pytest.approx([-20.0, 8.0, 2.5])


def test_straight_through_gates_are_binary_and_their_scores_go_on_moving_and_come_back() -> None:
    """Two rounds over four steps, at ratio .5 of 4: after the second step one goes, after the fourth two. ζ of the shut one moves by the
    gradient of its gate, and so it is back at the end."""
    model = zeta_model([3.0, 2.0, 1.0, 0.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = IterativeSTE(ratio=0.5, rounds=2, l1_mlp=0.0)
    search = Search(model, method, 4, optimizer=optimizer)
    fc1 = model.get_submodule("mlp").fc1
    for _ in range(2):
        model.zero_grad()
        linear_loss(model).backward()
        search.step()
    assert search.gates.values["mlp"].tolist() == [0.0, 1.0, 1.0, 1.0]
    assert search.method_state["zeta"]["mlp"].tolist() == pytest.approx([0.4, 0.6, 0.8, 1.0])
    fc1.weight.data = torch.tensor([[-5.0], [0.0], [0.0], [3.0]])
    for _ in range(2):
        model.zero_grad()
        linear_loss(model).backward()
        search.step()
    assert search.method_state["zeta"]["mlp"].tolist() == pytest.approx([1.4, 0.6, 0.8, 0.4])
    assert kept(search) == {"mlp": [0, 2]}
    assert fc1.weight.flatten().tolist() == [-5.0, 0.0, 0.0, 3.0], "masks of zeros and ones leave nothing to fold"


def test_a_trained_gate_that_has_gone_for_good_gets_no_gradient() -> None:
    model = zeta_model([3.0, 2.0, 1.0, 0.0])
    method = Structured(
        ratio=0.5, importance=TrainedGate(l1_mlp=0.0), scope=Everyone(normalize="none"), closing=Rounds(rounds=2)
    )
    search = Search(model, method, 4, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    for step in range(4):
        model.zero_grad()
        linear_loss(model).backward()
        search.step()
        if step == 1:
            assert search.gates.values["mlp"].tolist() == pytest.approx([0.0, 0.6, 0.8, 1.0])
            model.get_submodule("mlp").fc1.weight.data.fill_(-9.0)
    assert search.method_state["zeta"]["mlp"].tolist() == pytest.approx([0.4, 2.4, 2.6, 2.8])
    assert kept(search) == {"mlp": [2, 3]}, "the first has gone for good"


def test_gates_that_train_need_an_optimizer_that_another_can_be_made_like() -> None:
    model = zeta_model([1.0, 2.0])
    with pytest.raises(PrunusError, match="optimizer = None"):
        Search(model, Unified(ratio=0.5), 2)
    with pytest.raises(PrunusError, match="optimizer = 'str'"):
        Search(model, Unified(ratio=0.5), 2, optimizer="adam")  # type: ignore[arg-type]

    class Odd(torch.optim.SGD):
        def __init__(self, parameters: Any, other: Any, lr: float) -> None:
            super().__init__(parameters, lr=lr)

    refused = {
        "cannot be made": Odd(model.parameters(), 1, 0.1),
        "needs a closure": torch.optim.LBFGS(model.parameters()),
        "maximises": torch.optim.SGD(model.parameters(), lr=0.1, maximize=True),
        "is None": Adafactor(model.parameters()),
    }
    for reason, optimizer in refused.items():
        with pytest.raises(PrunusError, match=rf"optimizer = '\w+'.*{reason}.*take AdamW"):
            Search(model, Unified(ratio=0.5), 2, optimizer=optimizer)
    with pytest.raises(PrunusError, match="learning rate is 0"):
        Search(
            model, Unified(ratio=0.5, gate_learning_rate=0.1), 2, optimizer=torch.optim.SGD(model.parameters(), lr=0.0)
        )
    assert not any(module._forward_hooks for module in model.modules()), "what is refused leaves nothing behind"


def test_shared_weights_that_no_gate_could_become_part_of_are_refused_before_the_first_step() -> None:
    model = model_of({"a.mlp": 3, "b.mlp": 3})
    model.get_submodule("b.mlp").fc1.weight = model.get_submodule("a.mlp").fc1.weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(PrunusError, match=r"a\.mlp\.fc1\.weight.*share"):
        Search(model, MaskBased(ratio=0.5), 2, optimizer=optimizer)
    assert not any(module._forward_hooks for module in model.modules())
    Search(model, UPop(ratio=0.5), 2).close()


def test_frozen_weights_may_have_gates_that_train() -> None:
    case = build("bert", 4)
    case.model.requires_grad_(False)
    case.model.bert.embeddings.word_embeddings.weight.requires_grad_(True)
    optimizer = torch.optim.AdamW([case.model.bert.embeddings.word_embeddings.weight], lr=1e-3)
    with pytest.raises(PrunusError, match="frozen"):
        Search(case.model, UPop(ratio=0.4), 2)
    search = Search(case.model, Unified(ratio=0.4, gate_learning_rate=0.05), 2, optimizer=optimizer)
    for _ in range(2):
        loss_of(case).backward()
        search.step()
    assert within_a_channel(search, 0.4)


def test_gates_that_train_get_their_gradient_once_under_checkpointing() -> None:
    case = build("llama", 4)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            enable = getattr(case.model, "activation_checkpointing_enable", case.model.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        case.model.train()
        gates = Gates(case.model, anatomy(case.model).units, exact=True)
        gates.set({name: torch.linspace(-0.5, 1, len(gate)) for name, gate in gates.values.items()})
        loss_of(case).backward()
        gates.take_gradients()
        found.append({name: gate.grad for name, gate in gates.values.items()})
        gates.remove()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_gates_follow_the_fastest_of_the_groups_and_settings_stay_theirs_after_a_restart() -> None:
    model = zeta_model([1.0, 1.0])
    hidden = model.get_submodule("mlp")
    groups = [{"params": hidden.fc1.parameters(), "lr": 0.01}, {"params": hidden.fc2.parameters(), "lr": 0.1}]
    search = Search(model, Unified(ratio=0.5, l1_mlp=0.0), 9, optimizer=torch.optim.SGD(groups))
    linear_loss(model).backward()
    search.step()
    assert search.gates.values["mlp"].tolist() == pytest.approx([0.9, 0.9])


def test_a_batch_that_is_thrown_away_moves_no_gate() -> None:
    found = []
    for throws in (False, True):
        case = build("vit", 1)
        optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)
        search = Search(case.model, Unified(ratio=0.4), 4, optimizer=optimizer)
        if throws:
            (loss_of(case) * 100).backward()
            optimizer.zero_grad()
        for _ in range(2):  # which add up
            loss_of(case).backward()
        search.step()
        found.append(search.method_state["zeta"])
    assert all(torch.equal(zeta, found[1][name]) for name, zeta in found[0].items())
    assert any((zeta != 1).any() for zeta in found[0].values())


def test_a_step_that_the_scaler_skips_for_any_weight_moves_no_gate() -> None:
    case = build("vit", 1)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)
    search = Search(case.model, Unified(ratio=0.4), 4, optimizer=optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    patch = next(p for name, p in case.model.named_parameters() if "patch" in name)
    for unscales, breaks in ((True, True), (False, True), (True, False)):
        optimizer.zero_grad()
        scaler.scale(loss_of(case)).backward()  # type: ignore[no-untyped-call]
        if breaks and patch.grad is not None:
            patch.grad[0] = float("inf")
        if unscales:
            scaler.unscale_(optimizer)
        search.step(scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        assert any((zeta != 1).any() for zeta in search.method_state["zeta"].values()) is not breaks


@pytest.mark.parametrize(
    "make", [torch.optim.SGD, torch.optim.AdamW, torch.optim.NAdam, torch.optim.Adafactor, Adafactor]
)
def test_a_search_is_resumed_with_what_the_gates_optimiser_remembers(make: Any) -> None:
    def optimizer_of(model: nn.Module) -> Any:
        more = {"momentum": 0.9} if make is torch.optim.SGD else {}
        more |= {"relative_step": False, "scale_parameter": False} if make is Adafactor else {}
        return make(model.parameters(), lr=0.01, **more)

    method = Unified(ratio=0.5, l1_mlp=0.01)
    model = zeta_model([1.0, 2.0, 3.0])
    search = Search(model, method, 6, optimizer=optimizer_of(model))
    state = b""
    for step in range(4):
        if step == 2:
            state = search.state()
        model.zero_grad()
        linear_loss(model).backward()
        search.step()
    other = zeta_model([1.0, 2.0, 3.0])
    again = Search(other, method, 6, optimizer=optimizer_of(other))
    again.load_state(state, "memory")
    for _ in range(2):
        other.zero_grad()
        linear_loss(other).backward()
        again.step()
    assert torch.equal(search.method_state["zeta"]["mlp"], again.method_state["zeta"]["mlp"])
    third = zeta_model([1.0, 2.0, 3.0])
    foreign = Search(third, method, 6, optimizer=torch.optim.RMSprop(third.parameters(), lr=0.01))
    with pytest.raises(PrunusError, match=f"search state = 'memory'.*gates {make.__name__} trained"):
        foreign.load_state(state, "memory")
    assert foreign.steps_done == 0


def test_gates_follow_a_rate_wherever_it_comes_from() -> None:
    """After load_state_dict, which makes the groups anew; under one-cycle schedules, whose height is not where they begin; raised by
    hand from zero."""

    def moved(optimizer: Any, model: nn.Module, before: Any = None, **more: Any) -> float:
        search = Search(model, Unified(ratio=0.5, l1_mlp=0.0, **more), 9, optimizer=optimizer)
        if before is not None:
            before()
        linear_loss(model).backward()
        search.step()
        search.close()
        return 1 - float(search.method_state["zeta"]["mlp"][0])

    model = zeta_model([1.0, 1.0])
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)

    def reload() -> None:
        state = sgd.state_dict()
        state["param_groups"][0]["lr"] = 0.05
        sgd.load_state_dict(state)

    assert moved(sgd, model, reload) == pytest.approx(0.05)
    model = zeta_model([1.0, 1.0])
    cycle = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.OneCycleLR(cycle, max_lr=1.0, total_steps=10, div_factor=10, cycle_momentum=False)
    assert moved(cycle, model, gate_learning_rate=0.5) == pytest.approx(0.05)
    model = zeta_model([1.0, 1.0])
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    assert moved(still, model, lambda: still.param_groups[0].update(lr=0.2)) == pytest.approx(0.2)


def test_settings_of_the_group_are_the_gates_too() -> None:
    model = zeta_model([1.0, 1.0])

    class Mine(torch.optim.AdamW):
        def __init__(self, parameters: Any, **settings: Any) -> None:
            super().__init__(parameters, **settings)

    for optimizer in (
        torch.optim.AdamW([{"params": model.parameters(), "betas": (0.5, 0.6), "eps": 1e-3}]),
        Mine(model.parameters(), betas=(0.5, 0.6), eps=1e-3, weight_decay=0.3),
    ):
        search = Search(model, Unified(ratio=0.5), 2, optimizer=optimizer)
        assert search._optimizer is not None
        group = search._optimizer._optimizer.param_groups[0]
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.5, 0.6), 1e-3, 0.0)
        search.close()


def test_the_last_step_along_gradients_that_a_gate_turned_round_goes_their_way() -> None:
    """ζ = −1 and ½ at the end: weights 20 and 5 become −20 and 2.5, and SGD on ∂L/∂W = ζ takes what it would have taken, times ζ."""
    model = zeta_model([20.0, 5.0, 6.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    search = Search(model, MaskBased(ratio=0.34, l1_mlp=0.0), 1, optimizer=optimizer)
    before = search.gates.values["mlp"].detach().clone()
    linear_loss(model).backward()
    search.step()
    optimizer.step()
    fc1 = model.get_submodule("mlp").fc1
    assert kept(search) == {"mlp": [0, 1]}
    assert before.tolist() == [1.0, 1.0, 1.0]
    assert fc1.weight.flatten().tolist()[:2] == pytest.approx([-20.0 + 0.1, 2.5 - 0.05])


# Importances, scopes, closings by hand


def test_magnitude_is_the_norm_of_rows_biases_and_columns() -> None:
    """Rows 3, 0, 1; biases 0, 2, 0; columns 4, 1, 1: norms 5, √5 and √2. The third goes, then the second."""
    model = model_of({"mlp": 3})
    hidden = model.get_submodule("mlp")
    hidden.fc1 = nn.Linear(1, 3)
    hidden.fc1.weight.data, hidden.fc1.bias.data = torch.tensor([[3.0], [0.0], [1.0]]), torch.tensor([0.0, 2.0, 0.0])
    hidden.fc2.weight.data = torch.tensor([[4.0, 1.0, 1.0]])
    model.requires_grad_(False)
    search = Search(model, IterativeMagnitude(ratio=0.66, rounds=2), 4)
    for expected in ([0, 1, 2], [0, 1], [0, 1], [0]):
        search.step()
        assert kept(search) == {"mlp": expected}
    assert [(t, asked) for t, asked, _ in search.course] == [(2, 0.33), (4, 0.66)]


def test_what_has_gone_in_a_round_does_not_come_back_though_it_would_rank_higher_later() -> None:
    model = model_of({"mlp": 4})
    model.requires_grad_(False)
    fc1 = model.get_submodule("mlp").fc1
    fc1.weight.data = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    search = Search(model, IterativeMagnitude(ratio=0.5, rounds=2), 2)
    search.step()
    assert kept(search) == {"mlp": [1, 2, 3]}
    fc1.weight.data = torch.tensor([[9.0], [8.0], [7.0], [2.0]])
    search.step()
    assert kept(search) == {"mlp": [1, 2]}


def test_taylor_adds_up_sizes_and_the_gradient_of_gates_adds_up_signs() -> None:
    """Gradients (4, 1, 3) and (−4, 1, −3): sums 0, 2, 0; sizes 8, 2, 6."""
    for importance, first in ((GateGradient(), 1), (Taylor(), 1)):
        method = Structured(ratio=0.34, importance=importance, scope=Everyone(), closing=AtEnd())
        search = Search(model_of({"mlp": 3}), method, 2)
        feed(search, {"mlp": [4.0, 1.0, 3.0]})
        feed(search, {"mlp": [-4.0, 1.0, -3.0]})
        assert kept(search) == {"mlp": [channel for channel in range(3) if channel != first]}
    method = Structured(ratio=0.34, importance=Taylor(), scope=Everyone(), closing=AtEnd())
    search = Search(model_of({"mlp": 3}), method, 1)
    feed(search, {"mlp": [-0.5, 9.0, 1.0]})
    assert kept(search) == {"mlp": [1, 2]}, "a large gradient of either sign stays"
    assert search.method_state["score"]["mlp"].tolist() == [0.5, 9.0, 1.0]


def test_chance_is_drawn_once_by_its_seed() -> None:
    plans = []
    for seed in (0, 0, 1):
        model = model_of({"mlp": 50})
        model.requires_grad_(False)
        search = Search(
            model, Structured(ratio=0.5, importance=Chance(seed=seed), scope=Everyone(), closing=Rounds(rounds=2)), 2
        )
        search.step()
        first = set(kept(search)["mlp"])
        search.step()
        assert set(kept(search)["mlp"]) < first
        plans.append(search.plan().units)
    assert plans[0] == plans[1] != plans[2]


def test_components_do_not_compete_and_every_one_loses_its_share() -> None:
    """Scores of one component are all larger; half of both goes all the same. By everyone together, unscaled, only that one would lose."""
    scores = {"a.mlp": [9.0, 8.0, 7.0, 6.0], "attention": [4.0, 3.0, 2.0, 1.0]}
    for scope, expected in (
        (WithinComponent(), {"a.mlp": [2, 3], "attention": [2, 3]}),
        (Everyone(normalize="none"), {"a.mlp": [3], "attention": [0, 1, 2, 3]}),
    ):
        method = Structured(
            ratio=0.5 if scope.scope == "component" else 0.375,
            cost="channels",
            importance=GateGradient(),
            scope=scope,
            closing=AtEnd(),
        )
        search = Search(model_of({"a.mlp": 4, "attention": 4}), method, 1)
        feed(search, scores)
        assert kept(search) == expected


def test_units_of_a_component_compete_or_each_loses_its_own_share() -> None:
    scores = {"a.mlp": [9.0, 8.0, 7.0, 6.0], "b.mlp": [4.0, 3.0, 2.0, 1.0]}
    for scope, expected in (
        (WithinComponent(), {"a.mlp": [3], "b.mlp": [1, 2, 3]}),
        (WithinUnit(), {"a.mlp": [2, 3], "b.mlp": [2, 3]}),
        (WithinUnit(ratios={"a.mlp": 0.75, "b.mlp": 0.25}), {"a.mlp": [3], "b.mlp": [1, 2, 3]}),
        (WithinComponent(ratios={"*.mlp": 0.5}), {"a.mlp": [3], "b.mlp": [1, 2, 3]}),
    ):
        method = Structured(ratio=0.5, importance=GateGradient(), scope=scope, closing=AtEnd())
        search = Search(model_of({"a.mlp": 4, "b.mlp": 4}), method, 1)
        feed(search, scores)
        assert kept(search) == expected, scope


def test_shares_of_components_meet_their_sum_to_within_a_channel() -> None:
    """A third of 4, 4 and 4 channels would each be rounded to 1, and lose 3 of 12; together they lose 4."""
    model = model_of({"a.mlp": 4, "b.mlp": 4, "c.mlp": 4})
    search = Search(model, Structured(ratio=1 / 3, importance=GateGradient(), scope=WithinUnit(), closing=AtEnd()), 1)
    feed(search, {unit.name: [3.0, 2.0, 1.0, 0.0] for unit in search.units})
    assert [len(mask) for mask in kept(search).values()] == [3, 2, 3]


def test_ratios_of_components_say_themselves_how_much_goes() -> None:
    model = model_of({"attention": 4, "a.mlp": 8})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = ComponentRatios(ratios={"*.mlp": 0.5})
    search = Search(model, method, 1, optimizer=optimizer)
    cost = {unit.name: unit.channel_cost * unit.channels for unit in search.units}
    assert search._fitted.ratio == pytest.approx(0.5 * cost["a.mlp"] / sum(cost.values()))
    assert search.method.ratio is None, "the plan says what was asked"
    search.close()
    with pytest.raises(PrunusError, match=r"ratio = 0\.3: the ratios that are given come to"):
        Search(model, ComponentRatios(ratio=0.3, ratios={"*.mlp": 0.5}), 1, optimizer=optimizer)
    with pytest.raises(PrunusError, match="ratios = 'vision"):
        Search(model, ComponentRatios(ratios={"vision": 0.5}), 1, optimizer=optimizer)
    with pytest.raises(PrunusError, match=r"ratios = 0\.0: those that are given take nothing"):
        Search(model, ComponentRatios(ratios={"*.mlp": 0.0}), 1, optimizer=optimizer)
    with pytest.raises(PrunusError, match="ratios"):
        ComponentRatios(ratio=0.5, ratios={})


def test_rounds_are_spread_over_the_steps_and_the_last_is_at_the_last() -> None:
    def shares(rounds: int, steps: int) -> dict[int, float]:
        found = {t: Rounds(rounds=rounds).share(t, steps, 0.5) for t in range(steps)}
        return {t: share for t, share in found.items() if share is not None}

    assert shares(5, 10) == {1: 0.2, 3: 0.4, 5: 0.6, 7: 0.8, 9: 1.0}
    assert shares(2, 5) == {2: 0.5, 4: 1.0}
    assert shares(5, 2) == {0: 0.4, 1: 1.0}
    assert shares(1, 3) == {2: 1.0}


@pytest.mark.parametrize("scope", [Everyone(), WithinComponent(), WithinUnit()])
def test_nothing_comes_back_though_rounds_are_smaller_than_a_channel(scope: Any) -> None:
    case = build("blip_caption", 1)
    case.model.requires_grad_(False)
    method = Structured(ratio=0.5, importance=WeightMagnitude(), scope=scope, closing=Rounds(rounds=40))
    search = Search(case.model, method, 40)
    before = search.masks
    for _ in range(40):
        search.step()
        assert not any((~before[name] & mask).any() for name, mask in search.masks.items())
        before = search.masks
    assert within_a_channel(search, 0.5)


def test_shares_that_floors_do_not_leave_are_refused_before_the_first_step() -> None:
    case = build("t5", 9)
    optimizer = torch.optim.AdamW(case.model.parameters())
    with pytest.raises(PrunusError, match="at most"):
        Search(case.model, MaskBased(ratio=0.9), 1, optimizer=optimizer)
    with pytest.raises(PrunusError, match=r"of \w+\.\w+ at most"):
        Search(case.model, ComponentRatios(ratios={"*": 0.9, "*.mlp": 0.1}, min_channels=4), 1, optimizer=optimizer)
    for more in ({"max_parameters": 5000}, {"max_macs": 5000}):
        with pytest.raises(PrunusError, match="shares of parts say how much"):
            ComponentRatios(ratios={"*": 0.2}, **more)
        with pytest.raises(PrunusError, match="shares of parts say how much"):
            UPop(unit_ratios={"*": 0.2}, **more)
    assert not any(module._forward_hooks for module in case.model.modules())


# A rate that a metric gates


def test_a_rate_waits_while_the_metric_is_worse_than_allowed_and_makes_up_for_it() -> None:
    """Linear over 6 steps: 0, .2, .4, .6, .8, 1 of the way. At merits 1, 1, .8, .8, .95 with a tolerance of .1 the third and fourth update
    wait at .2; the fifth goes (.8 − .6) / (1 − .6) of what is left: .2 + .8 / 2 = .6; the last ends."""
    merits = iter([1.0, 1.0, 0.8, 0.8, 0.95])
    method = UPop(ratio=0.5, schedule="linear", interval=1, gate=RateGate(tolerance=0.1), cost="channels")
    search = Search(model_of({"mlp": 100}), method, 6, measure=lambda: next(merits))
    for _ in range(6):
        feed(search, {"mlp": range(100)})
    assert [asked for _, asked, _ in search.course] == pytest.approx([0.0, 0.1, 0.1, 0.1, 0.3, 0.5])
    assert next(merits, None) is None, "the last update waits for nothing"


def test_a_rate_waits_no_longer_than_its_patience() -> None:
    """Two updates wait; the fourth goes from .4 to .6 of the calendar, a third of what is left; the fifth waits again."""
    merits = iter([1.0, 0.0, 0.0, 0.0, 0.0])
    method = UPop(ratio=0.5, schedule="linear", interval=1, gate=RateGate(tolerance=0.1, patience=2), cost="channels")
    search = Search(model_of({"mlp": 100}), method, 6, measure=lambda: next(merits))
    for _ in range(6):
        feed(search, {"mlp": range(100)})
    assert [asked for _, asked, _ in search.course] == pytest.approx([0.0, 0.0, 0.0, 0.5 / 3, 0.5 / 3, 0.5])


def test_a_rate_that_never_waits_is_the_schedule() -> None:
    courses = []
    for gate in (None, RateGate(tolerance=1.0)):
        method = UPop(ratio=0.5, interval=1, gate=gate)
        search = Search(model_of({"mlp": 100}), method, 9, measure=lambda: 1.0)
        for _ in range(9):
            feed(search, {"mlp": range(100)})
        courses.append([asked for _, asked, _ in search.course])
    assert courses[0] == pytest.approx(courses[1])


def test_what_a_rate_waits_for_is_measured_in_evaluation_mode_and_must_be_a_number() -> None:
    modes = []

    def measure() -> float:
        modes.append((model.training, torch.is_grad_enabled()))
        return 1.0 if len(modes) < 2 else math.nan

    model = model_of({"mlp": 4}).train()
    model.get_submodule("mlp").fc2.eval()
    method = UPop(ratio=0.5, interval=1, gate=RateGate(tolerance=0.1))
    with pytest.raises(PrunusError, match="measure = None"):
        Search(model, method, 4)
    search = Search(model, method, 4, measure=measure)
    feed(search, {"mlp": [1.0, 2.0, 3.0, 4.0]})
    assert model.training
    assert not model.get_submodule("mlp").fc2.training, "a part that stands still goes on standing still"
    before = search.method_state["score"]["mlp"].clone()
    with pytest.raises(PrunusError, match="measure = nan"):
        feed(search, {"mlp": [1.0, 2.0, 3.0, 4.0]})
    assert torch.equal(search.method_state["score"]["mlp"], before)
    assert modes == [(False, False)] * 2
    assert model.training


def test_a_search_that_waits_is_resumed_with_what_it_remembers() -> None:
    merits = [1.0, 0.5, 0.5, 0.95, 0.5, 0.9]
    method = UPop(ratio=0.5, schedule="linear", interval=1, gate=RateGate(tolerance=0.1))
    courses = []
    for cut in (None, 3):
        at = iter(merits)
        search = Search(model_of({"mlp": 100}), method, 7, measure=lambda at=at: next(at))  # type: ignore[misc]
        for step in range(7):
            if step == cut:
                data = search.state()
                search.close()
                search = Search(model_of({"mlp": 100}), method, 7, measure=lambda at=at: next(at))  # type: ignore[misc]
                search.load_state(data, "memory")
            feed(search, {"mlp": range(100)})
        courses.append(search.course)
    assert courses[0] == courses[1]


# Budgets


def example(case: Any) -> Any:
    return lambda: case.model(**case.inputs)


@pytest.mark.parametrize("name", [*one_half([*FAMILIES, *WITH_EXPERTS], 0), *WITH_COPIES])
def test_a_channels_multiply_accumulates_are_those_that_leave_with_it(name: str) -> None:
    case = build(name, 9)
    parts = anatomy(case.model)
    counted = channel_macs(case.model, example(case), parts.units)
    assert counted.total == multiply_accumulates(case.model, example(case), parts)["total"]
    for unit in parts.units[:2] + parts.units[-2:]:
        if unit.channels < 2:
            continue
        keep = torch.ones(unit.channels, dtype=torch.bool)
        keep[0] = False
        narrow = extract(case.model, Plan.from_masks(parts, {unit.name: keep}))
        left = multiply_accumulates(narrow, lambda narrow=narrow: narrow(**case.inputs))["total"]
        assert counted.total - left == counted.channel[unit.name], unit.name


@pytest.mark.parametrize("name", one_half([*FAMILIES, *WITH_EXPERTS], 1))
def test_a_budget_in_parameters_or_multiply_accumulates_is_hit_to_within_a_channel(name: str) -> None:
    case = build(name, 10)
    parts = anatomy(case.model)
    whole = parts.parameters
    counted = channel_macs(case.model, example(case), parts.units)
    searched = parts.select(("*",))
    most = whole - int(0.4 * sum(unit.channels * unit.channel_cost for unit in searched))
    computed = counted.total - int(0.4 * sum(unit.channels * counted.channel[unit.name] for unit in searched))
    for budget in ({"max_parameters": most}, {"max_macs": computed}):
        method = Structured(**budget, importance=Chance(), scope=Everyone(), closing=AtEnd())
        search = Search(case.model, method, 1, example=example(case))
        search.step()
        search.close()
        small = extract(case.model, search.plan())
        if "max_parameters" in budget:
            found, dearest = (
                sum(p.numel() for p in small.parameters()),
                max(unit.channel_cost * (1 + len(unit.mirrors)) for unit in searched),
            )
            assert 0 <= most - found <= dearest
        else:
            found = multiply_accumulates(small, lambda small=small: small(**case.inputs))["total"]  # type: ignore[misc]
            assert 0 <= computed - found <= max(counted.channel[unit.name] for unit in searched)


def test_a_budget_says_what_can_be_reached() -> None:
    case = build("vit", 0)
    total = anatomy(case.model).parameters
    with pytest.raises(PrunusError, match=rf"max_parameters = {total}: from [\d,]+ to {total - 1:,} can be reached"):
        Search(case.model, UPop(max_parameters=total), 1)
    with pytest.raises(PrunusError, match="max_parameters = 5: from"):
        Search(case.model, UPop(max_parameters=5), 1)
    with pytest.raises(PrunusError, match="example = None: max_macs"):
        Search(case.model, UPop(max_macs=5), 1)
    with pytest.raises(PrunusError, match="max_macs = 5: from"):
        Search(case.model, UPop(max_macs=5), 1, example=example(case))
    with pytest.raises(PrunusError, match="max_parameters = 9: ratio says"):
        UPop(ratio=0.5, max_parameters=9)
    with pytest.raises(PrunusError, match="say how much is to go"):
        UPop()
    with pytest.raises(PrunusError, match="cost = 'channels': max_parameters"):
        UPop(max_parameters=9, cost="channels")
    with pytest.raises(PrunusError, match="it follows from the model"):
        _ = UPop(max_parameters=9).goal
    with pytest.raises(PrunusError, match=r"ratio = 0\.9: of .* at most"):
        Search(
            case.model,
            Structured(ratio=0.9, min_channels=9, importance=Chance(), scope=WithinUnit(), closing=AtEnd()),
            1,
        )


def test_only_what_adds_up_over_steps_is_standardised_step_by_step() -> None:
    for importance in (WeightMagnitude(), Chance(), TrainedGate()):
        with pytest.raises(PrunusError, match=r"scope\.normalize = 'step'"):
            Structured(ratio=0.5, importance=importance, scope=Everyone(normalize="step"), closing=AtEnd())


# Parts of one's own


class Half(Closing):
    """A closing that says what it is told, by step."""

    closing: Literal["half"] = "half"
    shares: tuple[Any, ...]

    def share(self, t: int, steps: int, ratio: float) -> Any:
        return self.shares[t]


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.5, None), (1.5, 1), (-1, 1), ("all", 1)])
def test_a_closing_that_does_not_end_at_its_ratio_is_named(shares: tuple[Any, ...]) -> None:
    method = Structured(ratio=0.4, importance=GateGradient(), scope=Everyone(), closing=Half(shares=shares))
    search = Search(model_of({"mlp": 10}), method, 2)
    if shares[0] == 0.5:
        feed(search, {"mlp": range(10)})
    with pytest.raises(PrunusError, match=r"closing = 'half': share returned .* after step"):
        feed(search, {"mlp": range(10)})


class Odd(Importance):
    """An importance that gives what it is told."""

    importance: Literal["odd"] = "odd"

    def scores(self, state: Any) -> Any:
        return GIVEN[0]


class All(Scope):
    """A scope that keeps everything."""

    scope: Literal["all"] = "all"

    def keep(self, scores: dict[str, Tensor], units: Any, budget: Any, asked: float) -> dict[str, Tensor]:
        return {name: torch.ones(len(score), dtype=torch.bool) for name, score in scores.items()}


GIVEN: list[Any] = [None]


@pytest.mark.parametrize(
    "given",
    [
        None,
        {},
        {"mlp": torch.zeros(3)},
        {"mlp": torch.zeros(1, 10)},
        {"mlp": torch.zeros(10).long()},
        {"mlp": [0.0] * 10},
    ],
)
def test_scores_that_do_not_fit_name_the_importance(given: Any) -> None:
    GIVEN[0] = given
    search = Search(
        model_of({"mlp": 10}), Structured(ratio=0.4, importance=Odd(), scope=Everyone(), closing=AtEnd()), 1
    )
    with pytest.raises(PrunusError, match="importance = 'odd': of mlp it gives"):
        feed(search, {"mlp": range(10)})


def test_a_scope_that_takes_something_else_is_named() -> None:
    method = Structured(ratio=0.4, importance=GateGradient(), scope=All(), closing=AtEnd())
    with pytest.raises(PrunusError, match=r"scope = 'all': it takes 0\.0000 where 0\.4000"):
        feed(Search(model_of({"mlp": 10}), method, 1), {"mlp": range(10)})


def test_parts_are_instances_and_three() -> None:
    with pytest.raises(
        PrunusError, match=r"importance = 'GateGradient': it is a class; give one of it, such as GateGradient\(\)"
    ):
        Structured(ratio=0.4, importance=GateGradient, scope=Everyone(), closing=AtEnd())  # type: ignore[arg-type]

    class Two(Composed):
        method: Literal["two_parts"] = "two_parts"

        def parts(self) -> Any:
            return GateGradient(), Everyone()

    with pytest.raises(PrunusError, match="method = 'two_parts': parts must return Parts"):
        Two(ratio=0.4)
    with pytest.raises(PrunusError, match="method = 'UPop'"):
        Search(model_of({"mlp": 10}), UPop, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("found", [None, "good", torch.ones(3)])
def test_a_measure_returns_one_number(found: Any) -> None:
    method = UPop(ratio=0.4, interval=1, gate=RateGate(tolerance=0.1))
    search = Search(model_of({"mlp": 10}), method, 3, measure=lambda: found)
    with pytest.raises(PrunusError, match=r"measure = .* must return one number"):
        feed(search, {"mlp": range(10)})
    for wrong in ({"measure": 0.5}, {"example": {"input_ids": 1}}):
        with pytest.raises(PrunusError, match="give what can be called"):
            Search(model_of({"mlp": 10}), method, 3, **wrong)  # type: ignore[arg-type]


def test_an_example_calls_the_model_in_evaluation_mode_and_draws_nothing() -> None:
    case = build("vit", 0)
    case.model.train()
    modes = []

    def call() -> Any:
        modes.append(case.model.training)
        torch.rand(3)
        return case.model(**case.inputs)

    before = torch.get_rng_state()
    most = multiply_accumulates(case.model, example(case))["total"] * 3 // 4
    search = Search(case.model, UPop(max_macs=most), 1, example=call)
    assert modes == [False]
    assert case.model.training
    assert torch.equal(before, torch.get_rng_state())
    assert 0 < search.goal < 1
    search.close()
    with pytest.raises(PrunusError, match="example = 0: it does not call this model"):
        Search(case.model, UPop(max_macs=most), 1, example=lambda: None)


def test_gates_that_train_need_the_optimizer_of_their_model_and_no_adapters() -> None:
    case, other = build("llama", 4), build("llama", 4)
    with pytest.raises(PrunusError, match="no weight of this model"):
        Search(case.model, Unified(ratio=0.4), 2, optimizer=torch.optim.SGD(other.model.parameters(), lr=0.1))
    assert not any(module._forward_hooks for module in case.model.modules())
    peft = pytest.importorskip("peft")
    search = Search(case.model, Unified(ratio=0.4), 2, optimizer=torch.optim.SGD(case.model.parameters(), lr=0.1))
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj"]), case.model)
    case.model.peft_config = {"default": None}
    loss_of(case).backward()
    with pytest.raises(PrunusError, match="adapters"):
        search.step()


@pytest.mark.parametrize("unscales", [False, True])
def test_a_loss_scaler_is_taken_out_of_gates_whether_or_not_it_has_been_undone(unscales: bool) -> None:
    found = []
    for scale in (None, 1024.0):
        case = build("vit", 1)
        optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)
        search = Search(case.model, Unified(ratio=0.4, l1_mlp=0.05), 4, optimizer=optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale(loss_of(case)).backward()  # type: ignore[no-untyped-call]
            if unscales:
                scaler.unscale_(optimizer)
            search.step(scaler=scaler)
            scaler.step(optimizer)
            scaler.update()
        found.append(search.method_state["zeta"])
    for name, zeta in found[0].items():
        torch.testing.assert_close(found[1][name], zeta)


# Under the Trainer


@pytest.mark.parametrize("preset", ["unified", "iterative_ste", "iterative_magnitude"])
@pytest.mark.parametrize("bf16", [False, True])
def test_every_method_works_under_the_trainer_and_is_resumed(tmp_path, preset: str, bf16: bool) -> None:
    runs = []
    for resume in (None, "checkpoint-3"):
        trainer, callback = _trainer(
            tmp_path, PRESETS[preset], save_strategy="steps", save_steps=3, bf16=bf16, lr_scheduler_type="cosine",
            gradient_accumulation_steps=2,
        )  # type: ignore[arg-type]  # fmt: skip
        trainer.train(resume_from_checkpoint=resume and str(tmp_path / resume))
        assert callback.search is not None
        assert within_a_channel(callback.search, 0.4)
        runs.append((callback.plan(), trainer.model.state_dict(), callback.search))
    (plan, weights, search), (plan_2, weights_2, search_2) = runs
    assert plan == plan_2
    assert search.course == search_2.course
    assert all(torch.equal(tensor, weights_2[key]) for key, tensor in weights.items())
    if preset != "iterative_magnitude":
        zeta = search.method_state["zeta"]
        assert any((tensor != 1).any() for tensor in zeta.values()), "gates have trained"


@pytest.mark.usefixtures("quick_reports")
def test_a_recipe_waits_for_what_its_task_can_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ViT on noise: a quarter of eight items is held out, and the loss on them is what the rate waits for."""
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    seen: list[int] = []
    measure_on = Noise.measure_on

    def noted(task: Noise, model: Any, items: Any) -> dict[str, float]:
        seen.append(len(items))
        return measure_on(task, model, items)

    monkeypatch.setattr(Noise, "measure_on", noted)
    train = {"steps": 3, "batch_size": 2, "learning_rate": 1e-3, "save_every": 3, "bf16": False}
    gate = {"metric": "loss", "tolerance": 0.0, "patience": 1, "share": 0.25}
    vit = {
        "model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    data: dict[str, Any] = {
        "model": {"random": vit}, "task": {"name": "noise", "items": 8, "length": 8}, "output": tmp_path / "run",
        "steps": [{"step": "search", "method": {"method": "upop", "max_macs": 18_000, "interval": 1, "gate": gate}, "train": train}],
        "measure": {"batch_size": 1, "repeats": 1}, "evaluate_limit": 4,
    }  # fmt: skip
    report = run(Recipe(**data))
    assert seen == [2, 2]
    small = load_model(report.folders["compressed"])
    batch = Noise(items=8, length=8).for_model(Path(report.folders["compressed"])).calibration(1, 1)[0]
    parts = anatomy(load_model(report.folders["dense"]))
    macs = multiply_accumulates(small, lambda: small(**batch))["total"]
    assert abs(macs - 18_000) <= max(unit.channel_cost for unit in parts) * 5, "five tokens go through every row"
    gate["metric"] = "accuracy"
    with pytest.raises(
        PrunusError, match=r"steps\.0\.method\.gate\.metric = 'accuracy': noise cannot.*take one of loss"
    ):
        Recipe(**data)


def test_easy_vqa_measures_the_loss_and_the_answers_of_training_items() -> None:
    pytest.importorskip("easy_vqa", reason="needs the packaged data: pip install 'prunus[demo]'")
    task = EasyVQA(image_size=28)
    model = task.skeleton(vision_layers=1, text_layers=1).eval()
    data: Any = task.train_data()
    items = [data[place] for place in (0, 7, 40)]
    found = task.measure_on(model, items)
    batch = task.collate(items)
    with torch.no_grad():
        predicted = task.predict(model, batch)
    assert found["loss"] == pytest.approx(float(predicted.loss))
    right = predicted.logits[:, 0].argmax(-1) == batch["labels"][:, 1]
    assert found["accuracy"] == pytest.approx(float(right.float().mean()))


def test_a_method_is_found_by_its_name_with_its_parts_in_a_recipe() -> None:

    train = {"steps": 2, "learning_rate": 0.1}
    step = SearchStep.model_validate({
        "train": train,
        "method": {
            "method": "structured", "max_parameters": 1000, "importance": {"importance": "taylor"},
            "scope": {"scope": "component", "ratios": {}}, "closing": {"closing": "rounds", "rounds": 2},
        },
    })  # fmt: skip
    method = Structured(max_parameters=1000, importance=Taylor(), scope=WithinComponent(), closing=Rounds(rounds=2))
    assert step.method == method
    assert SearchStep.model_validate_json(step.model_dump_json()) == step
    for name, preset in PRESETS.items():
        assert SearchStep.model_validate({"train": train, "method": preset.model_dump(mode="json")}).method == preset, (
            name
        )
