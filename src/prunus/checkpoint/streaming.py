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
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunus.anatomy import place_of
from prunus.batches import call_with_batch, calls_the_model, checked
from prunus.checkpoint.checksums import CHECKSUMS, verify, write_checksums
from prunus.checkpoint.described import describe
from prunus.checkpoint.loading import without_weights
from prunus.checkpoint.naming import Group, Parts
from prunus.checkpoint.on_use import OnUse, hollow
from prunus.checkpoint.shards import Shards
from prunus.errors import PrunusError
from prunus.fingerprint import Fingerprint
from prunus.parallel import agreeing, is_first, of_first
from prunus.plan import SparsityPlan
from prunus.storage import LOCK, claim_folder, locked, writable_path, write_text
from prunus.unstructured import (
    RECORD,
    Call,
    Pruner,
    Request,
    WalkOptions,
    Weights,
    carry_out,
    recorded_sparsity,
    refuse_gradients,
    settle,
    walk_options,
)

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
            same arguments, the work goes on where it was. A request that is refused leaves none behind.
        device: where blocks are run and pruned.

    The other arguments, the result and the errors are those of `prune`. Of several processes all read, and the first writes: the folders
    are on a disk that all of them see.

    Raises:
        PrunusError: `output` exists, lies in the source, or cannot be written; its partial folder belongs to other work; weights are missing,
            damaged, changed since they were saved, or not readable.
    """
    source, output, options = Path(source), writable_path(output), walk_options(options, keep_zeros)
    if output.exists():
        raise PrunusError("output", str(output), "it exists; choose another folder, or delete it")
    if output.resolve().is_relative_to(source.resolve()):
        raise PrunusError("output", str(output), "it lies in the source, which stays as it is; choose another folder")
    if (source / "adapter_config.json").exists():
        raise PrunusError("source", str(source), "the folder holds an adapter; merge it into its model, and save that")
    verify(source)
    model, shards = without_weights(source)
    chosen, plan = settle(model, method, plan, include, exclude)
    refuse_gradients(method)
    earlier = recorded_sparsity(model)  # a damaged one is found now and not when the new one is put beside it
    seen = Fingerprint(checked(batches, calls_the_model(call)))
    if keep_zeros is None:
        keep_zeros = earlier is not None
    parts = Parts(model, shards)
    parts.refuse_weights(chosen)
    dtypes = parts.dtypes_to_write(chosen)
    files = [source / file for file in ("config.json", *shards.files)]
    asked = {
        "keep_zeros": keep_zeros,
        "source": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        "plan": plan.model_dump(mode="json"),
        "method": method.model_dump(mode="json"),
        "options": options.model_dump(mode="json", exclude={"progress", "activations"}),
    }
    work = _Work(output.with_name(output.name + ".partial"), hashlib.sha256(json.dumps(asked).encode()).hexdigest())
    call = call or partial(call_with_batch, device=torch.device(device))
    request = Request(model, method, plan, chosen, seen, call, options, keep_zeros)
    with ExitStack() as held:
        with agreeing():
            if is_first():
                held.enter_context(work.taken())
                work.begin(shards, dtypes)
        work.done, work.calibration = of_first((work.done, work.calibration))
        weights = _FolderWeights(model, parts, work, seen, torch.device(device), options.sequential)
        with work.unless_refused(), weights.on_use:
            achieved = carry_out(request, weights, work.done)
        setattr(model.config, RECORD, achieved.after(earlier).model_dump(mode="json"))
        with agreeing():
            if is_first():
                work.complete(model, output)
    return achieved


class _Work:
    """The output folder while it is being made, and its journal: which blocks are finished."""

    def __init__(self, folder: Path, request: str):
        self.folder, self._request = folder, request
        self.done: dict[str, dict[str, int]] = {}
        self.calibration: str | None = None
        self._is_new = False

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Keeps the folder for this process.

        Raises:
            PrunusError: it holds other things than unfinished work, or another process is at work in it.
        """
        claim_folder(self.folder, JOURNAL)
        with ExitStack() as held:
            with self.writing():
                held.enter_context(locked(self.folder))
            yield

    def begin(self, shards: Shards, dtypes: Mapping[str, torch.dtype]) -> None:
        """Takes up earlier work, or copies the source, with other types for some tensors."""
        if (self.folder / JOURNAL).exists():
            try:
                journal = json.loads((self.folder / JOURNAL).read_text())
                copied, request, done, calibration = (journal[n] for n in ("copied", "request", "done", "calibration"))
                done = {block: {name: int(count) for name, count in counts.items()} for block, counts in done.items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise PrunusError(
                    "output", str(self.folder), f"its {JOURNAL} is damaged ({error}); delete the folder"
                ) from None
            if copied and request != self._request:
                raise PrunusError(
                    "output", str(self.folder), "it holds unfinished work with other settings; finish that, or delete the folder"
                )  # fmt: skip
            if copied:
                self.done, self.calibration = done, calibration
                return
        with self.writing():
            try:
                self._write(copied=False)
                shutil.copytree(
                    shards.folder, self.folder, copy_function=shutil.copyfile, ignore=partial(_left_behind, shards),
                    dirs_exist_ok=True,
                )  # fmt: skip
                for path in (self.folder, *self.folder.rglob("*")):
                    path.chmod(path.stat().st_mode | (0o700 if path.is_dir() else 0o600))
                shards.copy(self.folder, dtypes)
                self._write()
                self._is_new = True
            except BaseException:
                shutil.rmtree(self.folder, ignore_errors=True)
                raise

    def finish(self, block: str, counts: Mapping[str, int], calibration: str) -> None:
        """Notes a block whose weights are on disk."""
        self.done[block], self.calibration = dict(counts), calibration
        self._write()

    def complete(self, model: PreTrainedModel, output: Path) -> None:
        """Gives the folder its record and its name."""
        with self.writing():
            config = json.loads((self.folder / "config.json").read_text())
            record = getattr(model.config, RECORD)
            write_text(self.folder / "config.json", json.dumps({**config, RECORD: record}, indent=2) + "\n")
            describe(self.folder, model)
            write_checksums(self.folder)
            self.folder.rename(output)
            for name in (JOURNAL, LOCK):
                (output / name).unlink()

    @contextmanager
    def unless_refused(self) -> Iterator[None]:
        """Work that was begun now and would be refused again is removed; what a full disk or a kill has stopped stays."""
        try:
            yield
        except PrunusError as error:
            if self._is_new and error.field != "output":
                shutil.rmtree(self.folder, ignore_errors=True)
            raise

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Errors of the disk become one that says what to do."""
        try:
            yield
        except (OSError, shutil.Error) as error:
            reason = error.args[0][0][-1] if isinstance(error, shutil.Error) else error.strerror or error
            raise PrunusError(
                "output", str(self.folder), f"it cannot be written ({reason}); mend that and call again: finished blocks stay"
            ) from None  # fmt: skip

    def _write(self, copied: bool = True) -> None:
        journal = {"copied": copied, "request": self._request, "calibration": self.calibration, "done": self.done}
        write_text(self.folder / JOURNAL, json.dumps(journal) + "\n")


OTHER_WEIGHTS = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".tflite", ".npz"}
)


def _left_behind(shards: Shards, folder: str, names: list[str]) -> list[str]:
    """What is not copied to the output: weights, which are copied apart from this, and copies of them that would stay
    dense; what version control and downloads keep; what would no longer be true."""
    if Path(folder) != shards.folder:
        return [name for name in names if str((Path(folder) / name).relative_to(shards.folder)) in shards.files]
    kept = {f"{file.partition('-')[0]}.safetensors.index.json" for file in shards.files}
    return [
        name
        for name in names
        if Path(name).suffix in OTHER_WEIGHTS
        or (name.endswith(".index.json") and name not in kept)
        or name in (".git", ".cache", CHECKSUMS, JOURNAL, LOCK)
    ]


class _FolderWeights(Weights):
    """Weights that live in files: those of a block for as long as it runs, others from their first use to the next stop.

    Between two stops all batches pass the same modules, so an embedding is read once and gone when the first block runs.
    """

    def __init__(
        self, model: PreTrainedModel, parts: Parts, work: _Work, fingerprint: Fingerprint, device: torch.device,
        sequential: bool,
    ):  # fmt: skip
        self._model, self._parts, self._work = model, parts, work
        self._fingerprint, self._sequential = fingerprint, sequential
        self._target = Shards(work.folder, parts.shards.files)
        self._pruned: set[Group] = set()
        """Those whose pruned values count from now on."""
        self._sources: dict[nn.Parameter, tuple[Tensor, Group]] = {}
        """What stood for it on the meta device, and where it comes from."""
        made: dict[int, nn.Parameter] = {}
        for module in model.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None and parameter.is_meta:
                    if id(parameter) not in made:
                        made[id(parameter)] = hollow(parameter, device)
                        self._sources[made[id(parameter)]] = (parameter, parts.of(parameter)[1])
                    setattr(module, name, made[id(parameter)])  # not past it: recurrent layers keep lists of their own
                elif parameter is not None:
                    parameter.data = parameter.data.to(device)
            for name, buffer in list(module._buffers.items()):
                if buffer is not None and buffer.is_meta and parts.knows(buffer):
                    module._buffers[name] = parts.load(buffer, parts.shards).to(device)
                elif buffer is not None and not buffer.is_meta:
                    module._buffers[name] = buffer.to(device)
        self.on_use = OnUse(self._sources, self._fill)
        """While it is entered, parameters are read when somebody computes with them."""

    @contextmanager
    def block(self, path: str) -> Iterator[None]:
        if self._work.calibration not in (None, self._fingerprint.digest):
            raise PrunusError(
                "batches", self._fingerprint.digest[:12], "these are not the batches that the unfinished work began with; "
                f"give the same, or delete {self._work.folder}",
            )  # fmt: skip
        finished = {self._group(name) for name in self._work.done.get(path, {})}
        if self._sequential:  # otherwise later blocks see what the dense one computes, also after an interruption
            self._pruned |= finished
        self.on_use.release()
        for parameter in self._model.get_submodule(path).parameters():
            if parameter in self._sources:
                self.on_use.fill(parameter)
        try:
            yield
        finally:
            self._pruned |= finished
            self.on_use.release()

    def changed(self, path: str, pruned: Mapping[str, int]) -> None:
        groups = dict.fromkeys(self._group(name) for name in pruned)
        with agreeing():
            if is_first():
                self._write(groups)
                with self._work.writing():
                    self._work.finish(path, pruned, self._fingerprint.digest)
        self._pruned |= groups.keys()

    def _write(self, groups: Iterable[Group]) -> None:
        for group in groups:
            names = [name for name, other in self._parts.groups.items() if other is group]
            tensors = group.save(self._model, {name: self._model.get_parameter(name).detach() for name in names})
            with self._work.writing():
                self._target.write(tensors)

    def _group(self, matrix: str) -> Group:
        return self._sources[self._model.get_parameter(place_of(self._model, matrix).parameter)][1]

    def _fill(self, parameter: nn.Parameter) -> None:
        meta, group = self._sources[parameter]
        shards, key = self._shards(group), next(iter(group.keys))
        if group.converter is None and (shards.places[key].dtype, "cpu") == (parameter.dtype, parameter.device.type):
            shards.read(key, into=parameter)
        else:
            parameter.copy_(self._parts.load(meta, shards))

    def _shards(self, group: Group) -> Shards:
        return self._target if group in self._pruned else self._parts.shards
