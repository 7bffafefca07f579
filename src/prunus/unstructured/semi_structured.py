"""2:4 sparsity that runs faster: torch's semi-structured tensors on GPUs that support them."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured

from prunus.anatomy import matrices
from prunus.errors import PrunusError

REPEATS = 20


@dataclass(frozen=True)
class Accelerated:
    """What became of the 2:4 matrices of a model."""

    swapped: dict[str, float]
    """Matrix → how many times as fast as dense, measured."""
    left: dict[str, str]
    """Matrix → why it stays dense."""


@torch.no_grad()
def accelerate_2to4(model: nn.Module, tokens: int = 1024) -> Accelerated:
    """Swaps weights with a 2:4 pattern for semi-structured tensors, in place, where that is measured to be faster.

    For inference only: the new weights cannot be trained or saved. Keep the checkpoint.

    Args:
        model: pruned with `pattern="2:4"`, in fp16 or bf16, on a CUDA device of compute capability 8.0 or newer.
        tokens: rows of the activations that the measurement multiplies with.

    Raises:
        PrunusError: the model is not on such a device.
    """
    device = next(model.parameters()).device
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise PrunusError(
            "model", str(device), "2:4 tensors are faster only on CUDA GPUs of compute capability 8.0 or newer; "
            "move the model there, or use the checkpoint as it is",
        )  # fmt: skip
    swapped: dict[str, float] = {}
    left: dict[str, str] = {}
    for matrix in matrices(model):
        if matrix.index is not None or matrix.transposed:
            left[matrix.name] = "torch has 2:4 tensors for linear layers alone"
            continue
        linear = model.get_submodule(matrix.name)
        weight = matrix.view(model)
        if not has_2to4(weight):
            left[matrix.name] = "its weights have no 2:4 pattern"
            continue
        if weight.dtype not in (torch.float16, torch.bfloat16):
            left[matrix.name] = f"{weight.dtype} has no fast 2:4 kernel; use fp16 or bf16"
            continue
        try:
            sparse = to_sparse_semi_structured(weight)
            inputs = torch.randn(tokens, matrix.columns, dtype=weight.dtype, device=device)
            speed = _seconds(inputs, weight) / _seconds(inputs, sparse)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            left[matrix.name] = str(error).split("\n", maxsplit=1)[0]
            continue
        if speed > 1:
            linear.weight = nn.Parameter(sparse, requires_grad=False)
            swapped[matrix.name] = speed
        else:
            left[matrix.name] = f"measured {speed:.2f} times as fast as dense"
    return Accelerated(swapped, left)


def has_2to4(weight: Tensor) -> bool:
    """Whether at least two of every four consecutive inputs of every row are zero."""
    if weight.shape[1] % 4:
        return False
    return bool(((weight.reshape(-1, 4) == 0).sum(1) >= 2).all())


def _seconds(inputs: Tensor, weight: Tensor) -> float:
    """Seconds of one product, the fastest of several rounds."""
    rounds = []
    for _ in range(3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(REPEATS):
            nn.functional.linear(inputs, weight)
        torch.cuda.synchronize()
        rounds.append(time.perf_counter() - start)
    return min(rounds) / REPEATS
