"""The forward of a narrowed attention where the stock one derives its head width from the hidden size."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

# B: batch, T: tokens, H: heads, W: head width, D: model width


def fused_attention(module: Any, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Self-attention of a fused-qkv module (BLIP, BLIP-2 and InstructBLIP vision), for any head width.

    Args:
        hidden_states: (B, T, D).

    Returns:
        The output (B, T, D) and the attention probabilities (B, H, T, T), None unless they are asked for.
    """
    batch, tokens, _ = hidden_states.shape
    qkv = module.qkv(hidden_states).view(batch, tokens, 3, module.num_heads, module.head_dim)
    q_BHTW, k_BHTW, v_BHTW = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    dropout = getattr(module, "attention_dropout", None)
    rate = module.dropout.p if dropout is None else dropout
    probabilities = None
    if kwargs.get("output_attentions") or module.config.output_attentions:
        probabilities = (q_BHTW @ k_BHTW.transpose(-1, -2) * module.scale).softmax(-1)
        context = F.dropout(probabilities, rate, module.training) @ v_BHTW
    else:
        context = F.scaled_dot_product_attention(
            q_BHTW, k_BHTW, v_BHTW, dropout_p=rate if module.training else 0.0, scale=module.scale
        )
    output_BTD = module.projection(context.transpose(1, 2).reshape(batch, tokens, -1))
    return output_BTD, probabilities


def narrow_rotation(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Forward pre-hook: gives a narrowed rotary attention the columns of cos and sin that its channels still use."""
    cos, sin = kwargs["position_embeddings"]
    index: Tensor = module.rotary_index  # type: ignore[assignment]
    narrowed = (cos.index_select(-1, index), sin.index_select(-1, index))
    return args, {**kwargs, "position_embeddings": narrowed}


def set_rotary_index(module: nn.Module, index: Tensor) -> None:
    """Keeps the columns `index` of the rotation tables, relative to those it uses now."""
    current = getattr(module, "rotary_index", None)
    if current is None:
        module.register_forward_pre_hook(narrow_rotation, with_kwargs=True)
        module.register_buffer("rotary_index", index, persistent=False)
    else:
        module.rotary_index = current[index.to(current.device)]
