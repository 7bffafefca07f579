"""Calibration batches from long texts: as much is tokenised as is needed."""

from __future__ import annotations

import pytest
import torch

from prunus import PrunusError, text_batches
from prunus.calibration import spread, text_windows


class Letters:
    """A token a character; counts them."""

    def __init__(self, characters: int = 1):
        self.read, self.characters = 0, characters

    def __call__(self, text: str, **more: object) -> dict[str, list[int]]:
        self.read += len(text)
        return {"input_ids": [ord(c) for c in text[:: self.characters]]}


TEXT = " ".join(f"{number:05d}" for number in range(20_000))  # 120,000 characters


def test_a_long_text_is_read_at_evenly_spaced_words_only() -> None:
    tokenizer = Letters()
    batches = text_batches(tokenizer, TEXT, samples=8, length=16, batch_size=3)
    assert tokenizer.read <= len(TEXT) / 4
    assert [len(batch["input_ids"]) for batch in batches] == [3, 3, 2]
    rows = torch.cat([batch["input_ids"] for batch in batches])
    found = ["".join(map(chr, row)) for row in rows.tolist()]
    starts = [TEXT.index(row) for row in found]
    assert starts[0] == 0
    assert all(row.startswith(" ") for row in found[1:])
    assert all(abs(start - i * len(TEXT) / 8) < 8 for i, start in enumerate(starts))


@pytest.mark.parametrize("characters", [1, 30])
def test_a_text_that_is_read_in_good_part_is_read_whole(characters: int) -> None:
    """Because it is short, or because its tokens are long."""
    text = TEXT if characters == 30 else TEXT[:2000]
    (batch,) = text_batches(Letters(characters), text, samples=8, length=16, batch_size=8)
    assert torch.equal(batch["input_ids"], spread(text_windows(Letters(characters), text, 16), 8))


def test_too_much_and_nothing_are_refused() -> None:
    with pytest.raises(PrunusError, match="only 40 tokens"):
        text_batches(Letters(), TEXT[:40], length=50)
    for wrong in ({"samples": 0}, {"length": 0}, {"batch_size": 0}):
        with pytest.raises(PrunusError, match="at least one"):
            text_batches(Letters(), TEXT, **wrong)
