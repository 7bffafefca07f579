"""One-shot pruning of the demo's BLIP, without retraining: `python -m benchmarks.ratio_study [MODEL] [OUT.png]`.

First every pruner at .5, .6 and .7; then Wanda with every combination of vision and language sparsities, as in RESSA's
study of ratios, drawn as a heat map. Toy data: easy-VQA. MODEL is by default the dense model that `make demo` cached.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prunus import DSnoT, Magnitude, SparseGPT, WalkOptions, Wanda, load_model, prune
from prunus.batches import default_device
from prunus.storage import cache_folder
from prunus.tasks import EasyVQA

QUESTIONS = 1000
"""Test questions per cell; their accuracy has a standard error below 1.6 points."""
SPARSITIES = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8)


class Study:
    def __init__(self, folder: Path):
        self.dense = load_model(folder).to(default_device()).eval()
        self.task = EasyVQA(image_size=self.dense.config.vision_config.image_size)
        self.batches = self.task.calibration(128, 16)

    def accuracy(self, method: object | None) -> float:
        model = copy.deepcopy(self.dense)
        if method is not None:
            prune(model, method, self.batches, options=WalkOptions(progress=False))  # type: ignore[arg-type]
        return self.task.evaluate(model, QUESTIONS, progress=False)["accuracy"]


def draw(grid: list[list[float]], path: Path) -> None:
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(grid, cmap="YlGn", vmin=0.3, vmax=1, origin="lower")
    for y, row in enumerate(grid):
        for x, value in enumerate(row):
            axes.text(x, y, f"{100 * value:.0f}", ha="center", va="center", color="white" if value > 0.8 else "black")
    axes.set_xticks(range(len(SPARSITIES)), [f"{value:.0%}" for value in SPARSITIES])
    axes.set_yticks(range(len(SPARSITIES)), [f"{value:.0%}" for value in SPARSITIES])
    axes.set_xlabel("sparsity of the language towers")
    axes.set_ylabel("sparsity of the vision tower")
    axes.set_title("easy-VQA accuracy, %, Wanda, no retraining")
    figure.colorbar(image)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)


def main() -> None:
    found = sorted(cache_folder().glob("dense-easy_vqa-*/model"), key=lambda path: path.stat().st_mtime)
    if len(sys.argv) < 2 and not found:
        sys.exit("run `make demo` first, or name a model folder")
    study = Study(Path(sys.argv[1]) if len(sys.argv) > 1 else found[-1])
    print(f"dense: {study.accuracy(None):.1%} of {QUESTIONS} test questions\n")
    print("| pruner | .5 | .6 | .7 |\n| --- | --- | --- | --- |")
    for kind in (Magnitude, Wanda, SparseGPT, DSnoT):
        cells = [f"{study.accuracy(kind(sparsity=value)):.1%}" for value in (0.5, 0.6, 0.7)]
        print(f"| {kind().method} | " + " | ".join(cells) + " |", flush=True)
    print("\n| vision \\ language | " + " | ".join(f"{value:.0%}" for value in SPARSITIES) + " |")
    print("| --- |" + " --- |" * len(SPARSITIES))
    grid = []
    for vision in SPARSITIES:
        grid.append([study.accuracy(Wanda(sparsity={"vision": vision, "language": other})) for other in SPARSITIES])
        print(f"| {vision:.0%} | " + " | ".join(f"{value:.1%}" for value in grid[-1]) + " |", flush=True)
    path = Path(sys.argv[2] if len(sys.argv) > 2 else "docs/ratio-study.png")
    draw(grid, path)
    print(f"\ndrawn: {path}")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
