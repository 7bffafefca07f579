"""Where the right candidates stand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def best_ranks(scores: Tensor, right: Sequence[Sequence[int]]) -> list[int]:
    """The place of each query's best right candidate, from zero. Of equal scores the first candidate's stands first, so that a model
    that says the same of all of them finds no more than chance; what is no number stands last.

    Args:
        scores: of every candidate for every query, (queries, candidates); larger is better.
        right: the right candidates of every query, at least one.

    Examples:
        >>> best_ranks(torch.tensor([[0.1, 0.9, 0.5], [0.2, 0.2, 0.2]]), [[2], [1, 2]])
        [1, 1]
    """
    ranks = []
    for row, own in zip(scores.float().nan_to_num(nan=-torch.inf), right, strict=True):
        best = row[list(own)].max()
        first = min(place for place in own if row[place] == best)
        ranks.append(int((row > best).sum() + (row[:first] == best).sum()))
    return ranks
