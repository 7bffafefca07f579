"""A sample of `python -m benchmarks.fuzz`."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.fuzz import attempt, cases, fuzz, prepared


def test_mutated_recipes_end_in_a_recipe_or_one_clear_error(tmp_path: Path) -> None:
    case = cases("recipes", tmp_path)
    for seed in range(100):
        answer = attempt(case, seed)
        assert answer["outcome"] in ("right", "refused"), f"--only recipes:{seed}: {answer}"


@pytest.mark.long
def test_extreme_runs_and_damaged_checkpoints_end_right_or_in_one_clear_error() -> None:
    with prepared() as place:
        found, failures = fuzz({"runs": 8, "damage": 60}, 7000, place)
    assert not failures
    assert sum(found["damage"].values()) == 60
