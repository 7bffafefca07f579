"""The recipes of the published experiments: each is read, its model built at full size without weights, and run on a tiny twin."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from benchmarks.published_counts import MODELS
from rich.console import Console

from prunus import anatomy
from prunus.anatomy import survey
from prunus.bounded_yaml import read_yaml
from prunus.models import EvaVitConfig, EvaVitForImageClassification
from prunus.recipe import Recipe, load_recipe, recipe_variants
from prunus.run import run
from prunus.sources.published import PublishedSource
from prunus.steps import Sketch
from prunus.variants import of_variant
from tests import lookers, speakers
from tests.published_data import LAYOUTS

FOLDER = Path(__file__).parents[1] / "recipes" / "published"
PATHS = sorted(FOLDER.rglob("*.yaml"))
NAMES = [f"{path.parent.name}/{path.stem}" for path in PATHS]

FLANT5_XL = {"model_type": "t5", "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32, "vocab_size": 32128,
             "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0}  # fmt: skip
FLANT5_XXL = {**FLANT5_XL, "d_model": 4096, "d_ff": 10240, "num_heads": 64}
VIT_G = {"hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39, "num_attention_heads": 16}
QFORMER = {"encoder_hidden_size": 1408}
LLAMA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
LLAMA_13B = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40}


def blip2(text: dict[str, Any]) -> tf.PreTrainedModel:
    config = tf.Blip2Config(vision_config=VIT_G, qformer_config=QFORMER, text_config=text, image_token_index=32100)
    return tf.Blip2ForConditionalGeneration(config)


def instructblip(text: dict[str, Any]) -> tf.PreTrainedModel:
    config = tf.InstructBlipConfig(
        vision_config=VIT_G, qformer_config=QFORMER, text_config=text, image_token_index=32100
    )
    return tf.InstructBlipForConditionalGeneration(config)


def vicuna(sizes: dict[str, int]) -> dict[str, Any]:
    return {"model_type": "llama", "vocab_size": 32001, **sizes}


def clip_b16() -> tf.PreTrainedModel:
    vision = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "patch_size": 16,
    }
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
    return tf.CLIPModel(tf.CLIPConfig(vision_config=vision, text_config=text, projection_dim=512))


def published(name: str) -> Callable[[], tf.PreTrainedModel]:
    return MODELS[name][0]


FULL: dict[str, tuple[Callable[[], tf.PreTrainedModel], float]] = {
    "weights/model_base_nlvr.pth": (published("BLIP-NLVR"), 259.4),
    "weights/model_base_caption_capfilt_large.pth": (published("BLIP-Caption"), 224.0),
    "weights/model_base_vqa_capfilt_large.pth": (published("BLIP-VQA"), 361.5),
    "weights/model_base_retrieval_coco.pth": (published("BLIP-Retrieval"), 447.5),
    "weights/model_base_retrieval_flickr.pth": (published("BLIP-Retrieval"), 447.5),
    "weights/clip_large_retrieval_coco.pth": (published("CLIP ViT-L/14"), 855.9),
    "weights/clip_large_retrieval_flickr.pth": (published("CLIP ViT-L/14"), 855.9),
    "weights/deit_small_patch16_224-cd65a155.pth": (published("DeiT-S"), 22.1),
    "weights/seg_small_mask/checkpoint.pth": (published("Segmenter-S"), 26.4),
    "weights/eva_clip_psz14.pt": (lambda: EvaVitForImageClassification(EvaVitConfig(**{**VIT_G, "num_hidden_layers": 40}, num_labels=1000)), 1012.6),
    "facebook/deit-base-distilled-patch16-224": (lambda: tf.DeiTForImageClassificationWithTeacher(tf.DeiTConfig(num_labels=1000)), 87.3),
    "Salesforce/blip2-flan-t5-xl": (lambda: blip2(FLANT5_XL), 3942.4),
    "Salesforce/instructblip-flan-t5-xl": (lambda: instructblip(FLANT5_XL), 4022.8),
    "Salesforce/instructblip-flan-t5-xxl": (lambda: instructblip(FLANT5_XXL), 12311.3),
    "Salesforce/instructblip-vicuna-7b": (lambda: instructblip(vicuna(LLAMA_7B)), 7913.0),
    "Salesforce/instructblip-vicuna-13b": (lambda: instructblip(vicuna(LLAMA_13B)), 14190.0),
    "google/flan-t5-xl": (lambda: tf.T5ForConditionalGeneration(tf.T5Config(**FLANT5_XL, tie_word_embeddings=False)), 2849.8),
    "openai/clip-vit-base-patch16": (clip_b16, 149.6),
    "huggyllama/llama-7b": (lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**LLAMA_7B)), 6738.4),
}  # fmt: skip
"""What recipes start from → how it is built, and its parameters in millions."""

TWINS = {
    "reasoning": "blip_nlvr", "retrieval": "blip_retrieval", "segmentation": "segmenter", "classification": "vit",
}  # fmt: skip


def start(recipe: Recipe) -> str:
    return recipe.model.published if isinstance(recipe.model, PublishedSource) else str(recipe.model.path)  # type: ignore[attr-defined]


@pytest.mark.long
@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_every_variant_is_a_recipe_that_starts_from_a_known_model(path: Path) -> None:
    data = read_yaml(path.read_text(), "recipe", str(path))
    names = recipe_variants(path)
    assert len(names) > 1
    outputs = set()
    for name in names:
        recipe = Recipe.model_validate(of_variant(copy.deepcopy(data), name, str(path)))
        assert start(recipe) in FULL
        outputs.add(recipe.output)
    assert len(outputs) == len(names)


def test_there_is_one_for_every_row_of_the_papers() -> None:
    found = {name: set(recipe_variants(path)) for name, path in zip(NAMES, PATHS, strict=True)}
    assert set(found["upop/nlvr2"]) == {
        *(f"upop-{size}" for size in ("2x", "3x", "4x", "5x", "10x")), "unified-2x", "unified-3x", "mask_based-2x",
        "iterative_magnitude", "mask_based_ste", "unified_ste", *(f"manual_{row}" for row in range(1, 6)),
    }  # fmt: skip
    for name in ("caption", "vqa", "retrieval-coco", "retrieval-flickr"):
        assert found[f"upop/{name}"] == {
            f"{method}/{size}" for method in ("upop", "unified", "mask_based") for size in ("2x", "4x")
        }
    assert found["upop/deit"] == {"0.1", "0.2", "0.3", "0.4", "0.5"}
    assert len(found["ressa/before-and-after"]) == 5 * 3 * 5 * 2 * 2
    assert len(found["ecoflap/clip"]) == 3 * 11
    assert sum(map(len, found.values())) > 400


@cache
def two_of_each() -> list[Recipe]:
    return [load_recipe(path, (), name) for path in PATHS for name in recipe_variants(path)[:2]]


@pytest.mark.parametrize("model", FULL)
def test_a_full_size_model_has_its_parameters_and_units(model: str) -> None:
    build, millions = FULL[model]
    with torch.device("meta"):
        built = build()
    assert built.num_parameters() / 1e6 == pytest.approx(millions, rel=0.03)
    parts = anatomy(built)
    assert parts.units
    assert survey(built, parts=parts).matrices
    sketch = Sketch.of(built)
    for recipe in two_of_each():
        if start(recipe) == model:
            for step in recipe.steps:
                step.check(sketch)


def tiny_model(recipe: Recipe, task: dict[str, Any], place: Path) -> dict[str, Any]:
    """A tiny model of the kind that a recipe starts from."""
    begun = start(recipe)
    if task["name"] == "noise":
        sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_heads": 2, "num_layers": 2, "vocab_size": 60}
        return {
            "random": {
                "model_type": "t5",
                "architectures": ["T5ForConditionalGeneration"],
                "decoder_start_token_id": 0,
                **sizes,
            }
        }
    if task["name"] == "text":
        tokenizer = tf.AutoTokenizer.from_pretrained(speakers.save("llava", place / "spoken"))
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(place / "model")
        tokenizer.save_pretrained(place / "model")
        return {"path": str(place / "model")}
    if task["name"] in TWINS:
        family = (
            "clip" + ("_retrieval" if task["name"] == "retrieval" else "")
            if "clip-" in begun or "clip_large" in begun
            else TWINS[task["name"]]
        )
        return {"path": str(lookers.saved(family, place / "model"))}
    family = "blip2_t5" if "blip2" in begun else "instructblip_t5"
    if isinstance(recipe.model, PublishedSource):
        family = {"vqa": "blip_all_answers", "caption": "blip_captions"}[task["name"]]
    return {"path": str(speakers.save(family, place / "model"))}


def tiny_data(source: dict[str, Any], place: Path) -> None:
    """Made-up data in the layout of a source."""
    root = place / source["layout"]
    if not root.exists():
        LAYOUTS[source["layout"]](root)
    if source["layout"] == "imagefolder":
        source["folder"] = str(root / Path(source["folder"]).name)
    else:
        source["path" if source["layout"] == "hub" else "root"] = str(root)


SMALL: dict[str, dict[str, Any]] = {
    "caption": {"scores": ["cider"], "words": "plain", "new_tokens": 4, "beams": 1}, "segmentation": {"stride": lookers.SIDE},
    "noise": {"items": 8, "length": 6}, "text": {"length": 16},
}  # fmt: skip


def twin(recipe: Recipe, data: dict[str, Any], place: Path) -> None:
    """Makes a recipe small: a tiny model of the same kind, and made-up data in the same layouts."""
    task = data["task"]
    data["model"] = tiny_model(recipe, task, place)
    task |= {name: most for name, most in {"rerank": 10, "length": 12}.items() if name in task} | SMALL.get(
        task["name"], {}
    )
    task.pop("processor", None)
    for field in ("train", "evaluation"):
        if isinstance(task.get(field), dict):
            tiny_data(task[field], place)
    if task["name"] == "text":
        (place / "words.txt").write_text("all is red and green and blue " * 60)
        task.update(training=str(place / "words.txt"), evaluation=str(place / "words.txt"))
    for step in data["steps"]:
        if "train" in step:
            step["train"] |= {
                "steps": 2,
                "batch_size": 2,
                "gradient_accumulation": 1,
                "workers": 0,
                "save_every": 2,
                "bf16": False,
                "warmup_steps": 0,
            }
        step |= {part: {"samples": 4, "batch_size": 2} for part in ("calibration", "allocation_data") if part in step}
        if "interval" in step.get("method", {}):
            step["method"]["interval"] = 1
    data.update(output=str(place / "run"), measure={"batch_size": 2, "repeats": 1}, evaluate_limit=4)


def cases() -> list[Any]:
    """Of every file its first and its last variant, which differ in everything that it chooses."""
    return [
        pytest.param(path, name, id=f"{path.parent.name}/{path.stem}:{name}")
        for path in PATHS
        for name in dict.fromkeys((recipe_variants(path)[0], recipe_variants(path)[-1]))
    ]


@pytest.mark.usefixtures("quick_reports")
@pytest.mark.long
@pytest.mark.parametrize(("path", "name"), cases())
def test_a_tiny_twin_runs(path: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    data = of_variant(read_yaml(path.read_text(), "recipe", str(path)), name, str(path))
    recipe = Recipe.model_validate(copy.deepcopy(data))
    twin(recipe, data, tmp_path)
    small = Recipe.model_validate(data)
    report = run(small, Console(quiet=True))
    assert [step.step for step in small.steps] == [step.step for step in recipe.steps]
    assert report.models["compressed"]["metrics"]
    if small.steps[0].step == "search":
        asked = small.steps[0].method.ratio  # type: ignore[attr-defined]
        assert report.ratio == pytest.approx(
            0.5 if asked is None else asked, abs=0.2
        )  # a channel is much of a tiny model
    else:
        assert report.sparsity > 0.2
