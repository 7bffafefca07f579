"""Gradients of a loss by the matrices of a model, one in memory at a time.

Activations are recomputed block by block (checkpointing), and a gradient is handed over and freed by a hook as soon as it is
whole, before the next one is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prunus.anatomy import Matrix, by_parameter
from prunus.errors import PrunusError
from prunus.modules import quiet, replaced

Take = Callable[[Matrix, Tensor, Tensor], None]
"""Is given a matrix, its weight and its gradient, both (rows, columns)."""


def give_gradients(model: nn.Module, chosen: Sequence[Matrix], losses: Iterable[Tensor], take: Take) -> None:
    """One backward pass per loss, which is computed when it is asked for; each matrix gradient is given to `take`, and then freed.
    The model is only read; what required gradients, or had some, does so again afterwards.

    Raises:
        PrunusError: a loss depends on nothing.
    """
    with _ready_for_gradients(model, chosen, take):
        for loss in losses:
            if not loss.requires_grad:
                raise PrunusError(
                    "loss", type(model).__name__, "it does not depend on the weights; order='zeroth' needs no gradients"
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
