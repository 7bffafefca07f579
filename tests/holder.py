"""A model of blocks with one MLP each, of any sizes: what recorded matrices and numbers worked out by hand are put into."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPMLP


class _Block(nn.Module):
    def __init__(self, rows: int, columns: int):
        super().__init__()
        self.mlp = CLIPMLP(
            CLIPTextConfig(hidden_size=columns, intermediate_size=rows, num_attention_heads=1, hidden_act="relu")
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)  # type: ignore[no-any-return]


class Holder(nn.Module):
    """One block for each size; block i has `layers.i.mlp.fc1`, (rows, columns), and `layers.i.mlp.fc2`, (columns, rows)."""

    def __init__(self, *sizes: tuple[int, int]):
        super().__init__()
        self.layers = nn.ModuleList(_Block(*size) for size in sizes)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Every block is given the same input, x (…, columns)."""
        for layer in self.layers:
            layer(x)
        return x

    def fc1(self, block: int = 0) -> nn.Parameter:
        return self.layers[block].mlp.fc1.weight  # type: ignore[union-attr,return-value]

    def hold(self, block: int, weight: Tensor) -> None:
        """Puts a weight into fc1 of a block."""
        self.fc1(block).data.copy_(weight)


FC1 = "layers.*.mlp.fc1"
