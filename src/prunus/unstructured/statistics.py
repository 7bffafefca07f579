"""What pruners know about a matrix: sums over its inputs, outputs or gradients, gathered over calibration data in fp32.

One small class a statistic; a pruner names those that it reads. Shapes: N sequences, T tokens, R rows of the matrix (outputs of the
layer), C columns (its inputs), W columns of what is seen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, TypeVar, cast

import torch
from torch import Tensor

from prunus.errors import PrunusError
from prunus.parallel import add_up

STRIP = 1 << 16
"""Elements handled at a time on a CPU."""
PANEL = 256
"""Rows of a Gram matrix that are added to at a time on a CPU."""
Source = Literal["inputs", "outputs", "gradients"]
NAMES: dict[Source, str] = {"inputs": "an input", "outputs": "an output", "gradients": "a gradient"}


@dataclass(frozen=True)
class Seen:
    """What one call of a layer was given or gave, or the gradient of one batch's loss, which counts as one sequence."""

    x: Tensor
    """The rows that count (tokens that are no padding), (T, W), fp32."""
    sequences: int
    """How many the rows came from."""
    sequence: Tensor
    """Which of the sequences each row belongs to, (T,), 0 to `sequences` - 1."""
    sums: Tensor
    """Over the rows, (W,)."""


class Statistic(ABC):
    """A sum over everything seen, and the value that follows from it.

    Args:
        rows, columns: of the matrix.
        device: where the sum is kept.
    """

    source: ClassVar[Source] = "inputs"
    """What is seen: the inputs of the matrix, (T, C), its outputs, (T, R), or gradients of the loss by it, (R, C)."""

    def __init__(self, rows: int, columns: int, device: torch.device | str = "cpu"):
        self.total = torch.zeros(self.shape(rows, columns), dtype=torch.float32, device=device)
        self.sequences = self.tokens = 0

    def shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """Of the sum; by default a number for each column of what is seen, and for each weight of a gradient."""
        return {"inputs": (columns,), "outputs": (rows,), "gradients": (rows, columns)}[self.source]

    def add(self, seen: Seen) -> None:
        """Counts one call."""
        self.sequences += seen.sequences
        self.tokens += len(seen.x)
        self.accumulate(seen)

    @abstractmethod
    def accumulate(self, seen: Seen) -> None:
        """Adds one call to `total`, in place."""

    def merge(self, other: Self) -> None:
        """Counts what another has seen, such as in another process: up to rounding, as if all had been seen here.

        Raises:
            PrunusError: the two are of matrices of different sizes.
        """
        ours, theirs = tuple(self.total.shape), tuple(other.total.shape)
        if ours != theirs:
            raise PrunusError(
                "statistics", theirs, f"they are of another matrix: here, {type(self).__name__} is {ours}"
            )
        self.total += other.total.to(self.total.device)
        self.sequences += other.sequences
        self.tokens += other.tokens

    @property
    def value(self) -> Tensor:
        """What pruners read: by default the mean over sequences; zero if nothing was seen."""
        return self.total / max(self.sequences, 1)


class SquaredNorm(Statistic):
    """‖x_j‖²: sum over tokens, mean over sequences, (C,) (Wanda)."""

    def accumulate(self, seen: Seen) -> None:
        self.total += (seen.x * seen.x).sum(0)


class Sum(Statistic):
    """Sum over tokens, mean over sequences, (C,) (S in DSnoT)."""

    def accumulate(self, seen: Seen) -> None:
        self.total += seen.sums


class Variance(Statistic):
    """Token-weighted mean of the variances within single sequences, (C,) (DSnoT, whose authors feed one sequence at a time)."""

    def accumulate(self, seen: Seen) -> None:
        """Σ (x − mean of its sequence)², a strip of rows at a time, which stays in a core's cache."""
        x_TW, sequence_T = seen.x, seen.sequence
        counts_N = torch.bincount(sequence_T, minlength=seen.sequences).clamp_min(1)
        means_NW = x_TW.new_zeros(seen.sequences, x_TW.shape[1]).index_add_(0, sequence_T, x_TW) / counts_N[:, None]
        call_W = torch.zeros_like(seen.sums)
        rows = len(x_TW) if x_TW.is_cuda else max(1, STRIP // x_TW.shape[1])
        for part_TW, place_T in zip(torch.split(x_TW, rows), torch.split(sequence_T, rows), strict=True):
            call_W += (part_TW - means_NW[place_T]).square_().sum(0)
        self.total += call_W

    @property
    def value(self) -> Tensor:
        return self.total / max(self.tokens, 1)


class Gram(Statistic):
    """H = 2/n Σ x xᵀ with n sequences, (C, C) (SparseGPT). Of `total`, what lies below the diagonal says nothing."""

    def shape(self, rows: int, columns: int) -> tuple[int, ...]:
        return (columns, columns)

    def accumulate(self, seen: Seen) -> None:
        add_products(self.total, seen.x)

    @property
    def products(self) -> Tensor:
        """Σ x xᵀ, (C, C)."""
        return mirrored(self.total)

    @property
    def value(self) -> Tensor:
        return self.products.mul_(2 / max(self.sequences, 1))


def add_products(upper_CC: Tensor, x_TC: Tensor) -> None:
    """Adds Σ x xᵀ in place, on a CPU without most of what lies below the diagonal."""
    columns = len(upper_CC)
    rows = PANEL if upper_CC.device.type == "cpu" else columns
    for start in range(0, columns, rows):
        panel = slice(start, start + rows)
        upper_CC[panel, start:].addmm_(x_TC[:, panel].T, x_TC[:, start:])


def mirrored(upper_CC: Tensor) -> Tensor:
    """The symmetric matrix that is this one on and above its diagonal."""
    return upper_CC.triu().add_(upper_CC.triu(1).T)


Needs = Sequence[type[Statistic]]
"""Which statistics a pruner reads."""
AnyStatistic = TypeVar("AnyStatistic", bound=Statistic)


class Statistics:
    """Statistics of one matrix by their class: `known[SquaredNorm].value`."""

    def __init__(self, needs: Needs, rows: int, columns: int, device: torch.device | str = "cpu"):
        self._all = {kind: kind(rows, columns, device) for kind in needs}

    def __getitem__(self, kind: type[AnyStatistic]) -> AnyStatistic:
        if kind not in self._all:
            raise PrunusError("needs", kind.__name__, "the pruner reads this statistic, so its `needs` must name it")
        return cast(AnyStatistic, self._all[kind])

    def __or__(self, other: Statistics) -> Statistics:
        both = Statistics((), 0, 0)
        both._all = {**self._all, **other._all}
        return both

    @property
    def tokens(self) -> int:
        """Rows that were counted."""
        return max((statistic.tokens for statistic in self._all.values()), default=0)

    def add(
        self, x_TW: Tensor, sequences: int = 1, sequence_T: Tensor | None = None, source: Source = "inputs"
    ) -> None:
        """Counts one call.

        Args:
            x_TW: inputs (T, C), outputs (T, R) or a gradient (R, C), as `source` says.
            sequences: how many sequences the rows came from.
            sequence_T: which of them each row belongs to, 0 to `sequences` - 1; None if they are equally long and in order.

        Raises:
            PrunusError: a number is not finite.
        """
        found = [statistic for statistic in self._all.values() if statistic.source == source]
        tokens = len(x_TW)
        if not found or not tokens:
            return
        x_TW = x_TW.float()
        sums_W = x_TW.sum(0)
        if not torch.isfinite(sums_W).all():
            raise PrunusError("activations", "nan or infinity", f"{NAMES[source]} is not finite")
        if sequence_T is None:
            sequence_T = torch.arange(tokens, device=x_TW.device) * sequences // tokens
        for statistic in found:
            statistic.add(Seen(x_TW, sequences, sequence_T, sums_W))

    def merge(self, other: Statistics) -> None:
        """Counts what the same statistics of the same matrix have seen elsewhere."""
        for kind, statistic in self._all.items():
            statistic.merge(other[kind])

    @staticmethod
    def add_up(several: Sequence[Statistics]) -> None:
        """Counts in each of these what its like have seen in all processes, which all have as many, of the same matrices, in the same order."""
        each = [statistic for known in several for statistic in known._all.values()]
        counts = torch.tensor([[one.sequences, one.tokens] for one in each], dtype=torch.int64).reshape(-1, 2)
        add_up([*(one.total for one in each), counts])
        for one, (sequences, tokens) in zip(each, counts.tolist(), strict=True):
            one.sequences, one.tokens = sequences, tokens
