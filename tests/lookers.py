"""Folders of tiny random models that classify, compare, judge and segment pictures, and small data for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

from prunus.models import (
    BlipForImagesAndTextClassification,
    BlipForRetrievalTraining,
    BlipNlvrConfig,
    BlipRetrievalConfig,
    CLIPForRetrieval,
    CLIPRetrievalConfig,
    SegmenterConfig,
    SegmenterForSemanticSegmentation,
)

SIDE, PATCH = 16, 8
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (235, 235, 235)}
VOCABULARY = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", "picture", "plain", "one", "is", "left", "right", "and", ".", "the", "both",
    *COLOURS, "[ENC]",
]  # fmt: skip


def tokenizer() -> Any:
    """One token a word, between [CLS] and [SEP]."""
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", eos_token="[SEP]",
        model_max_length=12,
    )  # fmt: skip


def sizes(**more: Any) -> dict[str, Any]:
    return {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24, **more}


def vision(**more: Any) -> dict[str, Any]:
    return sizes(image_size=SIDE, patch_size=PATCH, **more)


def words(**more: Any) -> dict[str, Any]:
    return sizes(
        vocab_size=len(VOCABULARY), max_position_embeddings=12, pad_token_id=0, bos_token_id=2, eos_token_id=3, **more
    )


def blip_words() -> dict[str, Any]:
    return words(encoder_hidden_size=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def vit() -> Any:
    config = tf.ViTConfig(**vision(), num_labels=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return tf.ViTForImageClassification(config)


def clip() -> Any:
    return tf.CLIPModel(tf.CLIPConfig(text_config=words(), vision_config=vision(), projection_dim=8))


def siglip() -> Any:
    text = words()
    return tf.SiglipModel(tf.SiglipConfig(text_config=text, vision_config=vision()))


def clip_retrieval() -> Any:
    return CLIPForRetrieval(
        CLIPRetrievalConfig(text_config=words(), vision_config=vision(), projection_dim=8, queue_size=8)
    )


def blip_retrieval() -> Any:
    config = BlipRetrievalConfig(
        text_config=blip_words(), vision_config=vision(), image_text_hidden_size=8, queue_size=8, enc_token_id=len(VOCABULARY) - 1
    )  # fmt: skip
    return BlipForRetrievalTraining(config)


def blip_itm() -> Any:
    return tf.BlipForImageTextRetrieval(
        tf.BlipConfig(text_config=blip_words(), vision_config=vision(), image_text_hidden_size=8)
    )


def blip_nlvr() -> Any:
    config = BlipNlvrConfig(
        text_config=blip_words(), vision_config=vision(), merge_from_layer=1, enc_token_id=len(VOCABULARY) - 1
    )
    return BlipForImagesAndTextClassification(config)


def vilt_nlvr() -> Any:
    config = tf.ViltConfig(
        **vision(),
        **{k: v for k, v in words().items() if k not in sizes()},
        num_images=2,
        num_labels=2,
        modality_type_vocab_size=3,
    )
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    return tf.ViltForImagesAndTextClassification(config)


def two_encoders() -> Any:
    config = tf.VisionTextDualEncoderConfig.from_vision_text_configs(
        tf.ViTConfig(**vision()), tf.BertConfig(**words()), projection_dim=12
    )
    return tf.VisionTextDualEncoderModel(config)


def segmenter() -> Any:
    return SegmenterForSemanticSegmentation(SegmenterConfig(vision_config=vision(), num_labels=4))


MODELS: dict[str, Callable[[], Any]] = {
    made.__name__: made
    for made in (
        vit,
        clip,
        siglip,
        clip_retrieval,
        blip_retrieval,
        blip_itm,
        blip_nlvr,
        vilt_nlvr,
        segmenter,
        two_encoders,
    )
}
READ_WORDS = (
    "clip",
    "siglip",
    "clip_retrieval",
    "blip_retrieval",
    "blip_itm",
    "blip_nlvr",
    "vilt_nlvr",
    "two_encoders",
)


def saved(name: str, folder: Path) -> Path:
    """A model's folder, with a tokenizer where it reads words, and an image processor of its own where that is a CLIP's."""
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for weight in model.parameters():  # so that what goes in matters
            if weight.ndim > 1:
                weight.mul_(8)
    model.save_pretrained(folder)
    if name in READ_WORDS:
        tokenizer().save_pretrained(folder)
    if name == "vilt_nlvr":
        ViltImageProcessorPil(size={"shortest_edge": SIDE}, size_divisor=PATCH).save_pretrained(folder)
    if name in ("clip", "two_encoders"):
        size = {"height": SIDE, "width": SIDE}
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size).save_pretrained(folder)
    return folder


def picture(colour: str, width: int = 20, height: int = 24) -> Image.Image:
    return Image.new("RGB", (width, height), COLOURS[colour])


def coloured(folder: Path, count: int = 24) -> Path:
    """A folder for each colour, with pictures of it, a little different from each other."""
    for number in range(count):
        colour = list(COLOURS)[number % len(COLOURS)]
        (folder / colour).mkdir(parents=True, exist_ok=True)
        image = picture(colour, 18 + number, 20)
        image.putpixel((number % 18, 3), (9 * number % 255, 0, 0))
        image.save(folder / colour / f"{number}.png")
    return folder


def captioned(folder: Path, count: int = 16) -> Path:
    """Pictures with two captions each, in a table."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        colour = list(COLOURS)[number % len(COLOURS)]
        picture(colour, 18 + number).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "captions": [f"A photo of {colour}.", f"plain {colour}"]})
    return _table(folder / "rows.jsonl", rows)


def judged(folder: Path, count: int = 16, alone: bool = False) -> Path:
    """Statements about two pictures, or about one of three boxes."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    names = list(COLOURS)
    for number in range(count):
        left, right = names[number % 4], names[(number // 4) % 4]
        said = names[(number // 2) % 4]
        row: dict[str, Any] = {"text": f"the left is {said}", "label": said == left}
        if alone:
            strip = Image.new("RGB", (60, 15))
            for place, colour in enumerate((left, "white", right)):
                strip.paste(COLOURS[colour], (20 * place, 0, 20 * place + 20, 15))
            strip.save(folder / f"{number}.png")
            row["image"] = f"{number}.png"
        else:
            picture(left).save(folder / f"{number}-0.png")
            picture(right).save(folder / f"{number}-1.png")
            row["images"] = [f"{number}-0.png", f"{number}-1.png"]
        rows.append(row)
    return _table(folder / "rows.jsonl", rows)


def masked(folder: Path, count: int = 8) -> Path:
    """Pictures of two colours, with masks."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        width, height = 24 + number, 20
        left, right = number % 4, (number + 1) % 4
        image, mask = Image.new("RGB", (width, height)), Image.new("L", (width, height))
        for at, cls in ((0, left), (width // 2, right)):
            image.paste(COLOURS[list(COLOURS)[cls]], (at, 0, width, height))
            mask.paste(cls, (at, 0, width, height))
        image.save(folder / f"{number}.png")
        mask.save(folder / f"{number}-mask.png")
        rows.append({"image": f"{number}.png", "mask": f"{number}-mask.png"})
    return _table(folder / "rows.jsonl", rows)


def _table(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file
