"""Listens to the matrices of a block while batches run through it, and keeps statistics of what they are given and give.

Shapes: N sequences, T tokens, C columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunus.anatomy import Matrix
from prunus.errors import PrunusError
from prunus.modules import replaced
from prunus.parallel import agreeing, everyones
from prunus.unstructured.padding import counted_positions, has_padding, mask_of_text, sequences_of
from prunus.unstructured.products import Products
from prunus.unstructured.statistics import NAMES, Needs, Source, Statistics
from prunus.unstructured.walk import Stop, Visit


class EnoughError(BaseException):
    """Leaves a block of which nothing else is wanted; no error that anybody handles."""


class Recorder:
    """Statistics of the inputs and outputs of some matrices of one block, whose weights are in memory.

    Matrices that are given the very same tensors (q, k and v; gate and up) share one set of statistics. Positions that an
    attention mask switches off for everybody are padding and do not count; an expert counts the tokens routed to it.

    Args:
        apart: names of matrices that have statistics of their own, whatever they are given.
        hear: is told of every call of a matrix, once it has been counted.

    Attributes:
        statistics: by the matrix's name, of those that were given any token.
    """

    def __init__(
        self, model: nn.Module, targets: Sequence[Matrix], needs: Needs, apart: Collection[str] = (),
        hear: Callable[[Visit], object] | None = None,
    ):  # fmt: skip
        self._told = hear
        self._model, self._targets, self._needs = model, targets, needs
        self._outputs = any(kind.source == "outputs" for kind in needs)
        self._apart = {matrix.name for matrix in targets} if self._outputs else apart
        self._rows = {matrix.name: matrix.rows for matrix in targets}
        self._routed = {matrix.name for matrix in targets if matrix.is_expert}
        self._experts = _modules_of_experts(model, targets)
        self._text_mask = mask_of_text(model, targets[0].tower if targets else "")
        self._leader: dict[str, str] = {}
        self._own: dict[str, Statistics] = {}
        self._calls: Counter[str] = Counter()
        self._shared: Counter[str] = Counter()
        self._seen: list[tuple[Tensor, str]] = []
        self._deaf, self._sequences = False, 0

    @property
    def statistics(self) -> dict[str, Statistics]:
        return {
            name: self._own[leader]
            for name, leader in self._leader.items()
            if not self._needs or self._own[leader].tokens
        }

    def add_up(self) -> None:
        """Counts what the recorders of all processes have heard, once no matrix is `parted` in any of them."""
        for leaders in everyones(self._leader):
            self._leader |= leaders
        for matrix in self._targets:
            if matrix.name in self._leader.values() and matrix.name not in self._own:
                device = matrix.view(self._model).device
                self._own[matrix.name] = Statistics(self._needs, matrix.rows, matrix.columns, device)
        Statistics.add_up([self._own[matrix.name] for matrix in self._targets if matrix.name in self._own])

    def parted(self, anywhere: bool = False) -> set[str]:
        """Matrices that were given what another was, but not in every call of either: the statistics are not theirs.

        Args:
            anywhere: count the calls of all processes.
        """
        mine = self._leader, self._calls, self._shared
        heard = everyones(mine) if anywhere else [mine]
        calls, shared = Counter[str](), Counter[str]()
        for _, its_calls, its_shared in heard:
            calls.update(its_calls)
            shared.update(its_shared)
        return {
            name
            for leaders, _, _ in heard
            for name, leader in leaders.items()
            if any(other.get(name, leader) != leader for other, _, _ in heard)
            or (name != leader and not shared[name] == calls[name] == calls[leader])
        }

    @contextmanager
    def listening(self, visit: Visit) -> Iterator[None]:
        """While the context is open, the stop of this visit runs it heard, and inputs count as the visit's."""
        with ExitStack() as cleanup:
            for experts in self._experts:
                cleanup.enter_context(replaced(experts, partial(self._run_experts, visit, experts, experts.forward)))
            cleanup.callback(self._seen.clear)
            cleanup.callback(setattr, visit, "modes", visit.modes)
            products = Products(self._model, self._targets, partial(self._hear, visit), self._outputs)
            visit.modes = replace(visit.modes, functions=(*visit.modes.functions, products))
            yield

    def _run_experts(
        self, visit: Visit, experts: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Runs experts as they are, unheard, and then those tokens that count, one expert at a time and heard."""
        self._deaf = True
        output = forward(*args, **kwargs)
        self._deaf = False
        hidden_TC = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        counted_T = counted_positions(visit, hidden_TC, self._text_mask)

        def counting(value: Any) -> Any:
            is_by_token = isinstance(value, Tensor) and value.ndim and value.shape[0] == len(hidden_TC)
            return value[counted_T] if is_by_token and counted_T is not None else value

        self._sequences = sequences_of(visit, hidden_TC)[0]
        try:
            with _one_at_a_time(experts):
                forward(*map(counting, args), **{name: counting(value) for name, value in kwargs.items()})
        finally:
            self._sequences = 0
        return output

    def _hear(self, visit: Visit, name: str, x_NTC: Tensor, y_NTR: Tensor | None = None) -> None:
        if not self._deaf:
            self._count(visit, name, x_NTC, y_NTR)
            if self._told is not None:
                self._told(visit)

    def _count(self, visit: Visit, name: str, x_NTC: Tensor, y_NTR: Tensor | None) -> None:
        shared = next((leader for tensor, leader in self._seen if tensor is x_NTC), name)
        leader = self._leader.setdefault(name, name if name in self._apart else shared)
        self._calls[name] += 1
        if leader != name:
            self._shared[name] += shared == leader
            return
        if name not in self._apart:
            self._seen.append((x_NTC, name))
        if name not in self._own:
            self._own[name] = Statistics(self._needs, self._rows[name], x_NTC.shape[-1], x_NTC.device)
        counted_T, sequences, sequence_T = self._counted_rows(visit, name, x_NTC)
        heard: dict[Source, Tensor | None] = {"inputs": x_NTC, "outputs": y_NTR}
        try:
            for source, seen in heard.items():
                if seen is not None:
                    seen_TW = seen.reshape(-1, seen.shape[-1])
                    counted = seen_TW if counted_T is None else seen_TW[counted_T]
                    self._own[name].add(counted, sequences, sequence_T, source)
        except PrunusError as error:
            raise PrunusError(
                name, error.value, f"{NAMES[source]} of this layer is not finite in calibration batch {visit.batch}; "
                "look at that batch, or walk in bf16 or fp32 instead of fp16",
            ) from None  # fmt: skip

    def _counted_rows(self, visit: Visit, name: str, x_NTC: Tensor) -> tuple[Tensor | None, int, Tensor]:
        """Which tokens are no padding and were routed here, bool (N·T,), None for all; how many sequences the visit has, and
        which of them each of those tokens belongs to (those of an expert count as one)."""
        x_TC = x_NTC.reshape(-1, x_NTC.shape[-1])
        if self._sequences:
            return None, self._sequences, torch.zeros(len(x_TC), dtype=torch.long, device=x_TC.device)
        sequences, sequence_T = sequences_of(visit, x_NTC)
        counted = counted_positions(visit, x_NTC, self._text_mask)
        if name not in self._routed:
            return (None, sequences, sequence_T) if counted is None else (counted, sequences, sequence_T[counted])
        if counted is None and has_padding(visit, self._text_mask):
            raise PrunusError(
                "batches", name, "it is an expert that is given some of the tokens, and which of them are padding cannot be told; "
                "give batches without padding (batch size 1), or exclude it",
            )  # fmt: skip
        routed = x_TC.ne(0).any(1)  # experts that are all run on all tokens get zeros for those that are not theirs
        routed = routed if counted is None else routed & counted
        return routed, sequences, sequence_T[routed]


def _modules_of_experts(model: nn.Module, targets: Sequence[Matrix]) -> list[nn.Module]:
    """Modules that are given all tokens of a block and the experts' choice of them, and hold some of these matrices."""
    found: dict[int, nn.Module] = {}
    for matrix in targets:
        path = matrix.parameter.split(".")
        if "experts" in path and matrix.is_expert:
            experts = model.get_submodule(".".join(path[: path.index("experts") + 1]))
            one_by_one = isinstance(experts, nn.ModuleDict | nn.ModuleList)
            if type(experts).forward not in (nn.ModuleDict.forward, nn.ModuleList.forward) and (
                one_by_one or hasattr(experts, "is_transposed")
            ):
                found[id(experts)] = experts
    return list(found.values())


@contextmanager
def _one_at_a_time(experts: nn.Module) -> Iterator[None]:
    """While the context is open, fused experts multiply one matrix after the other."""
    config = getattr(experts, "config", None)
    before = getattr(config, "_experts_implementation", None)
    if config is None or before is None:
        yield
        return
    config._experts_implementation = "eager"
    try:
        yield
    finally:
        config._experts_implementation = before


def gather(
    model: nn.Module, targets: Sequence[Matrix], needs: Needs, stop: Stop, then: Callable[[Visit], object] | None = None,
    hear: Callable[[Visit], object] | None = None,
) -> dict[str, Statistics]:  # fmt: skip
    """Runs a block for all batches that have stopped at it, in all processes over which they are spread, and returns what its
    matrices were given; experts that no token was routed to are left out.

    Args:
        then: is told of every batch once the block has been run for it.
        hear: is told of every call of a matrix; an `EnoughError` of its leaves the block.

    Raises:
        PrunusError: no batch used a matrix that is no expert.
    """
    apart: set[str] = set()
    recorder = _heard(model, targets, needs, stop, apart, then, hear)
    while parted := recorder.parted(stop.is_spread):
        apart |= parted
        recorder = _heard(model, targets, needs, stop, apart)
    if stop.is_spread:
        recorder.add_up()
    for matrix in targets:
        if needs and not matrix.is_expert and matrix.name not in recorder.statistics:
            raise PrunusError(
                "batches", matrix.name, "no calibration batch used this layer; give batches that do, or exclude it"
            )
    return recorder.statistics


def _heard(
    model: nn.Module, targets: Sequence[Matrix], needs: Needs, stop: Stop, apart: Collection[str],
    then: Callable[[Visit], object] | None = None, hear: Callable[[Visit], object] | None = None,
) -> Recorder:  # fmt: skip
    recorder = Recorder(model, targets, needs, apart, hear)
    with agreeing() if stop.is_spread else nullcontext():
        for visit in stop.visits:
            with recorder.listening(visit), suppress(EnoughError):
                stop.run(visit)
            if then is not None:
                then(visit)
            stop.rest(visit)
    return recorder
