"""Models that go on with a text in which images stand: BLIP-2, InstructBLIP, LLaVA, Qwen-VL, SmolVLM, PaliGemma, Gemma 3 and their like."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from prunus.batches import for_model
from prunus.calibration import Batch
from prunus.errors import PrunusError, refusing
from prunus.losses import IGNORED
from prunus.tasks.kinds.kind import Speaker, architecture

OTHERS = frozenset(("BlipForConditionalGeneration", "GitForCausalLM", "VisionEncoderDecoderModel"))
"""What transformers lists with these models, and which takes images and words in another way."""
MODELS = frozenset(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()) - OTHERS
TYPES = ("token_type_ids", "mm_token_type_ids")
"""Inputs that say of every token what it is."""

Segment = tuple[str, bool]
"""A piece of a text, and whether it is to be learnt."""


class Generative(Speaker):
    """A decoder, or an encoder and a decoder, behind transformers' processors: with their chat template, or with plain prompts.

    What is learnt is appended to the tokens of the prompt, so that training and generation see the same prompt.
    """

    takes: ClassVar = "models that go on with a text in which images stand (image-text-to-text)"

    @classmethod
    def fits(cls, config: Any) -> bool:
        return architecture(config) in MODELS

    @property
    def prompt(self) -> str:  # type: ignore[override]
        """As published for LLaVA 1.5 where there is a chat template, as for BLIP-2 where there is none."""
        short = "{question}\nAnswer the question using a single word or phrase."
        return short if self.template else "Question: {question} Short answer:"

    @property
    def caption_prompt(self) -> str:  # type: ignore[override]
        return "Describe the image in one sentence." if self.template else "a photo of"

    @cached_property
    def template(self) -> str | None:
        """The chat template, if there is one."""
        found = getattr(self.processor, "chat_template", None) or getattr(self.tokenizer, "chat_template", None)
        return found.get("default") if isinstance(found, Mapping) else found

    @cached_property
    def tokenizer(self) -> Any:
        tokenizer = self.processor.tokenizer
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if not self.encodes:
            tokenizer.padding_side = "left"  # what comes next is appended
        return tokenizer

    @property
    def encodes(self) -> bool:
        """Whether an encoder reads the prompt, and a decoder says what follows."""
        return any(getattr(part, "is_encoder_decoder", False) for part in (self.config, self.config.get_text_config()))

    def batch(
        self,
        images: Sequence[Sequence[Image]],
        prompts: Sequence[str],
        targets: Sequence[Sequence[str]] | None = None,
    ) -> Batch:
        """As the model takes them; labels are -100 but at the targets, of which the most frequent one counts."""
        asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
        if targets is None:
            return self._inputs(
                images, [self._asking(chat, len(some)) for chat, some in zip(asked, images, strict=True)]
            )
        answers = [Counter(right).most_common(1)[0][0] for right in targets]
        return self.chats(
            images, [[*chat, {"role": "assistant", "content": text}] for chat, text in zip(asked, answers, strict=True)]
        )

    def chats(self, images: Sequence[Sequence[Image]], chats: Sequence[Sequence[Mapping[str, str]]]) -> Batch:
        """Whole conversations, of which the assistant's parts are learnt. A model whose prompt is read otherwise than what follows it has a row
        for each of these parts.

        Args:
            images: of every conversation; they stand before its first message.
            chats: messages with `role` (system, user, assistant) and `content`.

        Raises:
            PrunusError: a conversation has nothing to learn.
        """
        if self.encodes or self._takes_suffix:
            ends = [(row, place + 1) for row, chat in enumerate(chats) for place in _answers(chat)]
            images, chats = [images[row] for row, _ in ends], [chats[row][:end] for row, end in ends]
        rows = [self._segments(chat, len(some)) for chat, some in zip(chats, images, strict=True)]
        batch = self._inputs(images, [first for (first, _), *_ in rows])
        ids, labels = zip(*(self._appended(row) for row in rows), strict=True)
        if self.encodes:
            return {**batch, "labels": _padded(labels, IGNORED)}
        return self._joined(batch, ids, labels)

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
        inputs = for_model(self.batch(images, prompts), model)
        said = model.generate(**inputs, max_new_tokens=new_tokens, num_beams=beams, do_sample=False, **how)
        given = inputs["input_ids"]
        if torch.equal(said[:, : given.shape[1]], given):
            said = said[:, given.shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(said, skip_special_tokens=True)]

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
            chat = [{"role": "user", "content": prompt}]
            start = self._inputs([some], [self._asking(chat, len(some))])
            rows = [self._segments([*chat, {"role": "assistant", "content": text}], len(some)) for text in candidates]
            ids, labels = zip(*(self._appended(each) for each in rows), strict=True)
            chosen = torch.arange(len(candidates))
            if best < len(candidates):
                first = self._first(model, start)[torch.tensor([each[0] for each in labels])]
                chosen = first.topk(best).indices
            for part in torch.split(chosen, AT_A_TIME):
                batch = {name: value.repeat(len(part), *(1,) * (value.ndim - 1)) for name, value in start.items()}
                said = [labels[place] for place in part.tolist()]
                if self.encodes:
                    batch["labels"] = _padded(said, IGNORED)
                else:
                    batch = self._joined(batch, [ids[place] for place in part.tolist()], said)
                found[row, part] = self._likelihoods(model, batch)
        return found

    def _first(self, model: Any, start: Batch) -> Tensor:
        """Logits of the first token of an answer, (vocabulary,)."""
        more = {}
        if self.encodes:
            begin = getattr(self.config.get_text_config(), "decoder_start_token_id", None)
            begin = self.tokenizer.pad_token_id if begin is None else begin
            more["decoder_input_ids"] = torch.tensor([[begin]])
        logits: Tensor = model(**for_model({**start, **more}, model)).logits[0, -1]
        return logits.float().cpu()

    def _likelihoods(self, model: Any, batch: Batch) -> Tensor:
        labels = batch["labels"]
        logits = model(**for_model(batch, model)).logits[:, -labels.shape[1] :].float()
        if not self.encodes:
            labels, logits = labels[:, 1:], logits[:, :-1]
        labels = labels.to(logits.device)
        counted = labels != IGNORED
        found = logits.log_softmax(-1).gather(-1, labels.masked_fill(~counted, 0)[..., None])[..., 0]
        likelihoods: Tensor = (found * counted).sum(1).cpu()
        return likelihoods

    def _inputs(self, images: Sequence[Sequence[Image]], texts: Sequence[str]) -> Batch:
        """What the processor makes of images and of texts in which they have their places."""
        begins = self.tokenizer.bos_token
        doubled = begins is not None and all(text.startswith(begins) for text in texts)
        with refusing("task", type(self.processor).__name__, "the processor cannot take these images and words"):
            made = self.processor(
                images=[list(some) for some in images] if any(images) else None,
                text=list(texts),
                padding=True,
                return_tensors="pt",
                **({"add_special_tokens": False} if doubled else {}),
            )
        return {name: value for name, value in made.items() if name != "labels"}

    def _asking(self, chat: Sequence[Mapping[str, str]], images: int) -> str:
        """The text up to where the model's answer begins."""
        if self.template is None:
            return self._placed("\n".join(message["content"] for message in chat), images)
        return self._rendered(chat, images, True)

    def _placed(self, text: str, images: int) -> str:
        """A plain prompt with the places of its images, unless the processor finds them itself."""
        token = str(getattr(self.processor, "image_token", ""))
        if not token or token in text or hasattr(self.processor, "num_query_tokens"):
            return text
        return token * images + text

    def _rendered(self, chat: Sequence[Mapping[str, str]], images: int, asking: bool) -> str:
        messages = [{"role": each["role"], "content": [{"type": "text", "text": each["content"]}]} for each in chat]
        first = next(place for place, each in enumerate(chat) if each["role"] != "system")
        messages[first]["content"] = [*({"type": "image"} for _ in range(images)), *messages[first]["content"]]
        with refusing("task.processor", self.source, "the chat template cannot write such a conversation"):
            text: str = self.tokenizer.apply_chat_template(
                messages, chat_template=self.template, tokenize=False, add_generation_prompt=asking
            )
        token = str(getattr(self.processor, "image_token", ""))
        if token and text.count(token) != images:
            raise PrunusError(
                "task.processor", self.source, f"its chat template leaves {text.count(token)} places for {images} images; take one for "
                "images, as the model was published with",
            )  # fmt: skip
        return text

    def _segments(self, chat: Sequence[Mapping[str, str]], images: int) -> list[Segment]:
        """A conversation in pieces, of which the first is not learnt and holds the places of the images."""
        answers = _answers(chat)
        if self.encodes or self._takes_suffix:
            answers = answers[-1:]
        pieces: list[Segment] = []
        if self.template is None:
            told = 0
            for place in answers:
                before = "".join(f"\n{message['content']}" for message in chat[told:place])
                if before:
                    pieces.append((before if told else self._placed(before[1:], images), False))
                pieces.append((chat[place]["content"], True))
                told = place + 1
            return pieces
        written = ""
        for place in answers:
            asking, answered = (
                self._rendered(chat[:place], images, True),
                self._rendered(chat[: place + 1], images, False),
            )
            if not answered.startswith(asking):  # such as one that has the model think first
                asking = answered[: max(0, answered.rfind(chat[place]["content"].strip()))]
            if not asking:
                raise PrunusError("task.processor", self.source, "its chat template rewrites answers; take another one")
            if not asking.startswith(written):  # it rewrites what was said before, of which nothing is learnt then
                pieces, written = [], ""
            pieces += [(asking[len(written) :], False), (answered[len(asking) :].rstrip("\n"), True)]
            written = asking + pieces[-1][0]
        return pieces

    def _appended(self, row: Sequence[Segment]) -> tuple[list[int], list[int]]:
        """Tokens of all pieces but the first, and their labels."""
        (before, _), *rest = row
        ids: list[int] = []
        labels: list[int] = []
        for text, learnt in rest:
            piece = self._following(before, text)
            if learnt and piece[-1:] not in self._ends:
                piece = [*piece, self.tokenizer.eos_token_id]
            ids += piece
            labels += piece if learnt else [IGNORED] * len(piece)
            before += text
        return ids, labels

    @cached_property
    def _ends(self) -> list[list[int]]:
        """Special tokens, any of which may end what is said."""
        return [[number] for number, token in self.tokenizer.added_tokens_decoder.items() if token.special]

    def _following(self, before: str, text: str) -> list[int]:
        """Tokens of a text as they are behind another."""
        if self.encodes:
            return self._ids(text)
        if self.template is None and not self._takes_suffix and not before.endswith((" ", "\n")) and text[:1] != "\n":
            text = f" {text}"
        start, whole = self._ids(before), self._ids(before + text)
        return whole[len(start) :] if whole[: len(start)] == start else self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @cached_property
    def _takes_suffix(self) -> bool:
        """Whether the processor tells the prompt from what follows it, by types of tokens, and ends the prompt itself."""
        return "suffix" in inspect.signature(type(self.processor).__call__).parameters

    def _joined(self, batch: Batch, ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> Batch:
        """A batch with more tokens behind those of its prompts."""
        more = _padded(ids, self.tokenizer.pad_token_id)
        said = _padded([[1] * len(each) for each in ids], 0)
        nothing = torch.full_like(batch["input_ids"], IGNORED)
        added = {"input_ids": more, "attention_mask": said} | dict.fromkeys(TYPES, said * int(self._takes_suffix))
        joined = {name: torch.cat([value, added[name]], 1) if name in added else value for name, value in batch.items()}
        return {**joined, "labels": torch.cat([nothing, _padded(labels, IGNORED)], 1)}


AT_A_TIME = 32
"""Candidates that are scored at a time."""


def _answers(chat: Sequence[Mapping[str, str]]) -> list[int]:
    """Places of the assistant's messages.

    Raises:
        PrunusError: there are none, or it begins.
    """
    places = [place for place, message in enumerate(chat) if message["role"] == "assistant"]
    if not places or places[0] == 0:
        raise PrunusError(
            "messages", [each["role"] for each in chat], "give an answer of the assistant's after a question"
        )
    return places


def _padded(rows: Sequence[Sequence[int]], filling: int) -> Tensor:
    """Rows of different lengths, filled on the right, (rows, longest)."""
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(list(row), dtype=torch.long) for row in rows], batch_first=True, padding_value=filling
    )
