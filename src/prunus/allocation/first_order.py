"""Exact scores by one backward pass per batch, with one matrix gradient in memory at a time.

Activations are recomputed block by block (checkpointing), and a gradient is reduced to a number and freed by a hook as soon
as it is whole, before the next one is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prunus.allocation.allocator import Question
from prunus.anatomy import Matrix, by_parameter
from prunus.errors import PrunusError
from prunus.modules import quiet, replaced
from prunus.progress import track

STRIP = 1 << 12
"""Squares that are added up in one fp32 sum."""

Score = Literal["gradient_norm", "weight_gradient", "squared"]
Reduce = Callable[[Tensor, Tensor], Tensor]
"""(weight, gradient of one batch) → what it adds to the score."""
Take = Callable[[Matrix, Tensor, Tensor], None]
"""Is given a matrix, its weight and its gradient, both (rows, columns)."""

REDUCTIONS: dict[Score, Reduce] = {
    "gradient_norm": lambda weight, gradient: _norm(gradient),
    "weight_gradient": lambda weight, gradient: _dot(weight.abs(), gradient.abs()),
    "squared": lambda weight, gradient: _dot(weight.float().square(), gradient.float().square()),
}
"""Σ_b ‖g_b‖_F; Σ |w|·Σ_b |g_b|; Σ w²·Σ_b g_b². Means over batches differ from sums by a constant only. All depend on how
the data are cut into batches b: a norm of a mean gradient is not the mean of norms."""


def gradient_scores(question: Question, reduce: Reduce) -> dict[str, float]:
    """Σ over batches of `reduce(W, ∂L/∂W)` for every matrix, in float64; zero for one that the loss does not
    depend on.

    The model's weights are only read; what required gradients, or had some, does so again afterwards.

    Raises:
        PrunusError: weights are not in memory, the loss depends on nothing, or a gradient is not finite.
    """
    totals = {matrix.name: 0.0 for matrix in question.chosen}

    def take(matrix: Matrix, weight: Tensor, gradient: Tensor) -> None:
        totals[matrix.name] += float(reduce(weight, gradient))

    backward_each(question, take, "gradients · batches")
    for name, total in totals.items():
        if not math.isfinite(total):
            raise PrunusError(
                "scores", f"{name}: {total}", "a gradient is not finite; look at the batches, or use fp32"
            )
    return totals


def backward_each(question: Question, take: Take, title: str) -> None:
    """One backward pass per batch; each matrix gradient is given to `take`, and then freed.

    Raises:
        PrunusError: weights are not in memory, or the loss depends on nothing.
    """
    question.refuse_absent_weights()
    with _ready_for_gradients(question.model, question.chosen, take):
        for batch in track(question.batches, title, question.progress):
            loss = question.scalar_loss(batch)
            if not loss.requires_grad:
                raise PrunusError(
                    "loss",
                    type(question.model).__name__,
                    "it does not depend on the weights; order='zeroth' needs no gradients",
                )
            torch.autograd.backward(loss)


@contextmanager
def _ready_for_gradients(model: nn.Module, chosen: Sequence[Matrix], take: Take) -> Iterator[None]:
    """While the context is open, only these matrices get gradients, blocks are checkpointed, and each gradient is given
    to `take` when it is whole; the model is in eval mode. Gradients that were there before are set aside and given back."""
    before = {parameter: (parameter.requires_grad, parameter.grad) for parameter in model.parameters()}
    with ExitStack() as cleanup:
        cleanup.enter_context(quiet(model))
        cleanup.callback(_restore, before)
        cleanup.enter_context(torch.enable_grad())
        for parameter in before:
            parameter.requires_grad_(False)
            parameter.grad = None
        for name, held in by_parameter(chosen).items():
            parameter = model.get_parameter(name)
            parameter.requires_grad_(True)
            hook = parameter.register_post_accumulate_grad_hook(partial(_give, held, take))  # type: ignore[no-untyped-call]
            cleanup.callback(hook.remove)
        for path in dict.fromkeys(matrix.block for matrix in chosen):
            block = model.get_submodule(path)
            cleanup.enter_context(replaced(block, _checkpointed(block.forward)))
        yield


def _give(held: Sequence[Matrix], take: Take, parameter: Tensor) -> None:
    assert parameter.grad is not None
    for matrix in held:
        take(matrix, matrix.part(parameter.detach()), matrix.part(parameter.grad))
    parameter.grad = None


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def forward_again_in_backward(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return forward_again_in_backward


def _restore(before: dict[nn.Parameter, tuple[bool, Tensor | None]]) -> None:
    for parameter, (required, gradient) in before.items():
        parameter.requires_grad_(required)
        parameter.grad = gradient


def _norm(gradient: Tensor) -> Tensor:
    """‖g‖_F as the norm of the norms of short strips: one fp32 sum over millions of squares would drift by percents."""
    wide, flat = torch.promote_types(gradient.dtype, torch.float32), gradient.flatten()
    whole = flat.numel() // STRIP * STRIP
    strips = torch.linalg.vector_norm(flat[:whole].view(-1, STRIP), dim=-1, dtype=wide)
    rest = torch.linalg.vector_norm(flat[whole:], dtype=wide)
    norm: Tensor = torch.linalg.vector_norm(torch.cat([strips, rest[None]]).double())
    return norm


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Σ left · right, row by row, in fp32."""
    rows: Tensor = torch.linalg.vecdot(left.float(), right.float())
    return rows.sum(dtype=torch.float64)
