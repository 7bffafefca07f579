"""What narrowing without training costs, by score, compensation and kind of result: SmolLM2-135M on WikiText-2, or stories260K on its own stories.

`python -m benchmarks.narrow_quality DATA`: perplexity at .2 and .3 of the prunable parameters, means over draws of calibration data, and the
seconds of each. DATA holds wikitext2-valid.txt, wikitext2-test.txt and stories260k/. `--stories` takes a minute. `--output FILE.json` keeps every figure, and a
second call goes on from it. `--ratios`, `--draws`, `--methods`, `--samples`, `--windows`, `--distil STEPS` (OBS with a refit, then trained from the dense model).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measured import Figures, by_ratio, mean_seconds
from benchmarks.sequential import Stories
from benchmarks.subjects import SmolLM2
from prunus import (
    OWL,
    Calibrated,
    ChannelMagnitude,
    Depth,
    Distillation,
    ECoFLaP,
    Everyone,
    Fluctuation,
    GradientTimesGate,
    Lesson,
    SurgeonCost,
    Training,
    WalkOptions,
    WeightedNorm,
    anatomy,
    drop_blocks,
    finetune,
    narrow,
)

METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"score": ChannelMagnitude(), "compensation": "none"},
    "magnitude, refit": {"score": ChannelMagnitude()},
    "weighted norm": {"score": WeightedNorm(), "compensation": "none"},
    "FLAP": {"score": Fluctuation(), "compensation": "none"},
    "FLAP, refit": {"score": Fluctuation()},
    "gradient × gate": {"score": GradientTimesGate(), "compensation": "none"},
    "gradient × gate, refit": {"score": GradientTimesGate()},
    "OBS": {"score": SurgeonCost(), "compensation": "none"},
    "OBS, refit": {"score": SurgeonCost()},
    "OBS, refit, shares of OWL": {"allocation": OWL()},
    "OBS, refit, shares of ECoFLaP": {"allocation": ECoFLaP()},
    "OBS, refit, align 32": {"align": 32},
    "OBS, refit, plain, whole heads": {"plain": True, "attention": "heads"},
    "fewer blocks, by cosine": {"by": "cosine"},
    "fewer blocks, by loss": {"by": "loss"},
}
QUIET = WalkOptions(progress=False)


def narrowed(subject: SmolLM2 | Stories, name: str, ratio: float, draw: int, everyone: bool) -> Any:
    """The model without a share of its blocks' parameters, or of its blocks."""
    settings, batches = METHODS[name], subject.calibration(draw)
    if "by" in settings:
        count = round(ratio * len({unit.block for unit in anatomy(subject.dense)}))
        return drop_blocks(subject.dense, Depth(blocks=count, **settings), batches, options=QUIET)[0]
    scope = {"scope": Everyone()} if everyone and "allocation" not in settings else {}
    return narrow(subject.dense, Calibrated(ratio=ratio, **scope, **settings), batches, options=QUIET)[0]


def study(subject: SmolLM2 | Stories, asked: argparse.Namespace, figures: Figures) -> None:
    if not figures.find(method="dense"):
        size = subject.dense.num_parameters()
        figures.keep(
            method="dense", ratio=0.0, draw=0, perplexity=subject.evaluate(subject.dense), seconds=0.0, parameters=size
        )
    for ratio in asked.ratios:
        for name in asked.methods:
            for draw in range(asked.draws):
                if figures.find(method=name, ratio=ratio, draw=draw):
                    continue
                start = time.perf_counter()
                small = narrowed(subject, name, ratio, draw, asked.everyone)
                seconds = time.perf_counter() - start
                perplexity, size = subject.evaluate(small), small.num_parameters()
                figures.keep(
                    method=name, ratio=ratio, draw=draw, perplexity=perplexity, seconds=seconds, parameters=size
                )
                print(f"{name} at {ratio}, draw {draw}: {perplexity:.2f} ({seconds:.0f} s, {size:,})", flush=True)


def rows_of(rows: Sequence[dict[str, Any]]) -> str:
    """The table."""
    sizes = {"parameters": lambda there: f"{there[0]['parameters']:,}"}
    trained = [row["method"] for row in rows if row["method"] not in ("dense", *METHODS)]
    return by_ratio(rows, [*METHODS, *trained], "perplexity", 2, {**sizes, "seconds": mean_seconds(1)})


def distil(subject: SmolLM2, ratio: float, steps: int, figures: Figures) -> None:
    """What training from the dense model adds to OBS with a refit, at one ratio."""
    name = f"OBS, refit, {steps} steps of distillation"
    if figures.find(method=name, ratio=ratio):
        return
    start = time.perf_counter()
    small, _ = narrow(subject.dense, Calibrated(ratio=ratio), subject.calibration(0), options=QUIET)
    blocks = list(dict.fromkeys(unit.block for unit in anatomy(small)))
    lesson = Lesson(Distillation(), subject.predict, subject.dense, blocks)
    training = Training(steps=steps, batch_size=4, learning_rate=1e-4)
    with tempfile.TemporaryDirectory() as folder:
        finetune(small, training, Path(folder), subject.data, subject.collate, lesson)
    seconds = time.perf_counter() - start
    perplexity, size = subject.evaluate(small), small.num_parameters()
    figures.keep(method=name, ratio=ratio, draw=0, perplexity=perplexity, seconds=seconds, parameters=size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.3])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--stories", action="store_true", help="the small model")
    parser.add_argument("--everyone", action="store_true", help="one ranking over all units")
    parser.add_argument("--distil", type=int, default=0, metavar="STEPS")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    asked = parser.parse_args()
    subject = (
        Stories(asked.data / "stories260k") if asked.stories else SmolLM2(asked.data, asked.samples, asked.windows)
    )
    sizes = {} if asked.stories else {"samples": asked.samples, "windows": asked.windows}
    figures = Figures(asked.output, {"model": type(subject).__name__, "everyone": asked.everyone, **sizes})
    study(subject, asked, figures)
    if asked.distil and isinstance(subject, SmolLM2):
        distil(subject, asked.ratios[0], asked.distil, figures)
    print("\n" + rows_of(figures.rows))


if __name__ == "__main__":
    main()
