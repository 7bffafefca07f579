"""What a narrowed module needs beside narrow weights: fewer columns of the rotation tables, or a forward that works for any
width where the stock one derives its width from something else."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.errors import PrunusError

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


def windowed_attention(module: Any, hidden_states: Tensor) -> Tensor:
    """Self-attention within the windows of an image, of a module with a fused qkv, (3, heads, width), for any head width.

    Args:
        hidden_states: (B, height, width, D); it is padded with zeros to whole windows.

    Returns:
        (B, height × width, D).
    """
    batch, height, width, features = hidden_states.shape
    side = module.window_size
    padded = F.pad(hidden_states, (0, 0, 0, -width % side, 0, -height % side))
    down, across = padded.shape[1] // side, padded.shape[2] // side
    windows_BTD = padded.view(batch, down, side, across, side, features).transpose(2, 3).reshape(-1, side**2, features)
    qkv = module.qkv(windows_BTD).view(len(windows_BTD), side**2, 3, module.num_heads, -1)
    q_BHTW, k_BHTW, v_BHTW = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    context_BHTW = F.scaled_dot_product_attention(q_BHTW, k_BHTW, v_BHTW, scale=module.scale)
    output_BTD: Tensor = module.proj(context_BHTW.transpose(1, 2).flatten(2))
    planes = output_BTD.view(batch, down, across, side, side, -1).transpose(2, 3)
    return planes.reshape(batch, down * side, across * side, -1)[:, :height, :width].flatten(1, 2)


def experts_of_any_width(module: Any, *args: Any, **kwargs: Any) -> Any:
    """Experts by the kernel that their config names; one by one where it cannot multiply them, as rows of no whole 16 bytes."""
    stock: Any = next(cls for cls in type(module).__mro__[1:] if cls is not Narrowed)
    forward = stock.forward
    weight = module.down_proj
    width = weight.shape[1 if module.is_transposed else 2]
    return (forward.__wrapped__ if width * weight.element_size() % 16 else forward)(module, *args, **kwargs)


class NarrowRotation:
    """Forward pre-hook: gives a narrowed rotary attention the columns of cos and sin that its channels still use.

    Args:
        index: the columns, (kept,), int64. It stays on the CPU, neither weight nor buffer, so that no loader, no `meta`
            device and no offloader can lose it; a copy follows the tables to where they are.
        width: columns of the tables that the model makes; None is not looked at.
        turned: features of a head that still turn, where that does not follow from the columns.
        name: argument of the forward that holds the tables: one tensor, or several.
    """

    def __init__(
        self, index: Tensor, width: int | None = None, turned: int | None = None, name: str = "position_embeddings"
    ):
        self.index = self._there = index
        self.width, self.turned, self.name = width, turned, name

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if self.name in kwargs:
            return args, {**kwargs, self.name: self._narrowed(module, kwargs[self.name])}
        asked = list(inspect.signature(type(module).forward).parameters)[1:]  # without self
        place = asked.index(self.name) if self.name in asked else len(args)
        if place >= len(args):
            return args, kwargs
        return (*args[:place], self._narrowed(module, args[place]), *args[place + 1 :]), kwargs

    def _narrowed(self, module: nn.Module, tables: Any) -> Any:
        if tables is None:
            return None
        if not isinstance(tables, Tensor):
            return type(tables)([self._narrowed(module, table) for table in tables])
        if self.width is not None and tables.shape[-1] != self.width:
            raise PrunusError(
                self.name, tuple(tables.shape), f"a {type(module).__name__} was narrowed for tables of {self.width} columns; "
                "leave the sizes of its rotary positions as they were",
            )  # fmt: skip
        return tables.index_select(-1, self._on(tables.device))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_there": self.index}

    def _on(self, device: torch.device) -> Tensor:
        there = self._there
        if there.device != device:
            with torch.inference_mode(False):
                there = self.index.to(device)
            if type(there) is Tensor:  # what a tracer makes of it is of no use afterwards
                self._there = there
        return there


def keep_rotation(
    module: nn.Module,
    index: Tensor,
    width: int | None = None,
    turned: int | None = None,
    name: str = "position_embeddings",
) -> None:
    """Keeps the columns `index` (on the CPU) of the rotation tables, relative to those a module uses now; the rest is as of
    `NarrowRotation`."""
    for key, hook in module._forward_pre_hooks.items():
        if isinstance(hook, NarrowRotation):
            module._forward_pre_hooks[key] = NarrowRotation(hook.index[index], hook.width, turned, hook.name)
            return
    module.register_forward_pre_hook(NarrowRotation(index, width, turned, name), with_kwargs=True)


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
