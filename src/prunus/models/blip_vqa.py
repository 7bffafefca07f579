"""BLIP for visual question answering as it was published: answers do not see the padding of questions, and candidates are ranked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForVisualQuestionAnswering,
    BlipConfig,
    BlipForQuestionAnswering,
)
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention
from transformers.utils import ModelOutput

from prunus.errors import PrunusError

# Q: questions, A: answers, T: tokens of a question, L: of an answer, C: candidates


class BlipVqaConfig(BlipConfig):  # type: ignore[misc]
    """As `BlipConfig`, with the tokens that questions begin with."""

    model_type = "blip_vqa"

    enc_token_id: int = 30523
    """The token [ENC], which takes the place of a question's first one."""


class BlipMaskedCrossAttention(BlipTextSelfAttention):  # type: ignore[misc]
    """A cross-attention that does not look where its mask is shut. That of transformers 5 is given the mask under a name that it
    does not read."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **more: Any) -> Any:
        return super().forward(hidden_states, **{"encoder_attention_mask": attention_mask, **more})


@dataclass
class BlipVqaOutput(ModelOutput):  # type: ignore[misc]
    """What `BlipForVqa` returns."""

    loss: Tensor | None = None
    """Scalar; None without labels."""
    logits: Tensor | None = None
    """(A, L, vocabulary)."""
    answer_loss: Tensor | None = None
    """Of every answer, summed over its tokens, (A,)."""
    image_embeds: Tensor | None = None
    """(Q, 1 + patches, width of the ViT)."""
    question_states: Tensor | None = None
    """(Q, T, D)."""


class BlipForVqa(BlipForQuestionAnswering):  # type: ignore[misc]
    """transformers' `BlipForQuestionAnswering`, which answers padded questions as it was published, and loads the same folders.

    A question may have several answers, each with a weight. `generate` lets answers see padding, as the published code does.

    Examples:
        >>> model(input_ids=ids, attention_mask=mask, pixel_values=pixels, labels=answers).loss.shape
        torch.Size([])
        >>> best, looked_at, losses = model.rank(ids, pixels, mask, candidate_ids, candidate_mask, best=2)
        >>> looked_at.shape == (len(ids), 2)
        True
    """

    config_class = BlipVqaConfig

    def __init__(self, config: BlipVqaConfig):
        super().__init__(config)
        for layer in self.text_decoder.bert.encoder.layer:
            layer.crossattention.self.__class__ = BlipMaskedCrossAttention

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        answers: Tensor | None = None,
        answer_weights: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **_: object,
    ) -> BlipVqaOutput:
        """
        Args:
            input_ids: (Q, T); the first token may be any, [ENC] takes its place.
            pixel_values: (Q, 3, height, width).
            decoder_input_ids: (A, L); the first token may be any, [DEC] takes its place. Default: the labels.
            decoder_attention_mask: (A, L), zero at padding.
            attention_mask: (Q, T), zero at padding.
            labels: (A, L), -100 at padding.
            answers: how many of the answers are each question's, one question after the other, (Q,). Default: one.
            answer_weights: (A,), how much each answer counts. Default: all answers of a question together count one.

        Returns:
            The loss is the mean over questions of the weighted losses of their answers.

        Raises:
            PrunusError: `answers` or the weights are of another number of answers.
        """
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("give labels, or decoder_input_ids")
            decoder_input_ids = labels.masked_fill(labels == -100, self.decoder_pad_token_id)
        image, states = self._read(input_ids, pixel_values, attention_mask, interpolate_pos_encoding)
        counts = torch.ones(len(states), dtype=torch.long, device=states.device) if answers is None else answers
        of_question = torch.arange(len(states), device=states.device).repeat_interleave(counts)
        _check_answers(len(of_question), len(decoder_input_ids), answer_weights)
        logits, losses = self._answer(
            states[of_question], _rows(attention_mask, of_question), decoder_input_ids, decoder_attention_mask, labels
        )
        loss = None
        if losses is not None:
            weights = 1 / counts[of_question] if answer_weights is None else answer_weights
            loss = (weights * losses).sum() / len(states)
        return BlipVqaOutput(loss, logits, losses, image, states)

    @torch.no_grad()
    def rank(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None,
        candidate_ids: Tensor,
        candidate_mask: Tensor,
        best: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The published evaluation: of the candidates whose first word is likeliest, the one with the smallest loss.

        Args:
            candidate_ids, candidate_mask: (C, L), [DEC] first.
            best: how many candidates are looked at for each question.

        Returns:
            (place of the answer among the candidates (Q,), places of those looked at (Q, best), their losses (Q, best)).

        Raises:
            PrunusError: there are not so many candidates.
        """
        if not 1 <= best <= len(candidate_ids):
            raise PrunusError("best", best, f"take one to {len(candidate_ids)}, as many as there are candidates")
        _, states = self._read(input_ids, pixel_values, attention_mask, False)
        start = torch.full((len(states), 1), self.decoder_start_token_id, device=states.device)
        first, _ = self._answer(states, attention_mask, start, None, None)
        places = first[:, 0].softmax(-1)[:, candidate_ids[:, 1]].topk(best).indices
        looked_at, of_question = places.flatten(), torch.arange(len(states), device=states.device)
        of_question = of_question.repeat_interleave(best)
        ids, mask = candidate_ids[looked_at], candidate_mask[looked_at]
        _, losses = self._answer(
            states[of_question], _rows(attention_mask, of_question), ids, mask, ids.masked_fill(mask == 0, -100)
        )
        assert losses is not None
        losses = losses.view(-1, best)
        return places.gather(1, losses.argmin(1, keepdim=True))[:, 0], places, losses

    def generate(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As that of `BlipForQuestionAnswering`."""
        return super().generate(self._questions(input_ids), *args, **kwargs)  # type: ignore[no-any-return]

    def _questions(self, ids: Tensor) -> Tensor:
        ids = ids.clone()
        ids[:, 0] = self.config.enc_token_id
        return ids

    def _read(self, ids: Tensor, pixels: Tensor, mask: Tensor | None, resize: bool) -> tuple[Tensor, Tensor]:
        """States of the images and of the questions about them."""
        image = self.vision_model(pixel_values=pixels, interpolate_pos_encoding=resize).last_hidden_state
        states = self.text_encoder(
            input_ids=self._questions(ids), attention_mask=mask, encoder_hidden_states=image
        ).last_hidden_state
        return image, states

    def _answer(
        self, states: Tensor, mask: Tensor | None, ids: Tensor, ids_mask: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (A, L, vocabulary), and the loss of every answer (A,) to the question in its row."""
        ids = ids.clone()
        ids[:, 0] = self.decoder_start_token_id
        said = self.text_decoder(
            input_ids=ids, attention_mask=ids_mask, encoder_hidden_states=states, encoder_attention_mask=mask,
            labels=labels, reduction="none",
        )  # fmt: skip
        return said.logits, said.loss


def _check_answers(said: int, given: int, weights: Tensor | None) -> None:
    if said != given:
        raise PrunusError("answers", said, f"there are {given} answers; say how many are each question's (answers)")
    if weights is not None and weights.shape != (given,):
        raise PrunusError("answer_weights", tuple(weights.shape), f"give one for each of the {given} answers")


def _rows(mask: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if mask is None else mask[rows]


AutoConfig.register(BlipVqaConfig.model_type, BlipVqaConfig)
AutoModel.register(BlipVqaConfig, BlipForVqa)
AutoModelForVisualQuestionAnswering.register(BlipVqaConfig, BlipForVqa)
