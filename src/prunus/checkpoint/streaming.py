"""Prunes a checkpoint that need not fit into memory: blocks are read from its files, pruned, and written back.

The output folder is built under a name of its own beside its final one. Every finished block is written and noted
there, so a run that dies goes on at the block it was in, and the source is never touched.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import PreTrainedModel

from prunus.anatomy import anatomy, place_of
from prunus.batches import call_with_batch
from prunus.checkpoint.loading import bare_model
from prunus.checkpoint.naming import keys_in_files
from prunus.checkpoint.narrowed import plan_of
from prunus.checkpoint.shards import Shards
from prunus.errors import PrunusError
from prunus.plan import SparsityPlan
from prunus.storage import write_text
from prunus.structured.surgery import narrow
from prunus.unstructured import Pruner, WalkOptions, sparsity_of
from prunus.unstructured.fingerprint import Fingerprint
from prunus.unstructured.pruning import carry_out, settle
from prunus.unstructured.record import RECORD
from prunus.unstructured.walk import Call, Weights

JOURNAL = "prunus-journal.json"


def prune_folder(
    source: str | Path,
    output: str | Path,
    method: Pruner,
    batches: Iterable[Any],
    plan: SparsityPlan | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    call: Call | None = None,
    options: WalkOptions | None = None,
    device: str | torch.device = "cpu",
    keep_zeros: bool | None = None,
) -> SparsityPlan:
    """As `prune`, from a checkpoint folder into another, with one block's weights in memory at a time.

    Args:
        source: a folder of `save_pretrained` (or a hub snapshot) with safetensors weights.
        output: a new folder. While the work lasts it is `OUTPUT.partial`; called again after an interruption with the
            same arguments, the work goes on where it was.
        device: where blocks are run and pruned.

    The other arguments, the result and the errors are those of `prune`.

    Raises:
        PrunusError: `output` exists; its partial folder belongs to other work; weights are missing or damaged.
    """
    source, output, options = Path(source), Path(output), options or WalkOptions()
    if output.exists():
        raise PrunusError("output", str(output), "it exists; choose another folder, or delete it")
    shards = Shards(source)
    model = _skeleton(source)
    chosen, plan = settle(model, method, plan, include, exclude)
    if keep_zeros is None:
        keep_zeros = sparsity_of(model) is not None
    request = {
        "keep_zeros": keep_zeros,
        "source": [[file, (source / file).stat().st_size, (source / file).stat().st_mtime_ns] for file in shards.files],
        "plan": plan.model_dump(mode="json"),
        "method": method.model_dump(mode="json"),
        "options": options.model_dump(mode="json", exclude={"progress", "activations"}),
    }
    work = _Work(output.with_name(output.name + ".partial"), hashlib.sha256(json.dumps(request).encode()).hexdigest())
    work.begin(source)
    fingerprint = Fingerprint(batches)
    # off sequential, later blocks see what the dense ones compute, also after an interruption
    finished = Shards(work.folder) if options.sequential else shards
    weights = _FolderWeights(model, shards, finished, Shards(work.folder), work, fingerprint, torch.device(device))
    with weights.elsewhere({matrix.block for matrix in chosen}):
        achieved = carry_out(
            model, method, plan, chosen, fingerprint, call or partial(call_with_batch, device=torch.device(device)),
            options, weights, work.done, keep_zeros,
        )  # fmt: skip
    config = json.loads((work.folder / "config.json").read_text())
    record = achieved.after(sparsity_of(model)).model_dump(mode="json")
    write_text(work.folder / "config.json", json.dumps({**config, RECORD: record}, indent=2) + "\n")
    (work.folder / JOURNAL).unlink()
    work.folder.rename(output)
    return achieved


def _skeleton(source: Path) -> PreTrainedModel:
    """The model on the meta device, narrowed if the checkpoint is; buffers are real."""
    with init_empty_weights(include_buffers=False):
        model = bare_model(str(source))
    model.tie_weights()
    narrowing = plan_of(model)
    if narrowing is not None:
        narrow(model, anatomy(model, narrowing.mirrors), narrowing)
    return model.eval()


class _Work:
    """The output folder while it is being made, and its journal: which blocks are finished."""

    def __init__(self, folder: Path, request: str):
        self.folder, self._request = folder, request
        self.done: dict[str, dict[str, int]] = {}
        self.calibration: str | None = None

    def begin(self, source: Path) -> None:
        """Takes up earlier work, or copies the source."""
        if (self.folder / JOURNAL).exists():
            journal = json.loads((self.folder / JOURNAL).read_text())
            if journal["request"] != self._request:
                raise PrunusError(
                    "output",
                    str(self.folder),
                    "it holds unfinished work with other settings; finish that, or delete the folder",
                )
            self.done, self.calibration = journal["done"], journal["calibration"]
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            shutil.copytree(source, self.folder, copy_function=shutil.copyfile)
        except (OSError, shutil.Error) as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise PrunusError("output", str(self.folder), f"the checkpoint cannot be copied there ({error})") from None
        for path in self.folder.rglob("*"):
            path.chmod(path.stat().st_mode | 0o200)
        self._write()

    def finish(self, block: str, counts: Mapping[str, int], calibration: str) -> None:
        """Notes a block whose weights are on disk."""
        self.done[block], self.calibration = dict(counts), calibration
        self._write()

    def _write(self) -> None:
        journal = {"request": self._request, "calibration": self.calibration, "done": self.done}
        write_text(self.folder / JOURNAL, json.dumps(journal) + "\n")


@dataclass
class _Slot:
    """A parameter without its weights, and everywhere it belongs (tied parameters belong to several modules)."""

    meta: nn.Parameter
    owners: list[tuple[nn.Module, str]]
    names: list[str]

    def put(self, parameter: nn.Parameter) -> None:
        for owner, name in self.owners:
            owner._parameters[name] = parameter


class _FolderWeights(Weights):
    """Weights that live in files: those of blocks for as long as they run, others from one stop to the next at most.

    Between two stops all batches pass the same modules, so an embedding is read once and gone when the first block runs.
    """

    def __init__(
        self, model: PreTrainedModel, source: Shards, finished: Shards, target: Shards, work: _Work,
        fingerprint: Fingerprint, device: torch.device,
    ):  # fmt: skip
        self._model, self._source, self._finished, self._target = model, source, finished, target
        self._work, self._fingerprint, self._device = work, fingerprint, device
        self._keys = keys_in_files(model, source.names())
        self._passed: list[_Slot] = []
        """Loaded since the last stop, by modules that have finished."""
        self._around: set[int] = set()
        """Modules with blocks inside: their forward is still running when a batch stops, so their weights stay."""
        self._slots: dict[int, _Slot] = {}
        for path, module in model.named_modules():
            prefix = f"{path}." if path else ""
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    slot = self._slots.setdefault(id(parameter), _Slot(parameter, [], []))
                    slot.owners.append((module, name))
                    slot.names.append(prefix + name)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    key = self._keys.get(prefix + name)
                    module._buffers[name] = (source.read(key) if key else buffer).to(device)

    @contextmanager
    def block(self, path: str) -> Iterator[None]:
        if self._work.calibration not in (None, self._fingerprint.digest):
            raise PrunusError(
                "batches", self._fingerprint.digest[:12], "these are not the batches that the unfinished work began with; "
                f"give the same, or delete {self._work.folder}",
            )  # fmt: skip
        for slot in self._passed:
            slot.put(slot.meta)
        self._passed.clear()
        absent = self._absent(self._model.get_submodule(path))
        for slot in absent:
            self._load(slot, self._finished if path in self._work.done else self._source)
        try:
            yield
        finally:
            for slot in absent:
                slot.put(slot.meta)

    def changed(self, path: str, pruned: Mapping[str, int]) -> None:
        names = dict.fromkeys(place_of(self._model, name).parameter for name in pruned)
        self._target.write({self._keys[name]: self._model.get_parameter(name) for name in names})
        self._work.finish(path, pruned, self._fingerprint.digest)

    @contextmanager
    def elsewhere(self, blocks: set[str]) -> Iterator[None]:
        """While the context is open, modules outside of these blocks read their weights when they are first called."""
        inside = {id(module) for path in blocks for module in self._model.get_submodule(path).modules()}
        for path in blocks:
            parts = path.split(".")
            self._around |= {id(self._model.get_submodule(".".join(parts[:depth]))) for depth in range(len(parts))}
        with ExitStack() as hooks:
            for module in self._model.modules():
                if id(module) not in inside and module._parameters:
                    hooks.enter_context(module.register_forward_pre_hook(self._load_own))
            yield

    def _load_own(self, module: nn.Module, args: Any) -> None:
        # torch's own attention reads its output layer's weight without calling the layer
        for slot in self._absent(module, recurse=isinstance(module, nn.MultiheadAttention)):
            self._load(slot, self._source)
            if id(module) not in self._around:
                self._passed.append(slot)

    def _absent(self, module: nn.Module, recurse: bool = True) -> list[_Slot]:
        return [self._slots[id(p)] for p in module.parameters(recurse) if p.device.type == "meta"]

    def _load(self, slot: _Slot, shards: Shards) -> None:
        key = next((self._keys[name] for name in slot.names if name in self._keys), None)
        if key is None:
            raise PrunusError(
                "weights", slot.names[0], f"no file in {shards.folder} holds it; load the model and use prune"
            )
        tensor = shards.read(key).to(self._device)
        if tensor.shape != slot.meta.shape:
            raise PrunusError(
                "weights",
                slot.names[0],
                f"the files hold {tuple(tensor.shape)}, the config asks for {tuple(slot.meta.shape)}",
            )
        slot.put(nn.Parameter(tensor, requires_grad=False))
