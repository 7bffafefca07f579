"""Search methods of any kind: what they share, what is saved of them, and gates that end between zero and one."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from prunus import Budget, Decision, Plan, PrunusError, Search, SearchCallback, SearchMethod, UPop, anatomy, extract
from prunus.steps import SearchStep
from prunus.structured.gates import Gates, gates_of
from tests.families import FAMILIES, IMAGE, build, one_half
from tests.strangers.own_search import ByMagnitude
from tests.test_anatomy import Pair
from tests.test_equivalence import TOLERANCE, deviation, outputs
from tests.test_search import _trainer, loss_of, train
from tests.test_structured_formulas import feed, model_of


def choice(model: nn.Module, seed: int, mirrors: dict[str, str] | None = None) -> tuple[Gates, Plan]:
    """A random half of every unit's channels stays, with gates in (0, 1.5]; the others are shut."""
    generator = torch.Generator().manual_seed(seed)
    parts = anatomy(model, mirrors)
    kept, values = {}, {}
    for unit in parts:
        kept[unit.name] = torch.randperm(unit.channels, generator=generator) >= unit.channels // 2
        values[unit.name] = (1.5 - 1.5 * torch.rand(unit.channels, generator=generator)) * kept[unit.name]
    gates = Gates(model, parts.units)
    gates.set(values)
    return gates, Plan.from_masks(parts, kept)


# Gates that are neither zero nor one


@pytest.mark.parametrize("name", one_half(FAMILIES, 1))
def test_what_is_extracted_computes_what_the_gates_computed_whatever_they_are(name: str) -> None:
    case = build(name, 11)
    before = {key: tensor.clone() for key, tensor in case.model.state_dict().items()}
    gates, plan = choice(case.model, 11)
    with torch.no_grad():
        gated = outputs(case.model(**case.inputs))
        assert deviation(gated, outputs(extract(case.model, plan)(**case.inputs))) <= TOLERANCE
        assert all(torch.equal(tensor, before[key]) for key, tensor in case.model.state_dict().items())

        gates.settle({name: value > 0 for name, value in gates.values.items()})
        assert all(set(value.unique().tolist()) <= {0.0, 1.0} for value in gates.values.values())
        assert deviation(gated, outputs(case.model(**case.inputs))) <= TOLERANCE
        gates.remove()
        assert deviation(gated, outputs(extract(case.model, plan)(**case.inputs))) <= TOLERANCE


def test_a_gate_is_folded_once_into_weights_that_are_shared_and_into_those_of_copies() -> None:
    model, copied = Pair().eval(), {"vision_model_m": "vision_model"}
    pixels = torch.randn(2, 3, IMAGE, IMAGE)
    _, plan = choice(model, 3, copied)
    with torch.no_grad():
        gated = outputs(tuple(model(pixels)[:3]))
        small = extract(model, plan)
        assert deviation(gated, outputs(tuple(small(pixels)[:3]))) <= TOLERANCE
    assert small.tied.state_dict().keys() == small.vision_model.state_dict().keys()
    for name, parameter in small.vision_model.named_parameters():
        assert small.tied.get_parameter(name) is parameter
        assert torch.equal(small.vision_model_m.get_parameter(name), parameter), (
            "it began as a copy of the same weights"
        )
    assert not list(gates_of(small))


@pytest.mark.parametrize("opened", [1.0, 0.5])
def test_a_layer_that_shares_a_weight_with_one_gated_otherwise_is_folded_alone(opened: float) -> None:
    case = next(case for seed in range(9) if len((case := build("qwen2", seed)).model.model.layers) > 1)
    model, layers = case.model, case.model.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    weight = layers[0].mlp.up_proj.weight.clone()
    parts = anatomy(model)
    kept = torch.arange(parts["model.layers.0.mlp"].channels) % 2 == 0
    gates = Gates(model, parts.select(("model.layers.0.mlp",)))
    gates.set({"model.layers.0.mlp": kept * opened})
    with torch.no_grad():
        gated = outputs(model(**case.inputs))
        small = extract(model, Plan.from_masks(parts, {"model.layers.0.mlp": kept}))
        assert deviation(gated, outputs(small(**case.inputs))) <= TOLERANCE
        assert torch.equal(small.model.layers[1].mlp.up_proj.weight, weight)
        if opened != 1:
            with pytest.raises(PrunusError, match=r"layers\.0\.mlp\.up_proj\.weight"):
                gates.settle({"model.layers.0.mlp": kept})
        else:
            gates.settle({"model.layers.0.mlp": kept})
        assert torch.equal(layers[0].mlp.up_proj.weight, weight)
        assert deviation(gated, outputs(model(**case.inputs))) == 0


class Scale(Budget, SearchMethod):
    """Keeps the first channels, at gates that grow from one half; it decides once, two steps before the last."""

    method: Literal["scale"] = "scale"

    def begin(self, gates: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        return {"largest": {name: gate.new_zeros(1) for name, gate in gates.items()}, "first": dict(gates)}

    def observe(self, state: Any, found: dict[str, Tensor], units: Any) -> None:
        for name, gradient in found.items():
            state["largest"][name] = torch.maximum(state["largest"][name], gradient.abs().max()[None])

    def decide(self, state: Any, t: int, total_steps: int, units: Any) -> Decision | None:
        if t != max(0, total_steps - 3):
            return None
        kept = self.keep({u.name: torch.arange(float(u.channels)) for u in units}, units, self.ratio)
        return Decision(kept, {n: mask * torch.linspace(0.5, 1.4, len(mask)) for n, mask in kept.items()}, self.ratio)


def test_gates_that_end_between_zero_and_one_outlive_the_search(tmp_path) -> None:
    """The decision stands from the second step on; at the fourth, the last, it becomes part of the weights."""
    case = build("bert", 4)
    search = train(case, Scale(ratio=0.4), 3, Search(case.model, Scale(ratio=0.4), 4))
    assert any(0 < value < 1 for gate in search.gates.values.values() for value in gate.tolist())
    with torch.no_grad():
        loss_before = loss_of(case)
    loss_of(case).backward()
    search.step()
    plan = search.plan()
    assert [step for step, _, _ in search.course] == [2]
    with torch.no_grad():
        torch.testing.assert_close(loss_of(case), loss_before)
        wide = outputs(case.model(**case.inputs))
        search.close()
        case.model.save_pretrained(tmp_path)
        again = type(case.model).from_pretrained(tmp_path).eval()
        for model in (case.model, again):
            assert deviation(wide, outputs(extract(model, plan)(**case.inputs))) <= TOLERANCE


def test_the_trainer_saves_and_resumes_methods_of_any_kind(tmp_path) -> None:
    runs = []
    for steps, resume in ((6, None), (6, "checkpoint-3")):
        trainer, callback = _trainer(tmp_path, Scale(ratio=0.4), save_strategy="steps", save_steps=3, max_steps=steps)  # type: ignore[arg-type]
        trainer.train(resume_from_checkpoint=resume and str(tmp_path / resume))
        runs.append((callback.plan(), trainer.model.state_dict(), callback.search.method_state))  # type: ignore[union-attr]
    (plan, weights, state), (plan_2, weights_2, state_2) = runs
    assert plan == plan_2
    assert all(torch.equal(tensor, weights_2[key]) for key, tensor in weights.items())
    assert {kind: list(units) for kind, units in state.items()} == {
        kind: list(units) for kind, units in state_2.items()
    }
    assert all(torch.equal(t, state_2[kind][name]) for kind, units in state.items() for name, t in units.items())


# What Search asks of a method


def test_a_method_of_ones_own_reads_what_it_wants_when_it_wants() -> None:
    """Norms of rows and columns: the roots of 5, 2 and 10, and of 82 and 3.25. No gradient is needed, nor weights that train."""
    model = model_of({"a.mlp": 3, "b.mlp": 2})
    model.requires_grad_(False)
    model.get_submodule("a.mlp").fc1.weight.mul_(torch.tensor([[2.0], [1.0], [3.0]]))
    model.get_submodule("b.mlp").fc1.weight.mul_(torch.tensor([[9.0], [1.5]]))
    search = Search(model, ByMagnitude(ratio=0.4, cost="channels"), 3)
    for _ in range(2):
        search.step()
        assert not search.course
    search.step()
    assert {name: mask.tolist() for name, mask in search.masks.items()} == {
        "a.mlp": [True, False, True], "b.mlp": [True, False],
    }  # fmt: skip
    assert search.plan().method == ByMagnitude(ratio=0.4, cost="channels").model_dump(mode="json")
    assert search.course == [(3, 0.4, 0.4)]
    search.close()
    with pytest.raises(PrunusError, match="at most"):
        Search(model, ByMagnitude(ratio=0.9), 3)


class Answers(SearchMethod):
    """Decides what it is told."""

    method: Literal["answers"] = "answers"

    def decide(self, state: Any, t: int, total_steps: int, units: Any) -> Decision | None:
        return ANSWERS.pop() if ANSWERS else None


ANSWERS: list[Decision] = []


@pytest.mark.parametrize(
    ("kept", "gates", "words"),
    [
        ({}, {}, "every channel"),
        ({"mlp": [True, False], "b": [True]}, {"mlp": [1.0, 0.0], "b": [1.0]}, "every channel"),
        ({"mlp": [True, False]}, {"mlp": [1.0]}, "every channel"),
        ({"mlp": [1.0, 0.0]}, {"mlp": [1.0, 0.0]}, "of mlp .* by booleans"),
        ({"mlp": [False, False]}, {"mlp": [0.0, 0.0]}, "of mlp it must keep a channel"),
        ({"mlp": [True, False]}, {"mlp": [1.0, float("nan")]}, "a gate of mlp is not finite"),
    ],
)
def test_a_decision_that_does_not_fit_names_the_method(kept: Any, gates: Any, words: str) -> None:
    search = Search(model_of({"mlp": 2}), Answers(), 2)
    ANSWERS[:] = [Decision(*({n: torch.tensor(v) for n, v in values.items()} for values in (kept, gates)), 0.5)]  # type: ignore[misc]
    with pytest.raises(PrunusError, match=words) as refusal:
        feed(search, {"mlp": [1.0, 0.0]})
    assert refusal.value.value == "answers"


def test_an_answer_that_is_no_decision_and_evidence_of_another_shape_name_the_method() -> None:
    ANSWERS[:] = [{"mlp": torch.ones(2)}]  # type: ignore[list-item]
    with pytest.raises(PrunusError, match="'answers': decide returned"):
        feed(Search(model_of({"mlp": 2}), Answers(), 2), {"mlp": [1.0, 0.0]})
    ANSWERS.clear()

    class Broadcasts(Answers):
        def evidence(self, model: Any, unit: Any, gate: Any) -> Any:
            return torch.ones(1)

    with pytest.raises(PrunusError, match=r"evidence of mlp is \(1,\); it must be \(2,\)"):
        feed(Search(model_of({"mlp": 2}), Broadcasts(), 2), {"mlp": [1.0, 0.0]})


def test_a_method_that_never_decides_is_no_search() -> None:
    ANSWERS.clear()
    search = Search(model_of({"mlp": 2}), Answers(), 1)
    with pytest.raises(PrunusError, match="decided nothing"):
        feed(search, {"mlp": [1.0, 0.0]})


# States and recipes of before


def test_states_that_version_0_1_saved_are_resumed() -> None:
    """Its method had its fields in another order; scores, gates and masks had the names that they have."""
    method = UPop(ratio=0.5, schedule="linear", interval=1, hold=0.25, unit_ratios={"mlp": 0.5}, cost="channels")
    order = ("method", "ratio", "schedule", "interval", "normalize", "cost", "align", "min_channels", "hold", "unit_ratios",
             "include", "exclude")  # fmt: skip
    written = {field: method.model_dump(mode="json")[field] for field in order}
    tensors = {
        "score/mlp": torch.tensor([3.0, 0.25, -1.0, 7.0]),
        "gate/mlp": torch.tensor([0.5, 1.0, 1.0, 1.0]),
        "mask/mlp": torch.tensor([False, True, True, True]),
        "course": torch.tensor([[1, 0.0, 0.0], [2, 0.25, 0.25]], dtype=torch.float64),
    }
    about = {"method": json.dumps(written, separators=(",", ":")), "steps_done": "2", "total_steps": "4"}
    search = Search(model_of({"mlp": 4}), method, 4)
    search.load_state(save(tensors, metadata=about), "old")
    assert search.steps_done == 2
    again = load(search.state())
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in tensors.items())
    feed(search, {"mlp": [0.0, 0.0, 0.0, 0.0]})
    assert search.masks["mlp"].tolist() == [False, True, True, False]
    other = {**about, "method": json.dumps(written | {"ratio": 0.4, "unit_ratios": {}})}
    for wrong in (other, {**about, "method": "{}"}, {**about, "method": "no"}, {**about, "total_steps": "5"}):
        with pytest.raises(PrunusError, match="another search"):
            search.load_state(save(tensors, metadata=wrong), "old")


def test_a_search_that_took_connectors_by_default_is_resumed_where_they_are_included() -> None:
    model = build("blip2_opt", 0).model
    search = Search(model, UPop(ratio=0.5, include=("*", "connector")), 4)
    data = search.state()
    search.close()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"]["method"] = UPop(ratio=0.5).model_dump_json()  # what 0.1 wrote: all units were the default
    written = json.dumps(header).encode()
    old = len(written).to_bytes(8, "little") + written + data[8 + size :]
    search = Search(model, UPop(ratio=0.5), 4)
    with pytest.raises(PrunusError, match=r"such as .*qformer.*include=\('\*', 'connector'\)"):
        search.load_state(old, "old")
    search.close()
    Search(model, UPop(ratio=0.5, include=("*", "connector")), 4).load_state(old, "old")


def test_recipes_name_the_method_and_those_of_before_need_not() -> None:
    training = {"steps": 1, "learning_rate": 0.1}
    for written in ({"ratio": 0.5}, {"method": "upop", "ratio": 0.5}):
        assert SearchStep(method=written, train=training).method == UPop(ratio=0.5)  # type: ignore[arg-type]
    step = SearchStep(method={"method": "by_magnitude", "ratio": 0.5}, train=training)  # type: ignore[arg-type]
    assert step.method == ByMagnitude(ratio=0.5)
    assert SearchStep.model_validate(step.model_dump(mode="json")) == step
    with pytest.raises(PrunusError, match="did you mean upop"):
        SearchStep(method={"method": "upob", "ratio": 0.5}, train=training)  # type: ignore[arg-type]


def test_the_callback_takes_any_search_method_and_nothing_else() -> None:
    assert SearchCallback(ByMagnitude(ratio=0.5)).method.method == "by_magnitude"
    with pytest.raises(PrunusError, match="give a search method"):
        SearchCallback({"method": "upop", "ratio": 0.5})  # type: ignore[arg-type]
