"""Every task end to end on real data by recipes, without a hub, each by the search road and by the prune road: captions of Flickr8k, questions
of easy-VQA, texts of WikiText-2, and what the recipes in recipes/your-data are for.

    python -m benchmarks.real_data --data DATA --output FOLDER                        # all of them, an hour of one thread
    python -m benchmarks.real_data caption --road search --data DATA --scale 0.5      # one

The models are small and trained in minutes, so figures say that everything works, and not how good a method is. A run that has ended is not
run again: the table is printed from its report.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoTokenizer, BertTokenizer, BlipConfig, BlipForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from prunus.data import IMAGE_MEAN, IMAGE_STD, Table, open_image
from prunus.models import SPECIAL_TOKENS, small_blip, whiten
from prunus.recipe import Recipe
from prunus.run import finished, run
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


def text(data: Path, output: Path, scale: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """A LLaMA of 260 thousand parameters, on another kind of text than its own."""
    split = {"training": str(data / "wikitext2-valid.txt"), "evaluation": str(data / "wikitext2-test.txt")}
    still = training(round(scale * 200), 5e-4)
    return {"path": str(data / "stories260k"), "train": [still]}, {"name": "text", **split, "length": 256}


def as_its_recipe_says(name: str, data: Path, output: Path, scale: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """A recipe of recipes/your-data, with its files where the data are, and a tokenizer from there."""
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    model, task = recipe["model"], recipe["task"]
    for entry in model["train"]:
        entry |= {"steps": round(scale * entry["steps"]), "warmup_steps": 5, "save_every": 50}
    for split in ("train", "evaluation"):
        if isinstance(task[split], str):
            task[split] = str(data / task[split])
        else:
            task[split]["files"] = str(data / task[split]["files"])
    if "processor" in task:
        kind = "clip" if "clip" in task["processor"] else "bert"
        task["processor"] = str(data / "tokenizers" / kind)
        model["random"]["text_config"] |= WORDS[kind]
    return model, task


RECIPES = Path(__file__).parents[1] / "recipes" / "your-data"
WORDS = {"bert": {"eos_token_id": 102}, "clip": {"eos_token_id": 49407}}
"""What a random text model has to know of a tokenizer."""
TASKS: dict[str, Callable[[Path, Path, float], tuple[dict[str, Any], dict[str, Any]]]] = {
    "caption": caption,
    "vqa": vqa,
    "text": text,
    **{file.stem: partial(as_its_recipe_says, file.stem) for file in sorted(RECIPES.glob("*.yaml"))},
}
ROADS = ("search", "prune")
SLOW = {"tower_learning_rates": {"vision": 3e-5}}


def road(name: str, scale: float, slow: dict[str, Any]) -> list[dict[str, Any]]:
    """Steps of a recipe.

    Args:
        slow: settings of trainings for towers that were trained before.
    """
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


def one(task: str, way: str, given: argparse.Namespace) -> str:
    """A row of the table."""
    torch.manual_seed(0)
    source, on = TASKS[task](given.data, given.output, given.scale)
    recipe = Recipe.model_validate({
        "model": source, "task": on, "steps": road(way, given.scale, SLOW if task in ("caption", "vqa") else {}), "evaluate_limit": given.limit,
        "measure": {"batch_size": 1, "repeats": 3}, "output": str(given.output / f"{task}-{way}"),
    })  # fmt: skip
    report = finished(recipe) or run(recipe)
    assert report is not None
    before, after = (report.models[which]["metrics"][report.headline] for which in ("dense", "compressed"))
    return f"| `{task}` | {way} | {report.headline} {before:.4g} | {after:.4g} | {report.ratio or report.sparsity or 0.0:.0%} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "tasks", nargs="*", choices=[*TASKS, "all"], default="all", metavar="TASK", help=", ".join(TASKS)
    )
    parser.add_argument("--road", choices=ROADS, help="by default both")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=Path(tempfile.gettempdir()) / "real-data")
    parser.add_argument("--scale", type=float, default=1.0, help="of the steps of all trainings")
    parser.add_argument("--limit", type=int, default=500, help="rows that are evaluated")
    given = parser.parse_args()
    tasks, roads = TASKS if "all" in given.tasks else given.tasks, (given.road,) if given.road else ROADS
    rows = [one(task, way, given) for task in tasks for way in roads]
    print("\n| task | road | before | after | removed |\n| --- | --- | --- | --- | --- |", *rows, sep="\n")


if __name__ == "__main__":
    main()
