"""Models that a task is not for: one error that names both and the tasks for such a model, before a weight is read."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import transformers as tf
from PIL import Image

from prunus import PrunusError
from prunus.evaluation import evaluate_here, read_task

MODELS: dict[str, tuple[Any, str]] = {
    "CLIPModel": (tf.CLIPConfig, "classification, retrieval"),
    "ViTForImageClassification": (tf.ViTConfig, "classification"),
    "LlamaForCausalLM": (tf.LlamaConfig, "text"),
    "LlavaForConditionalGeneration": (tf.LlavaConfig, "caption, instruction, text, vqa"),
    "BlipForQuestionAnswering": (tf.BlipConfig, "caption, easy_vqa, vqa"),
    "ViltForImagesAndTextClassification": (partial(tf.ViltConfig, num_images=2), "reasoning"),
    "SegformerForSemanticSegmentation": (tf.SegformerConfig, "segmentation"),
    "T5ForConditionalGeneration": (tf.T5Config, ""),
}
"""Models and the tasks for them."""
TASKS = (
    "caption",
    "classification",
    "easy_vqa",
    "instruction",
    "reasoning",
    "retrieval",
    "segmentation",
    "text",
    "vqa",
)


@pytest.mark.parametrize("model", MODELS)
def test_a_task_and_a_model_that_is_none_of_its_own(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("prunus.evaluation.evaluate.load_model", None)
    config, tasks = MODELS[model]
    config(architectures=[model]).save_pretrained(tmp_path / "model")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    row = {"image": "a.png", "question": "What?", "answers": ["a"], "captions": ["a"], "text": "a", "label": 0, "mask": "a-mask.png",
           "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}  # fmt: skip
    Image.new("L", (8, 8)).save(tmp_path / "a-mask.png")
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    for name in TASKS:
        if name in tasks.split(", "):
            continue
        data = {"layout": "table", "files": str(tmp_path / "rows.jsonl")}
        task = read_task(json.dumps({"name": name} | ({} if name == "easy_vqa" else {"evaluation": data})))
        with pytest.raises(PrunusError) as error:
            evaluate_here(tmp_path / "model", task, 2)
        said = str(error.value)
        assert said.startswith(f"task = '{name}': ")
        assert f"({model}); it is for " in said
        listed = said.partition("Tasks for such a model: ")[2].split(", ")  # other tests have tasks of their own
        assert [one for one in listed if one in TASKS] == tasks.split(", ") if tasks else "No task is for" in said
