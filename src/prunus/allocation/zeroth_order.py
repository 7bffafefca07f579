"""Scores from forward passes alone: how much the loss moves when a layer is disturbed by noise.

For noise z ~ N(0, I) of the shape of W, (L(W + εz) − L(W − εz)) / 2ε is ⟨∂L/∂W, z⟩ to second order in ε, and its mean
absolute value is √(2/π)·‖∂L/∂W‖_F (ECoFLaP, equation 5). The layer is disturbed at its output, y ± ε·z x, which is the
same, so no weight is ever written and weights may be quantised or elsewhere. Only what depends on the layer is computed
again (`memory.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunus.allocation.allocator import Question
from prunus.allocation.memory import RememberingBlocks
from prunus.anatomy import Matrix, matrices, sharing
from prunus.batches import input_device
from prunus.errors import PrunusError
from prunus.unstructured.walk import quiet


class Disturbance:
    """Forward hook of a linear layer: adds sign · ε · x zᵀ to its output.

    ε is `relative` times the size of W, as far as outputs tell it: rms(y) / rms‖x‖ at the first call.
    """

    def __init__(self, noise: Tensor, relative: float):
        self.noise, self.relative = noise, relative
        self.sign: float | Tensor = 1.0
        self.epsilon: float | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        x = args[0]
        if self.epsilon is None:
            lengths = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
            gain = float(output.float().square().mean().sqrt() / lengths.square().mean().sqrt().clamp_min(1e-30))
            self.epsilon = self.relative * gain
        shift = F.linear(x, self.noise.to(x.device, x.dtype))
        return output + (self.sign * self.epsilon * shift).to(output.device, output.dtype)


def draw_noise(matrix: Matrix, seed: int, place: int, batch: int, draw: int, device: torch.device) -> Tensor:
    """z of one draw, (rows, columns), the same on every machine: made on the CPU from its own seed."""
    generator = torch.Generator().manual_seed(hash((seed, place, batch, draw)) & 0x7FFF_FFFF_FFFF_FFFF)
    return torch.randn(matrix.rows, matrix.columns, generator=generator).to(device)


def loss_changes(
    question: Question, draws: int, epsilon: float, seed: int, together: int = 1, remember: bool = True
) -> dict[str, float]:
    """Σ over batches of the mean over draws of |L(W + εz) − L(W − εz)| / 2ε, for every matrix.

    Args:
        draws: noises per matrix and batch.
        epsilon: size of the noise relative to the weights.
        together: noises that share one pass (a `vmap` over z and −z); more memory, fewer passes.
        remember: whether blocks that the noise does not reach answer from memory.

    Raises:
        PrunusError: the loss is not finite.
    """
    model, totals = question.model, {matrix.name: 0.0 for matrix in question.chosen}
    blocks = RememberingBlocks(model, [m.block for m in matrices(model, any_type=True)] if remember else ())
    device = input_device(model)
    bar = Progress(transient=True, disable=not question.progress)
    with bar, torch.no_grad(), quiet(model), blocks.active():
        task = bar.add_task("noise · matrices", total=len(question.chosen) * len(question.batches))
        for number, batch in enumerate(question.batches):
            with blocks.recording():
                loss = question.scalar_loss(batch)
            if not torch.isfinite(loss):
                raise PrunusError("batches", f"batch {number}", "its loss is not finite; look at that batch")
            for place, matrix in enumerate(question.chosen):
                with blocks.disturbed(matrix.block):
                    for first in range(0, draws, together):
                        noises = [
                            draw_noise(matrix, seed, place, number, draw, device)
                            for draw in range(first, min(first + together, draws))
                        ]
                        changes = _changes(question, batch, matrix, noises, epsilon)
                        totals[matrix.name] += sum(map(abs, changes)) / draws
                bar.advance(task)
    return totals


def _changes(question: Question, batch: Any, matrix: Matrix, noises: list[Tensor], epsilon: float) -> list[float]:
    """(L(W + εz) − L(W − εz)) / 2ε for every noise."""
    linears = sharing(question.model, matrix.name)
    if len(noises) == 1:
        disturbance = Disturbance(noises[0], epsilon)
        with _hooked(linears, disturbance):
            up = question.scalar_loss(batch).double()
            disturbance.sign = -1.0
            down = question.scalar_loss(batch).double()
        return [_quotient(float(up - down), disturbance)]
    disturbance = Disturbance(noises[0], epsilon)

    def disturbed_loss(signed_noise: Tensor) -> Tensor:
        disturbance.noise = signed_noise
        return question.scalar_loss(batch)

    with _hooked(linears, disturbance), sdpa_kernel(SDPBackend.MATH):  # the fused ones take no vmap
        both = torch.stack([*noises, *(-z for z in noises)])
        try:
            losses = torch.func.vmap(disturbed_loss, randomness="different")(both).double()
        except RuntimeError as error:
            if not str(error).startswith("vmap:"):
                raise
            raise PrunusError(
                "together", len(noises), f"{type(question.model).__name__} takes decisions by the values of tensors, so "
                "noises cannot share a pass; take together=1",
            ) from error  # fmt: skip
    ups, downs = losses.chunk(2)
    return [_quotient(float(change), disturbance) for change in ups - downs]


def _quotient(change: float, disturbance: Disturbance) -> float:
    return change / (2 * disturbance.epsilon) if disturbance.epsilon else 0.0


@contextmanager
def _hooked(linears: Sequence[nn.Module], disturbance: Disturbance) -> Iterator[None]:
    with ExitStack() as hooks:
        for linear in linears:
            hooks.callback(linear.register_forward_hook(disturbance).remove)
        yield
