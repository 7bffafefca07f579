"""The papers' ablations of structured search, on small models and easy-VQA's data: `python -m benchmarks.ablations`.

UPop's Table 7 (shares of components by hand against one ranking), Table 14 (schedules), Table 15 (intervals), and what the BYOP reproduction
varied on a DeiT (schedules at .5, .8 and .9, no z-scores, a rate that a metric gates), with the methods of Tables 3 and 6 beside
them. Shares by hand are tried on the demo's BLIP, everything else on a DeiT of 0.2 M parameters that names the shape and the colour
of easy-VQA's images (24 classes). Every row is the mean and the spread (standard deviation) over three seeds, of the accuracy right after the search and
after a short retraining. It takes an hour on two cores; what is done is kept in `--results`, and not done again.

`--draw` makes docs/ablations.md and docs/ablations.png of the results.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot
from torch import nn
from torch.utils.data import Dataset, Subset, default_collate
from torchmetrics.functional import accuracy
from transformers import DeiTConfig, DeiTForImageClassification, PreTrainedModel, set_seed

from prunus import (
    Chance,
    Everyone,
    GateGradient,
    IterativeMagnitude,
    IterativeSTE,
    MaskBased,
    Progressive,
    RateGate,
    SearchCallback,
    SearchMethod,
    Structured,
    Training,
    Unified,
    UPop,
    WithinComponent,
    anatomy,
    extract,
    finetune,
    load_model,
)
from prunus.data import COLORS, SHAPES, NamedImages, Questions
from prunus.losses import own_loss
from prunus.recipe import demo_recipe
from prunus.tasks import EasyVQA

SEEDS = (0, 1, 2)
IMAGE = 48
"""Pixels of a side of the DeiT's images."""
HELD_OUT = 200
"""Training items that a gated rate is measured on, and that nothing trains on."""
DOCS = Path(__file__).resolve().parents[1] / "docs"
RESULTS, PAGE = DOCS / "ablations.jsonl", DOCS / "ablations.md"


@dataclass(frozen=True)
class Subject:
    """A model to search in, and how."""

    dense: Callable[[int], PreTrainedModel]
    """Of a seed."""
    data: Dataset[Any]
    held: Sequence[Any]
    collate: Callable[[list[Any]], dict[str, Any]]
    loss: Callable[[nn.Module, Any], torch.Tensor]
    score: Callable[[Any], float]
    """Accuracy on the test split."""
    search: Training
    retrain: Training


# Subjects


def named(split: Any) -> list[dict[str, Any]]:
    """Images with both names known, and their class of 24."""
    items = NamedImages(Questions(split, IMAGE, 5))
    rows = (items[place] for place in range(len(items)))
    return [
        {"pixel_values": row["pixel_values"], "labels": row["shape"] * len(COLORS) + row["color"]}
        for row in rows
        if row["shape"] >= 0 and row["color"] >= 0
    ]


@torch.no_grad()
def share_right(model: Any, items: Sequence[Any]) -> float:
    batch = default_collate(list(items))
    model.eval()
    logits = torch.cat([model(pixel_values=pixels).logits for pixels in batch["pixel_values"].split(256)])
    return float(accuracy(logits, batch["labels"], task="multiclass", num_classes=len(SHAPES) * len(COLORS)))


@cache
def deit() -> Subject:
    train, test = named("train"), named("test")
    step = len(train) // HELD_OUT
    held = train[::step][:HELD_OUT]
    rest = Subset(train, [place for place in range(len(train)) if place % step or place >= step * HELD_OUT])  # type: ignore[arg-type]

    @cache
    def dense(seed: int) -> PreTrainedModel:
        set_seed(seed)
        config = DeiTConfig(
            hidden_size=48, num_hidden_layers=6, num_attention_heads=3, intermediate_size=192, image_size=IMAGE, patch_size=8,
            num_labels=len(SHAPES) * len(COLORS),
        )  # fmt: skip
        model = DeiTForImageClassification(config)
        training = Training(
            steps=3000,
            batch_size=32,
            learning_rate=1e-3,
            schedule="cosine",
            warmup_steps=50,
            save_every=3000,
            bf16=False,
        )
        run_training(model, training, rest, default_collate, own_loss, seed)
        return model

    return Subject(
        dense, rest, held, default_collate, own_loss, lambda model: share_right(model, test),
        Training(steps=150, batch_size=32, learning_rate=3e-4, save_every=150, bf16=False),
        Training(steps=75, batch_size=32, learning_rate=3e-4, schedule="cosine", save_every=75, bf16=False),
    )  # fmt: skip


@cache
def blip() -> Subject:
    """The demo's, trained by `prunus demo`, which keeps it in the cache; the seed says in which order it sees the data."""
    from rich.console import Console

    from prunus.sources import dense_folder

    recipe = demo_recipe()
    task = recipe.task
    assert isinstance(task, EasyVQA)
    folder = dense_folder(recipe.model, task, recipe.seed, Console(stderr=True))
    rates = {"vision": 3e-5}
    return Subject(
        lambda seed: load_model(folder), task.train_data(), [], task.collate, task.loss,
        lambda model: task.evaluate(model, 1000, progress=False)["accuracy"],
        Training(steps=60, batch_size=16, learning_rate=1e-4, tower_learning_rates=rates, save_every=60),
        Training(steps=30, batch_size=16, learning_rate=1e-4, tower_learning_rates=rates, schedule="cosine", save_every=30),
    )  # fmt: skip


# Rows

SHARES = (
    ("50 % of each", 50, 50, 50, 50, 50, 50),
    ("22/62/26/75/59/53", 22, 62, 26, 75, 59, 53),
    ("44/80/17/27/83/41", 44, 80, 17, 27, 83, 41),
    ("26/73/70/63/12/64", 26, 73, 70, 63, 12, 64),
    ("58/81/19/18/47/72", 58, 81, 19, 18, 47, 72),
    ("81/58/18/19/72/47", 81, 58, 18, 19, 72, 47),
)
"""Table 7: percent that stay of vision attention, language attention, both cross-attentions, vision and language MLPs; the last is
what UPop found for BLIP-NLVR."""
PLACES = (
    ("vision.attention",), ("text.attention", "decoder.attention"), ("text.cross_attention",), ("decoder.cross_attention",),
    ("vision.mlp",), ("text.mlp", "decoder.mlp"),
)  # fmt: skip
"""Components of the demo's BLIP to which they are given."""


def by_hand(model: PreTrainedModel, stays: Sequence[float], ratio: float) -> SearchMethod:
    """UPop with shares by hand, which are moved by one number so that together `ratio` goes."""
    components = anatomy(model).components
    sizes = {name: sum(unit.channels * unit.channel_cost for unit in units) for name, units in components.items()}
    goes = {name: 1 - percent / 100 for names, percent in zip(PLACES, stays, strict=True) for name in names}
    total = sum(sizes[name] for name in goes)

    def shifted(by: float) -> dict[str, float]:
        return {name: min(max(share + by, 0.02), 0.95) for name, share in goes.items()}

    low, high = -1.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        is_short = sum(sizes[name] * share for name, share in shifted(middle).items()) < ratio * total
        low, high = (middle, high) if is_short else (low, middle)
    return Structured(
        importance=GateGradient(), scope=WithinComponent(ratios=shifted(low)), closing=Progressive(interval=1)
    )


@dataclass(frozen=True)
class Row:
    table: str
    name: str
    paper: str
    """What the paper says of it, in its own units."""
    subject: Callable[[], Subject]
    method: Callable[[PreTrainedModel], SearchMethod]


def rows() -> Iterator[Row]:
    points = dict(zip([name for name, *_ in SHARES], ("76.44", "73.75", "80.01", "61.31", "78.80", "–"), strict=True))
    for name, *stays in SHARES:
        yield Row(
            "Shares by hand, .5 (Table 7)", name, points[name], blip, lambda model, s=stays: by_hand(model, s, 0.5)
        )  # type: ignore[misc]
    yield Row(
        "Shares by hand, .5 (Table 7)", "one ranking (UPop)", "81.13", blip, lambda _: UPop(ratio=0.5, interval=1)
    )
    for ratio in (0.5, 0.8, 0.9):
        table = f"Methods, {ratio} (Tables 3 and 6)"
        for name, paper, method in (
            ("mask-based", "76.44", MaskBased(ratio=ratio, gate_learning_rate=5e-3)),
            ("unified", "80.32", Unified(ratio=ratio, gate_learning_rate=5e-3)),
            ("iterative magnitude", "67.19", IterativeMagnitude(ratio=ratio)),
            ("iterative STE, mask-based", "77.68", IterativeSTE(ratio=ratio, ranking="mask_based", gate_learning_rate=5e-3)),
            ("iterative STE, unified", "80.54", IterativeSTE(ratio=ratio, gate_learning_rate=5e-3)),
            ("UPop", "81.13", UPop(ratio=ratio)),
        ):  # fmt: skip
            yield Row(table, name, paper if ratio == 0.5 else "–", deit, lambda _, m=method: m)  # type: ignore[misc]
    for name, paper in (("linear", "80.84"), ("concave", "81.13"), ("cosine", "81.13")):
        yield Row("Schedules, .5 (Table 14)", name, paper, deit, lambda _, s=name: UPop(ratio=0.5, schedule=s))  # type: ignore[misc]
    for interval, paper in ((1, "80.14"), (10, "80.86"), (50, "81.13")):
        yield Row(
            "Intervals, .5 (Table 15)", str(interval), paper, deit, lambda _, i=interval: UPop(ratio=0.5, interval=i)
        )  # type: ignore[misc]
    lost = {"linear": "−3 −6 −7", "sigmoid": "−3 −6 −7", "exponential": "−4.5 −5 −5.5"}
    for place, ratio in enumerate((0.5, 0.8, 0.9)):
        table = f"BYOP, {ratio}"
        for schedule, points_lost in lost.items():
            yield Row(
                table,
                schedule,
                points_lost.split()[place],
                deit,
                lambda _, s=schedule, r=ratio: UPop(ratio=r, schedule=s),
            )  # type: ignore[misc]
        yield Row(table, "cosine", "–", deit, lambda _, r=ratio: UPop(ratio=r))  # type: ignore[misc]
        yield Row(table, "cosine, no z-scores", "–", deit, lambda _, r=ratio: UPop(ratio=r, normalize="none"))  # type: ignore[misc]
        gated = UPop(ratio=ratio, gate=RateGate(metric="accuracy", tolerance=0.02, patience=10))
        yield Row(table, "cosine, gated rate", "+2 at .9", deit, lambda _, m=gated: m)  # type: ignore[misc]
        yield Row(
            table, "chance", "–", deit,
            lambda _, r=ratio: Structured(ratio=r, importance=Chance(), scope=Everyone(), closing=Progressive()),  # type: ignore[misc]
        )  # fmt: skip


# Runs


def run_training(
    model: PreTrainedModel, training: Training, data: Dataset[Any], collate: Any, loss: Any, seed: int, callbacks: Sequence[Any] = ()
) -> None:  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        finetune(model, training, Path(folder) / "run", data, collate, loss, callbacks=callbacks, seed=seed)


def measured(row: Row, seed: int) -> dict[str, Any]:
    """Accuracies of one run."""
    subject = row.subject()
    model: Any = copy.deepcopy(subject.dense(seed))
    before = subject.score(model)
    callback = SearchCallback(row.method(model), measure=lambda: share_right(model, subject.held))
    set_seed(seed)
    run_training(model, subject.search, subject.data, subject.collate, subject.loss, seed, (callback,))
    small = extract(model, callback.plan(), inplace=True)
    searched = subject.score(small)
    run_training(small, subject.retrain, subject.data, subject.collate, subject.loss, seed)
    assert callback.search is not None
    return {
        "table": row.table, "name": row.name, "paper": row.paper, "seed": seed, "dense": before, "searched": searched,
        "retrained": subject.score(small), "ratio": callback.search.ratio,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--tables", nargs="+", help="beginnings of their names; all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--draw", action="store_true")
    chosen = parser.parse_args()
    found = results(chosen.results) if chosen.results.exists() else []
    if chosen.draw:
        draw(found)
        return
    done = {(one["table"], one["name"], one["seed"]) for one in found}
    for row in rows():
        if chosen.tables and not row.table.startswith(tuple(chosen.tables)):
            continue
        for seed in chosen.seeds:
            if (row.table, row.name, seed) not in done:
                result = measured(row, seed)
                with chosen.results.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                print(
                    row.table,
                    "|",
                    row.name,
                    "|",
                    seed,
                    "|",
                    *(f"{result[key]:.4f}" for key in ("dense", "searched", "retrained")),
                    flush=True,
                )


Tables = dict[str, dict[str, list[dict[str, Any]]]]
"""Table → row → its runs."""


def tables_of(found: Sequence[dict[str, Any]]) -> Tables:
    """Results by table and row, as they were measured."""
    tables: Tables = {}
    for one in found:
        tables.setdefault(one["table"], {}).setdefault(one["name"], []).append(one)
    return tables


def spread(runs: Sequence[dict[str, Any]], key: str) -> tuple[float, float]:
    """Mean and standard deviation, in percent."""
    values = [100 * run[key] for run in runs]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def page_of(found: Sequence[dict[str, Any]]) -> str:
    """The page: what stands on it above the mark, and the tables."""
    lines = []
    for table, names in tables_of(found).items():
        dense, _ = spread([run for runs in names.values() for run in runs], "dense")
        lines += [f"### {table}", "", f"Dense: {dense:.2f} %.", ""]
        lines += ["| | right after the search, % | retrained, % | in the paper |", "| --- | --- | --- | --- |"]
        for name, runs in names.items():
            cells = " | ".join(
                f"{m:.2f} ± {s:.2f}" for m, s in (spread(runs, key) for key in ("searched", "retrained"))
            )
            lines.append(f"| {name} | {cells} | {runs[0]['paper']} |")
        lines.append("")
    head, _, _ = PAGE.read_text().partition(MARK)
    return head + MARK + "\n\n" + "\n".join(lines)


def results(file: Path = RESULTS) -> list[dict[str, Any]]:
    """What has been measured."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def draw(found: Sequence[dict[str, Any]]) -> None:
    """The page, and a picture of the results."""
    tables = tables_of(found)
    figure, axes = pyplot.subplots(
        len(tables), 1, figsize=(8, 0.32 * sum(len(t) + 3 for t in tables.values())),
        height_ratios=[len(names) for names in tables.values()], layout="constrained",
    )  # fmt: skip
    for axis, (table, names) in zip(axes, tables.items(), strict=True):
        for place, runs in enumerate(names.values()):
            cells = [spread(runs, key) for key in ("searched", "retrained")]
            for (mean, deviation), color in zip(cells, ("#888888", "#004488"), strict=True):
                axis.errorbar(mean, place, xerr=deviation, fmt="o", color=color, capsize=2, markersize=4)
        dense, _ = spread([run for runs in names.values() for run in runs], "dense")
        axis.axvline(dense, color="#bb5566", linewidth=1)
        axis.set_yticks(range(len(names)), list(names))
        axis.invert_yaxis()
        axis.set_title(table, loc="left", fontsize=9)
    axes[-1].set_xlabel("accuracy, %: grey after the search, blue retrained, red dense")
    figure.savefig(PAGE.with_suffix(".png"), dpi=110)
    PAGE.write_text(page_of(found))


MARK = "<!-- made by benchmarks.ablations --draw -->"


if __name__ == "__main__":
    main()
