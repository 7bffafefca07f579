"""The walk: calibration batches travel through a model together and stop at every block that is to be pruned.

Each batch is a forward pass of the model in a coroutine of its own. When it reaches a block of interest it stops, with
the arguments that the model itself made for that block: position bias, rotary embeddings, masks, encoder states. Once
every batch has stopped, the block can be run for all of them, changed, and run again; then the batches go on to the
next block. Whatever lies between blocks and between towers is the model's own code, so nothing is re-implemented and
replay is exact. Weights are needed for one block at a time, and of the activations only what the forward pass itself
still holds.
"""

from __future__ import annotations

import contextvars
import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import nn
from transformers import Cache

from prunus.batches import call_with_batch, calls_the_model, naming_batch
from prunus.errors import PrunusError
from prunus.modules import quiet, replaced
from prunus.parallel import agreeing, everyones, is_ours, several
from prunus.unstructured.modes import Modes
from prunus.unstructured.order import Order
from prunus.unstructured.spill import Spill

Call = Callable[[nn.Module, Any], object]
"""Runs a batch through the model; the default is `model(**batch)`, or `model(batch)` if it is no mapping."""


Naming = Callable[[str], AbstractContextManager[object]]
"""A context in which what the model raises is said to be about a batch."""


def _as_it_is(which: str) -> AbstractContextManager[object]:
    """For what a function of the caller's own raises."""
    return nullcontext()


class Weights:
    """Where a block's weights are while nobody uses them: here, in memory all along."""

    def block(self, path: str) -> AbstractContextManager[object]:
        """While the context is open, the weights of the block are in memory."""
        return nullcontext()

    def changed(self, path: str, pruned: Mapping[str, int]) -> None:
        """Called when the block's matrices have been pruned, with how many weights each has lost."""


@dataclass
class Visit:
    """A batch that has stopped at a block."""

    batch: int
    block: str
    arguments: dict[str, Any]
    """The arguments by the names of the block's forward."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    modes: Modes = field(default_factory=Modes.now)
    """Autocast and the like, as the model or the caller has set them for this batch."""
    masks: dict[str, torch.Tensor] = field(default_factory=dict)
    """The batch's own masks of text, (N, T), by the names of the model's forward."""


class Walk:
    """Takes batches through a model, block by block.

    Args:
        model: in eval mode for the time of the walk.
        batches: whatever `call` accepts; all of them are on their way at once.
        blocks: paths of the modules to stop at, each on the first call that a batch makes of it.
        call: runs one batch.
        weights: gives blocks their weights.
        spill: where tensors wait that a stopped batch does not need; None leaves them where they are.
        sequential: whether what a block computes after it was changed goes on to the next one, or what it did before.
        spread: whether the batches, which all processes are given alike, are spread over them. All stop at the same blocks, also those
            that have no batch there; whoever changes a block changes it in all of them.

    Examples:
        >>> with Walk(model, batches, blocks) as walk:
        ...     for stop in walk:
        ...         for visit in stop.visits:
        ...             before = stop.run(visit)
        ...             after = stop.rest(visit)
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        blocks: Sequence[str],
        call: Call | None = None,
        weights: Weights | None = None,
        spill: Spill | None = None,
        sequential: bool = True,
        spread: bool = False,
    ):
        self.is_spread = spread and several()
        self.model, self.batches, self.sequential = model, batches, sequential
        self.call = call or call_with_batch
        self._naming: Naming = naming_batch if calls_the_model(call) else _as_it_is
        self.weights = weights or Weights()
        self.spill = spill or Spill(model, "keep")
        self.pending = dict.fromkeys(blocks)
        """Blocks that no batch has been through yet, in the order of their declaration."""
        self._order = Order()
        self._forwards: dict[str, Callable[..., Any]] = {}
        self._journeys: dict[int, greenlet] = {}
        self._waiting: dict[int, Visit] = {}
        self._masks: dict[int, dict[str, torch.Tensor]] = {}
        self._cleanup = ExitStack()

    def __enter__(self) -> Walk:
        try:
            self._cleanup.enter_context(torch.no_grad())
            self._cleanup.enter_context(quiet(self.model))
            self._cleanup.enter_context(Modes.unchanged())
            for path in self.pending:
                block = self.model.get_submodule(path)
                self._forwards[path] = block.forward
                self._cleanup.enter_context(replaced(block, self._stopping(path, block.forward)))
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        try:
            for visit in sorted(self._waiting.values(), key=lambda v: -v.batch):  # what was entered last is left first
                with visit.modes.active():
                    self._journeys[visit.batch].throw(GreenletExit)
        finally:
            self._journeys.clear()
            self._waiting.clear()
            self.spill.close()
            self._cleanup.close()

    def __iter__(self) -> Iterator[Stop]:
        """The stops, in execution order; leaving the loop's body moves the batches on."""
        waiting = self._waiting
        with self._together():
            self._set_off()
        while first := self._next():
            visits = [visit for visit in waiting.values() if visit.block == first]
            del self.pending[first]
            with self.weights.block(first):
                stop = Stop(
                    first, visits, self._forwards[first], self.spill, not self.sequential, self._naming, self.is_spread
                )
                yield stop
                if not self.pending:
                    return  # nothing after the last block is wanted
                with self._together():
                    for visit in visits:
                        del waiting[visit.batch]
                        self._go_on(visit.batch, (stop.last_output(visit),), visit.modes)

    def _set_off(self) -> None:
        """Lets every batch, or those of this process, travel to its first stop."""
        number = -1
        for number, batch in enumerate(self.batches):
            if self.is_spread and not is_ours(number):
                continue
            journey = greenlet(self._travel)
            journey.gr_context = contextvars.copy_context()
            self._journeys[number] = journey
            self._order.note(number, batch)
            self._masks[number] = _masks_of(batch)
            self._go_on(number, (number, batch), Modes.now())
        if number < 0:
            raise PrunusError(
                "batches", "none", "at least one calibration batch is needed (an iterator that was used up gives none)"
            )

    def _together(self) -> AbstractContextManager[None]:
        """What goes wrong within the context goes wrong in all processes over which the batches are spread."""
        return agreeing() if self.is_spread else nullcontext()

    def _everyones(self, mine: set[str]) -> set[str]:
        """What this process says, and all others over which the batches are spread."""
        return set().union(*everyones(mine)) if self.is_spread else mine

    def _travel(self, number: int, batch: Any) -> None:
        with self._naming(f"batch {number}"):
            self.call(self.model, batch)

    def _next(self) -> str | None:
        """The block to stop at next: one that no batch that waits elsewhere will still come to; None if none waits.

        Where all wait at one block there is nothing to ask. Where they do not, such as texts alone beside texts with images,
        a batch of each kind goes through the model once more to see in which order it passes the blocks.
        """
        places = self._everyones({visit.block for visit in self._waiting.values()})
        if len(places) < 2:
            return next(iter(places), None)
        with self._together():
            for number in self._waiting:
                if not self._order.knows(number):
                    with self._order.watching(number), self._naming(f"batch {number}"):
                        self.call(self.model, self._order.example(number))
        later = self._everyones({
            path for path in places for visit in self._waiting.values()
            if visit.block != path and self._order.comes_to(visit.batch, visit.block, path)
        })  # fmt: skip
        declared = [path for path in self.pending if path in places]
        return next((path for path in declared if path not in later), declared[0])

    def _go_on(self, number: int, message: tuple[Any, ...], modes: Modes) -> None:
        """Lets a batch travel to its next stop, or to its end."""
        with modes.active():
            reached = self._journeys[number].switch(*message)
            modes = Modes.now()
        if isinstance(reached, tuple):
            path, args, kwargs = reached
            visit = Visit(number, path, _named(self._forwards[path], args, kwargs), args, kwargs, modes)
            visit.masks = self._masks[number]
            self._put_away(visit)
            self._waiting[number] = visit

    def _put_away(self, visit: Visit) -> None:
        """Puts the tensors of a stopped batch away, once a second batch has shown which of them are its own."""
        others = [other for other in self._waiting.values() if other.block == visit.block]
        if len(others) == 1:
            self.spill.keep_shared([others[0].args, others[0].kwargs], [visit.args, visit.kwargs])
            self.spill.put_away(others[0].args, others[0].kwargs)
        if others:
            self.spill.put_away(visit.args, visit.kwargs)

    def _stopping(self, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def stop_here(*args: Any, **kwargs: Any) -> Any:
            scheduler = getcurrent().parent
            if not self._order.watches(path) and path in self.pending and scheduler is not None:
                return scheduler.switch((path, args, kwargs))
            with self.weights.block(path):
                return forward(*args, **kwargs)

        return stop_here


class Stop:
    """All batches that have reached a block."""

    def __init__(
        self,
        block: str,
        visits: list[Visit],
        forward: Callable[..., Any],
        spill: Spill,
        keep_outputs: bool = False,
        naming: Naming = naming_batch,
        is_spread: bool = False,
    ):
        self.is_spread = is_spread
        """Whether other processes have stopped at it, too, each with batches of its own, or with none."""
        self.block, self.visits = block, visits
        self.keeps_outputs = keep_outputs
        self._forward, self._spill, self._naming = forward, spill, naming
        self._kept: dict[int, Any] = {}

    def run(self, visit: Visit) -> Any:
        """What the block computes, as it is now, for one batch."""
        self._spill.bring_back(visit.args, visit.kwargs)
        with visit.modes.active(), self._naming(f"batch {visit.batch} in {self.block}"):
            output = self._forward(*_with_own_cache(visit.args), **_with_own_cache(visit.kwargs))
        if self.keeps_outputs:
            self._kept.setdefault(visit.batch, output)
        return output

    def rest(self, visit: Visit) -> None:
        """Says that the batch's arguments, and outputs that share memory with them, are not read for now."""
        if not self.keeps_outputs:
            self._spill.put_away(visit.args, visit.kwargs)

    def last_output(self, visit: Visit) -> Any:
        """What goes on: the first output where outputs are kept, a new one otherwise. Lets go of the arguments."""
        self._spill.bring_back(visit.args, visit.kwargs)
        output = self._kept.pop(visit.batch, None) if self.keeps_outputs else None
        if output is None:
            with visit.modes.active():
                output = self._forward(*visit.args, **visit.kwargs)
        visit.args, visit.kwargs, visit.arguments = (), {}, {}
        return output


TEXT_MASKS = ("attention_mask", "decoder_attention_mask")


def _masks_of(batch: Any) -> dict[str, torch.Tensor]:
    named = batch if isinstance(batch, Mapping) else {}
    masks = {name: named[name] for name in TEXT_MASKS if isinstance(named.get(name), torch.Tensor)}
    return {name: mask for name, mask in masks.items() if mask.ndim == 2}


def _with_own_cache(values: Any) -> Any:
    """Arguments of a block with copies of key-value caches, which models may fill whatever their config says: a block that runs
    again finds them as they were."""
    if isinstance(values, Mapping):
        return {name: _with_own_cache(value) for name, value in values.items()}
    if type(values) is tuple:
        return tuple(_with_own_cache(value) for value in values)
    return copy.deepcopy(values) if isinstance(values, Cache) else values


def _named(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        bound = inspect.signature(forward).bind(*args, **kwargs)
    except TypeError:
        return dict(kwargs)
    extra = next((p.name for p in bound.signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")
    arguments = dict(bound.arguments)
    return {**arguments.pop(extra, {}), **arguments}
