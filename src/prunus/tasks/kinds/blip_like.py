"""Models that encode images and texts apart and write with a small decoder of their own, as BLIP does for answers and for captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoTokenizer, BlipProcessor

from prunus.batches import for_model
from prunus.calibration import Batch
from prunus.checkpoint import understood
from prunus.losses import IGNORED, Prediction, next_tokens, own_prediction
from prunus.models import question_states
from prunus.tasks.kinds.kind import Speaker, architecture

AT_A_TIME = 64
"""Candidates that are scored at a time."""


class BlipLike(Speaker):
    """What BLIP's answers and captions have in common: tokens, pixels, and a decoder that begins with the token [DEC]."""

    @cached_property
    def processor(self) -> Any:
        with understood(self.source, doing="read the processor"):
            return BlipProcessor(
                AutoImageProcessor.from_pretrained(self.source, trust_remote_code=False),
                AutoTokenizer.from_pretrained(self.source, trust_remote_code=False),
            )

    def _pixels(self, images: Sequence[Sequence[Image]]) -> Tensor:
        made: Tensor = self.processor.image_processor([image for (image,) in images], return_tensors="pt")[
            "pixel_values"
        ]
        return made

    def _read(self, texts: Sequence[str], **how: Any) -> Any:
        """Ids and masks, of no more tokens than there are positions."""
        positions = self.config.text_config.max_position_embeddings
        return self.processor.tokenizer(list(texts), truncation=True, max_length=positions, **how)

    def _tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask, padded on the right."""
        made = self._read(texts, padding=True, padding_side="right", return_tensors="pt")
        return made["input_ids"], made["attention_mask"]

    def _written(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """What a decoder reads, its mask, and its labels."""
        ids, mask = self._tokens(texts)
        ids[:, 0] = self.config.text_config.bos_token_id
        return ids, mask, ids.masked_fill(mask == 0, IGNORED)

    def _alike(self, prompts: Sequence[str]) -> Iterator[tuple[list[int], Tensor]]:
        """Rows whose prompts have as many tokens, and these: stock decoders look at padding."""
        ids = self._read(prompts)["input_ids"]
        for length in sorted({len(each) for each in ids}):
            rows = [row for row, each in enumerate(ids) if len(each) == length]
            yield rows, torch.tensor([ids[row] for row in rows])

    def _new(self, written: Tensor, asked: Tensor) -> Tensor:
        """Of what the decoder has written, (rows, T), the tokens behind those that it was given."""
        return written

    @torch.no_grad()
    def generate(
        self,
        model: Any,
        images: Sequence[Sequence[Image]],
        prompts: Sequence[str],
        new_tokens: int,
        beams: int = 1,
        **how: Any,
    ) -> list[str]:
        said = [""] * len(prompts)
        for rows, ids in self._alike(prompts):
            given = {"input_ids": ids, "pixel_values": self._pixels([images[row] for row in rows])}
            written = model.generate(
                **for_model(given, model), max_new_tokens=new_tokens, num_beams=beams, do_sample=False, **how
            )
            for row, text in zip(rows, self._texts(self._new(written, ids)), strict=True):
                said[row] = text
        return said

    def _texts(self, ids: Tensor) -> list[str]:
        return [text.strip() for text in self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]


class BlipAnswers(BlipLike):
    """BLIP for visual question answering. `BlipForVqa` learns from every answer of a question, by its share; the stock class from
    the most frequent one."""

    @classmethod
    def fits(cls, config: Any) -> bool:
        return architecture(config) in ("BlipForQuestionAnswering", "BlipForVqa")

    def batch(
        self, images: Sequence[Sequence[Image]], prompts: Sequence[str], targets: Sequence[Sequence[str]] | None = None
    ) -> Batch:
        ids, mask = self._tokens(prompts)
        batch = {"input_ids": ids, "attention_mask": mask, "pixel_values": self._pixels(images)}
        if targets is None:
            start = torch.full((len(ids), 1), self.config.text_config.bos_token_id)
            return {**batch, "decoder_input_ids": start}
        every = [Counter(right).most_common() for right in targets]
        if architecture(self.config) != "BlipForVqa":
            every = [right[:1] for right in every]
        said, said_mask, labels = self._written([answer for right in every for answer, _ in right])
        batch |= {"decoder_input_ids": said, "decoder_attention_mask": said_mask, "labels": labels}
        if architecture(self.config) == "BlipForVqa":
            batch["answers"] = torch.tensor([len(right) for right in every])
            shares = [count / sum(counts for _, counts in right) for right in every for _, count in right]
            batch["answer_weights"] = torch.tensor(shares)
        return batch

    def predict(self, model: nn.Module, batch: Batch) -> Prediction:
        """Its own; the stock class, which returns no logits, is run part by part."""
        if hasattr(model, "rank"):
            return own_prediction(model, batch)
        given = for_model(batch, model)
        answered = self._answered(
            model,
            self._states(model, given),
            given["decoder_input_ids"],
            given.get("decoder_attention_mask"),
            given["labels"],
        )
        return next_tokens(answered.loss, answered.logits, given["labels"])

    @torch.no_grad()
    def score(
        self,
        model: Any,
        images: Sequence[Sequence[Image]],
        prompts: Sequence[str],
        candidates: Sequence[str],
        best: int,
    ) -> Tensor:
        """As the published evaluation of BLIP ranks, with the smoothing of its loss."""
        ids, mask, labels = for_model(list(self._written(candidates)), model)
        best = min(best, len(candidates))
        found = torch.full((len(prompts), len(candidates)), -torch.inf)
        for rows, asked in self._alike(prompts):
            given = for_model({"input_ids": asked, "pixel_values": self._pixels([images[row] for row in rows])}, model)
            given["attention_mask"] = torch.ones_like(given["input_ids"])
            if hasattr(model, "rank"):
                _, places, losses = model.rank(**given, candidate_ids=ids, candidate_mask=mask, best=best)
                found[torch.tensor(rows)[:, None], places.cpu()] = -losses.float().cpu()
                continue
            for row, states in zip(rows, self._states(model, given), strict=True):
                first = self._answered(model, states[None], ids[:1, :1]).logits[0, 0]
                for part in torch.split(first[ids[:, 1]].topk(best).indices, AT_A_TIME):
                    same = states.expand(len(part), -1, -1)
                    losses = self._answered(model, same, ids[part], mask[part], labels[part], "none").loss
                    found[row, part.cpu()] = -losses.float().cpu()
        return found

    @staticmethod
    def _states(model: Any, given: Batch) -> Tensor:
        """Of questions that have seen their images, (rows, T, width)."""
        ids = given["input_ids"].clone()
        ids[:, 0] = getattr(model.config, "enc_token_id", ids[0, 0])
        places = torch.arange(len(ids), device=ids.device)
        mask, pixels = given["attention_mask"], given["pixel_values"]
        return question_states(model.vision_model, model.text_encoder, ids, mask, pixels, places)

    @staticmethod
    def _answered(
        model: Any,
        states: Tensor,
        ids: Tensor,
        mask: Tensor | None = None,
        labels: Tensor | None = None,
        reduction: str = "mean",
    ) -> Any:
        return model.text_decoder(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=states, labels=labels, reduction=reduction
        )


class BlipCaptions(BlipLike):
    """BLIP for captions: the decoder reads the prompt, and goes on."""

    caption_prompt = "a picture of"

    @classmethod
    def fits(cls, config: Any) -> bool:
        return architecture(config) == "BlipForConditionalGeneration"

    def _new(self, written: Tensor, asked: Tensor) -> Tensor:
        return written[:, asked.shape[1] - 1 :]  # the prompt is given without its last token, [SEP]

    def batch(
        self, images: Sequence[Sequence[Image]], prompts: Sequence[str], targets: Sequence[Sequence[str]] | None = None
    ) -> Batch:
        pixels = self._pixels(images)
        if targets is None:
            ids, mask = self._tokens(prompts)
            ids[:, 0] = self.config.text_config.bos_token_id
            return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}
        texts = [
            f"{prompt} {Counter(right).most_common(1)[0][0]}".strip()
            for prompt, right in zip(prompts, targets, strict=True)
        ]
        ids, mask, labels = self._written(texts)
        told = torch.tensor([len(each) - 1 for each in self._read(prompts)["input_ids"]])
        labels = labels.masked_fill(torch.arange(ids.shape[1]) < told[:, None], IGNORED)
        return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask, "labels": labels}

    @torch.no_grad()
    def score(
        self,
        model: Any,
        images: Sequence[Sequence[Image]],
        prompts: Sequence[str],
        candidates: Sequence[str],
        best: int,
    ) -> Tensor:
        found = torch.full((len(prompts), len(candidates)), -torch.inf)
        for row, (some, prompt) in enumerate(zip(images, prompts, strict=True)):
            batch = for_model(
                self.batch([some] * len(candidates), [prompt] * len(candidates), [[text] for text in candidates]), model
            )
            states = model.vision_model(pixel_values=batch["pixel_values"][:1]).last_hidden_state
            told = int((batch["labels"][0] == IGNORED).long().argmin())
            ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
            first = model.text_decoder(input_ids=ids[:1, :told], encoder_hidden_states=states).logits[0, -1]
            chosen = first[ids[:, told]].topk(min(best, len(candidates))).indices
            for part in torch.split(chosen, AT_A_TIME):
                losses = model.text_decoder(
                    input_ids=ids[part], attention_mask=mask[part], encoder_hidden_states=states.expand(len(part), -1, -1),
                    labels=labels[part], reduction="none",
                ).loss  # fmt: skip
                found[row, part.cpu()] = -losses.float().cpu()
        return found
