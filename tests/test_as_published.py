"""The paper's columns of parameters and multiply-accumulates, from the sizes of the published models alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
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


def test_inspect_prints_the_count(tmp_path: Path) -> None:
    model = build("blip_caption", 0).model
    model.save_pretrained(tmp_path)
    result = CliRunner().invoke(app, ["inspect", str(tmp_path), "--as-published"])
    count = as_published(model)
    assert (
        f"as published: {count.parameters:,} parameters, {count.parameters + count.masks:,} with masks" in result.output
    )


def test_a_model_that_the_paper_lacks_is_refused() -> None:
    with torch.device("meta"), pytest.raises(PrunusError, match="the paper has no such model"):
        as_published(build("llama", 0).model)
