"""One pass over the data, many budgets: scores as a file, plans by them, and what is narrowed by either."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import prunus
from prunus import Calibrated, ChannelScores, Everyone, Fluctuation, Plan, PrunusError, Storage, WalkOptions, anatomy
from prunus.calibrated import Point, Sweep, plan_channels, score_channels, sweep
from prunus.cli import app
from prunus.cost import multiply_accumulates
from prunus.structured import Whole
from tests.families import build

QUIET = WalkOptions(progress=False)


def scored(name: str, folder: Path, **more: Any) -> tuple[Any, ChannelScores]:
    case = build(name, 2)
    found = score_channels(case.model, Calibrated(ratio=0.5, **more), [case.inputs], options=QUIET)
    found.save(folder / "scores.safetensors")
    return case, ChannelScores.load(folder / "scores.safetensors")


@pytest.mark.parametrize("name", ["llama", "vit"])
def test_a_plan_by_scores_is_that_of_narrowing(name: str, tmp_path: Path) -> None:
    case, scores = scored(name, tmp_path)
    state = {key: tensor.clone() for key, tensor in case.model.state_dict().items()}
    method = Calibrated(ratio=0.3, scope=Everyone())
    plan = plan_channels(scores, method)  # of the config alone
    assert plan == plan_channels(scores, method, case.model)
    direct, by_itself = prunus.narrow(case.model, method, [case.inputs], options=QUIET)
    for given in ({"scores": scores}, {"plan": plan}):
        small, known = prunus.narrow(case.model, method, [case.inputs], options=QUIET, **given)  # type: ignore[arg-type]
        assert known.units == by_itself.units == plan.units
        assert all(torch.equal(a, b) for a, b in zip(direct.parameters(), small.parameters(), strict=True))
    assert all(torch.equal(tensor, state[key]) for key, tensor in case.model.state_dict().items())
    shapes = [p.shape for p in prunus.extract(case.model, plan).parameters()]
    assert shapes == [p.shape for p in direct.parameters()]


def test_many_budgets_follow_from_one_file(tmp_path: Path) -> None:
    case, scores = scored("llama", tmp_path, score=Fluctuation())
    total, parts = anatomy(case.model).parameters, anatomy(case.model)
    cached = Storage(dtype="bfloat16", cache_tokens=64, cache_batch=2)
    whole = Whole(parts, case.model, lambda: case.model(**case.inputs))
    budgets = [
        {"max_parameters": total * 8 // 10},
        {"max_macs": scores.header.macs * 8 // 10},
        {"max_bytes": int(whole.bytes(parts.units, Storage()).total * 0.9)},
        {"max_bytes": int(whole.bytes(parts.units, cached).total * 0.8), "storage": cached},
    ]
    for budget in budgets:
        plan = plan_channels(scores, scores.method(**budget))
        run = lambda: case.model(**case.inputs)  # noqa: E731
        direct, known = prunus.narrow(case.model, scores.method(**budget), [case.inputs], options=QUIET, example=run)
        assert known.units == plan.units
        assert 0 < plan.ratio < 1
        if "max_parameters" in budget:
            dearest = max(unit.channel_cost for unit in anatomy(case.model))
            assert 0 <= total * 8 // 10 - sum(p.numel() for p in direct.parameters()) <= dearest
    with pytest.raises(PrunusError, match="latency=True"):
        plan_channels(scores, scores.method(max_milliseconds=1.0))


def test_scores_of_others_are_refused(tmp_path: Path) -> None:
    case, scores = scored("llama", tmp_path)
    other = build("llama", 3).model
    same_shape = build("llama", 2).model
    with torch.no_grad():
        next(iter(same_shape.parameters())).mul_(2)
    for model, said in (
        (other, "another model|other weights"),
        (build("vit", 2).model, "another model"),
        (same_shape, "other weights"),
    ):
        with pytest.raises(PrunusError, match=said):
            plan_channels(scores, Calibrated(ratio=0.3), model)
    with pytest.raises(PrunusError, match="the method asks for"):
        plan_channels(scores, Calibrated(ratio=0.3, score=Fluctuation()))
    plan = plan_channels(scores, Calibrated(ratio=0.3))
    left_out = next(iter(plan.units))
    with pytest.raises(PrunusError, match="the method leaves it out"):
        prunus.narrow(case.model, Calibrated(ratio=0.3, exclude=(left_out,)), [case.inputs], options=QUIET, plan=plan)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    scored("vit", tmp_path)
    path = tmp_path / "scores.safetensors"
    whole, tensors = path.read_bytes(), load_file(path)
    for damaged in (b"", whole[:-5], whole[:-4] + b"\x00\x00\xc0\x7f", b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(PrunusError, match="scores"):
            ChannelScores.load(path)
    save_file(tensors, path)
    with pytest.raises(PrunusError, match="it holds no scores"):
        ChannelScores.load(path)
    path.unlink()
    with pytest.raises(PrunusError, match="it cannot be read"):
        ChannelScores.load(path)


def test_the_command_writes_a_plan(tmp_path: Path) -> None:
    case, scores = scored("llama", tmp_path)
    out = tmp_path / "plan.json"
    most = anatomy(case.model).parameters - 400
    said = CliRunner().invoke(
        app, ["plan", str(tmp_path / "scores.safetensors"), "--max-parameters", str(most), "-o", str(out)]
    )
    assert said.exit_code == 0, said.output
    assert "channels stay" in said.output
    assert Plan.load(out) == plan_channels(scores, scores.method(max_parameters=most))
    assert json.loads(out.read_text())["history"][0]["settings"]["max_parameters"] == most
    refused = CliRunner().invoke(app, ["plan", str(tmp_path / "scores.safetensors")])
    assert isinstance(refused.exception, PrunusError)


def test_a_sweep_says_which_models_no_other_beats(tmp_path: Path) -> None:
    case = build("llama", 2)
    state = {key: tensor.clone() for key, tensor in case.model.state_dict().items()}
    methods = [Calibrated(ratio=ratio, compensation="none") for ratio in (0.2, 0.5)]
    found = sweep(case.model, methods, [{**case.inputs, **case.losses}], options=QUIET)
    assert all(torch.equal(tensor, state[key]) for key, tensor in case.model.state_dict().items())
    assert [round(point.ratio, 1) for point in found.points] == [0, 0.2, 0.5]
    for point, method in zip(found.points[1:], methods, strict=True):
        small, _ = prunus.narrow(case.model, method, [case.inputs], options=QUIET)
        assert point.parameters == sum(p.numel() for p in small.parameters())
        assert point.macs == multiply_accumulates(small, lambda small=small: small(**case.inputs))["total"]  # type: ignore[misc]
    found.save(tmp_path)
    assert (tmp_path / "pareto.png").read_bytes()[:4] == b"\x89PNG"
    assert Sweep.model_validate_json((tmp_path / "pareto.json").read_text()) == found
    with pytest.raises(PrunusError, match="latency=True"):
        found.save(tmp_path, cost="milliseconds")


def test_a_sweep_counts_whole_heads_as_heads() -> None:
    case = build("llama", 0)
    method = Calibrated(ratio=0.4, plain=True, attention="heads", compensation="none")
    found = sweep(case.model, [method], [case.inputs], options=QUIET, measure=lambda _: 0.0).points[1]
    small, plan = prunus.narrow(case.model, method, [case.inputs], options=QUIET)
    assert any("attn" in name for name, unit in plan.units.items() if len(unit.kept) < unit.channels)
    assert found.parameters == sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize(
    ("methods", "more", "field"),
    [
        (Calibrated(ratio=0.3), {}, "methods"),
        ([{"ratio": 0.3}], {}, "methods"),
        ([Calibrated(ratio=0.3)], {"measure": "loss"}, "measure"),
        ([Calibrated(ratio=0.3, compensation="bias")], {}, "compensation"),
        ([Calibrated(ratio=0.2), Calibrated(ratio=0.99)], {}, "ratio"),
    ],
)
def test_what_no_sweep_can_be_is_refused_before_channels_are_scored(methods: Any, more: Any, field: str) -> None:
    case = build("llama", 2)

    def call(model: Any, batch: Any) -> None:
        raise AssertionError("the data were looked at")

    with pytest.raises(PrunusError) as refused:
        sweep(case.model, methods, [case.inputs], options=QUIET, call=call, **more)
    assert refused.value.field == field


def test_a_folder_is_no_file_of_scores_or_of_a_plan(tmp_path: Path) -> None:
    case, scores = scored("llama", tmp_path)
    file = str(tmp_path / "scores.safetensors")
    (tmp_path / "taken").write_text("")
    refused = CliRunner().invoke(app, ["plan", str(tmp_path), "--ratio", "0.3"]).exception
    assert isinstance(refused, PrunusError)
    assert "it is a folder" in str(refused)
    for out in (tmp_path, tmp_path / "taken" / "plan.json", ""):
        refused = CliRunner().invoke(app, ["plan", file, "--ratio", "0.3", "-o", str(out)]).exception
        assert isinstance(refused, PrunusError)
        assert refused.field == "--out"
    found = sweep(case.model, [Calibrated(ratio=0.3)], [case.inputs], options=QUIET, scores=scores, measure=lambda _: 0)
    with pytest.raises(PrunusError, match="it is a folder"):
        scores.save(tmp_path)
    with pytest.raises(PrunusError, match="it is a file"):
        found.save(tmp_path / "taken")


def test_the_command_sweeps_on_a_task(tmp_path: Path) -> None:
    build("llama", 2).model.save_pretrained(tmp_path / "model")
    command = ["sweep", str(tmp_path / "model"), "--task", json.dumps({"name": "noise", "items": 4, "length": 8})]
    out = tmp_path / "out"
    settings = ["--method", '{"compensation": "none"}', "--samples", "2", "--batch-size", "2", "--out", str(out)]
    said = CliRunner().invoke(app, [*command, "--ratios", "0.2,0.5", *settings])
    assert said.exit_code == 0, said.output
    found = Sweep.model_validate_json((out / "pareto.json").read_text())
    assert [round(point.ratio, 1) for point in found.points] == [0, 0.2, 0.5]
    assert (found.quality, found.higher_is_better) == ("loss", False)
    assert (out / "pareto.png").exists()
    assert f"{found.points[0].quality:.2f}" in said.output
    scores = ChannelScores.load(out / "scores.safetensors")
    assert plan_channels(scores, scores.method(ratio=0.2)).ratio == found.points[1].ratio
    for option, given in (("--ratios", "half"), ("--method", "[]"), ("--method", '{"ratio": 0.3}')):
        refused = CliRunner().invoke(app, [*command, option, given]).exception
        assert isinstance(refused, PrunusError)
        assert refused.field == option


def test_budgets_out_of_reach_are_refused_before_anything_is_measured() -> None:
    case = build("llama", 2)
    methods = [Calibrated(ratio=0.2, compensation="none"), Calibrated(max_parameters=1, compensation="none")]
    with pytest.raises(PrunusError, match="max_parameters"):
        sweep(case.model, methods, [case.inputs], options=QUIET, measure=lambda _: pytest.fail("it measures"))


def test_the_front_is_what_no_other_point_beats() -> None:
    shape = {"budget": {}, "ratio": 0.0, "macs": 1.0, "bytes": 1.0, "milliseconds": None}
    points = [
        Point(**shape, parameters=size, quality=loss)
        for size, loss in ((4, 1.0), (3, 2.0), (3, 1.5), (2, 1.6), (1, 9.0), (1, 9.0))
    ]
    found = Sweep(quality="loss", higher_is_better=False, points=tuple(points)).with_front()
    assert ["parameters" in point.front for point in found.points] == [True, False, True, True, True, True]
    turned = found.model_copy(update={"higher_is_better": True}).with_front()
    assert ["parameters" in point.front for point in turned.points] == [False, False, False, False, True, True]
