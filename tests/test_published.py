"""The published models through the converters, against numbers of the published code: outputs, masks,
their gradients, extraction, compressed checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus import anatomy, extract
from prunus.structured.gates import Gates
from tests.published import Fixture, difference

MASKED = {
    r"(.*attn\.)alpha": r"\1proj.weight", r"(.*mlp\.)alpha": r"\1fc2.weight",
    r"(.*)self([01]?)\.alpha": r"\1output.dense\2.weight", r"(.*)intermediate\.alpha": r"\1output.dense.weight",
}  # fmt: skip
HEAD_WIDTH = 12
SEP = 3
"""In the fixtures' vocabulary."""
PROMPT = 4
"""Tokens of the prompt that captions begin with."""


def deit(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    features = model.vit(pixel_values=inputs["image"]).last_hidden_state[:, 0]
    logits = model(pixel_values=inputs["image"]).logits
    smoothed = F.cross_entropy(logits, inputs["labels"], label_smoothing=0.1)
    loss = F.cross_entropy(logits, inputs["soft_targets"])
    return {"logits": logits, "features": features, "loss": loss, "loss_label_smoothing_0.1": smoothed}


def blip_caption(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    names = ("input_ids", "attention_mask", "labels")
    result = model(pixel_values=inputs["image"], **{name: inputs[name] for name in names})
    return {"logits": result.logits, "loss": result.loss, "image_embeds": result.image_embeds}


def blip_vqa(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    found = model(
        input_ids=inputs["question_ids"], attention_mask=inputs["question_mask"], pixel_values=inputs["image"],
        decoder_input_ids=inputs["answer_ids"], decoder_attention_mask=inputs["answer_mask"],
        labels=inputs["answer_labels"], answers=inputs["n"], answer_weights=inputs["weights"],
    )  # fmt: skip
    start = model(
        input_ids=inputs["question_ids"], attention_mask=inputs["question_mask"], pixel_values=inputs["image"],
        decoder_input_ids=inputs["answer_ids"][:3, :1],
    ).logits[:, 0]  # fmt: skip
    answer, places, losses = model.rank(
        inputs["question_ids"], inputs["image"], inputs["question_mask"], inputs["candidate_ids"],
        inputs["candidate_mask"], 4,
    )  # fmt: skip
    firsts = start.softmax(-1)[:, inputs["candidate_ids"][:, 1]]
    return {
        "image_embeds": found.image_embeds, "question_states": found.question_states, "answer_logits": found.logits,
        "answer_loss": found.answer_loss, "loss": found.loss, "rank_start_logits": start,
        "rank_topk_probs": firsts.gather(1, places), "rank_topk_ids": places, "rank_log_probs_sum": -losses,
        "rank_max_ids": answer,
    }  # fmt: skip


def blip_nlvr(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published are the states of all first images, then of all second ones."""
    seen: list[Tensor] = []
    read: list[Tensor] = []
    with (
        model.vision_model.register_forward_hook(lambda *call: seen.append(call[-1].last_hidden_state)),
        model.text_encoder.register_forward_hook(lambda *call: read.append(call[-1].last_hidden_state)),
    ):
        pixels = torch.stack([inputs["image0"], inputs["image1"]], 1)
        result = model(inputs["input_ids"], pixels, inputs["attention_mask"], labels=inputs["targets"])
    images = seen[0].unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1)
    return {"prediction": result.logits, "loss": result.loss, "image_embeds": images, "text_hidden": read[0]}


def blip_retrieval(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """One training step, with the negatives that were drawn then; the model is left as it was."""
    image, idx, words = inputs["image"], inputs["idx"], {name: inputs[name] for name in ("input_ids", "attention_mask")}
    queue = model.queue
    queues = {"image": queue.images, "text": queue.texts, "idx": queue.ids, "ptr": queue.place}
    frozen = [*queues.values(), *(parameter for parameter in model.parameters() if not parameter.requires_grad)]
    before = [tensor.clone() for tensor in frozen]
    weights: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        drawn = iter([inputs["neg_image_idx"], inputs["neg_text_idx"]])
        patch.setattr(model, "draw", lambda given: weights.append(given) or next(drawn))
        step = model.train()(**words, pixel_values=image, labels=idx, soft_target_weight=float(inputs["alpha"]))
        model.eval()
    after = {f"post_{name}_queue": buffer.clone() for name, buffer in queues.items()}
    after["post_vision_proj_m_weight"] = model.vision_proj_m.weight.clone()
    with torch.no_grad():
        for tensor, value in zip(frozen, before, strict=True):
            tensor.copy_(value)
    images, texts = torch.cartesian_prod(torch.arange(len(image)), torch.arange(len(image))).T
    pairs = {name: tensor[texts] for name, tensor in words.items()}
    return {
        "loss": step.loss, "loss_ita": step.itc_loss, "loss_itm": step.itm_loss, **after,
        "image_feat": step.image_embeds, "text_feat": step.text_embeds,
        "neg_weights_t2i": weights[0], "neg_weights_i2t": weights[1],
        "itm_logits": model(**pairs, pixel_values=image[images]).itm_score.unflatten(0, (len(image), -1)),
        "image_embeds": model.vision_model(pixel_values=image).last_hidden_state,
        "text_hidden_textmode_cls": model.text_encoder(**words).last_hidden_state[:, 0],
    }  # fmt: skip


RUNS: dict[str, Callable[[Any, dict[str, Tensor]], dict[str, Tensor]]] = {
    "deit": deit, "blip_caption": blip_caption, "blip_vqa": blip_vqa, "blip_nlvr": blip_nlvr,
    "blip_retrieval": blip_retrieval,
}  # fmt: skip
"""Family → the outputs that the published code has, by its names, for a model and the fixture's inputs."""
UNMASKED = {"blip_retrieval": {"loss", "loss_ita", "post_image_queue", "post_text_queue"}}
"""Family → outputs that depend on momentum copies, which carry no masks but are narrowed."""


@pytest.fixture(params=RUNS)
def fixture(request: pytest.FixtureRequest) -> Fixture:
    return Fixture(request.param, HEAD_WIDTH, MASKED)


def outputs(fixture: Fixture, model: nn.Module) -> dict[str, Tensor]:
    with torch.no_grad():
        return RUNS[fixture.name](model, fixture.section("in"))


def check(fixture: Fixture, section: str, model: nn.Module, but: Collection[str] = ()) -> None:
    """Holds all that a section has of the outputs against what the model returns."""
    expected, found = fixture.section(section), outputs(fixture, model)
    assert {name for name in expected if not name.startswith(("sparsity", "generate"))} <= found.keys()
    fixture.check(section, **{name: tensor for name, tensor in found.items() if name in expected and name not in but})


def gated(model: nn.Module, values: dict[str, Tensor]) -> Gates:
    gates = Gates(model, anatomy(model).units)
    gates.set(values)
    return gates


def test_the_converted_model_returns_what_the_published_one_does(fixture: Fixture) -> None:
    check(fixture, "plain", fixture.model())


@pytest.mark.parametrize("section", ["frac", "bin"])
def test_masked_it_returns_what_the_published_search_model_does(fixture: Fixture, section: str) -> None:
    model = fixture.model()
    gated(model, fixture.gates(model, f"alpha_{section}"))
    check(fixture, f"search_{section}", model)


@pytest.mark.parametrize("section", ["ones", "frac"])
def test_gradients_of_the_masks_are_the_published_ones(fixture: Fixture, section: str) -> None:
    model = fixture.model()
    gates = gated(model, fixture.gates(model, "alpha_frac") if section == "frac" else {})
    RUNS[fixture.name](model, fixture.section("in"))["loss"].backward()
    fixture.check_gradients(model, gates, f"grad_{section}")


def test_extracted_and_loaded_it_returns_what_the_masked_model_does(fixture: Fixture, tmp_path: Path) -> None:
    model = fixture.model()
    small = extract(model, fixture.plan(model))
    check(fixture, "search_bin", small, but=UNMASKED.get(fixture.name, ()))
    small.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in small.state_dict().items())
    before, after = outputs(fixture, small), outputs(fixture, loaded)
    assert all(difference(after[name], before[name]) <= 1e-6 for name in before)


@pytest.mark.parametrize("lost_bias", [True, False])
def test_compressed_checkpoints_compute_what_the_published_code_does_with_them(
    fixture: Fixture, lost_bias: bool
) -> None:
    """The published extraction lets the biases of fused qkv start anew; else they are the rows that stay. Momentum copies start as
    their originals."""
    changed = fixture.section("extracted_sd")
    for name in [] if lost_bias else [name for name in changed if name.endswith("attn.qkv.bias")]:
        mask = fixture.tensors[f"alpha_bin/{name.replace('qkv.bias', 'alpha')}"].flatten() > 0
        changed[name] = fixture.tensors[f"sd/{name}"].view(-1, len(mask))[:, mask].flatten()
    state = fixture.section("sd") | changed
    changed |= {name: state[name.replace("_m.", ".")].clone() for name in state if "_m." in name}
    check(fixture, "reference_extracted" if lost_bias else "reference_extracted_biasfix", fixture.model(**changed))


def test_captions_are_the_published_ones() -> None:
    """Those that no [SEP] ends: since transformers 4.15 beams that end are ranked by their score per new token, without the prompt."""
    fixture = Fixture("blip_caption", HEAD_WIDTH, MASKED)
    model = fixture.model()
    model.config.text_config.sep_token_id = SEP
    expected = fixture.tensors["plain/generate_ids"]
    prompt = fixture.tensors["in/input_ids"][:1, :PROMPT].expand(len(expected), -1)
    prompt = torch.cat((prompt, torch.full((len(expected), 1), SEP)), 1)
    found = model.generate(
        pixel_values=fixture.tensors["in/image"], input_ids=prompt, num_beams=3, max_length=14, min_length=5
    )
    endless = (expected != SEP).all(1)
    assert endless.sum() == 2
    assert torch.equal(found[endless], expected[endless])


def test_answers_are_the_published_ones() -> None:
    fixture = Fixture("blip_vqa", HEAD_WIDTH, MASKED)
    model = fixture.model()
    model.config.text_config.sep_token_id = SEP
    inputs = {"input_ids": "question_ids", "attention_mask": "question_mask", "pixel_values": "image"}
    given = {ours: fixture.tensors[f"in/{theirs}"] for ours, theirs in inputs.items()}
    found = model.generate(**given, num_beams=3, max_length=10, min_length=1)
    assert torch.equal(found, fixture.tensors["plain/generate_ids"])
