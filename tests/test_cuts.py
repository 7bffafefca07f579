"""The cut of calibration data into batches, and the side of the padding, change no mask and no allocation that is not defined by batch."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus import OWL, DSnoT, SparseGPT, WalkOptions, Wanda, allocate, prune
from prunus.unstructured.padding import counted_positions
from prunus.unstructured.walk import Visit
from tests.families import FAMILIES, build

Batch = dict[str, Tensor]
QUIET = WalkOptions(progress=False)
METHODS = [Wanda(), SparseGPT(), DSnoT(), DSnoT(start="magnitude", same_sign=False), OWL(outlier=1.5)]
LEFT = ("llama", "mistral", "qwen2", "opt", "t5")
"""Families whose states do not depend on the side of the padding: others count positions from the left."""
TEXT = (*LEFT, "bert", "clip", "blip_itm", "blip_caption")


def rows_of(inputs: Batch, count: int = 4) -> list[Batch]:
    """Single rows; the later ones have other words and other images."""
    packed = inputs["input_ids"].shape[0] == 1 if "input_ids" in inputs else False
    first = [inputs] if packed else [{k: v[i : i + 1] for k, v in inputs.items()} for i in range(2)]
    found = []
    for number in range(count):
        row = dict(first[number % len(first)])
        for key, value in row.items():
            if value.is_floating_point():
                row[key] = value * (1 + 0.3 * number) + 0.1 * number
            elif key.endswith("input_ids"):
                row[key] = torch.where(value >= 10, (value - 10 + 7 * number) % 30 + 10, value)
        found.append(row)
    return found


def together(rows: Sequence[Batch], size: int) -> list[Batch]:
    return [
        {key: torch.cat([row[key] for row in rows[at : at + size]]) for key in rows[0]}
        for at in range(0, len(rows), size)
    ]


def padded(row: Batch, side: str, to: int) -> Batch:
    """A row of text without its padding, or with padding at a side."""
    mask = row["attention_mask"][0].bool()
    out = dict(row)
    for key in ("input_ids", "attention_mask"):
        value, empty = row[key][:, mask], torch.zeros(1, max(to - int(mask.sum()), 0), dtype=torch.long)
        if side == "none":
            out[key] = value
        else:
            out[key] = torch.cat([empty, value] if side == "left" else [value, empty], 1)
    return out


def outcome(name: str, method: Any, cut: Sequence[Batch]) -> dict[str, Any]:
    """Where zeros are after pruning, or how many weights every matrix keeps."""
    model: nn.Module = build(name, 3).model
    torch.manual_seed(0)
    if isinstance(method, OWL):
        return {n: m.pruned for n, m in allocate(model, method, cut, progress=False).matrices.items()}
    prune(model, method, cut, options=QUIET)
    return {n: p == 0 for n, p in model.named_parameters() if p.ndim > 1}


def compare(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    assert [key for key in before if not _same(before[key], after[key])] == []


def _same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


@lru_cache(maxsize=2)
def one_by_one(name: str, method: Any) -> dict[str, Any]:
    """The outcome of single rows."""
    return outcome(name, method, rows_of(build(name, 3).inputs))


@lru_cache(maxsize=2)
def unpadded(name: str, method: Any) -> dict[str, Any]:
    """The outcome of 32 single rows without any padding."""
    return outcome(name, method, [padded(row, "none", 0) for row in rows_of(build(name, 3).inputs, 32)])


BY_BATCH = ("paligemma", "blip_answers")
"""Families that rows say nothing about: transformers gives a row without padding another mask beside one with some, and the answers
to several questions are no rows of one batch."""
ALL = [case for case in itertools.product(FAMILIES, METHODS, (2, 4)) if case[0] not in BY_BATCH]
SAMPLE = [random.Random(name).choice([c for c in ALL if c[0] == name]) for name in FAMILIES if name not in BY_BATCH]


def label(value: Any) -> str:
    return (
        value
        if isinstance(value, str)
        else f"{value.method}{value.start if value.method == 'dsnot' else ''}"
        if not isinstance(value, int)
        else str(value)
    )


@pytest.mark.parametrize(("name", "method", "size"), SAMPLE, ids=label)
def test_batches_of_any_size_are_the_same_data(name: str, method: Any, size: int) -> None:
    rows = rows_of(build(name, 3).inputs)
    compare(one_by_one(name, method), outcome(name, method, together(rows, size)))


@pytest.mark.long
@pytest.mark.parametrize(("name", "method", "size"), [case for case in ALL if case not in SAMPLE], ids=label)
def test_batches_of_any_size_are_the_same_data_everywhere(name: str, method: Any, size: int) -> None:
    test_batches_of_any_size_are_the_same_data(name, method, size)


PADDINGS = [
    (name, method, side)
    for name, method in itertools.product(TEXT, METHODS)
    for side in ("left", "right")
    if side == "right" or name in LEFT
]
SAMPLED = random.Random(0).sample(PADDINGS, 8)


def check_padding(name: str, method: Any, side: str) -> None:
    """32 rows in one batch, padded, against one by one, not padded at all."""
    rows = rows_of(build(name, 3).inputs, 32)
    compare(unpadded(name, method), outcome(name, method, together([padded(row, side, 9) for row in rows], 32)))


@pytest.mark.parametrize(("name", "method", "side"), SAMPLED, ids=label)
def test_padding_on_either_side_or_none_is_the_same_data(name: str, method: Any, side: str) -> None:
    check_padding(name, method, side)


@pytest.mark.long
@pytest.mark.parametrize(("name", "method", "side"), [case for case in PADDINGS if case not in SAMPLED], ids=label)
def test_padding_on_either_side_or_none_is_the_same_data_everywhere(name: str, method: Any, side: str) -> None:
    check_padding(name, method, side)


@pytest.mark.parametrize("hidden", [False, True], ids=["says what is seen", "says what is hidden"])
def test_left_padding_under_boolean_masks_is_padding_whichever_way_they_speak(hidden: bool) -> None:
    """Bidirectional masks of left-padded rows are mostly true above the diagonal, as causal masks that say what is hidden."""
    real = torch.tensor([[False, False, True, True, True], [True] * 5])
    mask = real[:, None, None, :].expand(2, 1, 5, 5)
    if hidden:
        mask = ~(mask & torch.ones(5, 5, dtype=torch.bool).tril())
    visit = Visit(0, "block", {"attention_mask": mask})
    counted = counted_positions(visit, torch.zeros(2, 5, 3))
    assert counted is not None
    assert counted.tolist() == real.flatten().tolist()
