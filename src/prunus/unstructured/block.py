"""Pruning one block: statistics of all batches, and each matrix handed to the pruner, in one of the processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from prunus.anatomy import Matrix
from prunus.errors import PrunusError
from prunus.fingerprint import Fingerprint
from prunus.parallel import agreeing, from_process, process, shared_out
from prunus.plan import SparsityPlan
from prunus.typed import Typed
from prunus.unstructured.pruner import Pruner
from prunus.unstructured.recorder import gather
from prunus.unstructured.spill import Place
from prunus.unstructured.statistics import Needs, Source, Statistics
from prunus.unstructured.walk import Call, Stop


class WalkOptions(Typed):
    """How calibration data go through a model."""

    sequential: bool = True
    """Later blocks and towers see what the pruned earlier ones compute. Off: what the dense ones did, in half the
    passes."""
    bf16: bool = False
    """Run the blocks under bf16 autocast, where the device has instructions for it; statistics and pruning stay fp32."""
    activations: Place = "keep"
    """Where the activations of waiting batches live: `keep` (where they are), `cpu` or `disk`."""
    progress: bool = True
    """Show a bar on standard error."""


@dataclass(frozen=True)
class Request:
    """A pruning that was asked for and found possible."""

    model: nn.Module
    method: Pruner
    plan: SparsityPlan
    """How many weights of which matrix go."""
    chosen: Sequence[Matrix]
    """The matrices of the plan."""
    batches: Fingerprint
    """Calibration data; they are counted and hashed as they pass."""
    call: Call | None
    """Runs a batch; by default `model(**batch)`."""
    options: WalkOptions
    keep_zeros: bool
    """Whether weights that are zero already stay so."""
    gradients: Mapping[str, Statistics] = field(default_factory=dict)
    """Matrix → those statistics of the method that are of gradients."""


def needs_of(method: Pruner, *sources: Source) -> Needs:
    """Those of the method's statistics that are of these."""
    return [kind for kind in method.needs if kind.source in sources]


def prune_block(request: Request, targets: Sequence[Matrix], stop: Stop) -> dict[str, int]:
    """Gathers statistics over all visits and prunes the block's matrices, each in one of the processes; returns how many weights of each
    are zero then. Experts that no token was routed to are passed over."""
    model, method, counts = request.model, request.method, dict[str, int]()
    needs = needs_of(method, "inputs", "outputs")
    known = gather(model, targets, needs, stop) if needs or stop.keeps_outputs else {}
    nothing = Statistics((), 0, 0)
    due = [matrix for matrix in targets if not (needs and matrix.is_expert and matrix.name not in known)]
    pruner = shared_out({matrix.name: float(matrix.columns**2 * (matrix.columns + matrix.rows)) for matrix in due})
    with agreeing():
        for matrix in due:
            if pruner[matrix.name] == process():
                statistics = known.get(matrix.name, nothing) | request.gradients.get(matrix.name, nothing)
                _prune_one(request, matrix, statistics)
    for matrix in due:
        weight = matrix.view(model)
        pruned = from_process(pruner[matrix.name], weight)
        if pruned is not weight:
            weight.copy_(pruned)
        counts[matrix.name] = int((weight == 0).sum())
    return counts


def _prune_one(request: Request, matrix: Matrix, statistics: Statistics) -> None:
    """Prunes a matrix of a block that is in memory."""
    method, weight = request.method, matrix.view(request.model)
    quota = method.quota(request.plan.matrices[matrix.name].pruned)
    zeros_RC = weight == 0 if request.keep_zeros else None
    with torch.autocast(weight.device.type, enabled=False):
        try:
            new_RC, _ = method.prune(
                weight.to(torch.float32, copy=True, memory_format=torch.contiguous_format),
                statistics,
                replace(quota, zeros=zeros_RC),
            )
        except PrunusError as error:
            raise PrunusError(f"{matrix.name}: {error.field}", error.value, error.remedy) from None
    weight.copy_(new_RC if zeros_RC is None else new_RC.masked_fill(zeros_RC, 0))
