"""What a runtime computes of a graph, against what the model computes."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prunus.errors import PrunusError
from prunus.export.stages import Stage, tensors_in

TOLERANCE = 1e-4
"""Largest difference that counts as equal: of an output whose numbers are within ±1 as it is, of others in parts of the largest."""
MASKED = torch.finfo(torch.float32).min / 2
"""What is as small as this, minus infinity included, is a mask and no result: a graph has to have the same there, and no scale follows from it."""


def reference(stage: Stage, name: str) -> list[Tensor]:
    """What the model itself computes, all of which a graph can be held against.

    Args:
        stage: the module, with inputs.
        name: of the graph, for errors.

    Returns:
        Its outputs in fp64, on the CPU.

    Raises:
        PrunusError: among its outputs are numbers that are none, or an output has nothing else than masks.
    """
    outputs = [output.double().cpu() for output in stage.outputs]
    for place, output in enumerate(outputs):
        wrong = int((output.isnan() | output.isposinf()).sum())
        if wrong or (output.numel() and bool((output <= MASKED).all())):
            what = f"{wrong:,} of {output.numel():,} numbers are NaN or infinite" if wrong else "every number is a mask"
            raise PrunusError(
                "model",
                type(stage.module).__name__,
                f"in output {place} of {name} {what}, so no graph can be held against it; look at its weights, or give other inputs",
            )
    return outputs


def difference(runner: Any, stage: Stage, name: str) -> float:
    """The largest difference between a graph and the module that it is of, over all outputs.

    Args:
        runner: of transformers' exporters: what runs the graph in its runtime.
        stage: the module, with inputs.
        name: of the graph, for errors.

    Raises:
        PrunusError: the graph returns something of another form, or the module returns nothing that it could be held against.
    """
    from transformers.exporters.utils import precompute_export_inputs

    wanted, inputs = reference(stage, name), copy.deepcopy(stage.inputs)
    with torch.no_grad():
        precompute_export_inputs(
            stage.module, inputs
        )  # what a graph cannot compute of sizes of images is an input of it
    got = tensors_in(runner(**{key: value for key, value in inputs.items() if key in runner.metadata.kwargs}))
    shapes = [tuple(one.shape) for one in wanted], [tuple(one.shape) for one in got]
    if shapes[0] != shapes[1]:
        raise PrunusError("graph", name, f"its outputs have shapes {shapes[1]}, and those of the model {shapes[0]}")
    return max((_apart(one, other.double().cpu()) for one, other in zip(wanted, got, strict=True)), default=0.0)


def _apart(wanted: Tensor, got: Tensor) -> float:
    """Infinite where the graph has no number, or another mask."""
    masked = wanted <= MASKED
    if not torch.equal(wanted[masked], got[masked]) or not bool(got[~masked].isfinite().all()):
        return math.inf
    if bool(masked.all()):
        return 0.0
    wanted, got = wanted[~masked], got[~masked]
    return float((wanted - got).abs().max() / wanted.abs().max().clamp(min=1))


def alike(one: Stage, other: Stage) -> bool:
    """Whether two stages have inputs of the same shapes."""
    return _shapes(one.inputs) == _shapes(other.inputs)


def _shapes(inputs: dict[str, Any]) -> Sequence[tuple[int, ...]]:
    return [tuple(one.shape) for one in tensors_in(inputs)]
