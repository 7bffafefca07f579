"""Recall, top-k accuracy, intersection over union and their confidence intervals, against slow definitions and torchmetrics."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from prunus import PrunusError
from prunus.metric import Metric, written
from prunus.metrics import (
    best_ranks,
    mean_of,
    overlap_figures,
    overlap_row,
    recall_figures,
    recall_rows,
    top_figures,
    top_rows,
    with_interval,
)
from prunus.report.table import comparison


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 12))
def test_a_rank_is_the_place_in_a_stable_sort(seed: int, queries: int, candidates: int) -> None:
    draw = random.Random(seed)
    scores = torch.tensor([[draw.choice([0.0, 0.5, 1.0, 2.0]) for _ in range(candidates)] for _ in range(queries)])
    right = [draw.sample(range(candidates), draw.randint(1, candidates)) for _ in range(queries)]
    expected = []
    for row, own in zip(scores.tolist(), right, strict=True):
        order = sorted(range(candidates), key=lambda place: -row[place])
        expected.append(min(order.index(place) for place in own))
    assert best_ranks(scores, right) == expected


def test_a_model_that_says_nothing_finds_nothing() -> None:
    scores = torch.full((4, 8), torch.nan)
    assert best_ranks(scores, [[0], [2], [4], [7]]) == [0, 2, 4, 7]
    scores[3, 5] = 0.0
    assert best_ranks(scores, [[0], [2], [4], [7]])[3] == 7


def test_recall_is_that_of_the_published_evaluation() -> None:
    torch.manual_seed(0)
    images, owners = 12, [image for image in range(12) for _ in range(image % 3 + 1)]
    i2t, t2i = torch.randn(images, len(owners)), torch.randn(len(owners), images)
    found = {name: float(value) for name, value in recall_figures(recall_rows(i2t, t2i, owners).sum(0)).items()}
    text = dict.fromkeys((1, 5, 10), 0)
    image = dict(text)
    for query in range(images):
        order = i2t[query].argsort(descending=True).tolist()
        place = min(order.index(t) for t, owner in enumerate(owners) if owner == query)
        for k in text:
            text[k] += place < k
    for query, owner in enumerate(owners):
        place = t2i[query].argsort(descending=True).tolist().index(owner)
        for k in image:
            image[k] += place < k
    shares = [text[k] / images for k in text] + [image[k] / len(owners) for k in image]
    assert [found[f"{way}_r{k}"] for way in ("text", "image") for k in (1, 5, 10)] == pytest.approx(shares)
    assert found["mean_recall"] == pytest.approx(sum(shares) / 6)


@pytest.mark.parametrize("classes", [3, 9])
def test_top_k_is_torchmetrics(classes: int) -> None:
    torch.manual_seed(1)
    scores, labels = torch.randn(40, classes), torch.randint(classes, (40,))
    found = top_figures(top_rows(scores, labels.tolist()).sum(0))
    for k in (1, 5):
        metric = MulticlassAccuracy(classes, top_k=min(k, classes), average="micro")
        assert float(found[f"top{k}"]) == pytest.approx(float(metric(scores, labels)))


def test_intersection_over_union_is_torchmetrics_over_the_whole_set() -> None:
    torch.manual_seed(2)
    predicted, masks = torch.randint(5, (6, 7, 9)), torch.randint(4, (6, 7, 9))
    masks[:, :2] = 255
    rows = torch.stack([overlap_row(said, mask, 6) for said, mask in zip(predicted, masks, strict=True)])
    found = overlap_figures(rows.sum(0))
    for name, metric in (
        ("mean_iou", MulticlassJaccardIndex(6, ignore_index=255)),
        ("pixel_accuracy", MulticlassAccuracy(6, average="micro", ignore_index=255)),
    ):
        assert float(found[name]) == pytest.approx(float(metric(predicted, masks)), rel=1e-5), name
    whole = [float(((predicted == k) & (masks == k)).sum() / (masks == k).sum()) for k in range(4)]
    assert float(found["mean_accuracy"]) == pytest.approx(sum(whole) / 4)


def test_pixels_of_no_class_are_not_looked_at() -> None:
    mask = torch.tensor([[0, 1], [-100, 7]])
    assert overlap_row(torch.tensor([[0, 0], [1, 1]]), mask, 2).tolist() == [1, 0, 2, 0, 1, 1]


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    torch.manual_seed(3)
    inside = 0
    for _ in range(200):
        values = (torch.rand(60) < 0.7).double().tolist()
        found = with_interval(mean_of(values), lambda sums: {"hits": sums[..., 1] / sums[..., 0]}, "hits", draws=300)
        inside += found["hits_low"] <= 0.7 <= found["hits_high"]
    assert 0.88 <= inside / 200 <= 0.99


def test_an_interval_is_the_same_at_every_call_and_in_any_number_of_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = mean_of(torch.rand(50).tolist())

    def found() -> dict[str, float]:
        return with_interval(rows, lambda sums: {"mean": sums[..., 1] / sums[..., 0]}, "mean")

    first = found()
    assert first == found()
    monkeypatch.setattr("prunus.metrics.bootstrap.AT_A_TIME", 60)
    assert found() == pytest.approx(first)
    assert first["mean"] == pytest.approx(float(rows[:, 1].mean()))
    with pytest.raises(PrunusError, match="nothing to measure on"):
        with_interval(rows[:0], lambda sums: {"mean": sums[..., 1]}, "mean")


def test_bounds_are_written_behind_their_figure() -> None:
    metrics = {"accuracy": Metric(), "bits": Metric(unit="plain")}
    found = {"accuracy": 0.5, "bits": 2.0, "accuracy_low": 0.4, "accuracy_high": 0.6, "very_low": 1.0}
    assert written(found, metrics) == {
        "accuracy": "50.00% (40.00% to 60.00%)", "bits": "2.00", "very_low": "1.00",
    }  # fmt: skip
    rest = {
        "parameters": {"total": 2}, "multiply_accumulates": {"total": 2}, "latency": {"median": 1.0}, "bytes": 4, "peak_memory": 4,
    }  # fmt: skip
    rows = comparison({"dense": {"metrics": found, **rest}, "compressed": {"metrics": found, **rest}}, metrics)
    assert rows[0] == ("accuracy", "50.00% (40.00% to 60.00%)", "50.00% (40.00% to 60.00%)", "+0.00 points")
    assert [row[0] for row in rows[:3]] == ["accuracy", "bits", "very low"]
