"""Parameters and multiply-accumulates of UPop's models as its paper counts them, on its inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BlipForConditionalGeneration,
    BlipForQuestionAnswering,
    DeiTForImageClassificationWithTeacher,
    PreTrainedModel,
    ViTForImageClassification,
)

from prunus.anatomy import anatomy
from prunus.cost import multiply_accumulates, published_flops
from prunus.errors import PrunusError
from prunus.models.blip_nlvr import BlipForImagesAndTextClassification
from prunus.models.blip_retrieval import BlipForRetrievalTraining
from prunus.models.clip_retrieval import CLIPForRetrieval
from prunus.models.segmenter import SegmenterForSemanticSegmentation
from prunus.modules import evaluating

UNUSED_CLASSES = 1000
"""Of the classifier in the encoder of a published Segmenter."""


@dataclass(frozen=True)
class PublishedCount:
    """What the paper's tables say of a model."""

    parameters: int
    """With the classifier in Segmenter's encoder, and the last norm of the copy of CLIP's text tower, which nothing reads."""
    masks: int
    """Values of the masks of its units, which the paper counts as parameters of uncompressed models."""
    flops: int
    """fvcore's: multiply-accumulates, and some for norms and resizing."""
    macs: int
    """Multiply-accumulates alone, on the same input."""


def as_published(model: PreTrainedModel) -> PublishedCount:
    """Counts a model, which may be narrowed and may lie on the meta device, where it costs nothing.

    Raises:
        PrunusError: it is none of the paper's models.
    """
    run = next((run for kind, run in RUNS.items() if isinstance(model, kind)), None)
    if run is None:
        known = ", ".join(kind.__name__ for kind in RUNS)
        raise PrunusError("model", type(model).__name__, f"the paper has no such model; it counts {known}")
    parts = anatomy(model)
    with evaluating(model):  # in training a loss would move momentum copies and fill the queue
        flops = published_flops(model, lambda: run(model))
        macs = multiply_accumulates(model, lambda: run(model), parts)["total"]
    return PublishedCount(parts.parameters + _unused(model), sum(unit.channels for unit in parts), flops, macs)


def _unused(model: PreTrainedModel) -> int:
    """Parameters that are published and counted, and that nothing reads."""
    if isinstance(model, SegmenterForSemanticSegmentation):
        return UNUSED_CLASSES * (int(model.config.vision_config.hidden_size) + 1)
    return 2 * int(model.config.text_config.hidden_size) if isinstance(model, CLIPForRetrieval) else 0


def _image(model: PreTrainedModel, side: int, *batch: int) -> Tensor:
    return torch.zeros((*(batch or (1,)), 3, side, side), device=model.device)


def _tokens(model: PreTrainedModel, *shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.long, device=model.device)


def _side(model: PreTrainedModel) -> int:
    """Of the images that its positions are for."""
    return int(getattr(model.config, "vision_config", model.config).image_size)


def _classify(model: Any) -> None:
    """One image."""
    model(pixel_values=_image(model, _side(model)))


def _caption(model: Any) -> None:
    """One image, 15 tokens."""
    model(pixel_values=_image(model, _side(model)), input_ids=_tokens(model, 1, 15))


def _answer(model: Any) -> None:
    """32 questions of 14 tokens about one image, which is encoded once; 47 answers of 5 tokens, all to the first question."""
    image = model.vision_model(pixel_values=_image(model, _side(model))).last_hidden_state
    states = model.text_encoder(input_ids=_tokens(model, 32, 14), encoder_hidden_states=image).last_hidden_state
    model.text_decoder(input_ids=_tokens(model, 47, 5), encoder_hidden_states=states[:1])


def _reason(model: Any) -> None:
    """Two images, 36 tokens."""
    model(input_ids=_tokens(model, 1, 36), pixel_values=_image(model, _side(model), 1, 2))


def _match(model: Any) -> None:
    """One image and 35 tokens through the encoders and their momentum copies, contrasted both ways with the queue, and matched as three
    pairs: itself, and two negatives."""
    image, ids = _image(model, _side(model)), _tokens(model, 1, 35)
    states = model.vision_model(pixel_values=image).last_hidden_state
    read = model.text_encoder(input_ids=ids).last_hidden_state
    states_m = model.vision_model_m(pixel_values=image).last_hidden_state
    read_m = model.text_encoder_m(input_ids=ids).last_hidden_state
    image_m, text_m = model.vision_proj_m(states_m[:, 0]), model.text_proj_m(read_m[:, 0])
    all_images, all_texts = torch.cat([image_m.T, model.queue.images], 1), torch.cat([text_m.T, model.queue.texts], 1)
    for features, others in (
        (model.vision_proj(states[:, 0]), all_texts), (model.text_proj(read[:, 0]), all_images),
        (image_m, all_texts), (text_m, all_images),
    ):  # fmt: skip
        features @ others
    pairs = model.text_encoder(input_ids=ids.expand(3, -1), encoder_hidden_states=states.expand(3, -1, -1))
    model.itm_head(pairs.last_hidden_state[:, 0])


def _contrast(model: Any) -> None:
    """One pair of an image and 77 tokens, which both the model and its copies read and compare with the queue. The published code norms
    all tokens at the end, of which one is read."""
    tokens = 77
    model(input_ids=_tokens(model, 1, tokens), pixel_values=_image(model, _side(model)), return_loss=True)
    vision, text = model.config.vision_config, model.config.text_config
    patches = (vision.image_size // vision.patch_size) ** 2
    for tower in (model.vision_model, model.vision_model_m):
        tower.post_layernorm(torch.zeros(patches, vision.hidden_size, device=model.device))
    model.text_model.final_layer_norm(torch.zeros(tokens - 1, text.hidden_size, device=model.device))


RUNS: dict[type[PreTrainedModel], Callable[[Any], None]] = {
    ViTForImageClassification: _classify,
    DeiTForImageClassificationWithTeacher: _classify,
    SegmenterForSemanticSegmentation: _classify,
    BlipForConditionalGeneration: _caption,
    BlipForQuestionAnswering: _answer,
    BlipForImagesAndTextClassification: _reason,
    BlipForRetrievalTraining: _match,
    CLIPForRetrieval: _contrast,
}
"""Class → one call on the paper's input, at the image size of the model."""
