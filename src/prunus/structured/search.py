"""Runs a search method inside any training loop."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from prunus.anatomy import anatomy
from prunus.errors import PrunusError
from prunus.modules import evaluating
from prunus.parallel import agreeing, has_shards, of_first, several
from prunus.plan import Plan
from prunus.storage import write_bytes
from prunus.structured.budget import Budget
from prunus.structured.gate_training import OF_OPTIMIZER, GateOptimizer, check_trains
from prunus.structured.gates import Gates
from prunus.structured.loss_scale import scale_left, will_skip
from prunus.structured.method import Decision, SearchMethod
from prunus.structured.preflight import (
    check_callable,
    check_can_be_read,
    check_units_are_there,
    has_adapters,
    refuse_adapters,
    searchable,
)
from prunus.structured.saved import is_same, read_state
from prunus.structured.scores import gates_with_gradients
from prunus.structured.selection import pruned_share
from prunus.structured.whole import Whole


class Search:
    """A structured search over a model that somebody else trains.

    Call `step()` once per optimiser step, after `backward` (and any all-reduce) and before gradients are clipped or
    applied. The gates are forward hooks, which `close()` takes off. The model's weights are only read, but for the last step
    of the search: where a method leaves a gate between zero and one (or beyond), it becomes part of the weights then.

    Args:
        model: the model, on its training devices. A DistributedDataParallel around it is looked through; `fully_shard` (FSDP2) is best called
            before. Of several processes each has its own search, and all decide alike.
        method: what to search for, such as `UPop(ratio=0.5)`.
        total_steps: optimiser steps of the search.
        mirrors: momentum copies, as in `anatomy`.
        optimizer: the model's, for methods whose gates train: they are stepped by one like it, within `step()`.
        example: one call of the model, such as `lambda: model(**batch)`, for budgets in multiply-accumulates.
        measure: how good the model is, the larger the better, for methods that wait for it (`RateGate`); it is called in evaluation mode,
            without gradients.

    Raises:
        PrunusError: nothing to prune, a pattern without a match, a ratio out of reach; units with frozen weights; a model
            that is compiled, sharded by FSDP1 or along columns, not in memory, or under another search.

    Examples:
        >>> search = Search(model, UPop(ratio=0.5), total_steps=len(loader))
        >>> for batch in loader:
        ...     model(**batch).loss.backward()
        ...     search.step()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> small = extract(model, search.plan())
    """

    @agreeing()
    def __init__(
        self, model: nn.Module, method: SearchMethod, total_steps: int, mirrors: Mapping[str, str] | None = None, *,
        optimizer: Optimizer | None = None, example: Callable[[], object] | None = None,
        measure: Callable[[], float] | None = None,
    ):  # fmt: skip
        if not isinstance(total_steps, int) or total_steps < 1:
            raise PrunusError("total_steps", total_steps, "give the number of optimiser steps, at least one")
        if not isinstance(method, SearchMethod):
            raise PrunusError(
                "method", getattr(method, "__name__", type(method).__name__), "give a search method, such as UPop(ratio=0.5)"
            )  # fmt: skip
        check_callable(example=example, measure=measure)
        self.model, self.method, self.total_steps = searchable(model), method, total_steps
        self.anatomy = anatomy(self.model, mirrors)
        check_units_are_there(self.model, self.anatomy)
        self.units = self.anatomy.select(method.include, method.exclude)
        self._fitted = method.fit(Whole(self.anatomy, self.model, example), self.units)
        self._fitted.check(self.units)
        self._needs, self._measure = method.needs(), measure
        if self._needs.merit is not None and measure is None:
            raise PrunusError("measure", None, "the method waits for how good the model is; give what measures it")
        if self._needs.training is not None and optimizer is None:
            raise PrunusError(
                "optimizer", None, "the gates train beside the model; give its optimizer, to make one like it"
            )
        if not has_adapters(self.model):  # which may still be merged or taken off; the first step asks again
            self._check_can_be_read()
        self.gates = Gates(self.model, self.units, self._needs.exact)
        self._device = self.gates.values[self.units[0].name].device
        """Where everything lies that is compared, wherever the units do."""
        opened = {unit.name: torch.ones(unit.channels, dtype=torch.float32, device=self._device) for unit in self.units}
        self._optimizer: GateOptimizer | None = None
        try:
            self.method_state = self._fitted.begin(opened)
            """The state of the method: kind → unit → tensor."""
            if self._needs.training is not None and optimizer is not None:
                check_trains(optimizer, self.model)
                self.gates.check_can_fold()
                trained = self._fitted.trained(self.method_state)
                self._optimizer = GateOptimizer(optimizer, self._needs.training, trained)
        except BaseException:
            self.close()
            raise
        self.masks = {name: torch.ones_like(gate, dtype=torch.bool) for name, gate in opened.items()}
        self.steps_done = 0
        self.course: list[tuple[int, float, float]] = []
        """(step, ratio asked for, ratio achieved), one row per decision on what stays."""

    @property
    def goal(self) -> float:
        """The ratio that is to be reached, which a budget in absolute numbers comes to."""
        return self._fitted.goal if isinstance(self._fitted, Budget) else self.ratio

    @property
    def ratio(self) -> float:
        """Share of the searched units' cost that is masked now."""
        return pruned_share(self.masks, self._fitted.unit_costs(self.units))

    @torch.no_grad()
    def step(self, grad_scale: float = 1.0, scaler: GradScaler | None = None) -> None:
        """Reads the weight gradients of this optimiser step and, when an update is due, moves the gates.

        Args:
            grad_scale: factor by which the gradients are too large, when a loss scaler of your own has not been undone.
            scaler: torch's loss scaler, whether or not `unscale_` has been called. A step that it will skip, because a
                gradient is not finite, counts as a step and adds nothing to the scores.

        Raises:
            PrunusError: the search is over, a gradient is not finite, no gradient has come, or a unit has been frozen.
        """
        if not 0 < grad_scale < math.inf:
            raise PrunusError("grad_scale", grad_scale, "give the factor by which the gradients are too large")
        t, needed = self.steps_done, self._fitted.search_steps(self.total_steps)
        if t >= self.total_steps:
            raise PrunusError("total_steps", self.total_steps, "the search is over; make a new one to go on")
        if t == 0:
            self._check_can_be_read()
            refuse_adapters(self.model)
        if t < needed:
            if self._fitted.wants_merit(t, self.total_steps):
                self._fitted.hear(self.method_state, self._merit())
            if self._fitted.reads(t, self.total_steps):
                found = self._evidence(grad_scale * self._scale(scaler), scaler)
                if found is not None:
                    self._fitted.observe(self.method_state, found, self.units)
                    if self._optimizer is not None:
                        self._optimizer.step()
            elif self._needs.exact:
                self.gates.take_gradients()  # of a step that is not read
            self._decide(t, is_last=t + 1 == needed)
        self.steps_done += 1

    def _scale(self, scaler: GradScaler | None) -> float:
        """The factor by which a loss scaler has made the evidence too large. It undoes that of the weights, not that of exact gates."""
        if self._needs.exact and scaler is not None and scaler.is_enabled():
            return scaler.get_scale()
        return scale_left(scaler)

    def _decide(self, t: int, is_last: bool) -> None:
        decision = self._fitted.decide(self.method_state, t, self.total_steps, self.units)
        if decision is not None:
            if not isinstance(decision, Decision):
                raise PrunusError(
                    "method", self.method.method, f"decide returned {decision!r}; give a Decision, or None"
                )
            decision.check(self.method.method, self.units)
            if decision.kept is not None and decision.asked is not None:
                self._check_can_be_read()
                self.masks = dict(decision.kept)
                self.gates.set(decision.gates)
                self.course.append((t + 1, decision.asked, self.ratio))
            else:
                self.gates.set(decision.gates)
        if is_last:
            if not self.course:
                raise PrunusError("method", self.method.method, "it has decided nothing by the last step of the search")
            self.gates.settle(self.masks)

    def _check_can_be_read(self) -> None:
        check_can_be_read(self.model, self.units, self._needs.gradients and not self._needs.exact)

    @agreeing()
    def _merit(self) -> float:
        """How good the model is, by what the first process has measured."""
        assert self._measure is not None
        with evaluating(self.model):
            found = self._measure()
        try:
            merit = float(found)
        except (TypeError, ValueError, RuntimeError):
            raise PrunusError(
                "measure", type(found).__name__, "it must return one number, the larger the better"
            ) from None
        if not math.isfinite(merit):
            raise PrunusError(
                "measure", merit, "how good the model is must be a number; look at the loss, and at what measures it"
            )
        return of_first(merit)

    def _evidence(self, scale: float, scaler: GradScaler | None) -> dict[str, Tensor] | None:
        """What the method reads of every unit; None for a step that will be skipped."""
        if self._needs.exact:
            self.gates.take_gradients()
        gates = {name: gate if self._needs.exact else gate.to(self._device) for name, gate in self.gates.values.items()}
        if self._needs.gradients and not self._needs.exact and several() and has_shards(self.model):
            gates = gates_with_gradients(self.model, self.units, gates)
        read = {unit.name: self._fitted.evidence(self.model, unit, gates[unit.name]) for unit in self.units}
        for name, value in read.items():
            if value is not None and value.shape != self.masks[name].shape:
                wanted, given = tuple(self.masks[name].shape), tuple(value.shape)
                raise PrunusError(
                    "method", self.method.method, f"its evidence of {name} is {given}; it must be {wanted}"
                )
        by_gradient = self._needs.gradients
        if by_gradient and all(gradient is None for gradient in read.values()):
            self._check_can_be_read()
            raise PrunusError(
                "gradient", "none", "no unit has one; call step after backward, before gradients are set to zero"
            )
        found = {
            name: torch.zeros_like(self.masks[name], dtype=torch.float32) if value is None else value.to(self._device)
            for name, value in read.items()
        }
        if not by_gradient:
            return found
        found = {name: gradient / scale for name, gradient in found.items()}
        if scaler is not None and scaler.is_enabled() and will_skip(self.model, scaler):
            return None
        if not torch.stack([gradient.sum() for gradient in found.values()]).isfinite().all():
            if scaler is not None and scaler.is_enabled():
                return None
            name = next(name for name, gradient in found.items() if not gradient.isfinite().all())
            raise PrunusError(
                "gradient", name, "it is not finite; look at the loss of this batch, or, if a GradScaler scales it, call "
                "step(scaler=…)",
            )  # fmt: skip
        return found

    def plan(self) -> Plan:
        """The decision, once the final ratio is reached.

        Raises:
            PrunusError: the final update is still to come.
        """
        needed = self._fitted.search_steps(self.total_steps)
        if self.steps_done < needed:
            raise PrunusError("search", f"step {self.steps_done} of {needed}", "the ratio is not reached; run on")
        return Plan.from_masks(self.anatomy, self.masks, method=self.method.model_dump(mode="json"), ratio=self.ratio)

    def close(self) -> None:
        """Takes the gates off the model."""
        self.gates.remove()

    def save(self, path: str | Path) -> None:
        """Writes the state of the search, atomically, to a safetensors file."""
        write_bytes(Path(path), self.state())

    def load(self, path: str | Path) -> None:
        """Continues from a saved state.

        Raises:
            PrunusError: the file is absent or damaged, or belongs to another method or model.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise PrunusError("search state", str(path), f"it cannot be read ({error})") from None
        self.load_state(data, str(path))

    def state(self) -> bytes:
        """The state of the search, in the format of safetensors."""
        tensors = {
            f"{kind}/{name}": tensor.detach().to("cpu", copy=True).contiguous()
            for kind, units in (self._all_kinds() | (self._optimizer.state() if self._optimizer else {})).items()
            for name, tensor in units.items()
        }
        course = torch.tensor(self.course, dtype=torch.float64).reshape(-1, 3)
        about = {
            "method": self.method.model_dump_json(),
            "steps_done": str(self.steps_done),
            "total_steps": str(self.total_steps),
            "optimizer": json.dumps(None if self._optimizer is None else self._optimizer.about),
        }
        data: bytes = save({**tensors, "course": course}, metadata=about)
        return data

    def load_state(self, data: bytes, source: str) -> None:
        """Continues from a state.

        Args:
            data: what `state` returned.
            source: where it comes from, for errors.

        Raises:
            PrunusError: it is damaged, or belongs to another method or model.
        """
        tensors, about, course = read_state(data, source)
        if not is_same(self.method, about.get("method")) or about.get("total_steps") != str(self.total_steps):
            here = (self.method.model_dump_json(), str(self.total_steps))
            there = (about.get("method"), about.get("total_steps"))
            raise PrunusError("search state", source, f"it was saved by another search: {there}, not {here}")
        stepped = {key: tensor for key, tensor in tensors.items() if key.startswith(OF_OPTIMIZER)}
        shapes = {key: tuple(t.shape) for key, t in tensors.items() if key not in stepped}
        kinds = self._all_kinds()
        ours = {f"{kind}/{name}": tuple(t.shape) for kind, units in kinds.items() for name, t in units.items()}
        if shapes != ours:
            unit = min(key.partition("/")[2] for key, _ in shapes.items() ^ ours.items())
            raise PrunusError(
                "search state", source, f"it was saved for another model, or other units, such as {unit}; search the same model, with include and "
                "exclude that give the same units (early versions took connectors by default: include=('*', 'connector'))",
            )  # fmt: skip
        if self._optimizer is not None:
            self._optimizer.check(about["optimizer"], stepped, source)
        read = {kind: {name: tensors[f"{kind}/{name}"].to(self._device) for name in kinds[kind]} for kind in kinds}
        if about["steps_done"] >= self._fitted.search_steps(self.total_steps):
            self.gates.forget_gradients()
        self.gates.set(read.pop("gate"))
        self.masks = read.pop("mask")
        leaves = self._fitted.trained(self.method_state)
        for units in read.values():
            for name, tensor in self._fitted.trained(read).items():
                if units.get(name) is tensor:  # the optimiser holds the leaf, so that one takes the value
                    units[name] = leaves[name].copy_(tensor)
        if self._optimizer is not None:
            self._optimizer.load(about["optimizer"], stepped)
        self.method_state, self.course, self.steps_done = read, course, about["steps_done"]

    def _all_kinds(self) -> dict[str, dict[str, Tensor]]:
        """Every tensor of the state: kind → unit → tensor."""
        return {**self.method_state, "gate": self.gates.values, "mask": self.masks}
