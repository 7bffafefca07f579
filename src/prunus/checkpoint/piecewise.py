"""Extraction of a model that no process has whole: one block after the other is gathered, narrowed and written."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunus.anatomy import Anatomy, anatomy
from prunus.checkpoint.checksums import write_checksums
from prunus.checkpoint.described import describe
from prunus.errors import PrunusError, refusing
from prunus.parallel import agreeing, is_first, type_of, whole
from prunus.plan import Plan, plan_of, write_record
from prunus.refusals import unwrapped
from prunus.storage import vacant_folder, vacant_place, write_text
from prunus.structured import gate_factors, narrow
from prunus.unstructured import sparsity_of

FILE_BYTES = 1 << 30
"""Size from which on a file of weights is closed, and the next one begun."""


@torch.no_grad()
@agreeing()
def extract_to(model: nn.Module, plan: Plan, folder: str | Path) -> None:
    """As `extract` and `save_pretrained`, of a model that may be sharded by `fully_shard`, without ever gathering all of it.

    All processes call it. The blocks are gathered one after the other; the first process narrows each and writes it.

    Args:
        model: of transformers; it stays as it is.
        plan: `Search.plan()`, or any plan for this model.
        folder: to be made, or empty; it is whole or absent.

    Raises:
        PrunusError: the plan was made for another model; the model is none of transformers, or was pruned; or the folder cannot be written.
    """
    inner = unwrapped(model)
    if not isinstance(inner, PreTrainedModel):
        raise PrunusError("model", type(inner).__name__, "give a model of transformers; of others, use extract")
    if sparsity_of(inner) is not None:
        raise PrunusError(
            "model", type_of(inner).__name__, "it has zeros, which would have to be counted again; use extract"
        )
    source: Any = inner
    with torch.device("meta"):
        small: Any = type_of(inner)(copy.deepcopy(source.config))
    parts, before = anatomy(small, plan.mirrors or None), plan_of(small)
    plan.check(parts)
    with ExitStack() as held:
        with agreeing():
            if is_first():
                place = vacant_place(folder)
                with refusing("folder", str(place), "it cannot be made; take another"):
                    partial = held.enter_context(vacant_folder(place))
                files = _Files(partial)
        for piece in _pieces(inner, small, parts, plan):
            with agreeing():  # before the next is gathered
                if is_first():
                    files.add(piece)
        if not is_first():
            return
        files.finish()
        small.config.architectures = [type(small).__name__]
        write_record(small, plan if before is None else plan.after(before))
        small.config.save_pretrained(partial)
        if small.can_generate() and source.generation_config is not None:
            source.generation_config.save_pretrained(partial)
        describe(partial, small)
        write_checksums(partial)


def _pieces(model: PreTrainedModel, small: PreTrainedModel, parts: Anatomy, plan: Plan) -> Iterator[dict[str, Tensor]]:
    """The tensors of the narrowed model by their names, block by block, and then the rest; `small` becomes narrow meanwhile. Where the process
    is not the first, it only helps to gather."""
    factors = {id(owner.get_parameter(name)): factor for (owner, name), factor in gate_factors(model).items()}
    real = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    kept = [name for name in small.state_dict() if name not in (small.all_tied_weights_keys or {})]
    done: set[str] = set()
    by_block: dict[str, list[str]] = {}
    for unit in parts:
        if unit.name in plan.units:
            by_block.setdefault(unit.block, []).append(unit.name)
    for block, units in by_block.items():
        paths = [path for unit in parts if unit.name in units for path in (unit.path, *unit.twins, *unit.mirrors)]
        inside = [name for name in real if any(name.startswith(f"{path}.") for path in (block, *paths))]
        gathered = {name: _gathered(real[name], factors) for name in inside if name not in done}
        done |= gathered.keys()
        piece: dict[str, Tensor] = {}
        with agreeing():
            if is_first():
                _put(small, gathered)
                narrow(small, parts, plan.model_copy(update={"units": {name: plan.units[name] for name in units}}))
                now = {**dict(small.named_parameters(remove_duplicate=False)), **dict(small.named_buffers())}
                piece = {name: now[name].detach().contiguous() for name in kept if name in gathered}
                _put(small, {name: now[name].detach().to("meta") for name in gathered})
        yield piece
    for name in kept:
        if name not in done:
            yield {name: _gathered(real[name], factors).contiguous()}


def _gathered(tensor: Tensor, factors: Mapping[int, Tensor]) -> Tensor:
    """A tensor as a whole, in main memory; what gates multiply, multiplied."""
    value = whole(tensor.detach())
    factor = factors.get(id(tensor))
    return (value if factor is None else (value * factor).to(value.dtype)).cpu()


def _put(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts tensors in the place of others; those that were one stay one."""
    made: dict[int, nn.Parameter | Tensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for held in (module._parameters, module._buffers):
            for local, old in held.items():
                name = f"{path}.{local}" if path else local
                if old is None or not (name in tensors or id(old) in made):
                    continue
                if id(old) not in made:
                    is_parameter = isinstance(old, nn.Parameter)
                    made[id(old)] = nn.Parameter(tensors[name], old.requires_grad) if is_parameter else tensors[name]
                held[local] = made[id(old)]


class _Files:
    """Writes tensors into files as they come, and an index of them in the end."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._written: list[list[str]] = []
        self._waiting: dict[str, Tensor] = {}
        self._total = 0

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Keeps some until there are enough for a file."""
        self._waiting.update(tensors)
        self._total += sum(tensor.nbytes for tensor in tensors.values())
        if sum(tensor.nbytes for tensor in self._waiting.values()) >= FILE_BYTES:
            self._close()

    def finish(self) -> None:
        """Writes the rest, and gives the files their names."""
        if self._waiting:
            self._close()
        names = _names(len(self._written))
        for number, name in enumerate(names):
            (self._folder / f"{number}.part").rename(self._folder / name)
        if len(names) > 1:
            places = {tensor: name for name, inside in zip(names, self._written, strict=True) for tensor in inside}
            index = {"metadata": {"total_size": self._total}, "weight_map": places}
            write_text(self._folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")

    def _close(self) -> None:
        save_file(self._waiting, self._folder / f"{len(self._written)}.part", metadata={"format": "pt"})
        self._written.append(list(self._waiting))
        self._waiting = {}


def _names(count: int) -> Sequence[str]:
    """Of the files, as transformers has them."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
