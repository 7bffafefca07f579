"""Modules that hold transformer weights of which no channel can leave, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from prunus.anatomy.layouts import Layout, Sites
from prunus.anatomy.trial import MisfitError


@dataclass(frozen=True)
class StaysDense(Layout):
    """What no channel can leave."""

    is_attention: ClassVar[bool] = False
    reason: str
    holding: tuple[str, ...] = ()
    """Parameters by which such modules are known, where they are not known by their type."""

    def resembles(self, module: nn.Module) -> bool:
        """Whether a module has such parameters."""
        return set(self.holding) <= module._parameters.keys()

    def sites(self, module: nn.Module) -> Sites:
        raise MisfitError(self.reason)

    def shrink(self, module: nn.Module, kept: Tensor, before: Sites) -> None:
        raise MisfitError(self.reason)
