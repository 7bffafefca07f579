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


def difference(runner: Any, stage: Stage, name: str) -> float:
    """The largest difference between a graph and the module that it is of, over all outputs.

    Args:
        runner: of transformers' exporters: what runs the graph in its runtime.
        stage: the module, with inputs.
        name: of the graph, for errors.

    Raises:
        PrunusError: the graph returns something of another form.
    """
    wanted = stage.run()
    given = {key: value for key, value in copy.deepcopy(stage.inputs).items() if key in runner.metadata.kwargs}
    got = tensors_in(runner(**given))
    shapes = [tuple(one.shape) for one in wanted], [tuple(one.shape) for one in got]
    if shapes[0] != shapes[1]:
        raise PrunusError("graph", name, f"its outputs have shapes {shapes[1]}, and those of the model {shapes[0]}")
    return max((_apart(one, other) for one, other in zip(wanted, got, strict=True)), default=0.0)


def _apart(wanted: Tensor, got: Tensor) -> float:
    wanted, got = wanted.double().cpu(), got.double().cpu()
    if not wanted.numel():
        return 0.0
    if not torch.equal(wanted.isfinite(), got.isfinite()):
        return math.inf
    finite = wanted.isfinite()
    apart = (wanted - got)[finite].abs()
    return float(apart.max() / wanted[finite].abs().max().clamp(min=1)) if apart.numel() else 0.0


def alike(one: Stage, other: Stage) -> bool:
    """Whether two stages have inputs of the same shapes."""
    return _shapes(one.inputs) == _shapes(other.inputs)


def _shapes(inputs: dict[str, Any]) -> Sequence[tuple[int, ...]]:
    return [tuple(one.shape) for one in tensors_in(inputs)]
