"""2:4 tensors: what can be said without the GPU that they are for."""

from __future__ import annotations

import pytest
import torch

from prunus import PrunusError, WalkOptions, Wanda, accelerate_2to4, matrices, prune
from prunus.unstructured.semi_structured import has_2to4
from tests.families import build


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
