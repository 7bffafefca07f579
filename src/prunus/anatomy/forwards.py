"""What a narrowed module needs beside narrow weights: fewer columns of the rotation tables, or a forward that works for any
width where the stock one derives its width from something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# B: batch, T: tokens, H: heads, W: head width, D: model width


def fused_attention(module: Any, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Self-attention of a module with a fused qkv, (3, heads, width), for any head width.

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


class NarrowRotation:
    """Forward pre-hook: gives a narrowed rotary attention the columns of cos and sin that its channels still use.

    Args:
        index: the columns, (kept,), int64. It stays on the CPU, neither weight nor buffer, so that no loader, no `meta`
            device and no offloader can lose it; a copy follows the tables to where they are.
    """

    def __init__(self, index: Tensor):
        self.index = self._there = index

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        cos, sin = kwargs["position_embeddings"]
        index = self._on(cos.device)
        narrowed = (cos.index_select(-1, index), sin.index_select(-1, index))
        return args, {**kwargs, "position_embeddings": narrowed}

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self.index, "_there": self.index}

    def _on(self, device: torch.device) -> Tensor:
        there = self._there
        if there.device != device:
            with torch.inference_mode(False):
                there = self.index.to(device)
            if type(there) is Tensor:  # what a tracer makes of it is of no use afterwards
                self._there = there
        return there


def rotation_of(module: nn.Module) -> Tensor | None:
    """The columns of the rotation tables that a module uses, (kept,), int64; None where it was never narrowed."""
    hooks = (hook for hook in module._forward_pre_hooks.values() if isinstance(hook, NarrowRotation))
    return next((hook.index for hook in hooks), None)


def keep_rotation(module: nn.Module, index: Tensor) -> None:
    """Keeps the columns `index` (on the CPU) of the rotation tables, relative to those a module uses now."""
    for key, hook in module._forward_pre_hooks.items():
        if isinstance(hook, NarrowRotation):
            module._forward_pre_hooks[key] = NarrowRotation(hook.index[index])
            return
    module.register_forward_pre_hook(NarrowRotation(index), with_kwargs=True)


class Narrowed:
    """Mixed into the class of a narrowed module, in place of a forward that derives its width from others."""

    def __reduce__(self) -> tuple[Any, ...]:
        own = next(cls for cls in type(self).__mro__ if Narrowed in cls.__bases__)
        return _unpickled, (own.__bases__[1], vars(own)["forward"]), self.__getstate__()


def take_own_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Gives a module a forward that works for any width. A class and no attribute, so that copies, replicas and pickles of
    the module compute with their own weights."""
    if not isinstance(module, Narrowed):
        module.__class__ = _narrow_class(type(module), forward)


_NARROW_CLASSES: dict[tuple[type[nn.Module], Callable[..., Any]], type[nn.Module]] = {}


def _narrow_class(stock: type[nn.Module], forward: Callable[..., Any]) -> type[nn.Module]:
    key = (stock, forward)
    if key not in _NARROW_CLASSES:
        about = {"__module__": stock.__module__, "__qualname__": stock.__qualname__, "__doc__": stock.__doc__}
        _NARROW_CLASSES[key] = type(stock.__name__, (Narrowed, stock), {**about, "forward": forward})
    return _NARROW_CLASSES[key]


def _unpickled(stock: type[nn.Module], forward: Callable[..., Any]) -> nn.Module:
    narrow = _narrow_class(stock, forward)
    return narrow.__new__(narrow)
