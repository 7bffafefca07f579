"""Converters: published checkpoints to folders of `save_pretrained`, with names as data, one file a family."""

from prunus.models.convert import (
    blip2,
    blip_caption,
    blip_nlvr,
    blip_retrieval,
    blip_vqa,
    clip,
    deit,
    eva_vit,
    segmenter,
)
from prunus.models.convert.assembly import assembled, consumed, convert, published_skeleton
from prunus.models.convert.file import read_tensors
from prunus.models.convert.published import Published, Rule, families, interpolated, recognised, thirds, transposed

__all__ = [
    "Published", "Rule", "assembled", "blip2", "blip_caption", "blip_nlvr", "blip_retrieval", "blip_vqa", "clip", "consumed",
    "convert", "deit", "eva_vit", "families", "interpolated", "published_skeleton", "read_tensors", "recognised",
    "segmenter", "thirds", "transposed",
]  # fmt: skip
