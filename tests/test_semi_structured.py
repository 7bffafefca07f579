"""2:4 tensors: what can be said without the GPU that they are for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from prunus import PrunusError, WalkOptions, Wanda, accelerate_2to4, matrices, prune
from prunus.unstructured.patterns import NofM
from prunus.unstructured.semi_structured import REPEATS, _seconds, has_2to4
from tests.families import build

MODULE = "prunus.unstructured.semi_structured"


def test_the_pattern_is_recognised() -> None:
    assert has_2to4(torch.tensor([[0.0, 1, 0, 2, 3, 0, 0, 4]]))
    assert has_2to4(torch.zeros(2, 4))
    assert not has_2to4(torch.tensor([[0.0, 1, 2, 3]]))
    assert not has_2to4(torch.zeros(2, 6))
    model = build("clip", 1).model
    case = build("clip", 1)
    fits = [matrix.name for matrix in matrices(model) if matrix.columns % 4 == 0]
    prune(model, Wanda(pattern="2:4"), [case.inputs], include=fits, options=WalkOptions(progress=False))
    assert all(has_2to4(model.get_submodule(name).weight) for name in fits)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_machines_without_the_kernels_are_refused() -> None:
    with pytest.raises(PrunusError, match=r"compute capability 8\.0"):
        accelerate_2to4(build("llama", 1).model)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU with 2:4 kernels")
def test_swapped_layers_compute_the_same() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=2, num_attention_heads=8, vocab_size=100
    )
    model = LlamaForCausalLM(config).to("cuda", torch.bfloat16).eval()
    batch = {"input_ids": torch.randint(0, 100, (4, 256), device="cuda")}
    prune(model, Wanda(pattern="2:4"), [batch], options=WalkOptions(progress=False))
    with torch.no_grad():
        before = model(**batch).logits.float()
        outcome = accelerate_2to4(model)
        after = model(**batch).logits.float()
    assert len(outcome.swapped) + len(outcome.left) == 14
    assert (before - after).norm() / before.norm() < 0.02


def test_the_pattern_is_counted_by_group() -> None:
    for row, holds in (
        ([0, 0, 1, 1, 0, 2, 0, 0], True),
        ([0, 0, 1, 1, 0, 1, 1, 1], False),
        ([0, 0, 0, 0, 1, 1, 0, 1], False),
        ([0, 0, 1, 1, 1, 1], False),
    ):
        weight = torch.tensor([[0] * len(row), row])
        assert has_2to4(weight) is holds
        assert NofM(2, 4).holds(weight == 0) is holds
    three = torch.tensor([[True, True, True, False, False, True, True, True]])
    assert NofM(1, 4).holds(three)
    assert NofM(2, 4).holds(three)
    assert not NofM(1, 4).holds(torch.tensor([[True, True, False, False]]))


def test_speed_is_that_of_the_fastest_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 40.0, 100.0, 120.0, 200.0, 300.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    assert _seconds(torch.ones(1, 4), torch.ones(2, 4)) == 20 / REPEATS
    assert next(clock, None) is None


def test_what_is_measured_to_be_faster_is_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the GPU, its kernels and its clock."""
    model = build("llama", 1).model.bfloat16()
    fast, even, slow, without, broken, half, single, *others = (m.name for m in matrices(model))
    dense = {name: model.get_submodule(name).weight.data_ptr() for name in (fast, even, slow, without, broken)}
    model.get_submodule(half).half()
    model.get_submodule(single).float()
    seconds = {dense[fast]: 6.0, dense[even]: 3.0, dense[slow]: 1.0}
    made: list[Tensor] = []

    def to_sparse(weight: Tensor) -> Tensor:
        if weight.data_ptr() == dense[broken]:
            raise RuntimeError("no kernel\nand more")
        made.append(weight.clone())
        return made[-1]

    def measured(inputs: Tensor, weight: Tensor) -> float:
        assert inputs.shape == (7, weight.shape[1])
        return 3.0 if any(weight is one for one in made) else seconds.get(weight.data_ptr(), 1.5)

    monkeypatch.setattr(f"{MODULE}.has_2to4", lambda weight: weight.data_ptr() != dense[without])
    monkeypatch.setattr(f"{MODULE}.to_sparse_semi_structured", to_sparse)
    monkeypatch.setattr(f"{MODULE}._seconds", measured)
    randn = torch.randn

    def here(*shape: int, device: torch.device | None = None, **options: Any) -> Tensor:
        return randn(*shape, **options)

    monkeypatch.setattr("torch.randn", here)
    there, own = SimpleNamespace(device=torch.device("cuda", 0), numel=lambda: 0), model.parameters
    monkeypatch.setattr(model, "parameters", lambda recurse=True: iter([there]) if recurse else own(recurse=False))
    for capability in ((7, 5), (8, 0)):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda _device, found=capability: found)
        if capability < (8, 0):
            with pytest.raises(PrunusError, match=r"capability 8\.0"):
                accelerate_2to4(model, tokens=7)
    outcome = accelerate_2to4(model, tokens=7)
    assert outcome.swapped == {fast: 2.0}
    assert model.get_submodule(fast).weight.data_ptr() == made[0].data_ptr()
    assert not model.get_submodule(fast).weight.requires_grad
    assert outcome.left == {
        even: "measured 1.00 times as fast as dense", slow: "measured 0.33 times as fast as dense",
        without: "its weights have no 2:4 pattern", broken: "no kernel", half: "measured 0.50 times as fast as dense",
        single: "torch.float32 has no fast 2:4 kernel; use fp16 or bf16",
        **dict.fromkeys(others, "measured 0.50 times as fast as dense"),
    }  # fmt: skip
    assert all(model.get_submodule(name).weight.requires_grad for name in outcome.left)
