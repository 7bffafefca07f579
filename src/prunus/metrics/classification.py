"""Top-1 and top-5 accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prunus.metrics.ranks import best_ranks

TOP = (1, 5)
"""Among how many of the likeliest classes the right one counts."""


def top_rows(scores: Tensor, labels: Sequence[int]) -> Tensor:
    """What every image adds to the sums, (images, 3): one, and whether its class is among the first and the first five.

    Args:
        scores: (images, classes).
        labels: the class of every image.
    """
    ranks = torch.tensor(best_ranks(scores, [[label] for label in labels]))
    return torch.stack([torch.ones_like(ranks), *(ranks < k for k in TOP)], 1).double()


def top_figures(sums: Tensor) -> Mapping[str, Tensor]:
    """`top1` and `top5` of sums (…, 3).

    Examples:
        >>> rows = top_rows(torch.eye(6), [0, 1, 2, 3, 4, 0])
        >>> {name: round(float(value), 3) for name, value in top_figures(rows.sum(0)).items()}
        {'top1': 0.833, 'top5': 1.0}
    """
    return {f"top{k}": sums[..., place] / sums[..., 0] for place, k in enumerate(TOP, start=1)}
