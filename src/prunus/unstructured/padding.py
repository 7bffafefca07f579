"""Which positions of a layer's inputs are no padding, and which sequences they belong to, read off what a block and a batch are given.

Shapes: N sequences, T tokens, C columns, Q queries.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_mask

from prunus.anatomy import LANGUAGE
from prunus.errors import PrunusError
from prunus.unstructured.walk import Visit

MASKED = -1e3
"""Additive masks: anything below this switches a position off."""
ENCODER_STATES = ("encoder_hidden_states", "key_value_states")


def sequences_of(visit: Visit, x_NTC: Tensor) -> tuple[int, Tensor]:
    """How many sequences a layer's inputs come from, and which of them each of its rows belongs to, (N·T,).

    Inputs that were flattened to (N·T, C), as OPT's MLPs do it, or were packed, as Qwen's images are, come from the
    sequences of the visit.
    """
    rows = x_NTC.shape[:-1].numel()
    if x_NTC.ndim > 2:
        sequences = x_NTC.shape[0]
    else:
        bounds = visit.arguments.get("cu_seqlens")
        if isinstance(bounds, Tensor) and int(bounds[-1]) == rows:
            lengths = bounds.diff().to(x_NTC.device)
            return len(lengths), torch.repeat_interleave(lengths)
        given = (value for value in visit.arguments.values() if isinstance(value, Tensor))
        sequences = next((x.shape[0] for x in given if x.ndim == 3 and x.shape[:2].numel() == rows), 1)
    return sequences, torch.arange(rows, device=x_NTC.device) * sequences // max(rows, 1)


def mask_of_text(model: nn.Module, tower: str) -> str:
    """Which of a batch's masks is over the tokens of a tower; none in one that reads no text."""
    if tower == "decoder" and getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return "decoder_attention_mask"
    return "attention_mask" if tower in ("language", *LANGUAGE) else ""


def has_padding(visit: Visit, text_mask: str = "") -> bool:
    """Whether a mask of the block's inputs, or of the batch, switches a position off for everybody."""
    masks = (_allowed(visit.arguments.get("attention_mask")), _allowed(visit.masks.get(text_mask)))
    return any(allowed is not None and not bool(allowed.all()) for allowed in masks)


def counted_positions(visit: Visit, x_NTC: Tensor, text_mask: str = "") -> Tensor | None:
    """Which rows of a layer's flattened inputs are no padding, bool (N·T,); None where all count.

    Read off the mask that the model gave the block: a position counts if any query may look at it. Besides, the batch's mask of
    that name holds where it is over these positions: some blocks are given no mask (Nemotron-H's experts, RWKV), one under a name
    or in a form of its own (XLM, XLNet, LongT5), or one in which padding looks at itself (Grounding DINO).
    """
    from_encoder = any(x_NTC is visit.arguments.get(name) for name in ENCODER_STATES)
    counted = _by_mask_of_block(visit, x_NTC, from_encoder)
    if not from_encoder and text_mask in visit.masks:
        whole = _by_mask_of_batch(visit.masks[text_mask], x_NTC)
        counted = whole if counted is None else counted if whole is None else counted & whole.to(counted.device)
    return None if counted is None or bool(counted.all()) else counted


def _by_mask_of_block(visit: Visit, x_NTC: Tensor, from_encoder: bool) -> Tensor | None:
    allowed = _allowed(visit.arguments.get("encoder_attention_mask" if from_encoder else "attention_mask"))
    if allowed is None:
        return None
    positions = x_NTC.shape[:-1]
    queries = visit.arguments.get("query_length")  # a Q-Former's: its mask is over queries, then text
    if isinstance(queries, int) and 0 < queries != positions[-1] == allowed.shape[-1] - queries:
        allowed = allowed[..., queries:]
    if allowed.ndim == 2 and len(allowed) == 1:
        allowed = allowed.expand(positions.numel() // allowed.shape[-1], -1)  # one mask for all sequences
    # else it is a mask over other positions than this layer's inputs
    return allowed.reshape(-1) if allowed.numel() == positions.numel() else None


def _by_mask_of_batch(mask_NT: Tensor, x_NTC: Tensor) -> Tensor | None:
    allowed = _allowed(mask_NT)
    positions = x_NTC.shape[:-1]
    if allowed is None or allowed.numel() != positions.numel():
        return None
    if len(positions) > 1 and positions[:2] == allowed.shape[::-1] != allowed.shape:
        allowed = allowed.T  # XLNet and FSMT have time first
    elif len(positions) > 1 and positions != allowed.shape:
        return None
    return allowed.reshape(-1).to(x_NTC.device)


def _allowed(mask: Any) -> Tensor | None:
    """Which positions some query may look at, bool (N, T) or (T,), from a mask of any kind that transformers uses.

    Raises:
        PrunusError: a mask of an unknown kind.
    """
    if isinstance(mask, BlockMask):
        batch, heads, queries, keys = mask.shape
        mask = create_mask(mask.mask_mod, batch, heads, queries, keys, device=str(mask.kv_indices.device))
    if isinstance(mask, dict):  # by the kind of layer (full, sliding): padding is the same in all
        mask = next((value for value in mask.values() if value is not None), None)
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise PrunusError(
            "attention_mask", type(mask).__name__, "prunus cannot read padding off this; load the model with attn_implementation='sdpa'"
        )  # fmt: skip
    if mask.is_floating_point():
        additive = bool((mask < 0).any()) or not bool(mask.any())
        allowed = mask > MASKED if additive else mask > 0
    else:
        allowed = mask > 0 if mask.dtype != torch.bool else mask
        if _says_what_is_hidden(allowed):
            allowed = ~allowed
    while allowed.ndim > 2:
        allowed = allowed.any(dim=1)  # heads, then queries
    return allowed


def _says_what_is_hidden(mask: Tensor) -> bool:
    """Whether a boolean mask over queries and keys is true where a query must not look: it is if an earlier query's entry for a
    token is true and the token's own is not. Nobody is shown a token that does not see itself."""
    queries, keys = mask.shape[-2:] if mask.ndim > 2 else (0, 0)
    if queries != keys or queries < 2:
        return False
    own = mask.diagonal(dim1=-2, dim2=-1)[..., None, :]
    return bool((mask.triu(1) & ~own).any())
