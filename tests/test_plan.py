"""Plans: compact, strict, composable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunus import Plan, PrunusError, SparsityPlan
from prunus.plan import UnitPlan
from prunus.plan.channels import decode_channels, encode_channels


@given(st.sets(st.integers(0, 300)))
def test_channels_survive_their_compact_form(channels: set[int]) -> None:
    assert decode_channels(encode_channels(sorted(channels))) == tuple(sorted(channels))


def test_ranges_are_written_as_a_person_would() -> None:
    assert encode_channels([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"


def plan() -> Plan:
    units = {"a": UnitPlan(channels=8, kept=(0, 1, 5)), "b": UnitPlan(channels=4, kept=(3,))}
    return Plan(model="Model", ratio=0.5, units=units)


def test_a_plan_survives_its_file(tmp_path) -> None:
    plan().save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan()


@pytest.mark.parametrize(
    ("kept", "message"),
    [("", "at least one"), ("3,1", "sorted"), ("0-9", "0..7"), ("1,1", "sorted"), ("x", "no range of channels")],
)
def test_a_damaged_plan_names_the_file_and_the_unit(tmp_path, kept: str, message: str) -> None:
    data = plan().model_dump(mode="json")
    data["units"]["a"]["kept"] = kept
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    with pytest.raises(PrunusError, match=message) as caught:
        Plan.load(path)
    assert "units.a" in caught.value.field
    assert str(path) in str(caught.value)


def test_a_truncated_plan_names_the_file(tmp_path) -> None:
    path = tmp_path / "plan.json"
    plan().save(path)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(PrunusError, match=r"plan\.json"):
        Plan.load(path)


def test_two_plans_compose() -> None:
    later = Plan(model="Model", ratio=0.5, units={"a": UnitPlan(channels=3, kept=(0, 2))})
    combined = later.after(plan())
    assert combined.units["a"] == UnitPlan(channels=8, kept=(0, 5))
    assert combined.units["b"] == plan().units["b"]
    assert combined.ratio == pytest.approx(0.75)


@pytest.mark.parametrize(
    "kept",
    [
        "0-99999999999",
        "5-2",
        "0,0",
        "3,1",
        "a",
        "-1",
        "1-",
        "0-3-5",
        "9" * 5000,
        "²",
        "0-4194304",
        [0.5],
        [[1]],
        7,
        None,
    ],
)
def test_channels_are_bounded_before_they_are_built(kept: object) -> None:
    data = {"model": "M", "ratio": 0.5, "units": {"unit": {"channels": 8, "kept": kept}}}
    with pytest.raises(PrunusError, match="damaged"):
        Plan.parse(data, "plan.json")
    with pytest.raises(PrunusError, match="damaged"):
        Plan.parse(json.dumps(data), "plan.json")


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"[]", b"{", b'{"a": ' * 10_000, b"NaN"])
def test_damaged_plan_files_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(data)
    for kind in (Plan, SparsityPlan):
        with pytest.raises(PrunusError, match="damaged"):
            kind.load(tmp_path / "plan.json")
