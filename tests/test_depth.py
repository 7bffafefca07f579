"""Whole blocks that leave: which, what is left, and that a stock class builds it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import prunus
from prunus import Calibrated, Depth, PrunusError, WalkOptions, anatomy, drop_blocks
from prunus.losses import own_loss
from prunus.steps import NarrowStep
from tests.families import Case, build
from tests.test_equivalence import outputs

QUIET = WalkOptions(progress=False)


def gemma3() -> Case:
    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(
        hidden_size=24, num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_hidden_layers=4, intermediate_size=24, vocab_size=50,
        sliding_window=4, layer_types=["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
    )  # fmt: skip
    model = transformers.Gemma3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return Case(model, {"input_ids": torch.randint(3, 50, (2, 8))})


def drop(case: Case, inplace: bool = False, **settings: Any) -> tuple[Any, tuple[str, ...]]:
    return drop_blocks(case.model, Depth(**settings), [case.inputs], options=QUIET, inplace=inplace)


def stock_of(model: Any) -> Any:
    stock = type(model)(type(model.config).from_dict(model.config.to_dict())).eval()
    stock.load_state_dict(model.state_dict())
    return stock


@pytest.mark.parametrize("by", ["cosine", "loss", "both"])
def test_what_is_left_is_a_stock_model(by: str) -> None:
    case = gemma3()
    before = copy.deepcopy(case.model.state_dict())
    small, gone = drop(case, blocks=2, by=by)
    left = [place for place in range(4) if f"model.layers.{place}" not in gone]
    assert small.config.num_hidden_layers == len(left) == len(small.model.layers) == 2
    assert small.config.layer_types == [case.model.config.layer_types[place] for place in left]
    assert [layer.self_attn.layer_idx for layer in small.model.layers] == [0, 1]
    for layer, place in zip(small.model.layers, left, strict=True):
        expected = case.model.model.layers[place].state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in layer.state_dict().items())
    with torch.no_grad():
        assert torch.equal(stock_of(small)(**case.inputs).logits, small(**case.inputs).logits)
    assert case.model.config.num_hidden_layers == 4
    assert all(torch.equal(tensor, before[key]) for key, tensor in case.model.state_dict().items())
    small.generate(**case.inputs, max_new_tokens=2)


@torch.no_grad()
def test_blocks_leave_by_what_they_do() -> None:
    case, found = gemma3(), {}
    for place, layer in enumerate(case.model.model.layers):
        layer.register_forward_hook(
            lambda module, args, output, place=place: found.setdefault(place, (args[0], output)) and None
        )
    case.model(**case.inputs)
    change = {
        place: float((1 - nn.functional.cosine_similarity(x, y, dim=-1)).mean()) for place, (x, y) in found.items()
    }
    assert drop(case, blocks=2)[1] == tuple(
        f"model.layers.{place}" for place in sorted(change, key=change.__getitem__)[:2]
    )
    losses = {}
    for place in range(4):
        config = copy.deepcopy(case.model.config)
        config.num_hidden_layers, config.layer_types = 3, [t for i, t in enumerate(config.layer_types) if i != place]
        without = transformers.Gemma3ForCausalLM(config).eval()
        shared = {name: p for name, p in case.model.state_dict().items() if ".layers." not in name}
        without.load_state_dict(shared, strict=False)
        for layer, other in zip(without.model.layers, [i for i in range(4) if i != place], strict=True):
            layer.load_state_dict(case.model.model.layers[other].state_dict())
        losses[place] = float(own_loss(without, case.inputs))
    assert drop(case, blocks=1, by="loss")[1] == (f"model.layers.{min(losses, key=losses.__getitem__)}",)
    nearest = sorted(change, key=change.__getitem__)[:2]
    assert drop(case, blocks=1, by="both")[1] == (f"model.layers.{min(nearest, key=losses.__getitem__)}",)


@pytest.mark.parametrize(("name", "seed"), [("t5", 0), ("llava", 0), ("vit", 3), ("clip", 0)])
def test_parts_of_models_become_shorter(name: str, seed: int) -> None:
    case = build(name, seed)
    small, gone = drop(case, blocks=1)
    with torch.no_grad():
        pairs = zip(outputs(stock_of(small)(**case.inputs)), outputs(small(**case.inputs)), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    assert len(anatomy(small)) < len(anatomy(case.model))
    assert name != "t5" or not gone[0].endswith(".0")  # which holds the biases of positions


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "asked", "gone", "left"),
    [
        ("Dinov2ForImageClassification", None, (1, 2), [2]), ("Dinov2WithRegistersModel", [-1], (3,), [3]), ("VitDetModel", None, (0,), [3]),
        ("Dinov2Backbone", [1, 3], (1, 3), [1, 2]), ("Dinov2Backbone", [1, 2, 4], (2,), [1, 2, 3]), ("Dinov2Backbone", [1, 2], (1,), None),
    ],
)  # fmt: skip
def test_backbones_give_features_from_behind_the_same_blocks(
    kind: str, asked: list[int] | None, gone: tuple[int, ...], left: list[int] | None
) -> None:
    """Or from behind the one before; two that would be the same cannot be told apart, so that such a block stays."""
    torch.manual_seed(0)
    model_type = kind.removesuffix("ForImageClassification").removesuffix("Model").removesuffix("Backbone")
    config = getattr(transformers, f"{model_type}Config")(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=24, image_size=28, patch_size=14, out_indices=asked,
    )  # fmt: skip
    model = getattr(transformers, kind)(config).eval()
    case = Case(model, {"pixel_values": torch.randn(2, 3, 28, 28)})
    blocks = list(dict.fromkeys(unit.block for unit in anatomy(model)))
    settings: dict[str, Any] = {"blocks": len(gone), "include": tuple(blocks[place] for place in gone)}
    if left is None:
        with pytest.raises(PrunusError, match="config cannot say which are left"):
            drop(case, **settings)
        return
    small, _ = drop(case, **settings)
    assert small.config.out_indices == left
    assert small.config.out_features == [f"stage{place}" for place in left]
    assert small.config.num_hidden_layers == 4 - len(gone)
    same = stock_of(small)(**case.inputs)
    assert all(torch.equal(a, b) for a, b in zip(outputs(small(**case.inputs)), outputs(same), strict=True))
    if kind == "Dinov2Backbone":
        assert len(same.feature_maps) == len(left)
        assert torch.equal(same.feature_maps[0], model(**case.inputs).feature_maps[0]), "before any that has gone"


def test_shorter_models_are_narrowed_like_others() -> None:
    case = gemma3()
    small, _ = drop(case, blocks=1, inplace=True)
    assert small is case.model
    narrow, plan = prunus.narrow(
        small, Calibrated(ratio=0.3, plain=True, compensation="none"), [case.inputs], options=QUIET
    )
    assert plan.ratio == pytest.approx(0.3, abs=0.05)
    with torch.no_grad():
        assert torch.equal(stock_of(narrow)(**case.inputs).logits, narrow(**case.inputs).logits)


def test_what_cannot_leave_is_refused() -> None:
    case = gemma3()
    with pytest.raises(PrunusError, match="can leave"):
        drop(case, blocks=4)
    with pytest.raises(PrunusError, match="nothing"):
        drop(case, blocks=1, include=("nothing",))
    qwen = build("qwen2_5_vl", 0)
    with pytest.raises(PrunusError, match="no entry"):  # its config numbers the blocks that see all
        drop(qwen, blocks=1, include=("vision",))
    narrow, _ = prunus.narrow(case.model, Calibrated(ratio=0.3, compensation="none"), [case.inputs], options=QUIET)
    with pytest.raises(PrunusError, match="drop blocks first"):
        drop_blocks(narrow, Depth(blocks=1), [case.inputs], options=QUIET)
    with pytest.raises(PrunusError, match="or both"):
        NarrowStep()
    assert case.model.config.num_hidden_layers == 4


def test_a_loss_is_one_number_for_a_batch() -> None:
    case = gemma3()
    losses: dict[str, Any] = {
        "NoneType": lambda model, batch: None,
        "shape": lambda model, batch: model(**batch).logits,
        "give a function": "loss",
        "not finite": lambda model, batch: model(**batch).logits.sum() * torch.inf,
    }
    for said, loss in losses.items():
        with pytest.raises(PrunusError, match=said):
            drop_blocks(case.model, Depth(blocks=1, by="loss"), [case.inputs], options=QUIET, loss=loss)
    for by in ("loss", "cosine"):
        with pytest.raises(PrunusError, match="at least one"):
            drop_blocks(case.model, Depth(blocks=1, by=by), [], options=QUIET)
