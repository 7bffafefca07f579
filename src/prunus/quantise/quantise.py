"""`quantise_folder`: a saved model with fewer bits a weight, which loads with its stock class, and what became of its zeros."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.anatomy import Matrix, choose, survey, weight_of
from prunus.checkpoint import load_model, local_folder, write_checksums
from prunus.cost import human, parts_of, stored_bytes
from prunus.errors import PrunusError, refusing
from prunus.quantise.method import Quantisation
from prunus.refusals import refuse_weights
from prunus.storage import vacant_folder, vacant_place, write_text
from prunus.tasks import copy_processor
from prunus.unstructured import RECORD, parse_pattern, recorded_sparsity

FOUND = "quantised.json"
"""What became of the model, beside its weights."""


@dataclass(frozen=True)
class Quantised:
    """What became of a model."""

    to: str
    matrices: int
    """That were quantised."""
    share: float
    """Of the weights in the blocks."""
    bytes: tuple[int, int]
    """Of all weights, before and after."""
    zeros: tuple[int, int]
    """In the quantised matrices, before and after."""
    lost: int
    """Of the zeros before, those that are none afterwards."""
    weights: int
    """Of the quantised matrices."""
    pattern: tuple[str, bool] | None
    """The n:m of the model's record, and whether every quantised matrix has it still; None where there is no n:m."""
    error: float
    """Of all quantised weights: ‖W − Ŵ‖ / ‖W‖."""
    left: dict[str, tuple[int, int]]
    """Why matrices of the blocks were left as they were → how many, and of how many weights."""

    @classmethod
    def of(cls, folder: Path) -> Quantised:
        """What stands in a folder that `quantise_folder` has made.

        Raises:
            PrunusError: it cannot be read.
        """
        with refusing("folder", str(folder), f"its {FOUND} cannot be read; quantise the model again"):
            return cls(**json.loads((folder / FOUND).read_bytes()))

    @property
    def gained(self) -> int:
        """Weights that were none before, and that rounding has made zero."""
        return self.zeros[1] - (self.zeros[0] - self.lost)

    def __str__(self) -> str:
        before, after = self.bytes
        kept = (
            f"all {self.zeros[0]:,} zeros kept" if not self.lost else f"{self.lost:,} of {self.zeros[0]:,} zeros LOST"
        )
        if self.gained:
            kept += f", {self.gained:,} more by rounding"
        sparsity = [count / self.weights for count in self.zeros]
        pattern = (
            ""
            if self.pattern is None
            else f", {self.pattern[0]} {'holds' if self.pattern[1] else 'does NOT hold any more'}"
        )
        return (
            f"{self.matrices} matrices in {self.to}, {self.share:.1%} of the blocks' weights, {human(before, 'B')} → {human(after, 'B')}; "
            f"{kept}, {sparsity[0]:.2%} → {sparsity[1]:.2%} of them{pattern}; {self.error:.2%} of the weights' norm off"
        )


def quantise_folder(path: str | Path, folder: str | Path, settings: Quantisation) -> Quantised:
    """Quantises a saved model, dense, narrowed or with zeros, and saves it: `quantization_config` in its config says how.

    What was saved has been loaded again and found to hold the same bits.

    Args:
        path: folder of the model, or hub id.
        folder: to be made, whole or not at all.

    Raises:
        PrunusError: the model is quantised already; nothing in it can be quantised; torchao is missing.
    """
    config, place = settings.config(), vacant_place(folder)
    source = local_folder(path)
    dense: Any = load_model(source).eval()
    if getattr(dense.config, "quantization_config", None) is not None:
        raise PrunusError("model", str(path), "its weights are quantised already; take the full-precision model")
    if dense.dtype.itemsize > 4:
        raise PrunusError("model", str(path), f"its weights are {dense.dtype}; save it in fp32 or less first")
    chosen, left = _chosen(dense, settings)
    packed = _packed(dense, source, config, chosen)
    found, zeros = _compared(dense, packed, settings.to, chosen, left)
    _correct_record(packed, found, zeros)
    with vacant_folder(place) as partial:
        packed.save_pretrained(partial)
        copy_processor(source, partial)
        write_text(partial / FOUND, json.dumps(asdict(found), indent=1) + "\n")
        write_checksums(partial)
        _refuse_other(packed, load_model(partial))
    return found


def _chosen(model: nn.Module, settings: Quantisation) -> tuple[list[Matrix], dict[str, tuple[int, int]]]:
    """What is quantised, and why the other matrices are not."""
    found = survey(model)
    wanted = choose(found.matrices, settings.include, settings.exclude)
    chosen, why = [], {part.name: (part.reason, part.weights) for part in found.left_dense}
    named = {matrix.name for matrix in wanted}
    for matrix in found.matrices:
        if matrix.name not in named:
            why[matrix.name] = "not selected", matrix.weights
        elif type(_module(model, matrix.name)) is not nn.Linear:
            why[matrix.name] = "it is no nn.Linear, which is all that transformers quantises", matrix.weights
        elif (reason := settings.takes(matrix.rows, matrix.columns)) is not None:
            why[matrix.name] = reason, matrix.weights
        else:
            chosen.append(matrix)
    left: dict[str, tuple[int, int]] = {}
    for reason, weights in why.values():
        count, total = left.get(reason, (0, 0))
        left[reason] = count + 1, total + weights
    if not chosen:
        raise PrunusError("quantise", type(model).__name__, "nothing can be quantised: " + "; ".join(left))
    refuse_weights(model, chosen)
    return chosen, left


def _module(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _packed(dense: Any, source: Path, config: Any, chosen: Sequence[Matrix]) -> Any:
    """The model as transformers loads it with these settings."""
    from transformers import TorchAoConfig

    names = {matrix.name for matrix in chosen}
    others = [path for path, module in dense.named_modules() if isinstance(module, nn.Linear) and path not in names]
    with refusing("quantise", type(dense).__name__, "transformers cannot load it quantised"):
        packed = type(dense).from_pretrained(
            source, dtype=dense.dtype, use_safetensors=True, trust_remote_code=False,
            quantization_config=TorchAoConfig(config, modules_to_not_convert=others),
        ).eval()  # fmt: skip
    wrong = [
        path
        for path, module in packed.named_modules()
        if isinstance(module, nn.Linear) and (len(parts_of(module.weight)) > 1) != (path in names)
    ]
    if wrong:
        raise PrunusError(
            "quantise",
            wrong[0],
            "transformers has made another choice of layers; exclude it, or quantise all of its kind",
        )
    return packed


def _compared(
    dense: nn.Module, packed: nn.Module, to: str, chosen: Sequence[Matrix], left: dict[str, tuple[int, int]]
) -> tuple[Quantised, dict[str, int]]:
    """What quantising did, and how many zeros each matrix has now."""
    record = recorded_sparsity(dense)
    pattern = None if record is None else parse_pattern(record.pattern)
    counts: dict[str, int] = {}
    before_zeros, lost, holds, apart, norm = 0, 0, True, 0.0, 0.0
    for matrix in chosen:
        before = weight_of(dense, matrix.name).float()
        after = _numbers(packed, matrix.name).to(before.device)
        were, are = before == 0, after == 0
        counts[matrix.name], before_zeros = int(are.sum()), before_zeros + int(were.sum())
        lost += int((were & ~are).sum())
        if pattern is not None and record is not None and matrix.name in record.matrices:
            holds = holds and pattern.holds(are)
        apart, norm = apart + float((before - after).square().sum()), norm + float(before.square().sum())
    weights, after_zeros = sum(matrix.weights for matrix in chosen), sum(counts.values())
    found = Quantised(
        to=to,
        matrices=len(chosen),
        share=weights / (weights + sum(count for _, count in left.values())),
        bytes=(stored_bytes(dense), stored_bytes(packed)),
        zeros=(before_zeros, after_zeros),
        lost=lost,
        weights=weights,
        pattern=None if pattern is None or record is None else (record.pattern, holds),
        error=(apart / norm) ** 0.5 if norm else 0.0,
        left=left,
    )
    return found, counts


def _numbers(packed: nn.Module, name: str) -> Tensor:
    """What a quantised weight stands for, in fp32."""
    weight: Any = packed.get_submodule(name).weight
    numbers: Tensor = weight.dequantize().detach().float()
    return numbers


def _correct_record(packed: Any, found: Quantised, counts: Mapping[str, int]) -> None:
    """A record of zeros says how many the quantised weights have: no more, and no fewer."""
    record = recorded_sparsity(packed)
    if record is None or not (found.lost or found.gained):
        return
    zeros = {name: counts.get(name, matrix.pruned) for name, matrix in record.matrices.items()}
    corrected = record.with_zeros(zeros)
    if found.pattern is not None and not found.pattern[1]:
        corrected = corrected.model_copy(update={"pattern": "unstructured"})
    setattr(packed.config, RECORD, corrected.model_dump(mode="json"))


def _refuse_other(packed: nn.Module, again: nn.Module) -> None:
    """What was loaded again holds the same bits."""
    loaded = dict(again.named_parameters())
    for name, weight in packed.named_parameters():
        mine, theirs = parts_of(weight), parts_of(loaded[name])
        if len(mine) != len(theirs) or not all(
            torch.equal(one, other) for one, other in zip(mine, theirs, strict=True)
        ):
            raise PrunusError(
                "quantise", name, "what was saved does not load as the same bits; take another release of torchao"
            )
