"""Prunes a checkpoint that need not fit into memory: blocks are read from its files, pruned, and written back.

The output folder is built under a name of its own beside its final one. Every finished block is written and noted
there, so a run that dies goes on at the block it was in, and the source is never touched.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from prunus.anatomy import place_of
from prunus.batches import call_with_batch, calls_the_model, checked
from prunus.checkpoint.checksums import verify
from prunus.checkpoint.described import describe
from prunus.checkpoint.hollow import Hollow
from prunus.checkpoint.loading import without_weights
from prunus.checkpoint.naming import Group, Parts
from prunus.checkpoint.shards import Shards
from prunus.checkpoint.work import Work, copy_beside_weights, hashed, identity, refuse_places
from prunus.errors import PrunusError
from prunus.fingerprint import Fingerprint
from prunus.parallel import agreeing, is_first, of_first
from prunus.plan import SparsityPlan
from prunus.storage import writable_path, write_text
from prunus.unstructured import (
    RECORD,
    Call,
    Pruner,
    Request,
    WalkOptions,
    carry_out,
    recorded_sparsity,
    refuse_gradients,
    settle,
    walk_options,
)

JOURNAL = "prunus-journal.json"


@agreeing()
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
    refuse_places(source, output)
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
    dtypes = parts.dtypes_to_write(matrix.parameter for matrix in chosen)
    asked = {
        "keep_zeros": keep_zeros,
        "source": identity(shards),
        "plan": plan.model_dump(mode="json"),
        "method": method.model_dump(mode="json"),
        "options": options.model_dump(mode="json", exclude={"progress", "activations"}),
    }
    work = _Work(output.with_name(output.name + ".partial"), hashed(asked))
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


class _Work(Work):
    """The output folder while it is being made, and its journal: which blocks are finished."""

    def __init__(self, folder: Path, request: str):
        super().__init__(folder, JOURNAL)
        self._request = request
        self.done: dict[str, dict[str, int]] = {}
        self.calibration: str | None = None

    def begin(self, shards: Shards, dtypes: Mapping[str, torch.dtype]) -> None:
        """Takes up earlier work, or copies the source, with other types for some tensors."""
        with self.understood():
            journal = self.read()
            if journal is None:
                journal = {"copied": False, "request": "", "done": {}, "calibration": None}
            copied, request, done, calibration = (journal[n] for n in ("copied", "request", "done", "calibration"))
            done = {block: {name: int(count) for name, count in counts.items()} for block, counts in done.items()}
        if copied:
            self.refuse_other(request, self._request)
            self.done, self.calibration = done, calibration
            return
        with self.writing(), self.whole_or_gone():
            self._write(copied=False)
            copy_beside_weights(shards, self.folder)
            shards.copy(self.folder, dtypes)
            self._write()

    def finish(self, block: str, counts: Mapping[str, int], calibration: str) -> None:
        """Notes a block whose weights are on disk."""
        self.done[block], self.calibration = dict(counts), calibration
        self._write()

    def complete(self, model: PreTrainedModel, output: Path) -> None:
        """Gives the folder its record and its name."""
        with self.writing():
            config = json.loads((self.folder / "config.json").read_bytes())
            record = getattr(model.config, RECORD)
            write_text(self.folder / "config.json", json.dumps({**config, RECORD: record}, indent=2) + "\n")
            describe(self.folder, model)
            self.finished(output)

    def _write(self, copied: bool = True) -> None:
        self.write({"copied": copied, "request": self._request, "calibration": self.calibration, "done": self.done})


class _FolderWeights(Hollow):
    """Weights that live in files, and those of finished blocks in the output's."""

    def __init__(
        self, model: PreTrainedModel, parts: Parts, work: _Work, fingerprint: Fingerprint, device: torch.device,
        sequential: bool,
    ):  # fmt: skip
        super().__init__(model, parts, device)
        self._work, self._fingerprint, self._sequential = work, fingerprint, sequential
        self._target = Shards(work.folder, parts.shards.files)
        self._pruned: set[Group] = set()
        """Those whose pruned values count from now on."""

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
        try:
            with super().block(path):
                yield
        finally:
            self._pruned |= finished

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
            names = [name for name, other in self.parts.groups.items() if other is group]
            tensors = group.save(self.model, {name: self.model.get_parameter(name).detach() for name in names})
            with self._work.writing():
                self._target.write(tensors)

    def _group(self, matrix: str) -> Group:
        return self.group_of(self.model.get_parameter(place_of(self.model, matrix).parameter))

    def shards_of(self, group: Group) -> Shards:
        return self._target if group in self._pruned else self.parts.shards
