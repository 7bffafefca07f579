"""Repair trains what is not frozen, and leaves a model that it cannot train as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from prunus import RESSA, MaskedFinetune, MaskedLoRA, PrunusError, SparseGPT, Training, Wanda, prune, repair
from tests.test_refusals import QUIET, ids, llama, unchanged

TRAINING = Training(steps=2, batch_size=4, learning_rate=1e-2, bf16=False)
DATA = [{"input_ids": row} for row in ids(8)]
METHODS = [MaskedFinetune(), MaskedLoRA(rank=2)]


def pruned(dtype: torch.dtype = torch.float32) -> Any:
    model = llama().to(dtype)
    prune(model, Wanda(), [{"input_ids": ids()}], options=QUIET)
    return model


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.method)
def test_frozen_parts_stay_and_the_rest_trains(method: Any) -> None:
    model = pruned()
    model.model.layers[0].requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    repair(model, method, DATA, TRAINING)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert "model.layers.1.mlp.up_proj.weight" in changed
    assert not any(".layers.0." in name for name in changed)
    assert not model.model.layers[0].mlp.up_proj.weight.requires_grad
    assert model.model.layers[1].mlp.up_proj.weight.requires_grad


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.method)
def test_a_model_that_is_frozen_as_a_whole_is_refused(method: Any) -> None:
    model = pruned().requires_grad_(False)
    with unchanged(model), pytest.raises(PrunusError, match="frozen"):
        repair(model, method, DATA, TRAINING)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"input_ids": ids()}, "dict"),
        ("text", "str"),
        (iter(DATA), "by index"),
        ([], "nothing to learn"),
        (["text"], "do not make a batch"),
        ([{"words": ids()[0]}], "cannot run it"),
        ([{"input_ids": ids()[0] + 1000}], "cannot run it"),
    ],
)
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.method)
def test_data_that_nothing_can_learn_from_are_refused(method: Any, data: Any, reason: str) -> None:
    model = pruned()
    with unchanged(model), pytest.raises(PrunusError, match=f"(?s)(data|batches).*{reason}"):
        repair(model, method, data, TRAINING)


class Interrupt(TrainerCallback):  # type: ignore[misc]
    def on_step_end(self, *_: Any, **__: Any) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [*METHODS, RESSA(rank=2)], ids=lambda m: m.method)
def test_a_training_that_breaks_off_leaves_every_bit(method: Any, dtype: torch.dtype) -> None:
    dense, model = llama().to(dtype), llama().to(dtype)
    prune(model, SparseGPT(), [{"input_ids": ids()}], options=QUIET)
    teacher = dense if method.distillation else None
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        repair(model, method, DATA, TRAINING, teacher, callbacks=[Interrupt()])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_compiled_shared_and_absent_models_are_refused() -> None:
    compiled = pruned()
    compiled.compile()
    with pytest.raises(PrunusError, match="compiled"):
        repair(compiled, MaskedFinetune(), DATA, TRAINING)
    shared = pruned()
    shared.model.layers[0].self_attn.q_proj.weight = shared.model.layers[0].self_attn.o_proj.weight
    with pytest.raises(PrunusError, match="cannot save"):
        repair(shared, MaskedFinetune(), DATA, TRAINING)
    with pytest.raises(PrunusError, match="not in memory"):
        repair(pruned().to("meta"), MaskedFinetune(), DATA, TRAINING)


def test_pixels_of_another_type_are_cast_for_training(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    model = pruned(torch.bfloat16)
    items = [{"inputs_embeds": torch.randn(8, 16), "labels": row} for row in ids(4)]
    hook = model.model.layers[0].register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    repair(model, MaskedLoRA(rank=2), items, TRAINING)
    hook.remove()
    assert seen
    assert all(x.dtype == torch.bfloat16 for x in seen)
    assert isinstance(model, nn.Module)
