"""The two halves of a processor, for models that need only one of them or whose folder has none: pictures and words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL.Image import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from prunus.checkpoint import understood
from prunus.errors import PrunusError

PICTURES = ("preprocessor_config.json", "processor_config.json")
WORDS = ("tokenizer_config.json", "tokenizer.json")
HALF = (0.5, 0.5, 0.5)


def image_processor(places: Sequence[str], config: Any) -> Any:
    """What turns pictures into tensors: that of the first folder that has one. If none has, as beside random weights, pictures are
    resized to the model's size, and normalised as CLIP does if the model is a CLIP or a BLIP, else to -1 to 1.

    Args:
        places: folders or hub ids.
        config: of the model.
    """
    for place in places:
        if _may_have(place, PICTURES):
            with understood(place, doing="read the image processor"):
                return AutoImageProcessor.from_pretrained(place, trust_remote_code=False)
    height, width = image_size(config)
    like_clip = any(name in config.model_type for name in ("clip", "blip"))
    mean, std = (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD) if like_clip else (HALF, HALF)
    return BlipImageProcessorPil(size={"height": height, "width": width}, image_mean=mean, image_std=std)


def tokenizer(places: Sequence[str]) -> Any:
    """What turns words into tokens: that of the first folder that has one.

    Raises:
        PrunusError: none has.
    """
    for place in places:
        if _may_have(place, WORDS):
            with understood(place, doing="read the tokenizer"):
                return AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    raise PrunusError("task.processor", places[-1], "the folder has no tokenizer; name the folder or hub id of one")


def image_size(config: Any) -> tuple[int, int]:
    """Height and width of the pictures that a model was made for, by its config.

    Raises:
        PrunusError: the config does not say.
    """
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    if not isinstance(size, int):
        raise PrunusError(
            "task.processor",
            config.model_type,
            "the model does not say how large its pictures are; name a folder that does",
        )
    return size, size


def taken_size(processor: Any) -> tuple[int, int] | None:
    """Height and width of what an image processor makes of a square picture; None where that depends on the picture."""
    crop = processor.crop_size if getattr(processor, "do_center_crop", None) else None
    size = crop or processor.size
    height, width, side = (getattr(size, name, None) for name in ("height", "width", "shortest_edge"))
    if not (height and width) and (not side or getattr(size, "longest_edge", None)):
        return None
    return (int(height), int(width)) if height and width else (int(side or 0), int(side or 0))


def pixels(processor: Any, images: Sequence[Image], sized: bool = False) -> Tensor:
    """Pictures as a model takes them, (B, 3, H, W).

    Args:
        sized: whether they have the right size already, so that nothing is resized or cut off.
    """
    as_they_are = {"do_resize": False, "do_center_crop": False} if sized else {}
    values: Tensor = processor(images=list(images), return_tensors="pt", **as_they_are)["pixel_values"]
    return values


def wide_enough(processor: Any, images: Sequence[Image]) -> list[Image]:
    """Pictures, of which those that are so thin that a processor like ViLT's would leave nothing of them are stretched."""
    divisor, short = processor.size_divisor, processor.size.shortest_edge
    thinnest = divisor / int(1333 / 800 * short)
    wide = []
    for image in images:
        least = math.ceil(max(image.size) * thinnest)
        size = max(image.width, least), max(image.height, least)
        wide.append(image if size == image.size else image.resize(size))
    return wide


def _may_have(place: str, names: Sequence[str]) -> bool:
    """Whether a folder has one of these files; of a hub id, that is not known."""
    folder = Path(place)
    return not folder.is_dir() or any((folder / name).exists() for name in names)


class Parted:
    """What kinds have in common that take pictures and words by halves of a processor, each from the first folder that has it."""

    folder: str
    source: str
    config: Any

    @cached_property
    def pictures(self) -> Any:
        """The image processor."""
        return image_processor([self.source, self.folder], self.config)

    @cached_property
    def words(self) -> Any:
        """The tokenizer."""
        return tokenizer([self.source, self.folder])

    @cached_property
    def processor(self) -> Any:
        """Both."""
        return SimpleNamespace(image_processor=self.pictures, tokenizer=self.words)

    def save(self, folder: Path) -> None:
        """Puts both beside a model."""
        self.pictures.save_pretrained(folder)
        self.words.save_pretrained(folder)

    def tokens(self, texts: Sequence[str], length: int | None = None) -> dict[str, Any]:
        """Token ids and, where the tokenizer has one, their mask, (B, T). SigLIP's texts are as long as they were in its training.

        Args:
            length: tokens of a text at the most; None is what the model has positions for.
        """
        most = min(self.config.get_text_config().max_position_embeddings, self.words.model_max_length)
        padding = "max_length" if "siglip" in self.config.model_type else True
        return dict(
            self.words(
                list(texts), padding=padding, truncation=True, max_length=min(length or most, most), return_tensors="pt"
            )
        )
