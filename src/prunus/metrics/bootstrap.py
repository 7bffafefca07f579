"""Confidence intervals by the bootstrap: what a figure might have been with other items of the same kind.

Efron, "Bootstrap methods: another look at the jackknife", 1979; intervals of percentiles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from prunus.errors import PrunusError

Figures = Callable[[Tensor], Mapping[str, Tensor]]
"""From sums over items, (…, S), to named figures, (…)."""
AT_A_TIME = 2**20
"""Numbers of the table of draws and items that are held at a time."""


def with_interval(
    rows: Tensor, figures: Figures, headline: str, share: float = 0.95, draws: int = 1000, seed: int = 0
) -> dict[str, float]:
    """The figures of all items, and the bounds of one of them as `…_low` and `…_high`.

    Args:
        rows: what every item adds to the sums, (items, S).
        figures: of the sums.
        headline: the figure that gets bounds.
        share: of the draws that lies between the bounds.
        draws: of as many items as there are, with replacement.
        seed: of the draws, which are the same at every call.

    Raises:
        PrunusError: there are no items.

    Examples:
        >>> found = with_interval(mean_of([1, 1, 0, 1]), lambda sums: {"hits": sums[..., 1] / sums[..., 0]}, "hits")
        >>> found["hits"], found["hits_low"] < 0.75 < found["hits_high"]
        (0.75, True)
    """
    if not len(rows):
        raise PrunusError("items", 0, "there is nothing to measure on; give at least one item")
    rows = rows.double()
    found = {name: float(value) for name, value in figures(rows.sum(0)).items()}
    generator = torch.Generator().manual_seed(seed)
    drawn: list[Tensor] = []
    size = max(1, AT_A_TIME // len(rows))
    for start in range(0, draws, size):
        count = min(size, draws - start)
        chosen = torch.randint(len(rows), (count, len(rows)), generator=generator)
        times = torch.zeros(count, len(rows), dtype=rows.dtype).scatter_add_(
            1, chosen, torch.ones_like(chosen, dtype=rows.dtype)
        )
        drawn.append(figures(times @ rows)[headline])
    tail = (1 - share) / 2
    low, high = torch.cat(drawn).nanquantile(torch.tensor([tail, 1 - tail], dtype=rows.dtype)).tolist()
    return found | {f"{headline}_low": low, f"{headline}_high": high}


def mean_of(values: Sequence[float]) -> Tensor:
    """Rows of a mean, (items, 2): one, and the value."""
    given = torch.tensor(values, dtype=torch.double)
    return torch.stack([torch.ones_like(given), given], 1)
