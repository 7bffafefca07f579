"""`allocate`: asks a method how much of which matrix may stay, and writes the answer down as a plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from prunus.allocation.allocator import Allocator, Question
from prunus.anatomy import matrices
from prunus.batches import checked, runs_in_bf16
from prunus.errors import PrunusError
from prunus.fingerprint import Fingerprint, refuse_other_models
from prunus.losses import Loss, own_loss
from prunus.parallel import agreeing, of_first
from prunus.plan import Entry, MatrixPlan, SparsityPlan
from prunus.refusals import expect, plain_model


@agreeing()
def allocate(
    model: nn.Module,
    method: Allocator,
    batches: Iterable[Any] = (),
    loss: Loss = own_loss,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    bf16: bool = False,
    progress: bool = True,
) -> SparsityPlan:
    """Decides how sparse every matrix of a model is to become, by a method such as `ECoFLaP(sparsity=0.5)`.

    Of several processes every one is given the same model and the same batches, and looks at its part of them; all get the same plan.

    Args:
        model: any model that `anatomy` knows; it is only read, in eval mode.
        method: `Uniform`, `Manual`, `ECoFLaP`, `IterativeGlobal` or `OWL`.
        batches: calibration data with what the loss needs, such as `labels`; `Uniform` and `Manual` need none.
        loss: the training loss on a batch; by default the model's own.
        include, exclude: which matrices, as in `prune`.
        bf16: run the model under bf16 autocast. Zeroth order is better off without.

    Returns:
        A plan for any pruner without an n:m pattern: print it, `save` it, `edit` it, draw it with `prunus.draw_plans`, or
        turn it into channel ratios with `plan.unit_ratios`. The pruned weights are exact in total.

    Raises:
        PrunusError: no batches, a tower that is not there, no loss, a score that is not finite, or an unreachable budget.
    """
    model = plain_model(model)
    refuse_other_models(model)
    expect("method", method, Allocator, "a method with its settings, such as prunus.ECoFLaP(sparsity=0.5)")
    candidates = matrices(model, any_type=True)
    chosen = method.choose(candidates, include, exclude)
    seen = Fingerprint(checked(batches, loss is own_loss))
    held = seen.taken()
    if method.needs_batches and not held:
        raise PrunusError("batches", "none", f"{type(method).__name__} looks at data; give calibration batches")
    answer = of_first(method.answer(Question(model, chosen, held, loss, bf16, progress)))
    by_batch = {"depends_on_batch_size": seen.largest} if method.by_batch else {}
    decided = Entry.of(
        "allocation", method, scores=answer.scores, data=seen.summary(bf16=runs_in_bf16(model, bf16)), **by_batch
    )
    return SparsityPlan(
        model=type(model).__name__,
        history=(decided,),
        candidates=len(candidates),
        matrices={m.name: MatrixPlan.of(m, m.weights - answer.kept[m.name]) for m in chosen if m.name in answer.kept},
    )
