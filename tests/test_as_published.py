"""The paper's columns of parameters and multiply-accumulates, from the sizes of the published models alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.published_compressed import ROWS, Component, Row, between, costs, is_printed, judged, most, narrowed
from benchmarks.published_compressed import counted as counted_row
from benchmarks.published_counts import counted
from typer.testing import CliRunner

from prunus import PrunusError
from prunus.cli import app
from prunus.models import as_published
from tests.families import build

COUNTS = {
    "BLIP-NLVR": (259_372_034, 259_448_834, "132.5407"),
    "BLIP-Caption": (223_971_644, 224_047_676, "65.720"),
    "BLIP-VQA": (361_478_972, 361_593_404, "186.12"),
    "BLIP-Retrieval": (447_486_979, 447_563_011, "153.24"),
    "CLIP ViT-L/14": (855_888_385, 856_025_857, "395.707"),
    "DeiT-S": (22_050_664, 22_069_864, "4.608"),
    "Segmenter-S": (26_418_964, 26_441_364, "38.62"),
}
"""Model → parameters, with masks, G multiply-accumulates."""


@pytest.mark.parametrize("name", COUNTS)
def test_uncompressed_models_count_what_the_paper_prints(name: str) -> None:
    parameters, with_masks, flops = COUNTS[name]
    count = counted(name)
    assert (count.parameters, count.parameters + count.masks) == (parameters, with_masks)
    assert f"{count.flops / 1e9:.{len(flops.partition('.')[2])}f}" == flops


def test_half_of_every_unit_leaves_what_the_paper_says() -> None:
    assert f"{counted('BLIP-NLVR, half of every unit').parameters / 1e6:.2f}" == "146.03"


def test_mask_based_pruning_of_nlvr_leaves_what_the_paper_prints() -> None:
    """146.18 million parameters and 66.88 G: half of every component, but for the channel at its cut."""
    row = next(row for row in ROWS if (row.model, row.method) == ("BLIP-NLVR", "mask-based"))
    count = counted_row(row)
    assert count is not None
    assert (count.parameters, f"{count.flops / 1e9:.2f}") == (146_184_340, "66.88")
    assert judged(row)[2] == "M yes, G yes"


@pytest.mark.parametrize("name", ["DeiT-S", pytest.param("BLIP-Retrieval", marks=pytest.mark.long)])
def test_channels_cost_what_leaves_with_them(name: str) -> None:
    """Of the model and, in the second, of its momentum copies; parameters to the unit."""
    model = costs(name)
    kept = {component: part.channels // 3 + place for place, (component, part) in enumerate(model.components.items())}
    count = narrowed(name, kept)
    gone = {component: part.channels - kept[component] for component, part in model.components.items()}
    parameters = sum(part.parameters * gone[component] for component, part in model.components.items())
    macs = sum(part.macs * gone[component] for component, part in model.components.items())
    assert count.parameters == model.dense.parameters - parameters
    assert count.flops == pytest.approx(model.dense.flops - macs, rel=1e-9)


def test_no_plan_of_a_ratio_leaves_more_or_less_than_is_said() -> None:
    parts = [Component(10, 9, 3.0, 5.0, 2.0), Component(20, 18, 1.0, 1.5, 4.0)]
    plans = [(first, second) for first in range(10) for second in range(19) if 3 * first + second == 24]
    worth = [5.0 * first + 1.5 * second for first, second in plans]
    assert most(parts, [5.0, 1.5], 24) == pytest.approx(max(worth), abs=5.0)
    assert most(parts, [5.0, 1.5], 24) >= max(worth)
    assert -most(parts, [-5.0, -1.5], 24) <= min(worth)


def test_what_a_plan_of_a_ratio_leaves_lies_between_what_is_said() -> None:
    """Also where its multiply-accumulates are asked with its parameters."""
    model = costs("DeiT-S")
    attention, mlp = model.components["vision.attention"], model.components["vision.mlp"]
    gone = 100
    ratio = (attention.cost * gone + 3 * gone) / (attention.cost * attention.channels + mlp.channels)
    count = narrowed("DeiT-S", {"vision.attention": attention.channels - gone, "vision.mlp": mlp.channels - 3 * gone})
    (least, largest), macs = between(Row("DeiT-S", "UPop", ratio, f"{count.parameters / 1e6:.6f}", ""))
    assert least <= count.parameters <= largest
    assert macs is not None
    assert macs[0] == pytest.approx(count.flops, rel=1e-3)  # two kinds of channels and two conditions: one plan
    assert macs[1] == pytest.approx(count.flops, rel=1e-3)
    assert between(Row("DeiT-S", "UPop", ratio, "3.0", ""))[1] is None
    assert is_printed(3.04, "3.0")
    assert not is_printed(3.06, "3.0")


@pytest.mark.long
def test_each_of_the_seven_has_compressed_rows_that_are_as_printed() -> None:
    said = {(row.model, row.method, row.ratio): judged(row)[2] for row in ROWS}
    assert {model for model, _, _ in said} == COUNTS.keys()
    assert [row for row, verdict in said.items() if "outside" in verdict] == [("Segmenter-S", "UPop", 0.3)]
    exact = [row[0] for row, verdict in said.items() if verdict == "M yes, G yes"]
    assert {"BLIP-NLVR", "BLIP-VQA", "DeiT-S"} <= set(exact)


def test_inspect_prints_the_count(tmp_path: Path) -> None:
    model = build("blip_caption", 0).model
    model.save_pretrained(tmp_path)
    result = CliRunner().invoke(app, ["inspect", str(tmp_path), "--as-published"])
    count = as_published(model)
    assert (
        f"as published: {count.parameters:,} parameters, {count.parameters + count.masks:,} with masks" in result.output
    )
    assert f"({count.macs / 1e9:.4f} G without norms and resizing)" in result.output
    assert count.macs < count.flops


@pytest.mark.parametrize("name", ["clip_retrieval", "blip_retrieval"])
def test_counting_changes_nothing(name: str) -> None:
    config = build(name, 0).model.config
    config.text_config.max_position_embeddings = 80
    model = type(build(name, 0).model)(config).train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    as_published(model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert model.training


def test_a_model_that_the_paper_lacks_is_refused() -> None:
    with torch.device("meta"), pytest.raises(PrunusError, match="the paper has no such model"):
        as_published(build("llama", 0).model)
