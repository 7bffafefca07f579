"""SparseGPT's solve against the plain loop of the paper, same matrices, one process: `python -m benchmarks.sparsegpt_solver`.

The plain loop is the algorithm as published (appendix of the paper): factor, invert, factor; then column by column,
each column's error spread over the rest of its block of 128 at once.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from prunus import SparseGPT
from prunus.unstructured.statistics import Gram, Statistics

SHAPES = [(576, 576), (1536, 576), (576, 1536)]
"""Matrices of a SmolLM2-135M block."""
REPEATS = 5


def plain(weight: Tensor, hessian: Tensor, sparsity: float, block: int = 128, damping: float = 0.01) -> Tensor:
    hessian = hessian.clone()
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    weight = weight.clone()
    for start in range(0, weight.shape[1], block):
        stop = min(start + block, weight.shape[1])
        part, factor = weight[:, start:stop].clone(), inverse[start:stop, start:stop]
        errors = torch.zeros_like(part)
        scores = part**2 / factor.diagonal() ** 2
        mask = scores <= scores.flatten().sort().values[int(scores.numel() * sparsity)]
        result = torch.zeros_like(part)
        for column in range(stop - start):
            old = part[:, column]
            new = old.masked_fill(mask[:, column], 0)
            result[:, column] = new
            error = (old - new) / factor[column, column]
            part[:, column:] -= error[:, None] @ factor[column : column + 1, column:]
            errors[:, column] = error
        weight[:, start:stop] = result
        weight[:, stop:] -= errors @ inverse[start:stop, stop:]
    return weight


def main() -> None:
    print(
        "| matrix | plain loop, s | prunus, s | times as fast | relative difference |\n| --- | --- | --- | --- | --- |"
    )
    totals = [0.0, 0.0]
    for rows, columns in SHAPES:
        torch.manual_seed(0)
        weight = torch.randn(rows, columns)
        statistics_ = Statistics([Gram], rows, columns)
        for _ in range(8):
            statistics_.add(torch.randn(512, columns) @ torch.randn(columns, columns) / columns**0.5, 1)
        method, hessian = SparseGPT(), statistics_[Gram].value
        count = sum(int(rows * min(128, columns - start) * 0.5) + 1 for start in range(0, columns, 128))
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(REPEATS):
            start = time.perf_counter()
            expected = plain(weight, hessian, 0.5)
            times[0].append(time.perf_counter() - start)
            start = time.perf_counter()
            got, _ = method.prune(weight.clone(), statistics_, method.quota(count))
            times[1].append(time.perf_counter() - start)
        medians = [statistics.median(one) for one in times]
        totals = [total + median for total, median in zip(totals, medians, strict=True)]
        difference = float((got - expected).norm() / expected.norm())
        print(
            f"| {rows} × {columns} | {medians[0]:.3f} | {medians[1]:.3f} | {medians[0] / medians[1]:.2f} | {difference:.1e} |",
            flush=True,
        )
    print(f"| all | {totals[0]:.3f} | {totals[1]:.3f} | {totals[0] / totals[1]:.2f} | |")


if __name__ == "__main__":
    main()
