"""Experts that leave as a whole: what they are worth, and models without them."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.family_sweep import outputs, seeded
from benchmarks.tiny_models import Tiny
from benchmarks.tiny_models import build as tiny_model
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel

import prunus
from prunus import Calibrated, Plan, PrunusError, Search, UPop, anatomy, extract
from prunus.calibrated import RouterWeighted
from prunus.steps import NarrowStep
from prunus.steps.step import Sketch
from tests.test_equivalence import deviation

EXPERTS, CHOSEN = 6, 2


def mixtral(**more: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=50, hidden_size=24, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        num_local_experts=EXPERTS, num_experts_per_tok=CHOSEN, **more,
    )  # fmt: skip
    model: PreTrainedModel = MixtralForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "gate" in name:
            nn.init.normal_(parameter, std=0.5)
    return model


def padded() -> dict[str, Tensor]:
    ids, mask = (
        torch.randint(1, 50, (3, 9), generator=torch.Generator().manual_seed(1)),
        torch.ones(3, 9, dtype=torch.long),
    )
    mask[0, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def whole(**more: Any) -> Calibrated:
    return Calibrated(**{"ratio": 0.35, "score": RouterWeighted(), "compensation": "none", **more})


class Never(TorchFunctionMode):
    """Routers never take some experts: weight of a router → those experts."""

    def __init__(self, gone: dict[int, Sequence[int]]):
        super().__init__()
        self.gone = gone

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if function is torch.nn.functional.linear and id(args[1]) in self.gone:
            found = found.clone()
            found[..., list(self.gone[id(args[1])])] = -1e4
        return found


def never(model: nn.Module, plan: Plan) -> Never:
    gone = {}
    for unit in anatomy(model).sets:
        router = next(site.linear for site in unit.producers if site.linear.endswith(".weight"))
        lost = sorted({*range(unit.channels)} - {*plan.units[unit.name].kept})
        gone[id(model.get_submodule(unit.path).get_parameter(router))] = lost
    return Never(gone)


def test_experts_are_worth_what_the_router_lets_through_of_them() -> None:
    """Against a plain loop over experts and tokens, padding apart."""
    model, batch = mixtral(), padded()
    _, plan = prunus.narrow(model, whole(), [batch, {"input_ids": batch["input_ids"][1:]}])
    given: list[tuple[Tensor, Tensor, Tensor]] = []
    experts = model.model.layers[0].mlp.experts
    handle = experts.register_forward_pre_hook(lambda _, args: given.append(args))
    model(**batch)
    model(input_ids=batch["input_ids"][1:])
    handle.remove()
    sums, tokens = [0.0] * EXPERTS, [0] * EXPERTS
    for (x, index, weight), counted in zip(given, (batch["attention_mask"].flatten(), torch.ones(18)), strict=True):
        for token in counted.nonzero().flatten().tolist():
            for place in range(CHOSEN):
                expert = int(index[token, place])
                gate, up = (experts.gate_up_proj[expert] @ x[token]).chunk(2)
                out = experts.down_proj[expert] @ (nn.functional.silu(gate) * up)
                sums[expert] += float(weight[token, place] * out.norm())
                tokens[expert] += 1
    worth = torch.tensor([total / max(count, 1) for total, count in zip(sums, tokens, strict=True)])
    kept = plan.units["model.layers.0.mlp.whole_experts"].kept
    assert set(kept) == set(worth.topk(len(kept)).indices.tolist())
    assert len(kept) == 4


FAST = ["gpt_oss", "glm4_moe", "llama4_text"]
"""Routers with a bias, with corrections of scores in a buffer, and as a layer whose experts are given all tokens."""
OTHERS = ["qwen3_vl_moe", "ernie4_5_moe", "minimax_m2", "aria_text", "granitemoe", "phimoe"]
"""In a parameter, with corrections in a parameter, with some that lie at the block, and as others keep them."""


@pytest.mark.parametrize("model_type", FAST)
def test_without_experts_it_is_the_model_whose_router_never_takes_them(model_type: str, tmp_path: Path) -> None:
    tiny: Tiny = tiny_model(model_type)
    small, plan = prunus.narrow(tiny.model, whole(ratio=0.25), [tiny.inputs], call=seeded)
    before = anatomy(tiny.model)
    lost = sum(unit.channel_cost * (unit.channels - len(plan.units[unit.name].kept)) for unit in before.sets)
    assert lost > 0
    assert small.num_parameters() == tiny.model.num_parameters() - lost
    with torch.no_grad():
        found = outputs(seeded(small, tiny.inputs))
        with never(tiny.model, plan):
            expected = outputs(seeded(tiny.model, tiny.inputs))
    assert deviation(expected[:1], found[:1]) < 1e-5
    small.save_pretrained(tmp_path)
    again = type(small).from_pretrained(tmp_path).eval()
    assert prunus.plan_of(again).units == plan.units
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in small.state_dict().items())


@pytest.mark.long
def test_other_families_likewise(tmp_path: Path) -> None:
    for model_type in OTHERS:
        test_without_experts_it_is_the_model_whose_router_never_takes_them(model_type, tmp_path / model_type)


def test_a_plain_result_says_how_many_there_are(tmp_path: Path) -> None:
    model = mixtral(output_router_logits=True)
    small, plan = prunus.narrow(model, whole(plain=True), [padded()])
    assert {len(unit.kept) for unit in plan.units.values()} == {4}
    assert small.config.num_local_experts == small.num_experts == 4
    small.save_pretrained(tmp_path)
    assert "prunus" not in json.loads((tmp_path / "config.json").read_text())
    again = MixtralForCausalLM.from_pretrained(tmp_path).eval()
    batch = {**padded(), "labels": padded()["input_ids"]}
    assert torch.equal(small(**batch).loss, again(**batch).loss), "with the router's loss"


def test_hidden_neurons_and_whole_experts_leave_in_one_plan_or_after_each_other(tmp_path: Path) -> None:
    model, parts = mixtral(), anatomy(mixtral())
    units = [unit for unit in parts if unit.kind == "experts"]
    masks = {unit.name: torch.arange(unit.channels) % 2 == 0 for unit in units}
    lost = {unit.name: torch.arange(unit.channels) != 1 for unit in parts.sets}
    once = extract(model, Plan.from_masks(parts, {**masks, **lost}))
    twice = extract(model, Plan.from_masks(parts, lost))
    twice = extract(twice, Plan.from_masks(anatomy(twice), masks))
    once.save_pretrained(tmp_path)
    again = MixtralForCausalLM.from_pretrained(tmp_path).eval()
    for name, value in once.state_dict().items():
        assert torch.equal(value, twice.state_dict()[name])
        assert torch.equal(value, again.state_dict()[name])
    assert once.model.layers[0].mlp.experts.down_proj.shape == (5, 24, 8)


def test_a_search_knows_nothing_of_whole_experts() -> None:
    model = mixtral()
    search = Search(model, UPop(ratio=0.3), total_steps=1)
    assert not any("whole_experts" in name for name in search.gates.values)
    assert len(anatomy(model).sets) == 2
    assert "whole experts can leave, too: 2 sets of 6" in str(anatomy(model))


@pytest.mark.parametrize(
    ("settings", "field", "said"),
    [
        ({"compensation": "refit"}, "compensation", "nothing makes up"),
        ({"ratio": None, "max_macs": 1000}, "max_macs", "as many experts as before"),
        ({"ratio": None, "max_bytes": 1000}, "max_bytes", "as many experts as before"),
        ({"ratio": 0.9}, "ratio", "min_channels=2"),
        ({"include": ("vision",)}, "include", "set of experts"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(PrunusError, match=said) as refused:
        prunus.narrow(mixtral(), whole(**settings), [padded()])
    assert refused.value.field == field


def test_what_has_been_pruned_or_has_no_experts_is_refused() -> None:
    pruned = mixtral()
    prunus.prune(pruned, prunus.Magnitude(sparsity=0.5), [padded()])
    with pytest.raises(PrunusError, match="drop whole experts first"):
        prunus.narrow(pruned, whole(), [padded()])
    parts = anatomy(pruned)
    lost = {unit.name: torch.arange(unit.channels) != 1 for unit in parts.sets}
    with pytest.raises(PrunusError, match="drop whole experts first"):
        extract(pruned, Plan.from_masks(parts, lost))
    few = {unit.name: torch.arange(unit.channels) < 1 for unit in parts.sets}
    with pytest.raises(PrunusError, match="it needs 2 at least"):
        extract(mixtral(), Plan.from_masks(parts, few))
    dense = tiny_model("llama")
    with pytest.raises(PrunusError, match="no experts that can leave as a whole"):
        prunus.narrow(dense.model, whole(), [dense.inputs])


def test_routers_that_choose_among_groups_are_named() -> None:
    config = DeepseekV3Config(
        vocab_size=50, hidden_size=24, intermediate_size=16, moe_intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, n_routed_experts=8, num_experts_per_tok=2, n_group=4, topk_group=2, first_k_dense_replace=0, kv_lora_rank=8,
        q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
    )  # fmt: skip
    parts = anatomy(DeepseekV3ForCausalLM(config).eval())
    assert not parts.sets
    assert "trial run of its block failed" in parts.sets_refused["model.layers.0.mlp"]


def test_a_recipe_reaches_them() -> None:
    step = NarrowStep.model_validate({"method": {"ratio": 0.3, "score": {"score": "router"}, "compensation": "none"}})
    model = copy.deepcopy(mixtral())
    assert step.check(Sketch.of(model)).model is model
