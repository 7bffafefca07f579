"""What sends tokens to experts: small, and nobody expects it to be pruned."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from prunus.anatomy.catalog import ROUTER_NAMES, ROUTERS

ROUTER = "router: it decides where tokens go"


def is_router(module: nn.Module, parents: Sequence[tuple[nn.Module, str]]) -> bool:
    """Whether a module is a router, or lies in one.

    Args:
        parents: the modules around it, the model first, each with the component of the path that follows it.
    """
    if any(ROUTERS.search(type(one).__name__) for one in (module, *(parent for parent, _ in parents))):
        return True
    if any(below in ROUTER_NAMES for _, below in parents):
        return True
    parent, _ = parents[-1]
    experts = getattr(parent, "experts", None)
    if not isinstance(experts, nn.Module) or not isinstance(module, nn.Linear):
        return False
    count = len(experts) if isinstance(experts, nn.ModuleList | nn.ModuleDict) else getattr(experts, "num_experts", 0)
    return module.out_features in (1, count)
