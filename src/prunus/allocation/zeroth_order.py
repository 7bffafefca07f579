"""Scores from forward passes alone: how much the loss moves when a layer is disturbed by noise.

For noise z ~ N(0, I) of the shape of W, (L(W + εz) − L(W − εz)) / 2ε is ⟨∂L/∂W, z⟩ to second order in ε, and its mean
absolute value is √(2/π)·‖∂L/∂W‖_F (ECoFLaP, equation 5). The layer is disturbed at its output, y ± ε·z x, which is the
same, so no weight is ever written and weights may be quantised or elsewhere. Only what depends on the layer is computed
again (`memory.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunus.allocation.allocator import Question
from prunus.allocation.memory import RememberingBlocks
from prunus.anatomy import Matrix, by_block, matrices, sharing
from prunus.batches import input_device
from prunus.errors import PrunusError
from prunus.modules import quiet
from prunus.parallel import agreeing, is_first, summed


class Disturbance:
    """Forward hook of a linear layer: adds size · x zᵀ to its output."""

    def __init__(self, noise: Tensor, size: float | Tensor = 0.0):
        self.noise, self.size = noise, size

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        shift = F.linear(args[0], self.noise.to(args[0].device, args[0].dtype))
        size = self.size.to(shift.device) if isinstance(self.size, Tensor) else self.size
        return output + (size * shift).to(output.device, output.dtype)


@dataclass(frozen=True)
class Noise:
    """One noise on one matrix, in all layers that compute with it: z, and ε."""

    matrix: Matrix
    layers: Sequence[nn.Module]
    z: Tensor
    size: float


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
        together: noises, of layers of one block, that share one pass (a `vmap` over all of them and their negatives); more
            memory, fewer passes.
        remember: whether blocks that the noise does not reach answer from memory.

    Raises:
        PrunusError: the loss is not finite.
    """
    model, totals = question.model, {matrix.name: 0.0 for matrix in question.chosen}
    blocks = RememberingBlocks(model, [m.block for m in matrices(model, any_type=True)] if remember else ())
    places = {matrix.name: place for place, matrix in enumerate(question.chosen)}
    layers = {matrix.name: sharing(model, matrix) for matrix in question.chosen}
    for name, calling in layers.items():
        if not calling:
            raise PrunusError(
                "order", "zeroth", f"{name} is one of several experts in a parameter, whose output no noise can be added to; "
                "take order='first', or exclude the experts",
            )  # fmt: skip
    device = input_device(model)
    bar = Progress(transient=True, disable=not (question.progress and is_first()))
    with agreeing(), bar, torch.no_grad(), quiet(model), blocks.active():
        task = bar.add_task("noise · matrices", total=len(question.chosen) * len(question.own_batches))
        for number, batch in question.own_batches:
            with blocks.recording(), _measuring(layers) as gains:
                loss = question.scalar_loss(batch)
            if not torch.isfinite(loss):
                raise PrunusError("batches", f"batch {number}", "its loss is not finite; look at that batch")
            for block, members in by_block(question.chosen).items():
                asked = [(m, draw) for m in members if gains.get(m.name) for draw in range(draws)]
                with blocks.disturbed(block):
                    for first in range(0, len(asked), together):
                        noises = [
                            Noise(
                                m,
                                layers[m.name],
                                draw_noise(m, seed, places[m.name], number, draw, device),
                                epsilon * gains[m.name],
                            )
                            for m, draw in asked[first : first + together]
                        ]
                        for noise, change in zip(noises, _changes(question, batch, noises), strict=True):
                            totals[noise.matrix.name] += abs(change) / (2 * noise.size * draws)
                bar.advance(task, len(members))
    return summed(totals)


@contextmanager
def _measuring(layers: Mapping[str, Sequence[nn.Module]]) -> Iterator[dict[str, float]]:
    """While the context is open, the size of every weight that is used, as far as its first call tells: rms(y) / rms‖x‖."""
    gains: dict[str, float] = {}

    def measure(name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if name not in gains:
            lengths = torch.linalg.vector_norm(args[0].float(), dim=-1)
            gains[name] = float(output.float().square().mean().sqrt() / lengths.square().mean().sqrt().clamp_min(1e-30))

    with ExitStack() as hooks:
        for name, linears in layers.items():
            for linear in linears:
                hooks.callback(linear.register_forward_hook(partial(measure, name)).remove)
        yield gains


def _changes(question: Question, batch: Any, noises: list[Noise]) -> list[float]:
    """L(W + εz) − L(W − εz) for every noise."""
    disturbances = [Disturbance(noise.z) for noise in noises]

    def disturbed_loss(sizes: Tensor) -> Tensor:
        for disturbance, size in zip(disturbances, sizes.unbind(), strict=True):
            disturbance.size = size
        return question.scalar_loss(batch)

    with ExitStack() as hooks:
        for noise, disturbance in zip(noises, disturbances, strict=True):
            for linear in noise.layers:
                hooks.callback(linear.register_forward_hook(disturbance).remove)
        sizes = torch.tensor([noise.size for noise in noises], device=noises[0].z.device)
        if len(noises) == 1:
            return [float(disturbed_loss(sizes).double() - disturbed_loss(-sizes).double())]
        alone = torch.diag(sizes)  # a row disturbs one layer
        try:
            with sdpa_kernel(SDPBackend.MATH):  # the fused ones take no vmap
                losses = torch.func.vmap(disturbed_loss, randomness="different")(torch.cat([alone, -alone])).double()
        except (RuntimeError, PrunusError) as error:
            said = str(error.__cause__ or error)
            if not said.startswith("vmap:") and "broadcast shape" not in said:
                raise
            raise PrunusError(
                "together", len(noises), f"{type(question.model).__name__} takes decisions by the values of tensors, or changes "
                "undisturbed ones in place, so noises cannot share a pass; take together=1",
            ) from error  # fmt: skip
    ups, downs = losses.chunk(2)
    return [float(change) for change in ups - downs]
