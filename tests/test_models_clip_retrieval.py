"""CLIP for retrieval against the published code: features, loss, gates and their gradients, queue and copies after a step."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPModel

from prunus import Search, UPop, anatomy, extract, load_model
from prunus.models import CLIPForRetrieval
from prunus.models.momentum import NOBODY, FeatureQueue, contrast, follow
from prunus.structured.gates import Gates
from tests.families import build
from tests.published import Fixture, difference
from tests.test_equivalence import random_plan

MASKED = {r"(.*\.attn)\.alpha": r"\1.out_proj.weight", r"(.*resblocks\.\d+)\.alpha": r"\1.mlp.c_proj.weight"}
PUBLISHED = Fixture("clip", 12, MASKED, "clip_retrieval")


def contrasted(model: Any) -> Any:
    given = PUBLISHED.section("in")
    return model.train()(
        given["text"], given["image"], image_ids=given["idx"], alpha=given["alpha"], return_loss=True
    )  # fmt: skip


def check(section: str, model: Any) -> None:
    """One training step of a model against a section of the fixture, and what it leaves behind."""
    outputs = contrasted(model)
    PUBLISHED.check(
        section,
        image_embed=outputs.image_embeds,
        text_embed=outputs.text_embeds,
        image_features=outputs.vision_model_output.pooler_output,
        text_features=outputs.text_model_output.pooler_output,
        logits_per_image=outputs.logits_per_image,
        loss=outputs.loss,
        post_image_queue=model.queue.images,
        post_text_queue=model.queue.texts,
        post_text_projection_m=model.text_projection_m.weight.T,
    )
    expected = PUBLISHED.section(section)
    assert torch.equal(model.queue.ids, expected["post_idx_queue"])
    assert torch.equal(model.queue.place, expected["post_ptr_queue"])


def test_it_computes_what_the_published_code_does() -> None:
    check("plain", PUBLISHED.model())


@pytest.mark.parametrize("masks", ["frac", "bin"])
def test_gates_do_what_the_published_masks_do(masks: str) -> None:
    model = PUBLISHED.model()
    Gates(model, anatomy(model)).set(PUBLISHED.gates(model, f"alpha_{masks}"))
    check(f"search_{masks}", model)


@pytest.mark.parametrize("masks", ["ones", "frac"])
def test_gradients_of_gates_are_those_of_the_published_masks(masks: str) -> None:
    model = PUBLISHED.model()
    gates = Gates(model, anatomy(model))
    if masks == "frac":
        gates.set(PUBLISHED.gates(model, "alpha_frac"))
    contrasted(model).loss.backward()
    PUBLISHED.check_gradients(model, gates, f"grad_{masks}")


def test_a_published_compressed_checkpoint_computes_what_its_evaluation_did() -> None:
    tensors = PUBLISHED.section("sd") | PUBLISHED.section("extracted_sd")
    behind = {name: name.replace("_m.", ".", 1).removesuffix("_m") for name in tensors}
    copied = {name: tensors[original].clone() for name, original in behind.items() if original != name}
    check("reference_extracted", PUBLISHED.model(**tensors | copied))


def test_a_published_clip_is_a_stock_one() -> None:
    kept = {
        name: tensor
        for name, tensor in PUBLISHED.section("sd").items()
        if "_m." not in name and not name.endswith(("_m", "_queue"))
    }
    sizes = {name: torch.tensor(7) for name in ("input_resolution", "context_length", "vocab_size")}
    family = recognised({name: tuple(tensor.shape) for name, tensor in kept.items()}, "file")
    assert family.name == "clip"
    model = assembled(family, kept | sizes, head_width=12)
    assert type(model) is CLIPModel
    given = PUBLISHED.section("in")
    PUBLISHED.check("plain", logits_per_image=model(given["text"], given["image"]).logits_per_image)
