"""The demo's task and its warm start."""

from __future__ import annotations

import pytest
import torch

from prunus import PrunusError
from prunus.data import COLORS, SHAPES, balanced
from prunus.tasks import EasyVQA

pytest.importorskip("easy_vqa", reason="needs the packaged data: pip install 'prunus[demo]'")
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def task() -> EasyVQA:
    return EasyVQA(image_size=28, matching_steps=3)


def test_every_question_is_trained_on_and_items_are_alike(task: EasyVQA) -> None:
    data = task.train_data()
    seen = {(data.items[index][k]) for index in range(len(data)) for k in range(5)}  # type: ignore[attr-defined,arg-type]
    assert seen == set(range(38_575))
    shapes = {
        tuple((key, tuple(value.shape)) for key, value in task.collate([data[i], data[i + 1]]).items())
        for i in (0, 100, 5000)
    }
    assert len(shapes) == 1


def test_the_warm_start_hears_the_image_and_the_question(task: EasyVQA) -> None:
    model = task.warm_start(vision_layers=2, text_layers=1).eval()
    images = task._train.pixels(torch.arange(300, 330))
    with torch.no_grad():
        tokens = model.vision_model(pixel_values=images).last_hidden_state
    assert 0.5 < float(tokens.std()) < 2
    batch = task.collate([task.train_data()[0], task.train_data()[9]])
    assert task.loss(model, batch).item() > 0
    metrics = task.evaluate(model, limit=20, progress=False)
    assert metrics["accuracy_low"] <= metrics["accuracy"] <= metrics["accuracy_high"]


def test_a_towers_depth_is_checked(task: EasyVQA) -> None:
    with pytest.raises(PrunusError, match="vision_layers = 13"):
        task.warm_start(vision_layers=13)


def test_the_head_starts_questions_are_balanced(task: EasyVQA) -> None:
    data = balanced(task._train)
    rows = [task._train.rows[row] for item in data.items for row in item]
    assert {answer for *_, answer in rows} == {"yes", "no"}
    about_shapes = [answer for _, question, answer in rows if any(shape in question for shape in SHAPES)]
    about_colors = [answer for _, question, answer in rows if any(color in question for color in COLORS)]
    assert len(about_shapes) + len(about_colors) == len(rows)
    assert 0.6 < len(about_shapes) / len(about_colors) < 1.5
    for answers in (about_shapes, about_colors):
        assert abs(answers.count("yes") / len(answers) - 0.5) < 0.06
