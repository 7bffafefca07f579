"""UPop's uncompressed models, and half of BLIP-NLVR, as the paper counts them: `python -m benchmarks.published_counts`.

Each is built on the meta device from the sizes that were published. The last line prunes every unit of BLIP-NLVR by half.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from prunus.anatomy import anatomy
from prunus.models import (
    BlipForImagesAndTextClassification,
    BlipForRetrievalTraining,
    BlipForVqa,
    BlipNlvrConfig,
    BlipRetrievalConfig,
    BlipVqaConfig,
    CLIPForRetrieval,
    CLIPRetrievalConfig,
    PublishedCount,
    SegmenterConfig,
    SegmenterForSemanticSegmentation,
    as_published,
)
from prunus.plan import Plan
from prunus.structured import narrow

VIT_S = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "num_hidden_layers": 12}
CLIP_L: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096, "num_hidden_layers": 24, "image_size": 336,
        "patch_size": 14,
    },
    "text_config": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}, "projection_dim": 768,
}  # fmt: skip


def _blip(image_size: int) -> dict[str, dict[str, int]]:
    return {"text_config": {"num_attention_heads": 12}, "vision_config": {"image_size": image_size}}


def nlvr() -> PreTrainedModel:
    """BLIP-NLVR, base, 384²."""
    return BlipForImagesAndTextClassification(BlipNlvrConfig(**_blip(384)))


def halved_nlvr() -> PreTrainedModel:
    """BLIP-NLVR with half of the channels of every unit."""
    model = nlvr()
    parts = anatomy(model)
    masks = {unit.name: torch.arange(unit.channels, device="cpu") < unit.channels // 2 for unit in parts}
    narrow(model, parts, Plan.from_masks(parts, masks))
    return model


MODELS: dict[str, tuple[Callable[[], PreTrainedModel], str, str]] = {
    "BLIP-NLVR": (nlvr, "259.45", "132.54"),
    "BLIP-Caption": (lambda: BlipForConditionalGeneration(BlipConfig(**_blip(384))), "224.0", "65.7"),
    "BLIP-VQA": (lambda: BlipForVqa(BlipVqaConfig(**_blip(480))), "361.6", "186.1"),
    "BLIP-Retrieval": (lambda: BlipForRetrievalTraining(BlipRetrievalConfig(**_blip(384))), "447.6", "153.2"),
    "CLIP ViT-L/14": (lambda: CLIPForRetrieval(CLIPRetrievalConfig(**CLIP_L)), "856.0", "395.7"),
    "DeiT-S": (lambda: ViTForImageClassification(ViTConfig(num_labels=1000, **VIT_S)), "22.0", "4.6"),
    "Segmenter-S": (
        lambda: SegmenterForSemanticSegmentation(SegmenterConfig(vision_config=VIT_S, num_labels=150)), "26.4", "38.6",
    ),
    "BLIP-NLVR, half of every unit": (halved_nlvr, "146.18", "66.88"),
}  # fmt: skip
"""Model → how it is built, and the paper's columns: millions of parameters with masks, G multiply-accumulates. Those of the last are
mask-based pruning's to a half, of which the kept channels were not published."""


@cache
def counted(name: str) -> PublishedCount:
    """Counts a model by its name."""
    with torch.device("meta"):
        return as_published(MODELS[name][0]())


def main() -> None:
    """Prints the table."""
    print(f"| {'model':<30} | {'parameters':>11} | {'with masks':>11} | {'G counted':>9} | paper M | paper G |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, (_, millions, giga) in MODELS.items():
        count = counted(name)
        print(
            f"| {name:<30} | {count.parameters:>11,} | {count.parameters + count.masks:>11,} | {count.flops / 1e9:>9.4f} "
            f"| {millions} | {giga} |"
        )


if __name__ == "__main__":
    main()
