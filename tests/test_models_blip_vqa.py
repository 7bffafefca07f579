"""BLIP for questions: what its answers may be. What it computes is held against the published code in `test_published.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prunus import PrunusError
from tests.families import build


def test_answers_are_as_many_as_is_said() -> None:
    case = build("blip_answers", 2)
    given: dict[str, Any] = case.inputs | case.losses
    loss = case.model(**given).loss
    alike = case.model(**given, answer_weights=torch.tensor([0.5, 0.5, 1.0])).loss
    torch.testing.assert_close(alike, loss)
    with pytest.raises(PrunusError, match=r"answers = 4: there are 3 answers"):
        case.model(**given | {"answers": torch.tensor([2, 2])})
    with pytest.raises(PrunusError, match=r"answers = 2: there are 3 answers"):
        case.model(**{name: value for name, value in given.items() if name != "answers"})
    for weights in (torch.ones(2), torch.ones(3, 1), torch.tensor(1.0)):
        with pytest.raises(PrunusError, match=r"answer_weights = .*: give one for each of the 3 answers"):
            case.model(**given, answer_weights=weights)


def test_no_more_candidates_are_looked_at_than_there_are() -> None:
    case = build("blip_answers", 2)
    ids, candidates = case.inputs, torch.randint(10, 20, (5, 3))
    for best in (0, 6):
        with pytest.raises(PrunusError, match=f"best = {best}: take one to 5"):
            case.model.rank(
                ids["input_ids"],
                ids["pixel_values"],
                ids["attention_mask"],
                candidates,
                torch.ones_like(candidates),
                best,
            )
