"""EVA's ViT as a classifier: its published names, and what it computes, against plain arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForImageClassification

from prunus import PrunusError, anatomy, convert, load_model
from prunus.models import EvaVitForImageClassification

WIDTH, HEADS, LAYERS, HIDDEN, SIDE, PATCH = 12, 3, 2, 20, 3, 2


def published(pooling: str) -> dict[str, Tensor]:
    """A tiny one; `pooling` is what the last norm is called."""
    generator = torch.Generator().manual_seed(3)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH), "pos_embed": (1, 1 + SIDE**2, WIDTH), "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,), "head.weight": (5, WIDTH), "head.bias": (5,), f"{pooling}.weight": (WIDTH,),
        f"{pooling}.bias": (WIDTH,),
    }  # fmt: skip
    for layer in range(LAYERS):
        block = {
            "norm1.weight": (WIDTH,), "norm1.bias": (WIDTH,), "norm2.weight": (WIDTH,), "norm2.bias": (WIDTH,),
            "attn.q_bias": (WIDTH,), "attn.v_bias": (WIDTH,), "attn.qkv.weight": (3 * WIDTH, WIDTH),
            "attn.proj.weight": (WIDTH, WIDTH), "attn.proj.bias": (WIDTH,), "mlp.fc1.weight": (HIDDEN, WIDTH),
            "mlp.fc1.bias": (HIDDEN,), "mlp.fc2.weight": (WIDTH, HIDDEN), "mlp.fc2.bias": (WIDTH,),
        }  # fmt: skip
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    return {name: torch.randn(shape, generator=generator) / 3 for name, shape in shapes.items()}


def computed(tensors: dict[str, Tensor], pixels: Tensor, pooling: str) -> Tensor:
    """What the published names mean."""

    def norm(states: Tensor, name: str) -> Tensor:
        return F.layer_norm(states, (WIDTH,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], 1e-6)

    def linear(states: Tensor, name: str) -> Tensor:
        return F.linear(states, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    patches = F.conv2d(pixels, tensors["patch_embed.proj.weight"], tensors["patch_embed.proj.bias"], PATCH)
    states = (
        torch.cat([tensors["cls_token"].expand(len(pixels), -1, -1), patches.flatten(2).mT], 1) + tensors["pos_embed"]
    )
    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        read = norm(states, f"{block}.norm1")
        q, k, v = (read @ weight.T for weight in tensors[f"{block}.attn.qkv.weight"].chunk(3))
        q, v = q + tensors[f"{block}.attn.q_bias"], v + tensors[f"{block}.attn.v_bias"]
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v))
        mixed = (q @ k.mT / (WIDTH // HEADS) ** 0.5).softmax(-1) @ v
        states = states + linear(mixed.transpose(1, 2).flatten(2), f"{block}.attn.proj")
        hidden = F.gelu(linear(norm(states, f"{block}.norm2"), f"{block}.mlp.fc1"))
        states = states + linear(hidden, f"{block}.mlp.fc2")
    pooled = states[:, 1:].mean(1) if pooling == "fc_norm" else states[:, 0]
    return linear(norm(pooled, pooling), "head")


@pytest.mark.parametrize("pooling", ["norm", "fc_norm"])
def test_it_computes_what_its_published_names_mean(pooling: str, tmp_path: Path) -> None:
    tensors, pixels = published(pooling), torch.randn(2, 3, SIDE * PATCH, SIDE * PATCH)
    torch.save({"model": tensors | {"mask_token": torch.zeros(1, 1, WIDTH)}}, tmp_path / "eva.pth")
    convert(tmp_path / "eva.pth", tmp_path / "out", head_width=WIDTH // HEADS)
    expected, labels = computed(tensors, pixels, pooling), torch.tensor([1, 4])
    for model in (load_model(tmp_path / "out"), AutoModelForImageClassification.from_pretrained(tmp_path / "out")):
        assert type(model) is EvaVitForImageClassification
        outputs = model.eval()(pixels, labels=labels)
        torch.testing.assert_close(outputs.logits, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(outputs.loss, F.cross_entropy(expected, labels), rtol=1e-5, atol=1e-5)


def test_a_bias_alone_is_left_over(tmp_path: Path) -> None:
    tensors = published("norm")
    del tensors["blocks.1.attn.v_bias"]  # of a file that is damaged
    torch.save(tensors, tmp_path / "eva.pth")
    with pytest.raises(PrunusError, match=r"left over: blocks\.1\.attn\.q_bias"):
        convert(tmp_path / "eva.pth", tmp_path / "out", head_width=WIDTH // HEADS)


def test_vit_g_has_the_size_that_is_published() -> None:
    """1012.56 million with a classifier of ImageNet, not counting the biases of keys, which are zero."""
    with torch.device("meta"):
        model = EvaVitForImageClassification(
            EvaVitForImageClassification.config_class(num_hidden_layers=40, num_labels=1000)
        )
    assert {(unit.kind, unit.channels) for unit in anatomy(model)} == {("attention", 88), ("mlp", 6144)}
    assert f"{(model.num_parameters() - 40 * 1408) / 1e6:.2f}" == "1012.56"
