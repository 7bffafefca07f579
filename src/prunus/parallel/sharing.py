"""Who does what of work that can be done in any order."""

from __future__ import annotations

from collections.abc import Mapping

from prunus.parallel.processes import processes


def shared_out(costs: Mapping[str, float]) -> dict[str, int]:
    """Which process takes what: the dearest first, each to whoever has least to do.

    Args:
        costs: name → what it costs; the same in every process.

    Examples:
        >>> shared_out({"small": 1.0, "large": 3.0})
        {'large': 0, 'small': 0}
    """
    load = [0.0] * processes()
    taken: dict[str, int] = {}
    for name in sorted(costs, key=lambda name: -costs[name]):
        taken[name] = load.index(min(load))
        load[taken[name]] += costs[name]
    return taken
