"""Tasks that speak about images, end to end on real data by recipes, without a hub: captions of Flickr8k, questions of easy-VQA; each by
the search road and by the prune road.

    python -m benchmarks.real_data caption search --data ../shared/data --output /tmp/real-data

The models are small and trained in minutes, so figures say that everything works, and not how good a method is.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertTokenizer, BlipConfig, BlipForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from prunus.data import IMAGE_MEAN, IMAGE_STD, Table, open_image
from prunus.models import SPECIAL_TOKENS, small_blip, whiten
from prunus.recipe import Recipe
from prunus.run import run
from prunus.storage import cache_folder

SIDE = 112
"""Pixels of a picture's side."""


def captioner(folder: Path, rows: Any, words: Path) -> Path:
    """A small BLIP that is to write captions, of packaged towers, whose vocabulary is that of some captions.

    Args:
        rows: with `image` and `captions`.
        words: folder of a BERT tokenizer.
    """
    if folder.exists():
        return folder
    pieces = AutoTokenizer.from_pretrained(words)
    said = [caption for captions in rows["captions"] for caption in captions]
    used = sorted({piece for caption in (*said, "a picture of") for piece in pieces.tokenize(caption)})
    vocabulary = [*SPECIAL_TOKENS, *(piece for piece in used if piece not in SPECIAL_TOKENS)]
    answering = small_blip(vocabulary, SIDE, vision_layers=6, text_layers=3)
    config = BlipConfig.from_dict(answering.config.to_dict())
    model = BlipForConditionalGeneration(config)
    model.vision_model.load_state_dict(answering.vision_model.state_dict())
    model.text_decoder.load_state_dict(answering.text_decoder.state_dict())
    processor = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_mean=IMAGE_MEAN, image_std=IMAGE_STD)
    some = [open_image(rows[place]["image"]) for place in range(0, len(rows), max(1, len(rows) // 64))]
    whiten(model.vision_model, processor(some, return_tensors="pt")["pixel_values"])
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    index = {word: place for place, word in enumerate(vocabulary)}
    BertTokenizer(vocab=index, bos_token="[DEC]", additional_special_tokens=["[ENC]"]).save_pretrained(folder)
    return folder


def training(steps: int, rate: float, **more: Any) -> dict[str, Any]:
    return {
        "steps": steps,
        "batch_size": 16,
        "learning_rate": rate,
        "schedule": "cosine",
        "warmup_steps": 5,
        "save_every": 50,
        **more,
    }


def caption(data: Path, output: Path, scale: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Model and task of a recipe."""
    source = {"layout": "table", "files": str(data / "flickr8k-1k.parquet")}
    splits = {name: source | {"only": {"split": split}} for name, split in (("train", "train"), ("evaluation", "test"))}
    rows = Table.model_validate(splits["train"]).read(("image", "captions"))
    folder = captioner(output / "captioner", rows, data / "tokenizers" / "bert")
    still = training(round(scale * 200), 3e-4, tower_learning_rates={"vision": 0.0})
    return {"path": str(folder), "train": [still]}, {"name": "caption", **splits, "new_tokens": 16, "beams": 1}


def vqa(data: Path, output: Path, scale: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """The demo's dense model, from the cache that a run of the demo fills."""

    found = sorted(cache_folder().glob("dense-easy_vqa-*/model"))
    if not found:
        raise SystemExit("run the demo first: prunus compress recipes/demo.yaml")
    splits = {
        name: {"layout": "easy_vqa", "split": split} for name, split in (("train", "train"), ("evaluation", "test"))
    }
    return {"path": str(found[0])}, {"name": "vqa", **splits, "prompt": "{question}", "new_tokens": 2, "batch_size": 64}


TASKS = {"caption": caption, "vqa": vqa}


def road(name: str, scale: float) -> list[dict[str, Any]]:
    """Steps of a recipe."""
    slow = {"tower_learning_rates": {"vision": 3e-5}}
    if name == "search":
        return [
            {"step": "search", "method": {"method": "upop", "ratio": 0.3, "interval": 1}, "train": training(round(scale * 60), 1e-4, **slow)},
            {"step": "retrain", "train": training(round(scale * 80), 2e-4, **slow)},
        ]  # fmt: skip
    return [
        {
            "step": "prune",
            "method": {"method": "wanda", "sparsity": 0.6},
            "calibration": {"samples": 64, "batch_size": 8},
        },
        {"step": "repair", "method": {"method": "ressa"}, "train": training(round(scale * 60), 5e-4, weight_decay=0.0)},
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("road", choices=("search", "prune"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=Path(tempfile.gettempdir()) / "real-data")
    parser.add_argument("--scale", type=float, default=1.0, help="of the steps of all trainings")
    parser.add_argument("--limit", type=int, default=500, help="rows that are evaluated")
    given = parser.parse_args()
    torch.manual_seed(0)
    model, task = TASKS[given.task](given.data, given.output, given.scale)
    recipe = Recipe.model_validate({
        "model": model, "task": task, "steps": road(given.road, given.scale), "evaluate_limit": given.limit,
        "measure": {"batch_size": 1, "repeats": 3}, "output": str(given.output / f"{given.task}-{given.road}"),
    })  # fmt: skip
    run(recipe)


if __name__ == "__main__":
    main()
