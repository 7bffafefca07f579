"""Rotary positions: which features of a head turn together, and which columns of the tables of cos and sin turn them."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from prunus.anatomy.forwards import NarrowRotation
from prunus.anatomy.trial import MisfitError

TABLES = ("position_embeddings", "rotary_pos_emb", "freqs_cis", "freqs_ci")
"""What forwards call the tables that they are given."""
POSITIONS = re.compile(r"rot|freq|rope|sinus|(^|_)(cos|sin)(_|$)")
"""How arguments are called that make heads turn."""
SHARES = ("partial_rotary_factor", "rotary_pct", "rotary_percentage")
"""What configs call the share of a head that turns."""


@dataclass(frozen=True)
class Rotation:
    """How the first features of a head turn, and how the tables are laid out. What does not turn is grouped like what does."""

    pairs: Literal["halves", "neighbours", "quarters"] = "halves"
    """Features i and i + half; 2i and 2i + 1; or halves in each of two parts of the head, of which both must stay alike."""
    tables: Literal["alike", "halves", "neighbours", "once"] = "alike"
    """The columns lie as the features do, or as is said; `once`: one column for each group."""

    @property
    def span(self) -> int:
        """Features that stay or leave together."""
        return 4 if self.pairs == "quarters" else 2

    def order(self, width: int, turned: int) -> tuple[int, ...]:
        """Feature of a head → its channel.

        Raises:
            MisfitError: the head cannot be divided so.
        """
        if turned % self.span or (width - turned) % self.span or not 0 <= turned <= width:
            raise MisfitError(f"its rotary heads turn {turned} of {width} features, no multiples of {self.span}")
        groups, rest = turned // self.span, (width - turned) // self.span
        features = range(turned)
        first = [f // 2 for f in features] if self.pairs == "neighbours" else [f % groups for f in features]
        return (*first, *(groups + f % rest for f in range(width - turned)))

    def columns(self, kept: Tensor, turned: int) -> tuple[Tensor, int]:
        """The columns of the tables that the channels `kept` use, and how many there were."""
        groups = turned // self.span
        kept = kept[kept < groups]
        tables = self.pairs if self.tables == "alike" else self.tables
        if tables == "once":
            return kept, groups
        if tables == "neighbours":
            return torch.stack([2 * kept, 2 * kept + 1], 1).flatten(), turned
        return torch.cat([kept + part * groups for part in range(self.span)]), turned


ROTATIONS: tuple[Rotation, ...] = (
    Rotation(), Rotation("neighbours"), Rotation("neighbours", "halves"), Rotation("halves", "once"),
    Rotation("neighbours", "once"), Rotation("quarters"),
)  # fmt: skip
"""Those that are tried on an attention that nobody has named."""


def tables_of(module: nn.Module) -> str | None:
    """What the forward of a module, or of one in it, calls the tables that it is given; None where it is given none.

    Raises:
        MisfitError: it asks for positions in a way that is not known.
    """
    asked = [name for part in (module, *module.children()) for name in inspect.signature(type(part).forward).parameters]
    unknown = next((name for name in asked if POSITIONS.search(name) and name not in TABLES), None)
    if unknown is not None:
        raise MisfitError(f"its forward asks for {unknown}, of which prunus does not know what it does")
    return next((name for name in TABLES if name in asked), None)


def turned_features(module: nn.Module, width: int) -> int:
    """How many features of each head turn: as the module was narrowed, else as its config says, else all."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, NarrowRotation) and hook.turned is not None:
            return hook.turned
    stated = next((size for name, size in turned_sizes(module)), None)
    return int(width * _share(module)) if stated is None else stated


def turned_sizes(module: nn.Module) -> list[tuple[str, int]]:
    """Attributes in which a module keeps how many features turn."""
    names = ("rotary_ndims", "rotary_dim", "rope_dim", "rotary_emb_dim")
    return [(name, size) for name in names if isinstance(size := getattr(module, name, None), int) and size > 0]


def _share(module: nn.Module) -> float:
    config = getattr(module, "config", None)
    said = getattr(config, "rope_parameters", None) or {}
    kind = getattr(module, "layer_type", None)
    said = said.get(kind) or said if isinstance(said, dict) else {}
    if said.get("rope_type") == "proportional":  # the tables are whole, and turn a part by nothing
        return 1.0
    stated = said.get(SHARES[0]) or next((getattr(config, name) for name in SHARES if getattr(config, name, None)), 1.0)
    return float(stated)
