"""Which channels go, given their scores and a budget: one ranking over all units."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from prunus.errors import PrunusError

Cost: TypeAlias = float | Sequence[float]
"""What leaves with a channel of a unit; where the first that leaves costs another than the second, with each in turn."""


def cost_of(cost: Cost, gone: int) -> float:
    """What leaves with the first `gone` channels."""
    return cost * gone if isinstance(cost, int | float) else math.fsum(cost[:gone])


def dearest(costs: Iterable[Cost]) -> float:
    """The largest cost of one channel."""
    return max(cost if isinstance(cost, int | float) else max(cost) for cost in costs)


def select(
    scores: Mapping[str, Tensor],
    costs: Mapping[str, Cost],
    ratio: float,
    minimum: int = 1,
    align: int = 1,
    at_least: bool = False,
) -> dict[str, Tensor]:
    """Prunes the highest scores first until the pruned cost is as near `ratio` of the total as it can be.

    Channels of a unit leave in chunks that keep its width a multiple of `align` (a unit no wider than `align` stays
    whole); a chunk is ranked by its mean score. With `align=1` this is UPop's rule: the budget is met to within half
    a channel's cost, and the channel at the cut goes or stays, whichever is nearer.

    Args:
        scores: unit → (channels,). A large score means that the loss falls as the channel shrinks, so it goes first.
        costs: unit → cost of its channels.
        ratio: share of the total cost that is to go.
        minimum: channels that every unit keeps at least, those with its lowest scores.
        at_least: never less than `ratio` goes, if it can be reached.

    Returns:
        unit → bool (channels,), True where the channel stays.

    Raises:
        PrunusError: the floors leave less than `ratio` to prune, or a score is not finite.
    """
    total = sum(cost_of(costs[name], score.numel()) for name, score in scores.items())
    kept = {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    names = list(scores)
    orders: list[Tensor] = []
    rank: list[tuple[Tensor, Tensor, Tensor]] = []
    for index, name in enumerate(names):
        score = scores[name].double()
        if not torch.isfinite(score).all():
            raise PrunusError("scores", name, "a score is not finite; the loss has diverged: lower the learning rate")
        order = score.argsort(descending=True, stable=True)
        orders.append(order)
        ends = _chunk_ends(score.numel(), minimum, align, score.device)
        if ends.numel() == 0:
            continue
        sizes = ends.diff(prepend=ends.new_zeros(1))
        if align == 1:
            means = score[order[: ends.numel()]]
        else:
            sums = torch.cat([score.new_zeros(1), score[order].cumsum(0)])
            means = (sums[ends] - sums[ends - sizes]) / sizes
        rank.append((means, _chunk_costs(costs[name], ends), torch.full_like(ends, index)))
    most = reachable(scores, costs, minimum, align)
    target = ratio * total
    if most < target - dearest(costs.values()):
        raise PrunusError(
            "ratio", ratio, f"with min_channels={minimum} and align={align} at most {most / total:.4f} can be "
            "pruned; ask for less, or lower the floors",
        )  # fmt: skip
    if not rank:
        return kept
    means, chunk_costs, owners = (torch.cat(parts) for parts in zip(*rank, strict=True))
    queue = means.argsort(descending=True, stable=True)
    pruned_cost = torch.cat([means.new_zeros(1), chunk_costs[queue].double().cumsum(0)])
    is_short = pruned_cost < target - 1e-9 * total
    cut = min(int(is_short.sum()), len(queue)) if at_least else int((pruned_cost - target).abs().argmin())
    chunks = torch.bincount(owners[queue[:cut]], minlength=len(names)).tolist()
    for name, order, count in zip(names, orders, chunks, strict=True):
        if count:
            ends = _chunk_ends(order.numel(), minimum, align, order.device)
            kept[name][order[: int(ends[count - 1])]] = False
    return kept


def select_as_published(scores: Mapping[str, Tensor], costs: Mapping[str, Cost], ratio: float) -> dict[str, Tensor]:
    """The published code's cut, for comparison with it: it misses the budget by up to two channels and the floors.

    The threshold is the score at which the pruned cost is nearest the target; channels above it go and the one at it
    stays. A unit that would lose everything gets its lowest channel back, which nobody else pays for.
    """
    pooled = torch.cat([score.double() for score in scores.values()])
    channel_costs = torch.cat(
        [torch.full_like(score.double(), cost_of(costs[name], 1)) for name, score in scores.items()]
    )
    queue = pooled.argsort(descending=True, stable=True)
    cut = int((channel_costs[queue].cumsum(0) - ratio * channel_costs.sum()).abs().argmin())
    threshold = pooled[queue[cut]]
    kept = {name: score.double() <= threshold for name, score in scores.items()}
    for name, score in scores.items():
        kept[name][score.argmin()] = True
    return kept


def pruned_share(kept: Mapping[str, Tensor], costs: Mapping[str, Cost]) -> float:
    """The share of the cost that is gone: of unit → bool (channels,), True where the channel stays."""
    total = sum(cost_of(costs[name], mask.numel()) for name, mask in kept.items())
    return sum(cost_of(costs[name], int((~mask).sum())) for name, mask in kept.items()) / total


def reachable(scores: Mapping[str, Tensor], costs: Mapping[str, Cost], minimum: int = 1, align: int = 1) -> float:
    """The cost of all that may go under the floors of `select`."""
    floor = -(-minimum // align) * align
    return sum(cost_of(costs[name], max(0, score.numel() - floor)) for name, score in scores.items())


def _chunk_costs(cost: Cost, ends: Tensor) -> Tensor:
    """What leaves with each chunk, of which the last channels are the `ends`-th to leave."""
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    if isinstance(cost, int | float):
        return (ends - starts) * cost
    gone = torch.tensor([0.0, *cost], dtype=torch.float64, device=ends.device).cumsum(0)
    return gone[ends] - gone[starts]


def _chunk_ends(channels: int, minimum: int, align: int, device: torch.device) -> Tensor:
    """How many channels have gone after each chunk, so that what stays is a multiple of `align` and ≥ `minimum`."""
    floor = -(-minimum // align) * align
    widths = torch.arange(floor, max(channels, floor), align, device=device).flip(0)
    return channels - widths
