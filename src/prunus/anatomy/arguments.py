"""What the forwards of attentions ask for: arguments of small sizes, for trials."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from prunus.anatomy.rotation import tables_of

TOKENS = 3
SIDE = 2
"""Height and width of a plane of tokens."""
OTHERS = (
    "key_value_states", "encoder_hidden_states", "cross_attention_states", "context", "memory", "key", "value",
    "key_states", "value_states", "keys", "values", "image_hidden_states", "vision_hidden_states",
    "entity_hidden_states",
)  # fmt: skip
"""Arguments that hold other hidden states."""
ADDED = ("object_queries",)
"""Arguments that are added to the hidden states."""
BIASES = ("rel_pos", "rel_2d_pos")
"""Arguments that are added to the scores of all heads alike."""
SIDES = ("height", "width")
"""Arguments that say what image the tokens are."""
PLANE = "input_dimensions"
"""Argument that says both at once."""
SHARED = "shared_kv_states"
"""Argument through which keys and values are handed to other layers."""


@dataclass(frozen=True)
class _Shapes:
    """One choice of what is open."""

    lead: tuple[int, ...] | None
    """What comes before the tokens: nothing, or a batch. None: a batch of planes, whose height and width are in place of the tokens."""
    is_crossed: bool
    """Other hidden states are given where they need not be."""
    tokens: int
    columns: int
    """Of the rotation tables."""
    form: str
    """Of them: `two` of real numbers, `one` of complex ones, or `added` to the hidden states."""
    has_batch: bool
    """The tables have a batch."""


def arguments_of(sample: nn.Module, widths: list[int], turned: int) -> Iterator[dict[str, Any]]:
    """Arguments to try, the likeliest first.

    Args:
        sample: an attention.
        widths: inputs of its layers for queries, keys, values and so on.
        turned: features of a head that rotation tables turn.
    """
    asked = dict(list(inspect.signature(type(sample).forward).parameters.items())[1:])  # without self
    other = widths[1] if len(widths) > 1 else widths[0]
    leads: tuple[tuple[int, ...] | None, ...] = ((), (1,)) if "cu_seqlens" in asked else ((1,), (), None)
    crossed = (True, False) if other != widths[0] else (False, True)
    table = tables_of(sample)
    tables: list[tuple[int, str, bool]] = [(0, "", False)]
    if table:
        tables = [*product((turned, turned // 2), ("two", "one"), (False, True)), (widths[0], "added", False)]
    generator = torch.Generator().manual_seed(2)
    for lead, is_crossed, tokens, form in product(leads, crossed, _lengths(sample), tables):
        shapes = _Shapes(lead, is_crossed, SIDE**2 if lead is None else tokens, *form)
        yield _given(asked, shapes, (widths[0], other), table, generator)


def _given(
    asked: dict[str, inspect.Parameter], shapes: _Shapes, widths: tuple[int, int], table: str | None,
    generator: torch.Generator,
) -> dict[str, Any]:  # fmt: skip
    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float32)

    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    required = [n for n, one in asked.items() if one.default is inspect.Parameter.empty and one.kind is positional]
    tokens, batch = shapes.tokens, (1,) if shapes.lead is None else shapes.lead
    places = (SIDE, SIDE) if shapes.lead is None else (tokens,)
    given: dict[str, Any] = dict.fromkeys(required)
    made: dict[str, Any] = {
        **{name: random(*batch, tokens, widths[1]) for name in OTHERS if shapes.is_crossed or name in required},
        **{name: random(*batch, tokens, widths[0]) for name in ADDED},
        **{name: random(1, 1, tokens, tokens) for name in BIASES},
        **dict.fromkeys(SIDES, math.isqrt(tokens)),
        "cu_seqlens": torch.tensor([0, tokens], dtype=torch.int32),
        SHARED: {},
        next(iter(asked)): random(*batch, *places, widths[0]),
    }
    given |= {name: value for name, value in made.items() if name in asked}
    if "position_ids" in required:
        given["position_ids"] = torch.arange(tokens)[None]
    if table is not None:
        given[table] = _tables(shapes, batch, random)
    return given


def _tables(shapes: _Shapes, batch: tuple[int, ...], random: Callable[..., Tensor]) -> Any:
    if shapes.form == "added":
        return random(*batch, shapes.tokens, shapes.columns)
    size = ((1,) if shapes.has_batch else ()) + (shapes.tokens, shapes.columns)
    return (random(*size), random(*size)) if shapes.form == "two" else torch.polar(torch.ones(size), random(*size))


def _lengths(sample: nn.Module) -> Iterable[int]:
    """Numbers of tokens to try: a few, or as many as a window has."""
    if "height" in inspect.signature(type(sample).forward).parameters:
        return (64, 256)  # some look at one key for 64 tokens
    windows = [getattr(module, "window_size", None) for module in sample.modules()]
    sides = [(size, size) if isinstance(size, int) else size for size in windows if size]
    return dict.fromkeys([TOKENS, *(math.prod(side) for side in sides if len(side) == 2)])
