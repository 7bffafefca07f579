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

from prunus.anatomy import Matrix, by_parameter, place_of
from prunus.batches import call_with_batch, calls_the_model, checked
from prunus.checkpoint.checksums import CHECKSUMS, verify, write_checksums
from prunus.checkpoint.described import describe
from prunus.checkpoint.loading import without_weights
from prunus.checkpoint.naming import Group, groups
from prunus.checkpoint.on_use import OnUse, hollow
from prunus.checkpoint.shards import Shards
from prunus.errors import PrunusError
from prunus.fingerprint import Fingerprint
from prunus.plan import SparsityPlan
from prunus.refusals import refuse_weight
from prunus.storage import LOCK, claim_folder, locked, writable_path, write_text
from prunus.unstructured import Pruner, WalkOptions
from prunus.unstructured.pruning import carry_out, settle, walk_options
from prunus.unstructured.record import RECORD, recorded_sparsity
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
            same arguments, the work goes on where it was. A request that is refused leaves none behind.
        device: where blocks are run and pruned.

    The other arguments, the result and the errors are those of `prune`.

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
    earlier = recorded_sparsity(model)  # a damaged one is found now and not when the new one is put beside it
    fingerprint = Fingerprint(checked(batches, calls_the_model(call)))
    if keep_zeros is None:
        keep_zeros = earlier is not None
    parts = _Parts(model, shards)
    parts.refuse_weights(chosen)
    dtypes = parts.dtypes_to_write(chosen)
    files = [source / file for file in ("config.json", *shards.files)]
    request = {
        "keep_zeros": keep_zeros,
        "source": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        "plan": plan.model_dump(mode="json"),
        "method": method.model_dump(mode="json"),
        "options": options.model_dump(mode="json", exclude={"progress", "activations"}),
    }
    work = _Work(output.with_name(output.name + ".partial"), hashlib.sha256(json.dumps(request).encode()).hexdigest())
    with work.taken():
        work.begin(shards, dtypes)
        weights = _FolderWeights(model, parts, work, fingerprint, torch.device(device), options.sequential)
        with work.unless_refused(), weights.on_use:
            achieved = carry_out(
                model, method, plan, chosen, fingerprint, call or partial(call_with_batch, device=torch.device(device)),
                options, weights, work.done, keep_zeros,
            )  # fmt: skip
        with work.writing():
            config = json.loads((work.folder / "config.json").read_text())
            record = achieved.after(earlier).model_dump(mode="json")
            write_text(work.folder / "config.json", json.dumps({**config, RECORD: record}, indent=2) + "\n")
            setattr(model.config, RECORD, record)
            describe(work.folder, model)
            write_checksums(work.folder)
            work.folder.rename(output)
            for name in (JOURNAL, LOCK):
                (output / name).unlink()
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
                    "output",
                    str(self.folder),
                    "it holds unfinished work with other settings; finish that, or delete the folder",
                )
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
                "output",
                str(self.folder),
                f"it cannot be written ({reason}); mend that and call again: finished blocks stay",
            ) from None

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


class _Parts:
    """Which tensors of the files make which parameters and buffers of a model.

    Attributes:
        groups: by the name of the parameter or buffer.
    """

    def __init__(self, model: PreTrainedModel, shards: Shards):
        self.model, self.shards = model, shards
        self.groups: dict[str, Group] = {}
        for group in groups(model, shards.places):
            names = [group.first] if group.converter is None else group.load(model, self._without_bytes)
            self.groups |= dict.fromkeys(names, group)
        self._names: dict[int, list[str]] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            self._names.setdefault(id(tensor), []).append(name)

    def knows(self, tensor: Tensor) -> bool:
        """Whether the files hold a parameter or buffer."""
        return any(name in self.groups for name in self._names.get(id(tensor), ()))

    def of(self, tensor: Tensor) -> tuple[str, Group]:
        """Where a parameter comes from, and the one of its names that the group knows: tied parameters have several."""
        for name in self._names[id(tensor)]:
            if name in self.groups:
                return name, self.groups[name]
        name = self._names[id(tensor)][0]
        raise PrunusError("weights", name, f"no file in {self.shards.folder} holds it; load the model and use prune")

    def load(self, parameter: Tensor, shards: Shards) -> Tensor:
        """The values of a parameter or buffer, in its type and main memory."""
        name, group = self.of(parameter)
        return group.load(self.model, lambda key: shards.read(key).to(parameter.dtype))[name]

    def refuse_weights(self, chosen: Sequence[Matrix]) -> None:
        """Refuses weights that cannot be pruned, as `prune` does; one is in memory at a time."""
        for parameter, own in by_parameter(chosen).items():
            refuse_weight(own[0].name, self.load(self.model.get_parameter(parameter), self.shards))

    def dtypes_to_write(self, chosen: Sequence[Matrix]) -> dict[str, torch.dtype]:
        """Tensors in the files that cannot hold what pruning makes of them, and the type that does.

        Raises:
            PrunusError: what transformers makes of the files cannot be turned round.
        """
        dtypes: dict[str, torch.dtype] = {}
        for name in dict.fromkeys(matrix.parameter for matrix in chosen):
            parameter = self.model.get_parameter(name)
            _, group = self.of(parameter)
            places = {key: self.shards.places[key] for key in group.keys}
            if group.converter is not None:
                try:
                    back = group.save(self.model, group.load(self.model, self._without_bytes))
                except Exception:
                    back = {}
                if {key: tuple(t.shape) for key, t in back.items()} != {key: p.shape for key, p in places.items()}:
                    raise PrunusError(
                        "model", name, "transformers computes it from what the files hold, which cannot be turned round; "
                        "load the model and use prune",
                    )  # fmt: skip
            dtypes |= {key: parameter.dtype for key, p in places.items() if not _holds(p.dtype, parameter.dtype)}
        return dtypes

    def _without_bytes(self, key: str) -> Tensor:
        place = self.shards.places[key]
        return torch.empty(place.shape, dtype=place.dtype, device="meta")


def _holds(stored: torch.dtype, dtype: torch.dtype) -> bool:
    """Whether every number of a type is one of the stored type, too."""
    wider = {torch.float16: (torch.float32, torch.float64), torch.bfloat16: (torch.float32, torch.float64)}
    return stored in (dtype, *wider.get(dtype, (torch.float64,)))


class _FolderWeights(Weights):
    """Weights that live in files: those of a block for as long as it runs, others from their first use to the next stop.

    Between two stops all batches pass the same modules, so an embedding is read once and gone when the first block runs.
    """

    def __init__(
        self, model: PreTrainedModel, parts: _Parts, work: _Work, fingerprint: Fingerprint, device: torch.device,
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
        for group in dict.fromkeys(self._group(name) for name in pruned):
            names = [name for name, other in self._parts.groups.items() if other is group]
            tensors = group.save(self._model, {name: self._model.get_parameter(name).detach() for name in names})
            with self._work.writing():
                self._target.write(tensors)
            self._pruned.add(group)
        with self._work.writing():
            self._work.finish(path, pruned, self._fingerprint.digest)

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
