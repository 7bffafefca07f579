"""What the student learns from its teacher: logits, and, if asked for, what blocks compute (RESSA's cross-modality adaptation).

    loss = (1 − λ)·task + λ·KL(teacher ‖ student)

The divergence is computed in fp32 and averaged over the positions that predict a target; padding, images and prompts do not
count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.batches import input_device
from prunus.errors import PrunusError
from prunus.losses import Predict, Prediction
from prunus.modules import quiet
from prunus.typed import Count, Factor, Share, Typed

Teacher = Callable[[], AbstractContextManager[nn.Module]]
"""Opens a context in which the model it gives is the teacher."""


class Distillation(Typed):
    """How much the student listens to its teacher."""

    weight: Share = 0.1
    """λ."""
    temperature: float = Field(default=1.0, ge=1e-3, le=1e3)
    """T: logits of both are divided by it before the softmax."""
    reduction: Literal["mean", "published"] = "mean"
    """`mean` over positions with a target. `published`: the sum over every position, padding included, divided by the
    sequences of the batch and without T², as the published code has it; it grows with the length of the sequences."""
    features: Factor = 0.0
    """Weight of the mean squared difference of what blocks return, relative to the teacher's mean square."""
    top_k: Count | None = None
    """Keep this many of the teacher's largest logits per position on disk, computed once before the training. Only for
    data that are the same whenever they are read."""

    @model_validator(mode="after")
    def _storable(self) -> Distillation:
        if self.top_k is not None and (self.features or self.reduction == "published"):
            raise PrunusError(
                "top_k", self.top_k, "only logits at targets are stored; leave it out, or features and the published reduction"
            )  # fmt: skip
        return self

    def divergence(self, student: Prediction, teacher_logits: Tensor) -> Tensor:
        """KL(teacher ‖ student), times T² for the mean, a scalar.

        Args:
            teacher_logits: (…, V) of the same positions as the student's.
        """
        teacher_logits = teacher_logits.to(student.logits.device)
        if self.reduction == "published":
            everywhere = kl_divergence(student.logits, teacher_logits, self.temperature) / self.temperature**2
            return everywhere.sum() / len(everywhere)
        picked = kl_divergence(student.logits[student.counted], teacher_logits[student.counted], self.temperature)
        return picked.sum() / max(picked.numel(), 1)

    def loss(self, task: Tensor, divergence: Tensor, features: Tensor | None = None) -> Tensor:
        """All parts together."""
        total = (1 - self.weight) * task + self.weight * divergence
        return total if features is None else total + self.features * features


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher ‖ student)·T² of logits (…, V) at each position, (…), in fp32."""
    ours = F.log_softmax(student.float() / temperature, dim=-1)
    theirs = F.log_softmax(teacher.float() / temperature, dim=-1)
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1) * temperature**2


def top_k_divergence(student: Tensor, values: Tensor, places: Tensor, temperature: float = 1.0) -> Tensor:
    """As `kl_divergence`, with the teacher's k largest logits (…, k) at vocabulary places (…, k), the student's being
    normalised over the same k."""
    return kl_divergence(student.gather(-1, places), values, temperature)


class Lesson:
    """Runs student and teacher on a batch and returns the training loss.

    Args:
        method: how they are compared.
        predict: what a model says about a batch.
        teacher: the dense model, or what opens it; its forward pass is in eval mode, and without gradients.
        blocks: paths of the modules whose outputs `features` compares, the same in both models.
    """

    def __init__(
        self, method: Distillation, predict: Predict, teacher: Teacher | nn.Module, blocks: Sequence[str] = ()
    ):
        self.method, self.predict = method, predict
        self.teacher: Teacher = beside(teacher) if isinstance(teacher, nn.Module) else teacher
        self.blocks = tuple(blocks) if method.features else ()

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        with (
            torch.no_grad(),
            self.teacher() as teacher,
            quiet(_beside_student(teacher, model)),
            _outputs_of(teacher, self.blocks) as theirs,
        ):
            taught = self.predict(teacher, batch).logits
        with _outputs_of(model, self.blocks) as ours:
            student = self.predict(model, batch)
        return self.method.loss(
            student.loss, self.method.divergence(student, taught), _difference(ours, theirs) if self.blocks else None
        )


def _beside_student(teacher: nn.Module, student: nn.Module) -> nn.Module:
    """The teacher, on the student's device."""
    device = input_device(student)
    return teacher if teacher is student or input_device(teacher) == device else teacher.to(device)


def _difference(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    """Mean over blocks, each on its device, of ‖student − teacher‖² / ‖teacher‖²."""
    parts = []
    for mine, other in zip(ours, theirs, strict=True):
        taught = other.to(mine.device).float()
        parts.append((mine.float() - taught).square().mean() / taught.square().mean().clamp_min(1e-12))
    return torch.stack([part.to(parts[0].device) for part in parts]).mean()


@contextmanager
def _outputs_of(model: nn.Module, blocks: Sequence[str]) -> Iterator[list[Tensor]]:
    """What blocks return while the context is open, in the order of their calls."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(output if isinstance(output, Tensor) else output[0])

    with ExitStack() as hooks:
        for path in blocks:
            hooks.enter_context(model.get_submodule(path).register_forward_hook(keep))
        yield seen


def beside(teacher: nn.Module) -> Teacher:
    """A teacher that is a model of its own."""
    return lambda: nullcontext(teacher)
