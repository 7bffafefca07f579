"""The task of random inputs: shapes and labels by the model's config, the same for the same seed, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models

import prunus.tasks.noise
from prunus import PrunusError
from prunus.losses import own_loss
from prunus.tasks import Text
from prunus.tasks.noise import Noise

SIZES = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
TEXT = {**SIZES, "vocab_size": 11, "max_position_embeddings": 16}
IMAGE = {**SIZES, "image_size": 8, "patch_size": 4}
CONFIGS: dict[str, Any] = {
    "vit": tf.ViTConfig(**IMAGE, num_labels=5),
    "vit, not square, grey": tf.ViTConfig(**{**IMAGE, "image_size": [8, 4]}, num_channels=1),
    "clip": tf.CLIPConfig(text_config=TEXT, vision_config=IMAGE),
    "llama": tf.LlamaConfig(**TEXT),
    "t5": tf.T5Config(vocab_size=11, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2),
    "blip2": tf.Blip2Config(
        vision_config=IMAGE, qformer_config={**SIZES, "encoder_hidden_size": 8}, num_query_tokens=3, image_token_index=9,
        text_config={**SIZES, "model_type": "opt", "vocab_size": 11, "max_position_embeddings": 32, "ffn_dim": 8, "word_embed_proj_dim": 8},
    ),
}  # fmt: skip


def noise(folder: Path, name: str, **more: Any) -> Noise:
    CONFIGS[name].save_pretrained(folder)
    return Noise(**{"items": 40, "length": 10, **more}).for_model(folder)


def whole(task: Noise) -> dict[str, torch.Tensor]:
    (batch,) = task.calibration(1000, 1000)
    return batch


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("vit", {"pixel_values": (40, 3, 8, 8), "labels": (40,)}),
        ("vit, not square, grey", {"pixel_values": (40, 1, 8, 4), "labels": (40,)}),
        ("clip", {"pixel_values": (40, 3, 8, 8), "input_ids": (40, 10), "attention_mask": (40, 10)}),
        ("llama", {"input_ids": (40, 10), "attention_mask": (40, 10), "labels": (40, 10)}),
        ("t5", {"input_ids": (40, 10), "attention_mask": (40, 10), "labels": (40, 5)}),
        (
            "blip2",
            {"pixel_values": (40, 3, 8, 8), "input_ids": (40, 13), "attention_mask": (40, 13), "labels": (40, 13)},
        ),
    ],
)
def test_inputs_are_what_the_config_asks_for(name: str, shapes: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    task = noise(tmp_path, name)
    task.check_model(tmp_path)
    inputs = whole(task)
    assert {key: tuple(value.shape) for key, value in inputs.items()} == shapes
    if "input_ids" in inputs:
        assert bool((inputs["attention_mask"] == 1).all())
        words = inputs["input_ids"][:, 3:] if name == "blip2" else inputs["input_ids"]
        assert set(words.unique().tolist()) == set(range(3, 11)) - ({9} if name == "blip2" else set())
    if name == "blip2":  # the image's places first, which are no targets
        assert bool((inputs["input_ids"][:, :3] == 9).all())
        assert bool((inputs["labels"][:, :3] == -100).all())
        assert torch.equal(inputs["labels"][:, 3:], inputs["input_ids"][:, 3:])
    elif name == "llama":
        assert torch.equal(inputs["labels"], inputs["input_ids"])
    elif name == "t5":
        assert set(inputs["labels"].unique().tolist()) == set(range(3, 11))
    elif name == "vit":
        assert set(inputs["labels"].unique().tolist()) == set(range(5))


def test_the_same_seed_is_the_same_noise(tmp_path: Path) -> None:
    one, same, other = (whole(noise(tmp_path, "llama", seed=seed))["input_ids"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    named = Noise(config="elsewhere")
    assert named.for_model(tmp_path) is named
    assert Noise().for_model(tmp_path).config == str(tmp_path)
    with pytest.raises(PrunusError, match=r"task\.config"):
        Noise().train_data()


def test_batches_are_cut_from_the_beginning(tmp_path: Path) -> None:
    task = noise(tmp_path, "llama", items=5)
    ids = whole(task)["input_ids"]
    cut = [batch["input_ids"] for batch in task.calibration(4, 3)]
    assert [len(part) for part in cut] == [3, 1]
    assert torch.equal(torch.cat(cut), ids[:4])
    assert sum(len(batch["input_ids"]) for batch in task.calibration(9, 2)) == 5
    data: Any = task.train_data()
    assert len(data) == 5
    assert torch.equal(task.collate([data[4], data[1]])["input_ids"], ids[[4, 1]])


def test_the_metric_is_the_mean_loss_of_batches_of_eight(tmp_path: Path) -> None:
    task = noise(tmp_path, "llama", items=12)
    torch.manual_seed(0)
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**TEXT, initializer_range=1.0))
    inputs = whole(task)
    with torch.no_grad():
        losses = [
            float(own_loss(model, {key: value[rows] for key, value in inputs.items()}))
            for rows in (slice(0, 8), slice(8, 12))
        ]
        first = float(own_loss(model, {key: value[:2] for key, value in inputs.items()}))
    assert task.headline == "loss"
    assert task.evaluate(model)["loss"] == pytest.approx(sum(losses) / 2)
    assert task.evaluate(model, limit=2)["loss"] == pytest.approx(first)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, args, given: seen.append(len(given["input_ids"])), with_kwargs=True)
    for size in (3, 99):
        task.example(model, size)()
    assert seen == [3, 99]


def test_what_does_not_fit_is_refused_before_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image's number may be held four times over, in 16 bytes; a token in 64."""
    for name, needed, field in (("vit", 16 * 40 * 3 * 8 * 8, "items"), ("llama", 64 * 40 * 10, "length")):
        task = noise(tmp_path, name)
        monkeypatch.setattr(prunus.tasks.noise, "memory", lambda needed=needed: needed - 1)
        with pytest.raises(PrunusError, match=rf"task\.{field}"):
            task.check_model(tmp_path)
        monkeypatch.setattr(prunus.tasks.noise, "memory", lambda needed=needed: needed)
        task.check_model(tmp_path)
    monkeypatch.setattr(prunus.tasks.noise, "memory", lambda: math.inf)
    noise(tmp_path, "llama", length=16).check_model(tmp_path)
    with pytest.raises(PrunusError, match="16 positions"):
        noise(tmp_path, "llama", length=17).check_model(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    for words, fits in ((4, True), (3, False)):  # tokens begin at 3, after what is special
        (tmp_path / "config.json").write_text(json.dumps({**about, "vocab_size": words}))
        if fits:
            Noise(length=10).check_model(tmp_path)
        else:
            with pytest.raises(PrunusError, match="knows 3 tokens"):
                Noise(length=10).check_model(tmp_path)


def test_code_that_lies_beside_a_config_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trusted: list[object] = []
    for kind in (tf.AutoConfig, tf.AutoTokenizer):
        real = kind.from_pretrained
        monkeypatch.setattr(
            kind, "from_pretrained", lambda *args, real=real, **more: trusted.append(more["trust_remote_code"]) or real(*args, **more)
        )  # fmt: skip
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="a").save_pretrained(tmp_path)
    (tmp_path / "text.txt").write_text("b")
    noise(tmp_path, "llama").check_model(tmp_path)
    with pytest.raises(PrunusError, match="1 tokens"):
        Text(evaluation=tmp_path / "text.txt").check_model(tmp_path)
    assert trusted
    assert not any(trusted)
