"""Two models that are pruned without a hub, with their data: SmolLM2-135M on WikiText-2, and the demo's BLIP on easy-VQA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset, TensorDataset
from transformers import AutoTokenizer, PreTrainedModel

from benchmarks.smollm2 import LENGTH, model_folder
from prunus import load_model
from prunus.batches import default_device
from prunus.calibration import text_windows
from prunus.losses import Predict
from prunus.storage import cache_folder
from prunus.tasks import EasyVQA, Text

Batches = list[dict[str, Any]]


class Subject(Protocol):
    """A dense model with what it takes to calibrate, train and measure it."""

    dense: PreTrainedModel
    headline: str
    higher_is_better: bool
    bf16: bool
    predict: Predict
    data: Dataset[Any]
    collate: Callable[[list[Any]], dict[str, Any]]

    def calibration(self, draw: int) -> Batches:
        """Inputs for a pruner; another draw, other inputs."""

    def learning(self, draw: int) -> Batches:
        """Batches with targets, for scores that need a loss."""

    def evaluate(self, model: Any) -> float:
        """The headline."""


class SmolLM2:
    """Perplexity on the first windows of the test text; calibrated and trained on the validation text."""

    headline, higher_is_better, bf16 = "perplexity", False, True

    def __init__(self, data: Path, samples: int = 16, windows: int = 32, train_length: int = 256):
        self.dense, self.windows, self.samples = (
            load_model(model_folder()).to(default_device()).eval(),
            windows,
            samples,
        )
        self.task = Text(
            tokenizer=str(model_folder()), evaluation=data / "wikitext2-test.txt", length=LENGTH, bf16=True
        )
        tokenizer, text = AutoTokenizer.from_pretrained(model_folder()), (data / "wikitext2-valid.txt").read_text()
        self.rows = text_windows(tokenizer, text, LENGTH)
        self.data = TensorDataset(text_windows(tokenizer, text, train_length))
        self.predict, self.collate = self.task.predict, self.task.collate

    def calibration(self, draw: int) -> Batches:
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(draw))
        return [{"input_ids": ids} for ids in self.rows[order[: self.samples]].split(4)]

    learning = calibration

    def evaluate(self, model: Any) -> float:
        return self.task.evaluate(model, self.windows, progress=False)["perplexity"]


class Blip:
    """Accuracy in percent on the first test questions; a toy set. Without a folder, of the dense model that was made last."""

    headline, higher_is_better, bf16 = "accuracy, %", True, False

    def __init__(self, samples: int = 64, questions: int = 1000, folder: Path | None = None):
        folder = folder or max(cache_folder().glob("dense-easy_vqa-*/model"), key=lambda path: path.stat().st_mtime)
        self.dense, self.samples, self.questions = load_model(folder).to(default_device()).eval(), samples, questions
        self.task = EasyVQA(image_size=self.dense.config.vision_config.image_size, questions_per_item=5)
        self.everything = self.task.calibration(1024, 16)
        self.data = self.task.train_data()
        self.predict, self.collate = self.task.predict, self.task.collate

    def calibration(self, draw: int) -> Batches:
        order = torch.randperm(len(self.everything), generator=torch.Generator().manual_seed(draw)).tolist()
        return [self.everything[place] for place in order[: self.samples // 16]]

    def learning(self, draw: int) -> Batches:
        order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(draw)).tolist()  # type: ignore[arg-type]
        return [self.collate([self.data[i] for i in order[at : at + 8]]) for at in range(0, self.samples, 8)]

    def evaluate(self, model: Any) -> float:
        return 100 * self.task.evaluate(model, self.questions, progress=False)["accuracy"]


def subject(name: str, data: Path | None) -> Subject:
    """`smollm2`, with a folder that has wikitext2-valid.txt and wikitext2-test.txt, or `blip`, after `make demo`."""
    if name == "blip":
        return Blip()
    if data is None:
        raise SystemExit("smollm2 needs a folder with wikitext2-valid.txt and wikitext2-test.txt")
    return SmolLM2(data)
