"""Tasks over a user's own pictures that compare, classify, judge and segment: from a small folder of data through a recipe, both roads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from prunus import PrunusError, WalkOptions, load_model, narrow
from prunus.cli import app
from prunus.evaluation import read_task
from prunus.metrics import overlap_figures, overlap_row, recall_figures, recall_rows
from prunus.recipe import parse_recipe
from prunus.run import run
from prunus.steps.narrow import NarrowStep
from prunus.tasks import Classification, DataTask, Reasoning, Retrieval, Segmentation
from prunus.tasks.kinds.parts import pixels
from prunus.tasks.retrieval import blip_words
from prunus.training import Training, finetune
from tests.lookers import COLOURS, SIDE, captioned, coloured, judged, masked, picture, saved

pytestmark = pytest.mark.usefixtures("own_cache")


def table(file: Path) -> dict[str, Any]:
    return {"layout": "table", "files": str(file)}


def task(name: str, folder: Path, **more: Any) -> dict[str, Any]:
    """A task with data, by its name."""
    makers = {"retrieval": captioned, "reasoning": judged, "segmentation": masked}
    if name == "classification":
        data: dict[str, Any] = {"layout": "imagefolder", "folder": str(coloured(folder))}
    else:
        data = table(makers[name](folder))
    return {"name": name, "train": data, "evaluation": data, **more}


def made(name: str, model: str, folder: Path, **more: Any) -> tuple[Any, Any]:
    """A task as a model needs it, and the model."""
    path = saved(model, folder / "model")
    found = read_task(json.dumps(task(name, folder / "data", **more)))
    found.check()
    found.check_model(path)
    return found.for_model(path), load_model(path).eval()


@pytest.mark.parametrize("method", [{"score": {"score": "gradient"}}, {"allocation": {"method": "ecoflap"}}])
def test_what_asks_for_the_loss_of_a_narrowing_is_given_the_task_s(method: dict[str, Any], tmp_path: Path) -> None:
    found, model = made("segmentation", "segmenter", tmp_path)
    settings = {"ratio": 0.3, "compensation": "bias", **method}
    step = NarrowStep.model_validate({"method": settings, "calibration": {"samples": 4, "batch_size": 2}})
    assert step.method is not None
    with pytest.raises(PrunusError, match="returned none for these batches"):
        narrow(model, step.method, found.calibration(4, 2), options=WalkOptions(progress=False))
    batches, loss = found.shown(4, 2, step.method.asks_for_loss)
    small, plan = narrow(model, step.method, batches, options=WalkOptions(progress=False), loss=loss)
    assert plan.ratio == pytest.approx(0.3, abs=0.03)
    assert float(found.loss(small, batches[0])) > 0


@pytest.mark.usefixtures("quick_reports")
@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "model", "more"),
    [
        ("classification", "vit", {"label_smoothing": 0.1, "augment": {"augmentation": "deit", "repeats": 2}}),
        ("classification", "clip", {"templates": ["a photo of {}", "plain {}"]}),
        ("classification", "siglip", {}),
        ("retrieval", "clip", {}),
        ("retrieval", "two_encoders", {}),
        ("retrieval", "clip_retrieval", {"augment": {"augmentation": "blip"}, "words": "blip", "length": 8}),
        ("retrieval", "blip_retrieval", {"rerank": 10}),
        ("reasoning", "blip_nlvr", {"augment": {"augmentation": "blip"}}),
        ("segmentation", "segmenter", {"augment": {"augmentation": "segmenter"}, "scales": [0.5, 1], "mirror": True, "ignore": [3]}),
    ],
)  # fmt: skip
def test_both_roads_of_a_recipe_end_in_a_report(
    name: str, model: str, more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "model": {"path": str(saved(model, tmp_path / "model"))},
        "task": task(name, tmp_path / "data", **more),
        "measure": {"batch_size": 2, "repeats": 1},
        "evaluate_limit": 6,
    }
    training = {"steps": 2, "batch_size": 4, "learning_rate": 1.0e-3, "evaluate_every": 2, "save_every": 2}
    roads = {
        "search": [
            {"step": "search", "method": {"method": "upop", "ratio": 0.3}, "train": training},
            {"step": "retrain", "train": training},
        ],
        "prune": [
            {"step": "prune", "method": {"method": "wanda", "sparsity": 0.5}, "calibration": {"samples": 6, "batch_size": 3}},
            {"step": "repair", "method": {"method": "masked_finetune"}, "train": training},
        ],
    }  # fmt: skip
    begun: list[tuple[int, int]] = []
    monkeypatch.setattr(DataTask, "before_step", lambda self, model, step, steps: begun.append((step, steps)))
    for road, steps in roads.items():
        recipe = parse_recipe(json.dumps({**settings, "steps": steps, "output": str(tmp_path / road)}), "test")
        monkeypatch.setattr(type(recipe.task), "before_step", DataTask.before_step)
        report = run(recipe)
        assert begun == [(0, 2), (1, 2)] * (2 if road == "search" else 1)  # a task changes any training in its course
        begun.clear()
        headline = report.headline
        assert "are in task.train, too" in report.remarks[0]
        assert report.remarks[0] in (tmp_path / road / "report.html").read_text()
        for found in report.models.values():
            metrics = found["metrics"]
            assert metrics[f"{headline}_low"] <= metrics[headline] <= metrics[f"{headline}_high"]
        assert report.ratio > 0.2 if road == "search" else report.sparsity == pytest.approx(0.5, abs=0.02)
        assert report.rows[0][0] == headline.replace("_", " ")
        assert " to " in report.rows[0][1]
        assert [set(sample.said) for sample in report.samples] == [{"dense", "compressed"}] * 6
        assert all(sample.pictures and sample.right for sample in report.samples)
        assert all(0 < share < 1 for shares in report.passed_over.values() for share in shares.values())
        out = tmp_path / f"{road}.json"
        small = sorted((tmp_path / road).glob("2-*/model"))[0]
        app(
            ["evaluate", str(small), "--task", json.dumps(settings["task"]), "--limit", "6", "--json", str(out)],
            standalone_mode=False,
        )
        again = json.loads(out.read_text())["metrics"]
        assert again == pytest.approx(report.models["compressed"]["metrics"])


def test_calibration_and_measuring_take_pictures_as_they_are(tmp_path: Path) -> None:
    found, _ = made("classification", "vit", tmp_path, augment={"augmentation": "deit", "repeats": 2})
    still = read_task(json.dumps({**task("classification", tmp_path / "data")})).for_model(tmp_path / "model")
    for one, other in zip(found.calibration(4, 2), still.calibration(4, 2), strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"])
    data = found.train_data()
    batch = found.collate([data[0], data[5]])
    assert batch["pixel_values"].shape == (4, 3, SIDE, SIDE)
    assert batch["labels"].tolist() == [batch["labels"][0]] * 2 + [batch["labels"][2]] * 2
    assert not torch.equal(batch["pixel_values"][0], batch["pixel_values"][1])


@pytest.mark.parametrize("workers", [0, 2])
def test_every_epoch_has_its_versions_and_a_resumed_training_sees_the_same(tmp_path: Path, workers: int) -> None:
    found, _ = made("classification", "vit", tmp_path, augment={"augmentation": "blip"})
    for number, file in enumerate(
        sorted((tmp_path / "data").glob("*/*.png"))
    ):  # of plain colours many versions are one
        noise = np.random.default_rng(number).integers(0, 255, (20, 20, 3), np.uint8)
        Image.fromarray(noise).save(file)
    training = Training(steps=6, batch_size=8, learning_rate=1e-3, save_every=4, bf16=False, workers=workers)

    def trained(folder: Path, dies_at: int | None = None) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """What every step saw, and the weights that come out."""
        model, seen = load_model(tmp_path / "model"), []

        def loss(model: Any, batch: Any) -> torch.Tensor:
            if len(seen) == dies_at:
                raise KeyboardInterrupt
            seen.append(batch["pixel_values"])
            return found.loss(model, batch)  # type: ignore[no-any-return]

        try:
            finetune(model, training, folder, found.train_data(), found.collate, loss)
        except KeyboardInterrupt:
            assert dies_at is not None
        return seen, model.state_dict()

    whole, weights = trained(tmp_path / "whole")
    first, second = (torch.cat(whole[start : start + 3]).flatten(1) for start in (0, 3))
    assert torch.cdist(first, second).min() > 0
    begun, _ = trained(tmp_path / "again", dies_at=5)
    rest, others = trained(tmp_path / "again")
    assert (len(begun), len(rest)) == (5, 2)
    assert all(torch.equal(one, other) for one, other in zip(whole[4:], rest, strict=True))
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_classifier_s_accuracy_is_counted(tmp_path: Path) -> None:
    found, model = made("classification", "vit", tmp_path)
    table = found.rows("evaluation")
    pictures = [found.images(row)[0] for row in table]
    with torch.no_grad():
        said = model(pixel_values=pixels(found.kind.processor, pictures)).logits.argmax(1)
    share = float((said == torch.tensor(table["label"])).double().mean())
    metrics = found.evaluate(model, progress=False)
    assert metrics["top1"] == pytest.approx(share)
    assert metrics["top5"] == 1
    assert found.names == sorted(COLOURS)


def test_a_classifier_learns_colours(tmp_path: Path) -> None:
    found, model = made("classification", "vit", tmp_path)
    data: Any = found.train_data()
    batch = found.collate([data[place] for place in range(len(data))])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        found.loss(model, batch).backward()
        optimizer.step()
    assert found.evaluate(model, progress=False)["top1"] == 1


def test_recall_is_that_of_all_scores(tmp_path: Path) -> None:
    path, file = (
        saved("blip_retrieval", tmp_path / "model"),
        captioned(tmp_path / "data", 4),
    )  # all different, so that none are equal
    found: Any = Retrieval(train=table(file), evaluation=table(file), batch_size=3).for_model(path)
    model = load_model(path).eval()
    rows = found.rows("evaluation")
    texts = [caption for row in rows for caption in row["captions"]]
    owners = [place for place, row in enumerate(rows) for _ in row["captions"]]
    features, _ = found.kind.embed_images(model, [found.images(row)[0] for row in rows])
    similar = features @ found.kind.embed_texts(model, texts).T
    expected = recall_figures(recall_rows(similar, similar.T, owners).sum(0))
    metrics = found.evaluate(model, progress=False)
    assert {name: metrics[name] for name in expected} == pytest.approx(
        {k: float(v) for k, v in expected.items()}, abs=1e-6
    )
    assert len(metrics) == 9


def test_the_best_candidates_are_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Similarities and scores of matching from tables: 16 pictures, 32 texts, of which 10 each are looked at again."""
    path, file = saved("blip_retrieval", tmp_path / "model"), captioned(tmp_path / "data", 16)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    texts = [f"text {number}" for number in range(32)]
    for number, row in enumerate(rows):
        row["captions"] = texts[2 * number : 2 * number + 2]
    file.write_text("\n".join(map(json.dumps, rows)))
    torch.manual_seed(0)
    said, again = F.normalize(torch.randn(32, 8), dim=1), 0.5 * torch.randn(16, 32)
    seen = F.normalize(said.view(16, 2, 8).mean(1) + 0.3 * torch.randn(16, 8), dim=1)
    found: Any = Retrieval(evaluation=table(file), rerank=10, batch_size=3).for_model(path)
    pictures = iter(range(16))

    def embed_images(model: Any, images: list[Any]) -> Any:
        numbers = [next(pictures) for _ in images]
        return seen[numbers], torch.tensor(numbers)[:, None]

    monkeypatch.setattr(found.kind, "embed_images", embed_images)
    monkeypatch.setattr(found.kind, "embed_texts", lambda model, some, length: said[[texts.index(one) for one in some]])
    monkeypatch.setattr(found.kind, "tokens", lambda some, length: torch.tensor([texts.index(one) for one in some]))
    monkeypatch.setattr(found.kind, "match", lambda model, states, tokens: again[states[:, 0], tokens])
    similar = seen @ said.T
    of_images, of_texts = (
        torch.where(side >= side.topk(10, 1).values[:, -1:], side + more, -torch.inf)
        for side, more in ((similar, again), (similar.T, again.T))
    )
    expected = recall_figures(recall_rows(of_images, of_texts, [number // 2 for number in range(32)]).sum(0))
    metrics = found.evaluate(load_model(path), progress=False)
    assert {name: metrics[name] for name in expected} == pytest.approx({k: float(v) for k, v in expected.items()})
    assert 0 < metrics["image_r1"] < 1
    with pytest.raises(ValueError, match="rerank"):
        Retrieval(rerank=9)


def test_a_pair_is_a_picture_and_one_of_its_captions_with_the_picture_s_number(tmp_path: Path) -> None:
    found, _ = made("retrieval", "blip_retrieval", tmp_path, words="blip")
    data: Any = found.train_data()
    assert len(data) == 32
    batch = found.collate([data[4], data[5], data[6]])
    assert batch["labels"].tolist() == [2, 2, 3]
    expected = found.kind.tokens(["a photo of blue", "plain blue", "a photo of white"])["input_ids"]
    assert torch.equal(batch["input_ids"], expected)
    with pytest.raises(PrunusError, match="cannot look at pairs again"):
        made("retrieval", "clip", tmp_path / "other", rerank=10)


def test_captions_are_cleaned_as_blip_s_authors_do() -> None:
    assert blip_words('A "dog", (brown):  runs -- fast!\n') == "a dog , brown runs -- fast"
    assert blip_words("one two three four", 3) == "one two three"


def test_a_statement_is_judged_by_the_likelier_label(tmp_path: Path) -> None:
    found, model = made("reasoning", "blip_nlvr", tmp_path)
    rows = list(found.rows("evaluation"))
    logits = found.kind.logits(model, [found.images(row) for row in rows], [row["text"] for row in rows])
    right = [int(a) == int(row["label"]) for a, row in zip(logits.argmax(1), rows, strict=True)]
    assert found.evaluate(model, progress=False)["accuracy"] == pytest.approx(sum(right) / len(right))


def test_one_picture_of_three_boxes_becomes_two_of_two(tmp_path: Path) -> None:
    file = judged(tmp_path / "data", alone=True)
    found = Reasoning(train=table(file), evaluation=table(file))
    row = found.rows("train")[2]
    left, right = found.images(row)
    whole = np.asarray(Image.open(tmp_path / "data" / "2.png"))
    assert np.array_equal(np.asarray(left), whole[:, :40])
    assert np.array_equal(np.asarray(right), whole[:, 20:])
    three = {**row, "images": [picture("red")] * 3}
    with pytest.raises(PrunusError, match=r"jsonl:3: images = 3"):
        found.images(three)


def test_a_segmentation_is_scored_at_the_size_of_its_mask(tmp_path: Path) -> None:
    found, model = made("segmentation", "segmenter", tmp_path, ignore=[0], stride=8)
    total = 0
    for row in found.rows("evaluation"):
        mask = torch.from_numpy(np.array(found.mask(row))).long()
        assert 0 not in mask
        image = found.images(row)[0]
        fit = SIDE / min(image.size)
        resized = image.resize((int(image.width * fit + 0.5), int(image.height * fit + 0.5)), Image.Resampling.BILINEAR)
        with torch.no_grad():
            logits = model.segment(pixels(found.kind.processor, [resized], sized=True), SIDE, 8)
        said = F.interpolate(logits, size=mask.shape, mode="bilinear", align_corners=False)[0].argmax(0)
        total = total + overlap_row(said, mask, 4)
    expected = overlap_figures(total)
    metrics = found.evaluate(model, progress=False)
    assert {name: metrics[name] for name in expected} == pytest.approx(
        {k: float(v) for k, v in expected.items()}, abs=1e-3
    )


def test_training_masks_are_as_large_as_their_pictures(tmp_path: Path) -> None:
    found, _ = made("segmentation", "segmenter", tmp_path)
    data: Any = found.train_data()
    batch = found.collate([data[0], data[1]])
    assert batch["pixel_values"].shape == (2, 3, SIDE, SIDE)
    assert batch["labels"].shape == (2, SIDE, SIDE)
    assert batch["labels"][0, 3].tolist() == [0] * (SIDE // 2) + [1] * (SIDE // 2)
    other = read_task(json.dumps(task("segmentation", tmp_path / "data", augment={"augmentation": "segmenter"})))
    augmented: Any = other.for_model(tmp_path / "model").train_data()
    labels = other.for_model(tmp_path / "model").collate([augmented[place] for place in range(8)])["labels"]
    assert labels.shape == (8, SIDE, SIDE)
    assert set(labels.unique().tolist()) <= {0, 1, 2, 3, 255}


def test_classes_that_differ_are_refused(tmp_path: Path) -> None:
    coloured(tmp_path / "one")
    coloured(tmp_path / "two")
    (tmp_path / "two" / "red").rename(tmp_path / "two" / "ruby")
    folders = [{"layout": "imagefolder", "folder": str(tmp_path / name)} for name in ("one", "two")]
    with pytest.raises(PrunusError, match="its classes are not those of"):
        Classification(train=folders[0], evaluation=folders[1]).check()
    with pytest.raises(PrunusError, match="another number of classes"):
        Classification(train=folders[0], classes=("a", "b")).check()
    named = Classification(train=folders[0], classes=("a", "b", "c", "d"))
    named.check()
    assert named.names == ["a", "b", "c", "d"]


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    for cls in (Classification, Retrieval, Segmentation):
        with pytest.raises(PrunusError, match="does not know how such a model takes its inputs"):
            cls().check_model(saved("blip_nlvr", tmp_path))


def test_windows_that_leave_gaps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PrunusError, match=r"task\.stride = .*leave gaps"):
        made("segmentation", "segmenter", tmp_path, stride=SIDE + 1)


def test_splits_that_number_their_classes_otherwise_are_refused(tmp_path: Path) -> None:
    data = table(masked(tmp_path / "data"))
    found = read_task(json.dumps({"name": "segmentation", "train": {**data, "first_class": 1}, "evaluation": data}))
    with pytest.raises(PrunusError, match="number their classes alike"):
        found.check()


def test_classes_in_another_order_are_found_by_their_names(tmp_path: Path) -> None:
    found, _ = made("classification", "vit", tmp_path, classes=sorted(COLOURS, reverse=True))
    by_folder = {Path(row["image"]["path"]).parent.name: row["label"] for row in found.rows("evaluation")}
    assert by_folder == {"white": 0, "red": 1, "green": 2, "blue": 3}


def test_a_split_that_lacks_a_class_numbers_the_others_as_the_other_split_does(tmp_path: Path) -> None:
    found, model = made("classification", "vit", tmp_path)
    few = coloured(tmp_path / "few")
    for file in (few / "green").iterdir():
        file.unlink()
    (few / "green").rmdir()
    fewer = Classification(train=found.train, evaluation={"layout": "imagefolder", "folder": str(few)}).for_model(
        tmp_path / "model"
    )
    fewer.check()
    assert fewer.names == found.names == ["blue", "green", "red", "white"]
    assert {row["label"] for row in fewer.rows("evaluation")} == {0, 2, 3}
    rows = [row for row in found.rows("evaluation") if row["label"] != 1]
    assert (
        fewer.evaluate(model, progress=False)["top1"]
        == found.figures(found.finish(model, found.read_off(model, rows)))["top1"]
    )


def test_one_class_is_nothing_to_tell_apart(tmp_path: Path) -> None:
    one = {"layout": "imagefolder", "folder": str(coloured(tmp_path, 1))}
    with pytest.raises(PrunusError, match=r"task.classes = \['red'\]: one class leaves nothing to tell apart"):
        Classification(evaluation=one).check()
    Classification(evaluation=one, classes=("green", "red")).check()
