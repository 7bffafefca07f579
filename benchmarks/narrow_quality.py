"""What narrowing without training costs, by score and compensation: SmolLM2-135M on WikiText-2, or stories260K on its own stories.

`python -m benchmarks.narrow_quality DATA`: perplexity at .2 and .3 of the prunable parameters, means over draws of calibration data, and the
seconds of each. DATA holds wikitext2-valid.txt, wikitext2-test.txt and stories260k/. `--stories` takes a minute. `--ratios`, `--draws`, `--samples`, `--windows`, `--distil STEPS`
(from the dense model, after the last method).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.sequential import Stories
from benchmarks.subjects import SmolLM2
from prunus import (
    Calibrated,
    ChannelMagnitude,
    Distillation,
    Everyone,
    Fluctuation,
    Lesson,
    SurgeonCost,
    Training,
    WalkOptions,
    WeightedNorm,
    WithinUnit,
    anatomy,
    finetune,
    narrow,
)

METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"score": ChannelMagnitude(), "compensation": "none"},
    "magnitude, refit": {"score": ChannelMagnitude()},
    "weighted norm": {"score": WeightedNorm(), "compensation": "none"},
    "FLAP": {"score": Fluctuation(), "compensation": "none"},
    "FLAP, refit": {"score": Fluctuation()},
    "OBS": {"score": SurgeonCost(), "compensation": "none"},
    "OBS, refit": {"score": SurgeonCost()},
}


def study(subject: SmolLM2 | Stories, ratios: list[float], draws: int, chosen: list[str], everyone: bool) -> None:
    scope = Everyone() if everyone else WithinUnit()
    print(f"{type(subject).__name__}, {subject.headline}; dense {subject.evaluate(subject.dense):.2f}\n", flush=True)
    print("| method | ratio | perplexity | draws | seconds |\n| --- | ---: | ---: | --- | ---: |")
    for ratio in ratios:
        for name in chosen:
            found, seconds = [], []
            for draw in range(draws):
                start = time.perf_counter()
                method = Calibrated(ratio=ratio, scope=scope, **METHODS[name])
                small, _ = narrow(subject.dense, method, subject.calibration(draw), options=WalkOptions(progress=False))
                seconds.append(time.perf_counter() - start)
                found.append(subject.evaluate(small))
            each = ", ".join(f"{value:.2f}" for value in found)
            print(
                f"| {name} | {ratio} | {statistics.mean(found):.2f} | {each} | {statistics.mean(seconds):.0f} |",
                flush=True,
            )


def distil(subject: SmolLM2, ratio: float, steps: int) -> None:
    small, _ = narrow(
        subject.dense, Calibrated(ratio=ratio), subject.calibration(0), options=WalkOptions(progress=False)
    )
    before = subject.evaluate(small)
    blocks = list(dict.fromkeys(unit.block for unit in anatomy(small)))
    lesson = Lesson(Distillation(), subject.predict, subject.dense, blocks)
    training = Training(steps=steps, batch_size=8, learning_rate=1e-4)
    with tempfile.TemporaryDirectory() as folder:
        finetune(small, training, Path(folder), subject.data, subject.collate, lesson)
    print(f"\n{ratio}, {steps} steps of distillation: {before:.2f} → {subject.evaluate(small):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.3])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--stories", action="store_true", help="the small model")
    parser.add_argument("--everyone", action="store_true", help="one ranking over all units")
    parser.add_argument("--distil", type=int, default=0, metavar="STEPS")
    given = parser.parse_args()
    if given.stories:
        study(Stories(given.data / "stories260k"), given.ratios, given.draws, given.methods, given.everyone)
        return
    subject = SmolLM2(given.data, given.samples, given.windows)
    study(subject, given.ratios, given.draws, given.methods, given.everyone)
    if given.distil:
        distil(subject, given.ratios[0], given.distil)


if __name__ == "__main__":
    main()
