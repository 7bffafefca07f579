"""The repairs a pruned model can get: typed settings, and what is set up around a training."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from prunus.anatomy import Matrix
from prunus.repair.distillation import Distillation, Teacher
from prunus.repair.lora import RANKS, Adapters, adapted
from prunus.repair.masks import BitMask, holding, in_fp32
from prunus.typed import Typed, named

Rank = Annotated[int, Field(ge=1, le=4096)]
"""Of adapters: low. The widest layers in use are a few times as wide as the limit."""


class Repair(Typed):
    """Base of the repairs: training that leaves every zero a zero. By itself, it trains all that is not frozen."""

    method: str
    """Its name in a recipe."""
    distillation: Distillation | None = None
    """What to learn from the model before it was pruned; None learns from the task alone."""

    def check(self, candidates: Sequence[Matrix], pruned: Collection[str]) -> None:
        """Says what is impossible for a model of these matrices, of which those named in `pruned` have zeros.

        Raises:
            PrunusError: see above.
        """

    @contextmanager
    def around(
        self, model: nn.Module, masks: Mapping[str, BitMask], dense: nn.Module | None, seed: int
    ) -> Iterator[Teacher | None]:
        """Entered before the training and left after it: what requires gradients inside is trained, and when it is left the
        zeros of the model are those of the masks, by the names of matrices.

        Args:
            dense: the model before it was pruned, where it is learned from; let go of it where what is given stands for it.

        Returns:
            What opens the dense model; None leaves `dense` beside the model.
        """
        with in_fp32(model, masks), holding(model, masks):
            yield None


class MaskedFinetune(Repair):
    """Trains the weights that are not zero (gradients × (w ≠ 0), as ECoFLaP does for BLIP)."""

    method: Literal["masked_finetune"] = "masked_finetune"


class LoRA(Repair):
    """Plain low-rank adapters, for comparison: the mask is on the weights, and on the adapters only when they are merged."""

    method: Literal["lora"] = "lora"
    rank: Rank | dict[str, Rank] = RANKS
    """Of all pruned towers, or per tower; towers that are not named get no adapters."""
    alpha: float = Field(default=16.0, gt=0, le=1e6)
    """Adapters are multiplied by alpha / rank."""
    masked: ClassVar[bool] = False
    """Whether the mask is on the adapters while they train."""

    def check(self, candidates: Sequence[Matrix], pruned: Collection[str]) -> None:
        adapted(candidates, pruned, self.rank)

    @contextmanager
    def around(
        self, model: nn.Module, masks: Mapping[str, BitMask], dense: nn.Module | None, seed: int
    ) -> Iterator[Teacher | None]:
        adapters = Adapters(model, masks, self.rank, self.alpha, self.masked, dense, seed)
        del dense
        try:
            yield adapters.off if adapters.holds_teacher else None
            adapters.merge()
        finally:
            adapters.remove()


class MaskedLoRA(LoRA):
    """Low-rank adapters under the zero pattern of the weights: merging them changes nothing ("SparseLoRA" in RESSA)."""

    method: Literal["masked_lora"] = "masked_lora"  # type: ignore[assignment]
    masked = True


class RESSA(MaskedLoRA):
    """Masked adapters with distillation from the dense model (He et al., 2024)."""

    method: Literal["ressa"] = "ressa"  # type: ignore[assignment]
    distillation: Distillation | None = Distillation()
    """What to learn from the model before it was pruned."""


if TYPE_CHECKING:
    AnyRepair = Repair
else:
    AnyRepair = named(Repair, "method")
"""Any repair, by its name in a recipe."""
