"""The repairs a pruned model can get, as typed data."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Literal

from pydantic import Field

from prunus.anatomy import Matrix
from prunus.repair.distillation import Distillation
from prunus.repair.lora import RANKS, adapted
from prunus.typed import Typed

Rank = Annotated[int, Field(ge=1, le=4096)]
"""Of adapters: low. The widest layers in use are a few times as wide as the limit."""


class Repair(Typed):
    """Base of the repairs: training that leaves every zero a zero."""

    method: str
    distillation: Distillation | None = None
    """What to learn from the model before it was pruned; None learns from the task alone."""

    def check(self, candidates: Sequence[Matrix], pruned: Collection[str]) -> None:
        """Says what is impossible for a model of these matrices, of which those named in `pruned` have zeros.

        Raises:
            PrunusError: see above.
        """


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

    def check(self, candidates: Sequence[Matrix], pruned: Collection[str]) -> None:
        adapted(candidates, pruned, self.rank)


class MaskedLoRA(LoRA):
    """Low-rank adapters under the zero pattern of the weights: merging them changes nothing ("SparseLoRA" in RESSA)."""

    method: Literal["masked_lora"] = "masked_lora"  # type: ignore[assignment]


class RESSA(MaskedLoRA):
    """Masked adapters with distillation from the dense model (He et al., 2024)."""

    method: Literal["ressa"] = "ressa"  # type: ignore[assignment]
    distillation: Distillation | None = Distillation()


AnyRepair = Annotated[MaskedFinetune | LoRA | MaskedLoRA | RESSA, Field(discriminator="method")]
"""Every repair a recipe can name."""
