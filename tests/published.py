"""Tiny models of the published code: their tensors, what they return, and the masks of their search."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from prunus import anatomy
from prunus.anatomy import Unit
from prunus.models.convert import Published, assembled, families
from tests.shared import golden

Run = Callable[[PreTrainedModel, dict[str, Tensor]], dict[str, Tensor]]
"""(model, inputs of the fixture) → outputs by the fixture's names; `loss` can be differentiated."""
RUNS: dict[str, Run] = {}
"""Family → how the published code runs it."""


def published(run: Run) -> Run:
    RUNS[run.__name__] = run
    return run


@dataclass(frozen=True)
class Fixture:
    """One of `golden/models`."""

    name: str

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """`section/name` → tensor."""
        return load_file(golden(f"models/{self.name}.safetensors"))

    @property
    def family(self) -> Published:
        return families()[self.name]

    def section(self, name: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{name}/"): t for key, t in self.tensors.items() if key.startswith(f"{name}/")}

    @property
    def head_width(self) -> int:
        config = json.loads(golden(f"models/{self.name}.json").read_text())["config"]
        vision = config.get("vision", config)
        return int(vision["embed_dim"] // vision["num_heads"])

    def model(self, state: dict[str, Tensor] | None = None) -> PreTrainedModel:
        """The model through the converter, with the fixture's weights or others of its names."""
        return assembled(self.family, state or self.section("sd"), head_width=self.head_width)

    def extracted_state(self, lost_bias: bool = True) -> dict[str, Tensor]:
        """Weights of the model that the published code extracts. It lets the biases of fused qkv start anew; without `lost_bias`
        they are the rows that stay."""
        state = self.section("sd") | self.section("extracted_sd")
        for name in [] if lost_bias else [name for name in state if name.endswith("attn.qkv.bias")]:
            mask = self.tensors[f"alpha_bin/{name.replace('qkv.bias', 'alpha')}"].flatten().bool()
            state[name] = self.tensors[f"sd/{name}"].view(-1, len(mask))[:, mask].flatten()
        return state

    def by_unit(self, section: str, model: PreTrainedModel) -> dict[str, Tensor]:
        """Masks of the published search, or gradients of them, by the names of our units."""
        units, state, found = anatomy(model).units, self.section("sd"), {}
        for alpha, values in self.section(section).items():
            path = alpha.removesuffix("alpha")
            ours, _ = self.family.renamed({name: t for name, t in state.items() if name.startswith(path)})
            found[_unit_with(units, set(ours)).name] = values.flatten()
        return found


def _unit_with(units: tuple[Unit, ...], weights: set[str]) -> Unit:
    """The one unit of which a producer has one of these weights."""
    found = [unit for unit in units if any(f"{unit.path}.{site.linear}.weight" in weights for site in unit.producers)]
    assert len(found) == 1
    return found[0]


def deviation(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    assert found.shape == expected.shape
    if not expected.is_floating_point():
        return float((found != expected).any())
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


@published
def deit(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    features = model.vit(pixel_values=inputs["image"]).last_hidden_state[:, 0]
    logits = model(pixel_values=inputs["image"]).logits
    smoothed = F.cross_entropy(logits, inputs["labels"], label_smoothing=0.1)
    loss = F.cross_entropy(logits, inputs["soft_targets"])
    return {"logits": logits, "features": features, "loss": loss, "loss_label_smoothing_0.1": smoothed}


@published
def blip_caption(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    names = ("input_ids", "attention_mask", "labels")
    result = model(pixel_values=inputs["image"], **{name: inputs[name] for name in names})
    return {"logits": result.logits, "loss": result.loss, "image_embeds": result.image_embeds}


@published
def blip_vqa(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each answer has its question's states; answers are ranked by the loss that training has, too."""
    image = model.vision_model(pixel_values=inputs["image"]).last_hidden_state
    mask = inputs["question_mask"]
    states = model.text_encoder(
        input_ids=inputs["question_ids"], attention_mask=mask, encoder_hidden_states=image,
        encoder_attention_mask=torch.ones(image.shape[:2], dtype=torch.long),
    ).last_hidden_state  # fmt: skip

    def logits_of(ids: Tensor, answer_mask: Tensor, question: Tensor) -> Tensor:
        """One by one, without the questions' padding: cross-attentions of transformers' BLIP look at it whatever they are told."""
        rows = [
            model.text_decoder(
                input_ids=ids[row : row + 1],
                attention_mask=answer_mask[row : row + 1],
                encoder_hidden_states=states[index, mask[index].bool()][None],
            ).logits
            for row, index in enumerate(question.tolist())
        ]
        return torch.cat(rows)

    def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
        wanted = labels[:, 1:]
        summed = F.cross_entropy(logits[:, :-1].transpose(1, 2), wanted, reduction="none", label_smoothing=0.1)
        return summed.sum(1)

    questions = torch.arange(len(states))
    logits = logits_of(inputs["answer_ids"], inputs["answer_mask"], questions.repeat_interleave(inputs["n"]))
    losses = loss_of(logits, inputs["answer_labels"])
    start = inputs["answer_ids"][:1, :1].expand(len(states), 1)
    first = logits_of(start, torch.ones_like(start), questions)[:, 0]
    candidates, candidate_mask = inputs["candidate_ids"], inputs["candidate_mask"]
    probabilities, best = first.softmax(-1)[:, candidates[:, 1]].topk(4)
    chosen, chosen_mask = candidates[best.flatten()], candidate_mask[best.flatten()]
    ranked = logits_of(chosen, chosen_mask, questions.repeat_interleave(4))
    totals = -loss_of(ranked, chosen.masked_fill(chosen_mask == 0, -100)).view(-1, 4)
    return {
        "image_embeds": image, "question_states": states, "answer_logits": logits, "answer_loss": losses,
        "loss": (inputs["weights"] * losses).sum() / len(image), "rank_start_logits": first,
        "rank_topk_probs": probabilities, "rank_topk_ids": best, "rank_log_probs_sum": totals,
        "rank_max_ids": best.gather(1, totals.argmax(1, keepdim=True)).flatten(),
    }  # fmt: skip
