"""A BLIP of base size (ViT-B and BERT-base shapes, random weights) and inputs for it."""

from __future__ import annotations

import torch
from transformers import BlipConfig, BlipForQuestionAnswering


def blip_base(image_size: int = 224) -> BlipForQuestionAnswering:
    """361 M parameters; no dropout, so that runs compare."""
    text = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "encoder_hidden_size": 768}
    torch.manual_seed(0)
    return BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config={"image_size": image_size}))


def inputs(batch: int, image_size: int = 224, tokens: int = 16) -> dict[str, torch.Tensor]:
    """Image-question pairs with answers of four tokens."""
    generator = torch.Generator().manual_seed(1)
    answers = torch.randint(1000, 30000, (batch, 4), generator=generator)
    return {
        "pixel_values": torch.randn(batch, 3, image_size, image_size, generator=generator),
        "input_ids": torch.randint(1000, 30000, (batch, tokens), generator=generator),
        "attention_mask": torch.ones(batch, tokens, dtype=torch.long),
        "decoder_input_ids": answers,
        "labels": answers,
    }
