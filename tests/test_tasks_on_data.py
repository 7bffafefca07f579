"""Tasks over a user's own data: from a folder of images and a JSONL file to pruned, repaired and evaluated models of every family."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import prunus
from prunus import PrunusError
from prunus.checkpoint import load_model
from prunus.evaluation import evaluate_here, read_task
from prunus.extensions import load_extension
from prunus.recipe import Recipe, parse_recipe
from prunus.run import run
from prunus.steps import Bench, PruneStep, RepairStep
from prunus.tasks import Caption, DataTask, EasyVQA, Instruction, Task, Vqa
from prunus.typed import known
from prunus.unstructured import sparsity_of
from tests.speakers import SPEAKERS, pictures, save

ROOT = Path(__file__).parents[1]
STRANGERS = ROOT / "tests" / "strangers"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))


def model(name: str, tmp_path: Path) -> Path:
    if name == "smolvlm":
        pytest.importorskip("num2words")
    return save(name, tmp_path / "model")


def data(tmp_path: Path) -> dict[str, Any]:
    file = str(pictures(tmp_path / "pictures"))
    return {"train": {"layout": "table", "files": file}, "evaluation": {"layout": "table", "files": file}}


def compressed(task: DataTask, dense: Path, tmp_path: Path) -> Path:
    """Pruned, and repaired."""
    task.check()
    task.check_model(dense)
    task = task.for_model(dense)
    prune = PruneStep.model_validate({
        "step": "prune", "method": {"method": "wanda", "sparsity": 0.5}, "calibration": {"samples": 4, "batch_size": 2},
    })  # fmt: skip
    bench = Bench(task, 0, tmp_path / "1-prune", current=dense, unpruned=dense, dense=dense)
    prune.carry_out(bench)
    method = {"method": "lora" if type(task) is Caption else "ressa", "rank": 2}
    repair = RepairStep.model_validate({
        "step": "repair", "method": method, "train": {"steps": 2, "batch_size": 2, "learning_rate": 0.001, "bf16": False},
    })  # fmt: skip
    after = Bench(task, 0, tmp_path / "2-repair", current=bench.output, unpruned=dense, dense=dense)
    assert repair.carry_out(after)["log"]
    return after.output


QUICK = ("blip2_opt", "qwen2_vl", "blip_answers", "blip_captions")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in SPEAKERS]
)
def test_a_folder_of_images_and_questions_takes_a_model_through(name: str, tmp_path: Path) -> None:
    if name == "blip_captions":
        task: DataTask = Caption(**data(tmp_path), new_tokens=4, beams=2)
        pytest.importorskip("pycocoevalcap.cider.cider")
    else:
        task = Vqa(**data(tmp_path), new_tokens=3, batch_size=3)
    folder = compressed(task, model(name, tmp_path), tmp_path)
    record = sparsity_of(load_model(folder))
    assert record is not None
    assert (
        0.4
        < sum(one.pruned for one in record.matrices.values()) / sum(one.weights for one in record.matrices.values())
        < 0.6
    )
    found = evaluate_here(folder, task, 2, exhibits=2)
    assert [len(one.pictures) > 0 and bool(one.right) for one in found.exhibits] == [True, True]
    assert all(math.isfinite(value) for value in found.metrics.values())
    assert task.headline in found.metrics
    assert (folder / "tokenizer.json").exists()


@pytest.mark.long
@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "instructblip_vicuna", "gemma3"])
def test_chats_repair_a_model(name: str, tmp_path: Path) -> None:
    task = Instruction(**data(tmp_path))
    folder = compressed(task, model(name, tmp_path), tmp_path)
    evaluated = evaluate_here(folder, task, 2, exhibits=2)
    assert [bool(one.asked and one.right) for one in evaluated.exhibits] == [True, True]
    found = evaluated.metrics
    assert found["perplexity_low"] <= found["perplexity"] <= found["perplexity_high"]


def test_perplexity_is_over_all_tokens_of_the_assistant(tmp_path: Path) -> None:
    dense = model("llava", tmp_path)
    task = Instruction(**data(tmp_path)).for_model(dense)
    loaded = load_model(dense).eval()
    table = task.rows("evaluation")
    found = task.evaluate(loaded, limit=3, progress=False)["perplexity"]
    with torch.no_grad():
        predictions = [task.predict(loaded, task.collate([table[place]])) for place in range(3)]
        every = task.predict(loaded, task.collate([table[place] for place in range(3)]))
    counts = [int(one.counted.sum()) for one in predictions]
    total = sum(float(one.loss) * count for one, count in zip(predictions, counts, strict=True))
    assert found == pytest.approx(math.exp(total / sum(counts)), rel=1e-5)
    assert found == pytest.approx(math.exp(float(every.loss)), rel=1e-4)  # padding counts for nothing


def test_accuracy_is_that_of_what_the_model_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight questions, two are about something red, of which seven of ten people say so."""
    dense = model("llava", tmp_path)
    task = Vqa(**data(tmp_path)).for_model(dense)
    monkeypatch.setattr(
        type(task.kind), "generate", lambda self, model, images, prompts, *more, **how: ["The red."] * len(prompts)
    )
    found = task.evaluate(load_model(dense), progress=False)
    assert found["accuracy"] == found["accuracy_other"] == pytest.approx(2 / 8)
    assert "accuracy_yes_no" not in found
    assert found["accuracy_low"] < found["accuracy"] < found["accuracy_high"]


def test_ranking_takes_the_likeliest_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = model("blip_answers", tmp_path)
    answers = tmp_path / "answers.txt"
    answers.write_text("blue\n\ngreen\nblue\n")
    task = Vqa(**data(tmp_path), answer_by="ranking", candidates=answers).for_model(dense)
    assert task.choices == ["blue", "green"]
    listed = tmp_path / "answers.json"
    listed.write_text('["blue", "green"]')
    assert Vqa(**data(tmp_path), answer_by="ranking", candidates=listed).choices == ["blue", "green"]
    loaded = load_model(dense).eval()
    assert set(task.evaluate(loaded, limit=4, progress=False)) >= {"accuracy"}
    likely = torch.tensor([[-1.0, -2.0]])
    monkeypatch.setattr(type(task.kind), "score", lambda self, model, images, *more: likely.expand(len(images), -1))
    assert task.evaluate(loaded, progress=False)["accuracy"] == pytest.approx(2 / 8)
    given = Vqa(**data(tmp_path), answer_by="ranking")
    assert given.choices == ["black", "red", "green", "blue", "white"]  # the most frequent first
    monkeypatch.setattr("prunus.tasks.vqa.MOST_CANDIDATES", 2)
    assert Vqa(**data(tmp_path), answer_by="ranking").choices == ["black", "red"]


@pytest.mark.parametrize("name", ["blip_answers", "blip_captions", "llava", "blip2_t5"])
def test_how_long_answers_are_can_be_said(name: str, tmp_path: Path) -> None:
    dense = model(name, tmp_path)
    loaded, task = load_model(dense).eval(), Vqa(**data(tmp_path), new_tokens=6, beams=2).for_model(dense)
    rows = [task.rows("evaluation")[place] for place in range(2)]
    assert len(task.written(loaded, rows)) == 2
    asked: list[dict[str, Any]] = []
    task = task.model_copy(update={"least_tokens": 5, "length_penalty": -1.0})
    decoder = getattr(loaded, "text_decoder", getattr(loaded, "language_model", loaded))
    generate = type(decoder).generate
    with mock.patch.object(
        type(decoder), "generate", lambda self, *args, **how: asked.append(how) or generate(self, *args, **how)
    ):
        task.written(loaded, rows)
    assert {(how["min_new_tokens"], how["length_penalty"], how["num_beams"]) for how in asked} == {(5, -1.0, 2)}


def test_every_caption_is_trained_on_with_its_image(tmp_path: Path) -> None:
    dense = model("blip_captions", tmp_path)
    task = Caption(**data(tmp_path)).for_model(dense)
    items = task.train_data()
    assert len(items) == 16  # type: ignore[arg-type]
    batch = task.collate([items[2], items[3]])
    read = [task.kind.processor.tokenizer.decode(row, skip_special_tokens=True) for row in batch["input_ids"]]
    assert read == ["a picture of a green square", "a picture of all is green"]
    learnt = [task.kind.processor.tokenizer.decode(row[row >= 0], skip_special_tokens=True) for row in batch["labels"]]
    assert [text.strip() for text in learnt] == ["a green square", "all is green"]
    torch.testing.assert_close(batch["pixel_values"][0], batch["pixel_values"][1])


def test_captions_are_scored_against_all_of_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocoevalcap.cider.cider")
    dense = model("blip_captions", tmp_path)
    task = Caption(**data(tmp_path), scores=("bleu_1", "cider")).for_model(dense)
    assert (task.headline, task.metrics["cider"].unit, task.metrics["bleu_1"].unit) == ("bleu_1", "plain", "share")
    monkeypatch.setattr(
        type(task.kind), "generate", lambda self, model, images, prompts, *more, **how: ["All is red"] * len(prompts)
    )
    found = task.evaluate(load_model(dense), progress=False)
    assert set(found) == {"bleu_1", "cider"}  # no interval of a score that is no mean
    assert found["bleu_1"] == pytest.approx((2 * 3 + 6 * 2) / (8 * 3))


@pytest.mark.long
def test_a_recipe_takes_a_model_from_a_config_to_a_report(tmp_path: Path) -> None:
    """A random model that is trained, searched, pruned and repaired on a user's own data, by a recipe."""
    given = model("blip_answers", tmp_path)
    config = json.loads((given / "config.json").read_text())
    short = {"steps": 2, "batch_size": 2, "learning_rate": 0.001, "bf16": False}
    recipe = Recipe.model_validate({
        "model": {"random": config, "train": [short]},
        "task": {"name": "vqa", "processor": str(given), **data(tmp_path)},
        "steps": [
            {"step": "search", "method": {"method": "upop", "ratio": 0.3}, "train": short},
            {"step": "prune", "method": {"method": "wanda", "sparsity": 0.5}, "calibration": {"samples": 4, "batch_size": 2}},
            {"step": "repair", "method": {"method": "masked_finetune"}, "train": short},
        ],
        "measure": {"batch_size": 1, "repeats": 1},
        "output": str(tmp_path / "run"),
    })  # fmt: skip
    report = run(recipe)
    assert report.headline == "accuracy"
    assert report.ratio == pytest.approx(0.3, abs=0.1)
    assert report.sparsity == pytest.approx(0.5, abs=0.02)
    assert set(report.models["dense"]["metrics"]) >= {"accuracy", "accuracy_low"}
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"prompt": "{quetion}?"}, "{quetion} is no column with words"),
        ({"prompt": "{image}?"}, "{image} is no column with words"),
        ({"prompt": "{}?"}, "{} is no column with words"),
        ({"prompt": "{question"}, "for braces that are meant"),
        ({"prompt": "{text}: {question}"}, "no such column"),
        ({"evaluation": {"layout": "table", "files": "nowhere.jsonl"}}, "task.evaluation"),
        ({"answer_by": "ranking", "candidates": "nowhere.txt"}, "task.candidates"),
        ({"candidates": ["red"]}, "answer_by: ranking"),
        ({"answer_by": "ranking", "candidates": []}, "task.candidates"),
        ({"processor": "/nowhere"}, "nowhere"),
        ({"least_tokens": 20}, "least_tokens"),
        ({"length_penalty": -1.0}, "take more beams"),
        ({"evaluation": None}, "task.evaluation"),
    ],
)
def test_what_cannot_work_is_refused(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    dense = model("blip_answers", tmp_path)
    with pytest.raises(PrunusError, match=match):
        evaluate_here(dense, Vqa(**data(tmp_path) | change), 2)


def test_a_model_that_says_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit", "architectures": ["ViTForImageClassification"]}')
    with pytest.raises(PrunusError, match="ViTForImageClassification"):
        Vqa(**data(tmp_path)).check_model(tmp_path)


def test_a_task_of_ones_own_is_one_short_file(tmp_path: Path) -> None:
    """One file of at most 120 lines, and, for ours, one line where tasks are gathered."""
    load_extension(STRANGERS / "own_data_task.py")
    assert (STRANGERS / "own_data_task.py").read_text() in (ROOT / "docs/your-own-data.md").read_text()
    settings = {"name": "own_caption", "batch_size": 4, **data(tmp_path)}
    task = read_task(json.dumps(settings))
    assert isinstance(task, DataTask)
    folder = compressed(task, model("llava", tmp_path), tmp_path)
    found = evaluate_here(folder, read_task(json.dumps(settings)), 2).metrics
    assert 0 <= found["accuracy"] <= 1


def test_every_task_over_data_is_one_short_file_and_one_line() -> None:
    room = Path(prunus.tasks.__file__).parent
    gathered = (room / "__init__.py").read_text().splitlines()
    found = [
        cls
        for cls in known(Task, "name").values()
        if issubclass(cls, DataTask) and cls.__module__.startswith("prunus.")
    ]
    assert {"vqa", "caption", "instruction"} <= {cls.model_fields["name"].default for cls in found}
    for cls in (*found, EasyVQA):
        file = Path(inspect.getfile(cls))
        assert file.parent == room
        assert len(file.read_text().splitlines()) <= 120, file.name
        assert len([line for line in gathered if line == f"from {cls.__module__} import {cls.__name__}"]) == 1


def test_a_row_without_a_column_of_the_prompt_is_refused_or_left_out(tmp_path: Path) -> None:
    source = data(tmp_path)["train"]
    file = Path(source["files"])
    rows = [
        json.loads(line) | {"text": None if at == 2 else f"text {at}"}
        for at, line in enumerate(file.read_text().splitlines())
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    task = Vqa(train=source, prompt="{text}: {question}")
    with pytest.raises(PrunusError, match=r"rows.jsonl:3: text = None"):
        task.check()
    task = Vqa(train=source | {"on_broken": "skip"}, prompt="{text}: {question}")
    task.check()
    assert len(task.rows("train")) == 7


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_chats_with_any_number_of_pictures_can_be_augmented(pictures: int, tmp_path: Path) -> None:
    source = data(tmp_path)["train"]
    file = Path(source["files"])
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    names = [row["image"] for row in rows]
    for at, row in enumerate(rows[:-1]):  # the last has one in any case
        del row["image"]
        if pictures == 1:
            row["images"] = [names[at]]
        elif pictures:
            row["images"] = names[at : at + pictures]
    file.write_text("\n".join(map(json.dumps, rows)))
    dense = model("llava", tmp_path)
    task = Instruction(train=source, augment={"augmentation": "blip"}).for_model(dense)  # type: ignore[arg-type]
    items: Any = task.train_data()
    batch = task.collate([items[0], items[7]])
    assert len(batch["pixel_values"]) == pictures + 1
    assert task.predict(load_model(dense), batch).loss.isfinite()


def test_a_model_that_takes_pictures_of_any_size_takes_no_versions(tmp_path: Path) -> None:
    dense = model("qwen2_vl", tmp_path)
    with pytest.raises(PrunusError, match=r"task\.augment"):
        Instruction(**data(tmp_path), augment={"augmentation": "blip"}).check_model(dense)


def test_stored_logits_are_refused_where_pictures_change(tmp_path: Path) -> None:
    short = {"steps": 1, "batch_size": 2, "learning_rate": 0.001}
    settings: dict[str, Any] = {
        "model": {"path": str(tmp_path)}, "output": str(tmp_path / "run"),
        "task": {"name": "vqa", "augment": {"augmentation": "blip"}, **data(tmp_path)},
        "steps": [
            {"step": "prune", "method": {"method": "wanda", "sparsity": 0.5}},
            {"step": "repair", "method": {"method": "ressa", "distillation": {"top_k": 4}}, "train": short},
        ],
    }  # fmt: skip
    with pytest.raises(PrunusError, match=r"steps\.1\.method\.distillation\.top_k = 4"):
        parse_recipe(json.dumps(settings), "recipe")
