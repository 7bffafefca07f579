"""Runs a search method inside any training loop, or under `transformers.Trainer`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers import TrainerCallback

from prunus.anatomy import anatomy, linears
from prunus.errors import PrunusError
from prunus.plan import Plan
from prunus.storage import write_bytes
from prunus.structured.gates import Gates
from prunus.structured.scores import gate_gradient
from prunus.structured.upop import UPop

STATE_FILE = "search.safetensors"


class Search:
    """A structured search over a model that somebody else trains.

    Call `step()` once per optimiser step, after `backward` (and any all-reduce and unscaling) and before gradients are
    clipped or applied. The model's weights are only read; the gates are forward hooks, which `close()` takes off.

    Args:
        model: the model, on its training device.
        method: what to search for, such as `UPop(ratio=0.5)`.
        total_steps: optimiser steps of the search.
        mirrors: momentum copies, as in `anatomy`.

    Raises:
        PrunusError: nothing to prune, a pattern without a match, or a ratio out of reach.

    Example:
        >>> search = Search(model, UPop(ratio=0.5), total_steps=1000)  # doctest: +SKIP
        >>> for batch in loader:  # doctest: +SKIP
        ...     model(**batch).loss.backward()
        ...     search.step()
        ...     optimizer.step(); optimizer.zero_grad()
        >>> small = extract(model, search.plan())  # doctest: +SKIP
    """

    def __init__(self, model: nn.Module, method: UPop, total_steps: int, mirrors: Mapping[str, str] | None = None):
        if total_steps < 1:
            raise PrunusError("total_steps", total_steps, "a search needs at least one step")
        self.model, self.method, self.total_steps = model, method, total_steps
        self.anatomy = anatomy(model, mirrors)
        self.units = self.anatomy.select(method.include, method.exclude)
        method.check(self.units)
        self.gates = Gates(model, self.units)
        self.scores = {name: torch.zeros_like(gate) for name, gate in self.gates.values.items()}
        self.masks = {name: torch.ones_like(gate, dtype=torch.bool) for name, gate in self.gates.values.items()}
        self.steps_done = 0
        self.course: list[tuple[int, float, float]] = []
        """(step, ratio asked for, ratio achieved), one row per update."""
        method.masks(self.scores, self.units, method.ratio)  # an impossible ratio fails here, not after hours

    @property
    def ratio(self) -> float:
        """Share of the searched units' cost that is masked now."""
        costs = self.method.unit_costs(self.units)
        total = sum(costs[unit.name] * unit.channels for unit in self.units)
        return sum(costs[name] * int((~mask).sum()) for name, mask in self.masks.items()) / total

    @torch.no_grad()
    def step(self, grad_scale: float = 1.0) -> None:
        """Reads the weight gradients of this optimiser step and, when an update is due, moves the gates.

        Args:
            grad_scale: factor by which the gradients are too large, when a loss scaler has not been undone yet.

        Raises:
            PrunusError: the search is over, a gradient is not finite, no gradient has come, or a unit is frozen.
        """
        t = self.steps_done
        if t >= self.total_steps:
            raise PrunusError("total_steps", self.total_steps, "the search is over; make a new one to go on")
        if t < self.method.search_steps(self.total_steps):
            self.method.accumulate(self.scores, self._gradients(grad_scale), self.units)
        if self.method.is_update(t, self.total_steps):
            asked = self.method.ratio_at(t, self.total_steps)
            self._refuse_frozen_units()
            self.masks = self.method.masks(self.scores, self.units, asked)
            self.gates.set(self.method.gates(self.masks, asked))
            self.course.append((t + 1, asked, self.ratio))
        self.steps_done += 1

    def _gradients(self, scale: float) -> dict[str, Tensor]:
        """∂L/∂ζ of every unit; zero where the loss does not depend on it."""
        came = {unit.name: gate_gradient(self.model, unit, self.gates.values[unit.name]) for unit in self.units}
        if all(gradient is None for gradient in came.values()):
            raise PrunusError(
                "gradient", "none", "no unit has one; call step after backward, before gradients are set to zero"
            )
        found = {
            name: torch.zeros_like(self.scores[name]) if gradient is None else gradient / scale
            for name, gradient in came.items()
        }
        if not torch.stack([gradient.sum() for gradient in found.values()]).isfinite().all():
            name = next(name for name, gradient in found.items() if not gradient.isfinite().all())
            raise PrunusError(
                "gradient", name, "it is not finite; look at the loss of this batch, or call step only where the loss scaler "
                "keeps the optimiser step",
            )  # fmt: skip
        return found

    def _refuse_frozen_units(self) -> None:
        for unit in self.units:
            if not any(linear.weight.requires_grad for _, linear in linears(self.model, unit)[:-1]):
                raise PrunusError(
                    "gradient", unit.name, "its weights are frozen, so none comes; let it train, or exclude it"
                )

    def plan(self) -> Plan:
        """The decision, once the final ratio is reached.

        Raises:
            PrunusError: the final update is still to come.
        """
        needed = self.method.search_steps(self.total_steps)
        if self.steps_done < needed:
            raise PrunusError("search", f"step {self.steps_done} of {needed}", "the ratio is not reached; run on")
        return Plan.from_masks(self.anatomy, self.masks, method=self.method.model_dump(mode="json"), ratio=self.ratio)

    def close(self) -> None:
        """Takes the gates off the model."""
        self.gates.remove()

    def save(self, path: str | Path) -> None:
        """Writes the state of the search, atomically, to a safetensors file."""
        tensors: dict[str, Tensor] = {}
        for name in self.scores:
            tensors[f"score/{name}"] = self.scores[name].cpu()
            tensors[f"gate/{name}"] = self.gates.values[name].cpu()
            tensors[f"mask/{name}"] = self.masks[name].cpu()
        course = torch.tensor(self.course, dtype=torch.float64).reshape(-1, 3)
        about = {
            "method": self.method.model_dump_json(),
            "steps_done": str(self.steps_done),
            "total_steps": str(self.total_steps),
        }
        write_bytes(Path(path), save({**tensors, "course": course}, metadata=about))

    def load(self, path: str | Path) -> None:
        """Continues from a saved state.

        Raises:
            PrunusError: the file is absent or damaged, or belongs to another method or model.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                about = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise PrunusError("search state", str(path), f"it cannot be read ({error})") from None
        ours = (self.method.model_dump_json(), str(self.total_steps))
        theirs = (about.get("method"), about.get("total_steps"))
        if ours != theirs:
            raise PrunusError("search state", str(path), f"it was saved by another search: {theirs}, not {ours}")
        names = {key.removeprefix("score/") for key in tensors if key.startswith("score/")}
        if names != set(self.scores):
            raise PrunusError("search state", str(path), "it was saved for another model: the units differ")
        for name, score in self.scores.items():
            self.scores[name] = tensors[f"score/{name}"].to(score.device)
            self.masks[name] = tensors[f"mask/{name}"].to(score.device)
        self.gates.set({name: tensors[f"gate/{name}"] for name in self.scores})
        self.course = [(int(step), asked, achieved) for step, asked, achieved in tensors["course"].tolist()]
        self.steps_done = int(about["steps_done"])


class SearchCallback(TrainerCallback):  # type: ignore[misc]
    """Runs a search under `transformers.Trainer`, over all of its steps.

    Works with gradient accumulation, autocast, several processes, clipping and resuming. Scores are read before
    gradients are clipped: the callback clips to the Trainer's `max_grad_norm` itself, after reading. The state of the
    search lies beside the Trainer's own in every checkpoint.

    Args:
        method: what to search for.
        mirrors: momentum copies, as in `anatomy`.

    Attributes:
        search: the `Search`, once training has begun. After training, `search.plan()` is the result.
    """

    def __init__(self, method: UPop, mirrors: Mapping[str, str] | None = None):
        self.method, self.mirrors = method, mirrors
        self.search: Search | None = None
        self._max_grad_norm = 0.0
        self._clips = False
        """Whether clipping is ours for now; still so when a training was interrupted."""

    def plan(self) -> Plan:
        """The decision, after training."""
        if self.search is None:
            raise PrunusError("search", None, "train first; the plan exists when training has ended")
        return self.search.plan()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        if args.fp16:
            raise PrunusError("fp16", True, "its loss scaler makes gradients infinite now and then; take bf16")
        if self.search is not None:
            self.search.close()
        self.search = Search(model, self.method, state.max_steps, self.mirrors)
        if state.global_step > 0:
            self.search.load(_checkpoint(args, state) / STATE_FILE)
        if not self._clips or args.max_grad_norm:
            self._max_grad_norm, args.max_grad_norm, self._clips = args.max_grad_norm or 0.0, 0.0, True

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        assert self.search is not None
        self.search.step()
        if self._max_grad_norm > 0:
            nn.utils.clip_grad_norm_(model.parameters(), self._max_grad_norm)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.search is not None and state.is_world_process_zero:
            self.search.save(_checkpoint(args, state) / STATE_FILE)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        args.max_grad_norm, self._clips = self._max_grad_norm, False


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
