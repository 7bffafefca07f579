"""Other people's harnesses on models that speak about images: lm-evaluation-harness itself, and lmms-eval by a stub of its interface."""

from __future__ import annotations

import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import datasets
import pytest
from typer.testing import CliRunner

from prunus import PrunusError, load_model
from prunus.cli import app
from prunus.evaluation import harness_scores, lmms_scores
from prunus.tasks import Speaker, kind_of
from tests import speakers

ASKED = "Which colour is it?"


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speakers.save("llava", tmp_path_factory.mktemp("harness") / "llava")


def said(folder: Path, name: str, new_tokens: int) -> str:
    kind = kind_of(Speaker, str(folder))  # type: ignore[type-abstract]
    return kind.generate(load_model(folder).eval(), [[picture(name)]], [ASKED], new_tokens)[0]


def picture(name: str) -> Any:
    return speakers.Image.new("RGB", (20, 24), speakers.COLORS[name])


def test_lm_eval_shows_images_to_models_that_see(llava: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra `eval`")
    features = datasets.Features({"image": datasets.Image(), "answer": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"image": [picture("red"), picture("blue")], "answer": ["red", "blue"]}, features)
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    (tmp_path / "colours.yaml").write_text(
        f"""
task: prunus_colours
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.parquet"}}}}}
test_split: test
output_type: generate_until
doc_to_image: [image]
doc_to_text: "<image>{ASKED}"
doc_to_target: answer
generation_kwargs: {{until: ["\\n"], max_gen_toks: 3}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
    )
    assert set(harness_scores(llava, ["prunus_colours"], batch_size=2, task_folder=tmp_path)) == {
        "prunus_colours exact_match"
    }


@pytest.fixture
def lmms(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What of lmms-eval is called, and calls: its evaluator shows a model two documents of a task."""
    told = SimpleNamespace(
        how={"max_new_tokens": 4, "temperature": 0, "do_sample": False}, answers=[], given={}, kind="generate_until"
    )

    class Base:
        def __init__(self) -> None:
            self.task_dict: dict[str, Any] = {}

    def simple_evaluate(model: Any, tasks: list[str], limit: int | None, **given: Any) -> dict[str, Any]:
        told.given = given
        model.task_dict = {
            task: {"test": [{"picture": picture("red")}, {"picture": picture("blue")}]} for task in tasks
        }
        asked = [
            SimpleNamespace(args=(ASKED, told.how, lambda document: [document["picture"]], document, task, "test"))
            for task in tasks
            for document in range(2)[:limit]
        ]
        told.answers = getattr(model, told.kind)(asked)
        return {
            "results": {
                task: {"alias": task, "exact,none": 0.5, "exact_stderr,none": 0.1, "found,all": 3, "samples": 2}
                for task in tasks
            }
        }

    parts: dict[str, dict[str, Any]] = {
        "lmms_eval": {}, "lmms_eval.api": {}, "lmms_eval.api.model": {"lmms": Base},
        "lmms_eval.evaluator": {"simple_evaluate": simple_evaluate},
        "lmms_eval.tasks": {"TaskManager": lambda model_name: SimpleNamespace(all_tasks=["colours"])},
    }  # fmt: skip
    for name, inside in parts.items():
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(inside)
        monkeypatch.setitem(sys.modules, name, module)
    return told


def test_lmms_eval_is_answered_as_our_own_tasks_are(llava: Path, lmms: Any) -> None:
    assert lmms_scores(llava, ["colours"], batch_size=1) == {"colours exact": 0.5, "colours found,all": 3.0}
    assert lmms.answers == [said(llava, "red", 4), said(llava, "blue", 4)]
    assert lmms.given["cli_args"].process_with_media
    whole = lmms.answers[0]
    lmms.how["until"] = [whole[1], "nowhere"]
    told = CliRunner().invoke(
        app, ["evaluate", str(llava), "--tasks", " colours ", "--harness", "lmms-eval", "--limit", "1"]
    )
    assert told.exit_code == 0, told.output
    assert "colours exact" in told.output
    assert lmms.answers == [whole[: whole.index(whole[1])].strip()]


@pytest.mark.parametrize(
    ("kind", "how", "remedy"),
    [
        ("loglikelihood", {}, "likelihoods"),
        ("generate_until_multi_round", {}, "several rounds"),
        ("generate_until", {"temperature": 0.7}, "at random"),
    ],
)
def test_what_lmms_eval_may_not_ask_is_refused(kind: str, how: Any, remedy: str, llava: Path, lmms: Any) -> None:
    lmms.kind = kind
    lmms.how |= how
    with pytest.raises(PrunusError, match=remedy) as refused:
        lmms_scores(llava, ["colours"])
    assert refused.value.value == "colours"


def test_harnesses_that_are_not_there_and_tasks_that_they_lack_are_refused(llava: Path, lmms: Any) -> None:
    with pytest.raises(PrunusError, match="no such task"):
        lmms_scores(llava, ["sounds"])
    for name in [name for name in sys.modules if name.startswith("lmms_eval")]:
        sys.modules.pop(name)
    with pytest.raises(PrunusError, match="not installed"):
        lmms_scores(llava, ["colours"])
    refused = CliRunner().invoke(app, ["evaluate", str(llava), "--harness", "lmms-eval"]).exception
    assert isinstance(refused, PrunusError)
    assert refused.field == "--harness"
