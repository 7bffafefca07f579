"""Listens to the linear layers of a block while batches run through it, and keeps statistics of what they are given.

Shapes: N sequences, T tokens, C columns, Q queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunus.anatomy import Matrix
from prunus.errors import PrunusError
from prunus.unstructured.statistics import InputStatistics, Need
from prunus.unstructured.walk import Stop, Visit

MASKED = -1e3
"""Additive masks: anything below this switches a position off."""
ENCODER_STATES = ("encoder_hidden_states", "key_value_states")


class Recorder:
    """Statistics of the inputs of some linear layers of one block.

    Layers that are given the very same tensor (q, k and v; gate and up) share one set of statistics. Positions that an
    attention mask switches off for everybody are padding and do not count.

    Attributes:
        statistics: by the layer's path.
    """

    def __init__(self, model: nn.Module, targets: Sequence[Matrix], needs: Need):
        self._linears = {matrix.name: model.get_submodule(matrix.name) for matrix in targets}
        self._needs = needs
        self._leader: dict[str, str] = {}
        self._own: dict[str, InputStatistics] = {}
        self._seen: list[tuple[Tensor, str]] = []

    @property
    def statistics(self) -> dict[str, InputStatistics]:
        return {name: self._own[leader] for name, leader in self._leader.items()}

    @contextmanager
    def listening(self, visit: Visit) -> Iterator[None]:
        """While the context is open, inputs count as those of this visit."""
        with ExitStack() as hooks:
            for name, linear in self._linears.items():
                hooks.enter_context(linear.register_forward_pre_hook(partial(self._hear, visit, name)))
            try:
                yield
            finally:
                self._seen.clear()

    def _hear(self, visit: Visit, name: str, linear: nn.Module, args: tuple[Any, ...]) -> None:
        x_NTC = args[0]
        shared = next((leader for tensor, leader in self._seen if tensor is x_NTC), None)
        leader = self._leader.setdefault(name, shared or name)
        if leader != name:
            if shared != leader:
                raise PrunusError(
                    name, "its input", f"it is that of {leader} in some calls only; exclude one of the two"
                )
            return
        self._seen.append((x_NTC, name))
        if name not in self._own:
            self._own[name] = InputStatistics(x_NTC.shape[-1], self._needs, x_NTC.device)
        sequences, sequence_T = sequences_of(visit, x_NTC)
        x_TC = x_NTC.reshape(-1, x_NTC.shape[-1])
        counted = counted_positions(visit, x_NTC)
        if counted is not None:
            x_TC, sequence_T = x_TC[counted], sequence_T[counted]
        try:
            self._own[name].add(x_TC, sequences, sequence_T)
        except PrunusError as error:
            raise PrunusError(
                name, error.value, f"an input of this layer is not finite in calibration batch {visit.batch}; "
                "look at that batch, or walk in bf16 or fp32 instead of fp16",
            ) from None  # fmt: skip


def gather(model: nn.Module, targets: Sequence[Matrix], needs: Need, stop: Stop) -> dict[str, InputStatistics]:
    """Runs a block for all batches that have stopped at it, and returns what its layers were given."""
    recorder = Recorder(model, targets, needs)
    for visit in stop.visits:
        with recorder.listening(visit):
            stop.run(visit)
        stop.rest(visit)
    for matrix in targets:
        if needs and matrix.name not in recorder.statistics:
            raise PrunusError(
                "batches", matrix.name, "no calibration batch used this layer; give batches that do, or exclude it"
            )
    return recorder.statistics


def sequences_of(visit: Visit, x_NTC: Tensor) -> tuple[int, Tensor]:
    """How many sequences a layer's inputs come from, and which of them each of its rows belongs to, (N·T,).

    Inputs that were flattened to (N·T, C), as OPT's MLPs do it, or were packed, as Qwen's images are, come from the
    sequences of the visit.
    """
    rows = x_NTC.shape[:-1].numel()
    if x_NTC.ndim > 2:
        sequences = x_NTC.shape[0]
    else:
        bounds = visit.arguments.get("cu_seqlens")
        if isinstance(bounds, Tensor) and int(bounds[-1]) == rows:
            lengths = bounds.diff().to(x_NTC.device)
            return len(lengths), torch.repeat_interleave(lengths)
        given = (value for value in visit.arguments.values() if isinstance(value, Tensor))
        sequences = next((x.shape[0] for x in given if x.ndim == 3 and x.shape[:2].numel() == rows), 1)
    return sequences, torch.arange(rows, device=x_NTC.device) * sequences // max(rows, 1)


def counted_positions(visit: Visit, x_NTC: Tensor) -> Tensor | None:
    """Which rows of a layer's flattened inputs are no padding, bool (N·T,); None where all count.

    Read off the masks that the model gave the block: a position counts if any query may look at it.
    """
    from_encoder = any(x_NTC is visit.arguments.get(name) for name in ENCODER_STATES)
    mask = visit.arguments.get("encoder_attention_mask" if from_encoder else "attention_mask")
    if not isinstance(mask, Tensor):
        return None
    allowed = mask if mask.dtype == torch.bool else (mask > MASKED if mask.ndim > 2 else mask > 0)
    while allowed.ndim > 2:
        allowed = allowed.any(dim=1)  # heads, then queries
    positions = x_NTC.shape[:-1]
    queries = visit.arguments.get("query_length")  # a Q-Former's: its mask is over queries, then text
    if isinstance(queries, int) and 0 < queries != positions[-1] == allowed.shape[-1] - queries:
        allowed = allowed[..., queries:]
    if allowed.shape[-1] != positions[-1] and allowed.numel() != positions.numel():
        return None  # a mask over other positions than this layer's inputs
    if len(positions) == 2 and allowed.shape[-1] == positions[-1]:
        allowed = allowed.expand(positions)
    counted = allowed.reshape(-1)
    return None if bool(counted.all()) else counted
