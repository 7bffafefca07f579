"""What an allocation is worth: uniform, OWL and ECoFLaP under Wanda and under SparseGPT, over several draws of calibration
data, without retraining.

`python -m benchmarks.allocation_quality smollm2 DATA`: perplexity of SmolLM2-135M; DATA is a folder with
wikitext2-valid.txt and wikitext2-test.txt. `python -m benchmarks.allocation_quality blip`: accuracy of the demo's BLIP on
easy-VQA, a toy set; `make demo` first. `--out FILE` keeps every cell, and a second call goes on from it.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer

from benchmarks.smollm2 import LENGTH, model_folder
from prunus import OWL, ECoFLaP, SparseGPT, SparsityPlan, Uniform, WalkOptions, Wanda, load_model, matrices, prune
from prunus.allocation.allocator import Question, Scoring
from prunus.anatomy import choose
from prunus.calibration import text_windows
from prunus.losses import own_loss
from prunus.plan import MatrixPlan
from prunus.run import cache_folder
from prunus.storage import write_text
from prunus.tasks import EasyVQA, Text

PRUNERS = {"wanda": Wanda, "sparsegpt": SparseGPT}
SPARSITIES = (0.5, 0.6, 0.7)
ALLOCATIONS: dict[str, Callable[[float], Any]] = {
    "uniform": lambda p: Uniform(sparsity=p),
    "owl": lambda p: OWL(sparsity=p),
    "ecoflap, block": lambda p: ECoFLaP(sparsity=p),
    "ecoflap, layer": lambda p: ECoFLaP(sparsity=p, granularity="layer"),
}


class SmolLM2:
    """Perplexity on the first windows of the test text; draws are other windows of the validation text."""

    def __init__(self, data: Path, samples: int = 16, windows: int = 32):
        self.dense, self.windows, self.samples = load_model(model_folder()).eval(), windows, samples
        self.task = Text(
            tokenizer=str(model_folder()), evaluation=data / "wikitext2-test.txt", length=LENGTH, bf16=True
        )
        tokenizer = AutoTokenizer.from_pretrained(model_folder())
        self.rows = text_windows(tokenizer, (data / "wikitext2-valid.txt").read_text(), LENGTH)
        self.headline, self.bf16, self.loss = "perplexity", True, own_loss

    def batches(self, draw: int) -> list[dict[str, Any]]:
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(draw))
        return [{"input_ids": ids} for ids in self.rows[order[: self.samples]].split(4)]

    learning = batches

    def evaluate(self, model: Any) -> float:
        return self.task.evaluate(model, self.windows, progress=False)["perplexity"]


class Blip:
    """Accuracy in percent on the first test questions; draws are other training images."""

    def __init__(self, samples: int = 64, questions: int = 1500):
        folder = max(cache_folder().glob("dense-easy_vqa-*/model"), key=lambda path: path.stat().st_mtime)
        self.dense, self.samples, self.questions = load_model(folder).eval(), samples, questions
        self.task = EasyVQA(image_size=self.dense.config.vision_config.image_size)
        self.everything = self.task.calibration(1024, 16)
        self.headline, self.bf16, self.loss = "accuracy, %", False, self.task.loss

    def batches(self, draw: int) -> list[dict[str, Any]]:
        order = torch.randperm(len(self.everything), generator=torch.Generator().manual_seed(draw)).tolist()
        return [self.everything[place] for place in order[: self.samples // 16]]

    def learning(self, draw: int) -> list[dict[str, Any]]:
        data = self.task.train_data()
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(draw)).tolist()  # type: ignore[arg-type]
        return [self.task.collate([data[i] for i in order[at : at + 8]]) for at in range(0, self.samples, 8)]

    def evaluate(self, model: Any) -> float:
        return 100 * self.task.evaluate(model, self.questions, progress=False)["accuracy"]


class Measured:
    """An allocation whose scores are measured once a draw and shared out for every sparsity."""

    def __init__(self, subject: SmolLM2 | Blip):
        self.subject, self.known = subject, {}  # type: ignore[var-annotated]

    def plan(self, name: str, sparsity: float, draw: int) -> SparsityPlan:
        model, method = self.subject.dense, ALLOCATIONS[name](sparsity)
        chosen = choose(matrices(model))
        learns = isinstance(method, Scoring)
        batches = self.subject.learning(draw) if learns else self.subject.batches(draw)
        question = Question(model, chosen, batches, self.subject.loss, self.subject.bf16)
        key = (name.partition(",")[0], draw)
        if isinstance(method, Scoring):
            if key not in self.known:
                self.known = {key: method.measure(question)}
            kept = method.kept(chosen, self.known[key])
        elif isinstance(method, OWL):
            if key not in self.known:
                self.known = {key: method.outliers(question)}
            kept = method.kept(chosen, self.known[key])
        else:
            kept = method.answer(question).kept
        matrix_plans = {
            m.name: MatrixPlan(
                rows=m.rows, columns=m.columns, tower=m.tower, block=m.block, pruned=m.weights - kept[m.name]
            )
            for m in chosen
        }
        return SparsityPlan(model=type(model).__name__, matrices=matrix_plans)


def cell(subject: SmolLM2 | Blip, pruner: str, plan: SparsityPlan, draw: int) -> float:
    model: nn.Module = copy.deepcopy(subject.dense)
    options = WalkOptions(progress=False, bf16=subject.bf16)
    prune(model, PRUNERS[pruner](), subject.batches(draw), plan, options=options)
    return subject.evaluate(model)


def show(cells: dict[str, float], pruners: Sequence[str], draws: int, headline: str) -> None:
    print(f"{headline}: mean ± standard deviation over {draws} draws of calibration data\n")
    print("| pruner | sparsity | " + " | ".join(ALLOCATIONS) + " |\n| --- | --- |" + " --- |" * len(ALLOCATIONS))
    for pruner in pruners:
        for sparsity in SPARSITIES:
            row = []
            for name in ALLOCATIONS:
                values = [cells[f"{pruner}/{sparsity}/{name}/{draw}"] for draw in range(draws)]
                row.append(f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}")
            print(f"| {pruner} | {sparsity} | " + " | ".join(row) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=["smollm2", "blip"])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--pruners", nargs="+", default=list(PRUNERS), choices=list(PRUNERS))
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    subject = SmolLM2(asked.data) if asked.subject == "smollm2" else Blip()
    cells: dict[str, float] = json.loads(asked.out.read_text()) if asked.out and asked.out.exists() else {}
    measured = Measured(subject)
    print(f"dense: {subject.evaluate(subject.dense):.2f}\n", flush=True)
    for pruner in asked.pruners:
        for draw in range(asked.draws):
            for name in ALLOCATIONS:
                for sparsity in SPARSITIES:
                    key = f"{pruner}/{sparsity}/{name}/{draw}"
                    if key not in cells:
                        cells[key] = cell(subject, pruner, measured.plan(name, sparsity, draw), draw)
                        if asked.out:
                            write_text(asked.out, json.dumps(cells))
    show(cells, asked.pruners, asked.draws, subject.headline)


if __name__ == "__main__":
    main()
