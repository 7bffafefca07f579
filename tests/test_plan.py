"""Plans: compact, strict, composable."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prunus import Plan, PrunusError, SparsityPlan, anatomy, plan_of
from prunus.anatomy import Matrix
from prunus.plan import DensePart, Entry, MatrixPlan, UnitPlan
from prunus.plan.channels import decode_channels, encode_channels
from prunus.plan.record import Narrowing, Whole, mark, recorded, records_of, true_record, write_record
from prunus.plan.sparsity import per_tower, written_sparsities
from prunus.storage import refuse_newer
from tests.families import build


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


# what plans may say


UNIT: dict[str, Any] = {"channels": 8, "kept": (0,)}
MATRIX: dict[str, Any] = {"rows": 2, "columns": 3, "pruned": 0, "tower": "vision"}
ZEROS: dict[str, Any] = {"model": "M", "matrices": {}}


@pytest.mark.parametrize(
    ("kind", "data", "name", "lowest", "highest"),
    [
        (UnitPlan, UNIT, "channels", 1, 1 << 22),
        (MatrixPlan, MATRIX, "rows", 1, (1 << 40) - 1),
        (MatrixPlan, MATRIX, "columns", 1, (1 << 40) - 1),
        (MatrixPlan, MATRIX, "pruned", 0, 6),
        (MatrixPlan, MATRIX, "asked", 0, None),
        (DensePart, {"weights": 1, "reason": ""}, "weights", 0, None),
        (SparsityPlan, ZEROS, "candidates", 0, None),
        (SparsityPlan, ZEROS, "block_weights", 0, None),
    ],
)
def test_numbers_have_limits(kind: Any, data: dict[str, Any], name: str, lowest: int, highest: int | None) -> None:
    for value in (lowest, highest):
        assert value is None or getattr(kind(**{**data, name: value}), name) == value
    for value in (lowest - 1, None if highest is None else highest + 1):
        if value is not None:
            with pytest.raises(ValidationError):
                kind(**{**data, name: value})


@pytest.mark.parametrize(("kind", "data"), [(Plan, {"model": "M", "units": {}}), (Whole, {"units": ""})])
def test_ratios_are_shares_but_not_the_whole(kind: Any, data: dict[str, Any]) -> None:
    assert kind(**data, ratio=0.0).ratio == 0
    assert kind(**data, ratio=0.999).ratio == 0.999
    for ratio in (-0.001, 1.0, math.nan, math.inf):
        with pytest.raises(ValidationError):
            kind(**data, ratio=ratio)


@pytest.mark.parametrize(
    "made",
    [
        UnitPlan(**UNIT), MatrixPlan(**MATRIX), DensePart(weights=1, reason=""), SparsityPlan(**ZEROS), plan(), Narrowing(),
        Whole(ratio=0, units=""),
    ],
)  # fmt: skip
def test_plans_are_frozen(made: Any) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(made, next(iter(type(made).model_fields)), None)


def test_channels_go_up_to_the_widest_unit() -> None:
    assert decode_channels("4194303") == (4194303,)
    with pytest.raises(ValueError, match="4,194,304 channels"):
        decode_channels("4194304")


def test_plan_files_end_with_a_line_and_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    plan().save(path)
    text = path.read_text()
    assert text.endswith("}\n")
    monkeypatch.setattr("prunus.plan.file.LIMIT", len(text))
    assert Plan.load(path) == plan()
    path.write_text(text + " ")
    with pytest.raises(PrunusError, match="no plan has more than"):
        Plan.load(path)


# what is worked out of plans


def test_two_ratios_compose_as_what_stays_of_what_stays() -> None:
    first, later = plan().model_copy(update={"ratio": 0.2}), Plan(model="Model", ratio=0.5, units={})
    assert later.after(first).ratio == pytest.approx(1 - 0.8 * 0.5)
    assert later.after(first).units == first.units


def test_a_plan_from_masks_counts_parameters_unless_told_its_ratio() -> None:
    parts = anatomy(build("vit", 3).model)
    one, other = next(u for u in parts if u.is_attention), next(u for u in parts if not u.is_attention)
    assert one.channel_cost != other.channel_cost
    masks = {u.name: torch.arange(u.channels) >= gone for u, gone in ((one, 1), (other, 3))}
    made = Plan.from_masks(parts, masks)
    whole = one.channels * one.channel_cost + other.channels * other.channel_cost
    assert made.ratio == pytest.approx((one.channel_cost + 3 * other.channel_cost) / whole)
    assert made.method == {}
    told = Plan.from_masks(parts, masks, {"method": "mine"}, 0.25)
    assert (told.ratio, told.method) == (0.25, {"method": "mine"})
    assert Plan.from_masks(parts, {}).ratio == 0
    whole_unit = next(u for u in parts if u.name not in masks)
    assert made.kept(whole_unit).tolist() == list(range(whole_unit.channels))


def zeros(**pruned: int) -> SparsityPlan:
    """Matrices of 2 × 5 weights; a and b are vision, others text."""
    matrices = {
        name: MatrixPlan(rows=2, columns=5, pruned=count, tower="vision" if name in "ab" else "text", block=f"{name}.0")
        for name, count in pruned.items()
    }
    return SparsityPlan(model="M", matrices=matrices, method={"method": "wanda"})


def dense(**weights: int) -> dict[str, DensePart]:
    return {name: DensePart(weights=count, reason=name[0]) for name, count in weights.items()}


def test_coverage_and_what_is_left_dense_are_shares_of_the_blocks() -> None:
    made = zeros(a=4, c=6).model_copy(update={"block_weights": 80, "left_dense": dense(x1=8, y1=20, x2=4)})
    assert made.coverage == pytest.approx(10 / 80)
    assert made.dense_shares == {"y": pytest.approx(0.25), "x": pytest.approx(0.15)}
    assert list(made.dense_shares) == ["y", "x"]
    unknown = made.model_copy(update={"block_weights": 0})
    assert unknown.coverage is None
    assert unknown.dense_shares["y"] == 20
    assert zeros().sparsity == 0
    assert SparsityPlan(model="M", matrices={"a": MatrixPlan(rows=1, columns=1, pruned=1, tower="t")}).sparsity == 1


def test_records_of_two_prunings_are_put_together() -> None:
    earlier = zeros(a=1, b=2).model_copy(update={"pattern": "2:4", "history": (Entry(step="prune", method="first"),)})
    later = zeros(b=3, c=4).model_copy(update={"left_dense": dense(a=10, x=5)})
    both = later.after(earlier)
    assert {name: m.pruned for name, m in both.matrices.items()} == {"a": 1, "b": 3, "c": 4}
    assert both.pattern == "unstructured"
    assert [entry.method for entry in both.history] == ["first", "wanda"]
    assert set(both.left_dense) == {"x"}, "what was pruned earlier is not dense"
    alike = later.model_copy(update={"pattern": "2:4"})
    assert alike.after(earlier).pattern == "2:4"
    assert later.after(None) is later
    assert later.after(zeros(b=3)) is later


def test_fewer_zeros_than_recorded_break_a_pattern() -> None:
    made = zeros(a=5, b=5).model_copy(update={"pattern": "2:4"})
    for found, pattern in (({"a": 5, "b": 5}, "2:4"), ({"a": 6, "b": 5}, "2:4"), ({"a": 4, "b": 6}, "unstructured")):
        counted = made.with_zeros(found)
        assert {name: m.pruned for name, m in counted.matrices.items()} == found
        assert counted.pattern == pattern
    one = zeros(a=5, b=1).model_copy(update={"pattern": "2:4"}).with_zeros({"a": 5})
    assert list(one.matrices) == ["a"]
    assert one.pattern == "unstructured"


def test_plans_are_checked_against_the_matrices_of_a_model() -> None:
    def matrix(name: str, rows: int = 2, columns: int = 5) -> Matrix:
        return Matrix(name=name, parameter=f"{name}.weight", block="", tower="", rows=rows, columns=columns)

    made = zeros(a=1)
    made.check("M", [matrix("a"), matrix("b")])
    counted = made.model_copy(update={"candidates": 2})
    counted.check("M", [matrix("a"), matrix("b")])
    with pytest.raises(PrunusError, match="has 1 prunable"):
        counted.check("M", [matrix("a")])
    for other in (matrix("b"), matrix("a", 3), matrix("a", 2, 6), matrix("a", 5, 2)):
        with pytest.raises(PrunusError, match="for another model"):
            made.check("M", [other])


def test_an_edited_plan_has_the_sparsities_that_were_written() -> None:
    made = zeros(a=1, b=2, c=4)
    made = made.model_copy(
        update={"matrices": {n: m.model_copy(update={"asked": 9}) for n, m in made.matrices.items()}}
    )
    edited = made.edit({"vision": 0.3, "b.0": 0.8})
    assert {name: (m.pruned, m.asked) for name, m in edited.matrices.items()} == {
        "a": (3, None), "b": (8, None), "c": (4, 9)
    }  # fmt: skip
    assert edited.method == {"method": "wanda", "edit": {"vision": 0.3, "b.0": 0.8}}


def test_one_tower_s_own_sparsity_wins_over_that_of_language() -> None:
    for written in ({"language": 0.7, "text": 0.1}, {"text": 0.1, "language": 0.7}):
        assert per_tower(written, ("text", "joint", "vision")) == {"text": 0.1, "joint": 0.7}
    assert per_tower({"language": 0.7}, ("language", "text")) == {"language": 0.7}
    for unknown in ({"audio": 0.5}, {"language": 0.5}):
        with pytest.raises(PrunusError, match="no such tower"):
            per_tower(unknown, ("vision",))


LABELS = {
    "m": ("vision", "layers.0", "layers.0.fc1"),
    "n": ("text", "blocks.0", "blocks.0.fc1"),
    "o": ("joint", "blocks.1", "blocks.1.fc1"),
}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"layers.0.fc1": 0.2, "layers.0": 0.5}, {"m": 0.2}),
        ({"blocks.?": 0.2, "blocks.1": 0.5}, {"n": 0.2, "o": 0.5}),
        ({"blocks.1": 0.5, "blocks.?": 0.2}, {"n": 0.2, "o": 0.2}),
        ({"blocks.1": 0.5, "blocks.*": 0.2}, {"n": 0.2, "o": 0.2}),
        ({"language": 1}, {"n": 1, "o": 1}),
        ({"vision": 0.0}, {"m": 0.0}),
        ({"*": 0.4}, {"m": 0.4, "n": 0.4, "o": 0.4}),
    ],
)
def test_the_narrower_name_wins_and_of_two_the_later(written: dict[str, float], expected: dict[str, float]) -> None:
    assert written_sparsities(written, LABELS) == expected


def test_language_is_a_tower_where_there_is_one_of_that_name() -> None:
    labels = {"m": ("language", "a", "a.b"), "n": ("text", "c", "c.d")}
    assert written_sparsities({"language": 0.5}, labels) == {"m": 0.5}
    for written, message in (({"vision": -0.01}, "0 to 1"), ({"vision": 1.01}, "0 to 1"), ({"audio": 0.5}, "no tower")):
        with pytest.raises(PrunusError, match=message):
            written_sparsities(written, LABELS)


# histories


WANDA = {"method": "wanda", "sparsity": 0.5}
OLD_SPARSITY = {
    **WANDA, "allocation": {"method": "owl", "spread": 0.1, "scores": {"a": 1.0}, "data": {"batches": 2}, "depends_on_batch_size": 8},
    "edited": {"vision": 0.3}, "repair": {"method": "ressa", "rank": 8}, "earlier": {"method": "magnitude", "allocation": "uniform"},
}  # fmt: skip
"""How 0.1 wrote what had been done: a later pruning around an earlier one."""


def test_histories_of_earlier_versions_are_read() -> None:
    old = {"format": "prunus.sparsity/1", "model": "M", "matrices": {}, "method": OLD_SPARSITY}
    made = SparsityPlan.parse(old, "plan.json")
    assert [(entry.step, entry.method) for entry in made.history] == [
        ("allocation", "uniform"), ("prune", "magnitude"), ("allocation", "owl"), ("edit", ""), ("prune", "wanda"), ("repair", "ressa")
    ]  # fmt: skip
    owl = made.history[2]
    assert owl.settings == {"spread": 0.1}
    assert owl.found == {"scores": {"a": 1.0}, "data": {"batches": 2}, "depends_on_batch_size": 8}
    assert made.history[3].settings == {"vision": 0.3}
    assert made.method == {
        **WANDA,
        "allocation": OLD_SPARSITY["allocation"],
        "edit": {"vision": 0.3},
        "repair": OLD_SPARSITY["repair"],
    }
    again = SparsityPlan.parse(made.model_dump(mode="json"), "plan.json")
    assert again == made
    assert again.format == "prunus.sparsity/2"
    upop = {"method": "upop", "ratio": 0.5}
    for method, expected in (({}, []), (upop, [upop]), ({"steps": [upop, {"method": "other"}]}, [upop, {"method": "other"}]),
                             ({"parts": [{"steps": [upop]}, upop]}, [upop, upop])):  # fmt: skip
        plan = Plan.parse({"format": "prunus.plan/1", "model": "M", "ratio": 0.5, "units": {}, "method": method}, "p")
        assert [entry.said for entry in plan.history] == expected
        assert {entry.step for entry in plan.history} <= {"search"}
    for damaged in ("x", 3, ["ab"], {"steps": 3}, {"earlier": "x"}, {"method": 3}, {"allocation": 3}):
        with pytest.raises(PrunusError, match="damaged"):
            SparsityPlan.parse({**old, "method": damaged}, "plan.json")


def test_a_newer_version_is_refused_as_one() -> None:
    whole = zeros(a=1).model_dump(mode="json")
    for version, message in (
        ("3", "update prunus"),
        ("10", "update prunus"),
        ("0", "damaged"),
        ("2.0", "damaged"),
        ("", "damaged"),
    ):
        with pytest.raises(PrunusError, match=message):
            SparsityPlan.parse({**whole, "format": f"prunus.sparsity/{version}"}, "plan.json")
    with pytest.raises(PrunusError, match="update prunus"):
        recorded(SimpleNamespace(config=SimpleNamespace(prunus={"format": "prunus.narrow/3"})))  # type: ignore[arg-type]
    for text, newer in (
        ("prunus.plan/3", True),
        ('{"format": "prunus.plan/12"', True),
        ("prunus.plan/2", False),
        ("prunus.planet/3", False),
    ):
        with pytest.raises(PrunusError, match="update prunus") if newer else nullcontext():
            refuse_newer("format", text, "prunus.plan/2")


# records in configs


def test_records_are_told_apart_and_damaged_ones_refused() -> None:
    def part(record: object) -> Any:
        return SimpleNamespace(config=SimpleNamespace(prunus=record))

    units = {"a": {"channels": 4, "kept": "0-1"}}
    assert recorded(SimpleNamespace(config=SimpleNamespace())) is None  # type: ignore[arg-type]
    assert isinstance(recorded(part({"format": "prunus.narrow/1", "units": units})), Narrowing)
    old = recorded(part({"format": "prunus.plan/1", "model": "M", "ratio": 0.5, "units": units}))
    assert isinstance(old, Plan)
    for damaged in ("x", [1], {"format": "prunus.plan/1"}, {"format": "other"}):
        with pytest.raises(PrunusError, match="damaged"):
            recorded(part(damaged))


def marked() -> tuple[Any, Any]:
    """A model that says it was narrowed, of every unit all but the first channel is left; and a dense one of the same config."""
    model = build("clip", 1).model
    other = type(model)(model.config)
    for unit in anatomy(model):
        left = UnitPlan(channels=unit.channels, kept=range(1, unit.channels))
        mark(model.get_submodule(unit.path), unit.name.removeprefix(unit.path), left)
    return model, other


def test_what_nobody_decided_follows_from_the_units() -> None:
    model, _ = marked()
    parts = anatomy(model)
    cost = sum(u.channel_cost for u in parts), sum(u.channel_cost * u.channels for u in parts)
    found = plan_of(model)
    assert found is not None
    assert found.ratio == pytest.approx(cost[0] / cost[1])
    assert (found.method, found.mirrors, set(found.units)) == ({}, {}, {u.name for u in parts})
    one, other = (next(u for u in parts if u.name.startswith(tower)) for tower in ("text", "vision"))
    mine = (Entry(step="search", method="mine"),)
    decided = found.model_copy(
        update={"ratio": 0.125, "history": mine, "mirrors": {"absent": one.block, other.block: one.block}}
    )
    write_record(model, decided)
    known = plan_of(model)
    assert known is not None
    assert (known.ratio, known.method, known.mirrors) == (0.125, {"method": "mine"}, {other.block: one.block})
    write_record(model)
    assert plan_of(model) == known
    mark(model.get_submodule(one.path), one.name.removeprefix(one.path), UnitPlan(channels=one.channels - 1, kept=(0,)))
    changed = plan_of(model)
    assert changed is not None
    assert changed.units[one.name] == UnitPlan(channels=one.channels, kept=(1,))
    assert changed.ratio != 0.125
    assert changed.method == {"method": "mine"}, "nobody has said anything else"


def test_parts_that_were_decided_alone_are_all_named() -> None:
    model, _ = marked()
    for tower in (model.vision_model, model.text_model):
        found = plan_of(tower)
        assert found is not None
        write_record(tower, found.model_copy(update={"history": (Entry(step="search", method=type(tower).__name__),)}))
    whole = plan_of(model)
    assert whole is not None
    assert {entry.method for entry in whole.history} == {
        type(model.vision_model).__name__, type(model.text_model).__name__
    }  # fmt: skip


def test_a_dense_model_claims_nothing_while_it_is_saved() -> None:
    model, other = marked()
    write_record(model.vision_model)
    said = records_of(model.config)
    assert set(said) == {"vision_config"}
    with true_record(other):
        assert records_of(other.config) == {}
    assert records_of(model.config) == said
    assert "prunus_whole" not in other.__dict__
    with true_record(model):
        assert set(records_of(model.config)) == {"vision_config", "text_config"}
    assert records_of(model.config) == said
    assert "prunus_whole" not in model.__dict__
