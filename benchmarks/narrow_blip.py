"""Narrowing without training beside UPop, on the demo's BLIP and easy-VQA, a toy set: `python -m benchmarks.narrow_blip`.

Accuracy at .3 and .5 of the prunable parameters, means over draws of calibration data, and seconds. UPop's rows are those of the demo's run (`make demo`) and of
the same recipe with another ratio; what has not been run is left out, unless with `--train`. `--output FILE.json` keeps every figure,
and a second call goes on from it. `--limit` test questions, `--draws`, `--samples`, `--ratios`, `--methods`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.measured import Figures, by_ratio, mean_seconds
from benchmarks.subjects import Batches, Blip
from prunus import (
    Calibrated,
    ChannelMagnitude,
    Everyone,
    Fluctuation,
    GradientTimesGate,
    Plan,
    WalkOptions,
    anatomy,
    extract,
    load_model,
    narrow,
)
from prunus.recipe import Recipe, demo_recipe
from prunus.report import Report
from prunus.run import finished, run
from prunus.sources import dense_folder

METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"score": ChannelMagnitude(), "compensation": "none"},
    "FLAP, refit": {"score": Fluctuation(), "scope": Everyone()},
    "gradient × gate, refit": {"score": GradientTimesGate(), "scope": Everyone()},
    "OBS, refit": {},
    "OBS, refit, plain config": {"plain": True, "attention": "heads"},
}
UPOP = ("UPop's plan, not trained", "UPop's plan, refit", "UPop, searched", "UPop, searched and retrained")
QUIET = WalkOptions(progress=False)


def batches_of(work: Blip, draw: int) -> Batches:
    """Questions with their answers, of which there is a loss."""
    return [{**batch, "labels": batch["decoder_input_ids"]} for batch in work.calibration(draw)]


def budget(work: Blip, ratio: float, is_plain: bool) -> dict[str, Any]:
    """Of a plain config, whose `ratio` would be one of the units that it can say, the same parameters as of all others."""
    if not is_plain:
        return {"ratio": ratio}
    parts = anatomy(work.dense)
    prunable = sum(unit.channels * unit.channel_cost for unit in parts.select(("*",), ()))
    return {"max_parameters": round(parts.parameters - ratio * prunable)}


def narrowed(work: Blip, name: str, ratio: float, draw: int) -> tuple[Any, float]:
    """The model and the seconds that it took."""
    settings, batches = METHODS[name], batches_of(work, draw)
    method = Calibrated(**budget(work, ratio, "plain" in settings), **settings)
    start = time.perf_counter()
    small, _ = narrow(work.dense, method, batches, options=QUIET)
    return small, time.perf_counter() - start


def trained(work: Blip, ratio: float, folder: Path, report: Report) -> Iterator[tuple[str, Callable[[], Any], float]]:
    """UPop's rows: name, the model, and the seconds of training behind it."""
    search, retrain = (sum(row.get("train_runtime", 0.0) for row in course["log"]) for course in report.courses)
    plan = Plan.load(folder / "1-search" / "plan.json")
    models: tuple[Callable[[], Any], ...] = (
        lambda: extract(work.dense, plan),
        lambda: narrow(work.dense, Calibrated(ratio=ratio), batches_of(work, 0), plan=plan, options=QUIET)[0],
        lambda: load_model(folder / "1-search" / "model"),
        lambda: load_model(folder / "2-retrain" / "model"),
    )
    yield from zip(UPOP, models, (search, search, search, search + retrain), strict=True)


def recipe_of(ratio: float) -> Recipe:
    """The demo, with another ratio where that is not its own."""
    demo = demo_recipe()
    if ratio == demo.steps[0].method.ratio:  # type: ignore[attr-defined]
        return demo
    return demo_recipe((f"steps.0.method.ratio={ratio}", f"output={demo.output}-{ratio}"))


def rows_of(rows: Sequence[dict[str, Any]]) -> str:
    """The table."""
    return by_ratio(rows, (*METHODS, *UPOP), "accuracy", 1, {"seconds": mean_seconds(0)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.5])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--limit", type=int, default=2000, help="test questions")
    parser.add_argument("--train", action="store_true", help="run the recipes of UPop that have not been run")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    asked = parser.parse_args()
    demo, console = demo_recipe(), Console(stderr=True)
    work = Blip(asked.samples, asked.limit, dense_folder(demo.model, demo.task, demo.seed, console))
    figures = Figures(asked.output, {"samples": asked.samples, "limit": asked.limit})

    def keep(name: str, ratio: float, draw: int, model: Any, seconds: float) -> None:
        accuracy, parameters = work.evaluate(model), sum(p.numel() for p in model.parameters())
        figures.keep(method=name, ratio=ratio, draw=draw, accuracy=accuracy, parameters=parameters, seconds=seconds)
        console.print(f"{name} at {ratio}, draw {draw}: {accuracy:.1f} %, {parameters:,} parameters, {seconds:.0f} s")

    if not figures.find(method="dense"):
        keep("dense", 0.0, 0, work.dense, 0.0)
    for ratio in asked.ratios:
        for name in asked.methods:
            for draw in range(asked.draws):
                if not figures.find(method=name, ratio=ratio, draw=draw):
                    keep(name, ratio, draw, *narrowed(work, name, ratio, draw))
        recipe = recipe_of(ratio)
        report = finished(recipe) or (run(recipe, console) if asked.train else None)
        for name, model, seconds in trained(work, ratio, recipe.output, report) if report else ():
            if not figures.find(method=name, ratio=ratio):
                keep(name, ratio, 0, model(), seconds)
    print(rows_of(figures.rows))


if __name__ == "__main__":
    main()
