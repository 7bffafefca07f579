"""Prunes a model in memory: walks its blocks, and hands each matrix with its statistics to the pruner."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from prunus.anatomy import ADAPTER, MEANT_DENSE, Matrix, Survey, by_block, choose, survey
from prunus.batches import bf16_autocast, calls_the_model, checked, runs_in_bf16
from prunus.errors import PrunusError
from prunus.fingerprint import Fingerprint, refuse_other_models, taken
from prunus.losses import own_loss
from prunus.parallel import agreeing, is_first, is_ours
from prunus.plan import DensePart, Entry, MatrixPlan, SparsityPlan, uniform
from prunus.refusals import expect, plain_model, refuse_weights
from prunus.undo import Undo
from prunus.unstructured.block import Request, WalkOptions, needs_of, prune_block
from prunus.unstructured.gradients import give_gradients
from prunus.unstructured.patterns import NofM
from prunus.unstructured.pruner import Pruner
from prunus.unstructured.record import note, sparsity_of
from prunus.unstructured.spill import Spill
from prunus.unstructured.statistics import Statistics
from prunus.unstructured.walk import Call, Walk, Weights

logger = logging.getLogger(__name__)


@agreeing()
def prune(
    model: nn.Module,
    method: Pruner,
    batches: Iterable[Any],
    plan: SparsityPlan | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    call: Call | None = None,
    options: WalkOptions | None = None,
    keep_zeros: bool | None = None,
) -> SparsityPlan:
    """Prunes the weights in the transformer blocks of a model, in place, tower by tower in execution order.

    Of several processes (`torchrun`, with `torch.distributed` initialised) every one is given the same model and the same batches, and
    takes its turn: each walks with its part of the batches and prunes its part of the matrices. All end with the same weights.

    Args:
        model: any model that `anatomy` knows.
        method: `Magnitude`, `Wanda`, `SparseGPT` or `DSnoT`, with its sparsity or pattern.
        batches: calibration data, whatever `call` accepts; all of it is on its way at once.
        plan: how many weights of which matrix go, instead of the method's sparsity.
        include: selectors: globs over names, blocks, towers and components. By default, and by `*`, everything but connectors
            (which are also taken where the method names a sparsity for them).
        exclude: selectors that take away again.
        call: runs a batch; by default `model(**batch)`.
        options: how to walk.
        keep_zeros: whether weights that are zero already stay so, and count as pruned; None is yes for a model that was
            pruned before, by its record.

    Returns:
        What was achieved: zeros counted in the weights as stored, what stays dense and why, and a record of the
        calibration data. It is also put into the model's config, which
        `save_pretrained` keeps. Whatever exception leaves this function, the model is as it was before.

    Raises:
        PrunusError: nothing to prune, an n:m pattern that does not divide a matrix, a plan for another model, batches that
            the model cannot take, a compiled, quantised or absent weight, a block that no batch reached, or an input that is
            not finite; the error names the batch or the module.
    """
    model = plain_model(model)
    refuse_other_models(model)
    options = walk_options(options, keep_zeros)
    chosen, plan = settle(model, method, plan, include, exclude)
    refuse_weights(model, chosen)
    earlier = sparsity_of(model)  # a damaged record is found now and not when the new one is put beside it
    if keep_zeros is None:
        keep_zeros = earlier is not None
    batches, gradients = checked(batches, calls_the_model(call)), {}
    if of_gradients := needs_of(method, "gradients"):
        batches = taken(batches)
        gradients = {m.name: Statistics(of_gradients, m.rows, m.columns, m.view(model).device) for m in chosen}
        losses = (own_loss(model, batch) for number, batch in enumerate(batches) if is_ours(number))
        with agreeing():
            give_gradients(
                model, chosen, losses, lambda matrix, _, found: gradients[matrix.name].add(found, source="gradients")
            )
        Statistics.add_up([gradients[matrix.name] for matrix in chosen])
    request = Request(model, method, plan, chosen, Fingerprint(batches), call, options, keep_zeros, gradients)
    with Undo() as undo:
        achieved = carry_out(request, _Kept(request, undo))
        note(model, achieved)
    return achieved


def walk_options(options: WalkOptions | None, keep_zeros: bool | None) -> WalkOptions:
    """The options that were given, or those by default.

    Raises:
        PrunusError: one of the two is of another type.
    """
    options = WalkOptions() if options is None else options
    expect("options", options, WalkOptions, "prunus.WalkOptions(...)")
    expect("keep_zeros", keep_zeros, bool | None, "True, False or None")
    return options


class _Kept(Weights):
    """Weights in memory; what they are is noted before their block is pruned."""

    def __init__(self, request: Request, undo: Undo):
        self._model, self._undo, self._blocks = request.model, undo, by_block(request.chosen)

    @contextmanager
    def block(self, path: str) -> Iterator[None]:
        for matrix in self._blocks.pop(path, ()):
            self._undo.keep(matrix.view(self._model))
        yield


def settle(
    model: nn.Module,
    method: Pruner,
    plan: SparsityPlan | None,
    include: Sequence[str],
    exclude: Sequence[str],
    found: Survey | None = None,
) -> tuple[tuple[Matrix, ...], SparsityPlan]:
    """Which matrices are pruned and by how much, checked before anything is touched; `found` is the model's survey, of any
    type, where it has been made already."""
    expect("method", method, Pruner, "a pruner with its settings, such as prunus.Wanda(sparsity=0.5)")
    expect(
        "plan", plan, SparsityPlan | None, "a SparsityPlan, as prunus.allocate makes it; of a file: SparsityPlan.load(path)"
    )  # fmt: skip
    name, found = type(model).__name__, survey(model, any_type=True) if found is None else found
    candidates = found.matrices  # what is quantised, too: it is refused by that name, and not passed over
    if any(part.reason == ADAPTER for part in found.left_dense):
        raise PrunusError(
            "model", name, "it carries adapters, which would fill zeros when they are merged; merge them first (merge_and_unload)"
        )  # fmt: skip
    if plan is not None:
        plan.check(name, candidates)
        pattern = method.nofm
        if pattern is not None and any(
            abs((m.pruned if m.asked is None else m.asked) / m.weights - pattern.sparsity) > 1e-9
            for m in plan.matrices.values()
        ):
            raise PrunusError(
                "plan", f"{plan.sparsity:.4g}", f"the pattern {method.pattern} prunes the same share of every matrix, so it takes no plan "
                "with other shares; use pattern unstructured",
            )  # fmt: skip
        chosen = choose(candidates, include, exclude, plan.towers)
        chosen = tuple(matrix for matrix in chosen if matrix.name in plan.matrices)
    else:
        named = method.target if isinstance(method.target, Mapping) else {}
        chosen = choose(candidates, include, exclude, named)
        plan = uniform(name, chosen, method.target, method.pattern, method.rounds_by_row)
        chosen = tuple(matrix for matrix in chosen if matrix.name in plan.matrices)
    for matrix in chosen:
        _check_fit(matrix, method.nofm)
    left_dense = {part.name: DensePart(weights=part.weights, reason=part.reason) for part in found.left_dense}
    return chosen, plan.model_copy(update={"left_dense": left_dense, "block_weights": found.weights})


def carry_out(request: Request, weights: Weights, done: Mapping[str, Mapping[str, int]] | None = None) -> SparsityPlan:
    """Walks, prunes, and returns what was achieved, with a record of the calibration data.

    Args:
        weights: gives blocks their weights.
        done: blocks that are already pruned, with the zeros of their matrices; batches only pass through.
    """
    model, method, plan, options = request.model, request.method, request.plan, request.options
    blocks, done = by_block(request.chosen), done or {}
    achieved: dict[str, int] = {}
    spill = Spill(model, options.activations)
    bar = Progress(
        TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        transient=True, disable=not (options.progress and is_first()),
    )  # fmt: skip
    autocast = bf16_autocast(model, options.bf16)
    walking = Walk(model, request.batches, list(blocks), request.call, weights, spill, options.sequential, True)
    with bar, autocast, walking as walk:
        task = bar.add_task(f"{method.method} · blocks", total=len(blocks))
        for number, stop in enumerate(walk):
            if not number:
                request.batches.check_same()
            if stop.block in done:
                achieved.update(done[stop.block])
            else:
                counts = prune_block(request, blocks[stop.block], stop)
                weights.changed(stop.block, counts)
                achieved.update(counts)
            bar.advance(task)
        unreached = list(walk.pending)
    if unreached:
        raise PrunusError(
            "batches", unreached[0], "no calibration batch reached this block; give batches that use it, or exclude it"
        )
    carried_out = {m.name: plan.matrices[m.name] for m in request.chosen if m.name in achieved}
    unused = {
        m.name: DensePart(weights=m.weights, reason="expert: no calibration token was routed to it")
        for m in request.chosen
        if m.name not in achieved
    }
    gone = sum(achieved.values()) / max(sum(plan.matrices[name].weights for name in achieved), 1)
    decided = (entry for entry in plan.history if entry.step in ("allocation", "edit"))
    record = plan.model_copy(
        update={
            "history": (*decided, Entry.of("prune", method, gone)),
            "pattern": method.pattern,
            "model": type(model).__name__,
            "calibration": request.batches.summary(
                sequential=options.sequential, bf16=runs_in_bf16(model, options.bf16)
            ),
            "matrices": {
                name: MatrixPlan(**{**matrix.model_dump(), "pruned": achieved[name], "asked": matrix.pruned})
                for name, matrix in carried_out.items()
            },
            "left_dense": {**plan.left_dense, **unused},
        }
    )
    for reason, share in record.dense_shares.items():
        level = logging.INFO if reason.startswith(MEANT_DENSE) else logging.WARNING
        logger.log(level, "%.2f %% of the weights in the blocks stay dense: %s", 100 * share, reason)
    return record


def refuse_gradients(method: Pruner) -> None:
    """Refuses a method that reads gradients, where one block is in memory at a time."""
    if needs_of(method, "gradients"):
        raise PrunusError("method", method.method, "it reads gradients of the whole; load the model, and use prune")


def prune_matrix(weight: Tensor, inputs: Tensor, method: Pruner) -> tuple[Tensor, Tensor]:
    """Prunes one weight.

    Args:
        weight: (out, in).
        inputs: what the layer is given, (samples, tokens, in).
        method: with a single sparsity, or a pattern.

    Returns:
        The new weight, in the type of `weight`, and the pruned positions, bool (out, in).

    Raises:
        PrunusError: shapes that do not fit, an input that is not finite, or a method with sparsities per tower.
    """
    if weight.ndim != 2 or inputs.ndim != 3 or inputs.shape[-1] != weight.shape[1]:
        raise PrunusError(
            "inputs", tuple(inputs.shape), f"give (samples, tokens, in) for a weight (out, in) = {tuple(weight.shape)}"
        )
    if isinstance(method.target, Mapping):
        raise PrunusError("sparsity", method.target, "one weight belongs to no tower; give one number")
    if needs_of(method, "outputs", "gradients"):
        raise PrunusError("method", method.method, "it reads more than the inputs of a layer; use prune")
    rows, columns = weight.shape
    matrix = Matrix(name="weight", parameter="weight", block="", tower="", rows=rows, columns=columns)
    _check_fit(matrix, method.nofm)
    plan = uniform("", [matrix], method.target, method.pattern, method.rounds_by_row)
    statistics = Statistics(method.needs, rows, columns, weight.device)
    for sample in inputs:
        statistics.add(sample)
    pruned_count = plan.matrices["weight"].pruned
    new, pruned = method.prune(weight.detach().to(torch.float32, copy=True), statistics, method.quota(pruned_count))
    return new.to(weight.dtype), pruned


def _check_fit(matrix: Matrix, pattern: NofM | None) -> None:
    if pattern is not None and matrix.columns % pattern.of:
        raise PrunusError(
            "pattern", f"{pattern.kept}:{pattern.of}", f"{matrix.name} has {matrix.columns} inputs, no multiple of {pattern.of}; exclude it"
        )  # fmt: skip
