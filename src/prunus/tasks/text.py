"""Language modelling on texts: next-token loss, and perplexity by its strided definition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import torch
import transformers
from pydantic import BeforeValidator, Field, TypeAdapter, model_validator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset
from transformers import AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from prunus.batches import bf16_autocast
from prunus.calibration import Batch, spread, text_tokens, text_windows
from prunus.checkpoint import understood
from prunus.data import AnyData, Data, file_state
from prunus.errors import PrunusError
from prunus.metric import Metric
from prunus.metrics import with_interval
from prunus.progress import track
from prunus.tasks.exhibit import Exhibit, some
from prunus.tasks.kinds import architecture, read_config
from prunus.tasks.kinds.generative import MODELS
from prunus.tasks.task import Split, Task
from prunus.typed import Steps

LANGUAGE = MODELS | set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
"""Models whose logits are of the next token of a text."""


def _in_full(entry: object) -> Path | Data:
    if isinstance(entry, str | Path):
        return Path(entry)
    if not isinstance(entry, Data | Mapping):
        raise PrunusError("", entry, "name a text file; or write a mapping that has layout and its settings")
    return TypeAdapter(AnyData).validate_python(entry)


if TYPE_CHECKING:
    Texts = Path | Data
else:
    Texts = Annotated[Any, BeforeValidator(_in_full)]
    """A plain text file, or rows with a column `text`."""


class Text(Task):
    """Next-token prediction on a plain text file, or on rows with a column `text`, which are joined by empty lines.

    A text is tokenised as one long document, without special tokens, and cut into windows of `length` tokens.
    Perplexity is exp of the mean negative log-likelihood over every predicted token, each counted once: window w
    begins at token w · `stride` and counts the tokens after the end of the window before it (its first token, which
    nothing predicts, never counts). With `stride` = `length` the windows do not overlap.
    """

    name: Literal["text"] = "text"
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer; None is the evaluated model's own."""
    evaluation: Texts
    """Text file, or data set, that perplexity is measured on."""
    training: Texts | None = None
    """Text file, or data set, that calibration and training windows come from."""
    length: int = Field(default=512, ge=2, le=10_000_000)
    """Tokens per window."""
    stride: Steps | None = None
    """Tokens between the beginnings of two evaluation windows; None is `length`."""
    bf16: bool = False
    """Evaluate under bf16 autocast, where the device has instructions for it; the loss itself is fp32."""

    metrics: ClassVar = {"perplexity": Metric(unit="plain", higher_is_better=False)}
    takes: ClassVar = "models that go on with a text, without anything else (…ForCausalLM)"

    @classmethod
    def suits(cls, config: Any) -> bool:
        return architecture(config) in LANGUAGE or not hasattr(
            transformers, architecture(config)
        )  # of others nothing is known

    @model_validator(mode="after")
    def _stride_fits(self) -> Text:
        if self.stride is not None and self.stride > self.length:
            raise PrunusError(
                "stride", self.stride, f"it leaves gaps between windows of {self.length} tokens; take at most that"
            )
        return self

    def check(self) -> None:
        for field, source in (("evaluation", self.evaluation), ("training", self.training)):
            if isinstance(source, Path) and not source.is_file():
                raise PrunusError(f"task.{field}", str(source), "there is no such file; give a plain text file")
            if source is not None:
                _text(field, source)

    def check_split(self, split: Split) -> None:
        if split == "train" and self.training is None:
            raise PrunusError("task.training", None, "calibration and training need text; give a file")

    def check_model(self, folder: Path) -> None:
        """Refuses texts without a token to predict, tokens the model does not know, and windows longer than its positions."""
        task, config = self.for_model(folder), read_config(str(folder))
        self.refuse_unsuited(config)
        if len(task._evaluation) < 2:
            raise PrunusError(
                "task.evaluation",
                _name(self.evaluation),
                f"{len(task._evaluation)} tokens leave none to predict; give more text",
            )
        check_length(config, self.length, int(task._evaluation.max()))

    def data_state(self) -> list[Any]:
        given = [source for source in (self.training, self.evaluation) if source is not None]
        return [source.kept.state if isinstance(source, Data) else file_state(source) for source in given]

    def for_model(self, folder: Path) -> Self:
        """The same with the tokenizer of the model in `folder`, unless another is named."""
        return self if self.tokenizer else self.model_copy(update={"tokenizer": str(folder)})

    @cached_property
    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise PrunusError("task.tokenizer", None, "name the folder or hub id of one")
        with understood(self.tokenizer, doing="read the tokenizer"):
            return AutoTokenizer.from_pretrained(self.tokenizer, trust_remote_code=False)

    @cached_property
    def _windows(self) -> Tensor:
        """Training windows without overlap, (windows, length)."""
        self.check_split("train")
        assert self.training is not None
        return text_windows(self._tokenizer, _text("training", self.training), self.length)

    def train_data(self) -> Dataset[Any]:
        return TensorDataset(self._windows)

    def collate(self, items: Sequence[Any]) -> Batch:
        ids = torch.stack([item[0] for item in items])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    def calibration(self, samples: int, batch_size: int) -> list[Batch]:
        """Windows spread evenly over the training text, without labels."""
        return [{"input_ids": ids} for ids in torch.split(spread(self._windows, samples), batch_size)]

    @torch.no_grad()
    def evaluate(self, model: Any, limit: int | None = None, progress: bool = True) -> dict[str, float]:
        """Perplexity on the evaluation text, or on its first `limit` windows, with an interval over windows."""
        model.eval()
        sums: list[tuple[float, float]] = []
        spans = windows(len(self._evaluation), self.length, self.stride or self.length)[:limit]
        with bf16_autocast(model, self.bf16, cached=True):  # around all: weights are cast once
            for start, stop, first in track(spans, "perplexity", progress):
                ids = self._evaluation[start:stop].to(model.device)
                logits = model(input_ids=ids[None], use_cache=False).logits[0]
                total = 0.0
                for piece in torch.split(torch.arange(first, stop - start), 128):  # a whole window in fp32 is large
                    losses = F.cross_entropy(logits[piece - 1].float(), ids[piece], reduction="none")
                    total += float(losses.double().sum())
                sums.append((stop - start - first, total))
        rows = torch.tensor(sums, dtype=torch.double)
        return with_interval(rows, lambda of: {"perplexity": (of[..., 1] / of[..., 0]).exp()}, "perplexity")

    def exhibits(self, model: Any, count: int, limit: int | None = None) -> list[Exhibit]:
        """How the model goes on with beginnings of windows, by the likeliest token each time."""
        half = min(self.length, len(self._evaluation)) // 2
        new = min(half, NEW_TOKENS)
        if new == 0 or not model.can_generate():
            return []
        starts = [start for start, _, _ in windows(len(self._evaluation), 2 * half, 2 * half)]
        found = []
        for start in some(starts[:limit], count):
            ids = self._evaluation[start : start + half]
            given = ids[None].to(model.device)
            written = model.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=new, do_sample=False, pad_token_id=0
            )[0, half:]  # a text alone is never padded
            texts = (written, self._evaluation[start + half :][:new], ids[-NEW_TOKENS:])
            found.append(Exhibit(*(self._tokenizer.decode(text) for text in texts)))
        return found

    @cached_property
    def _evaluation(self) -> Tensor:
        return text_tokens(self._tokenizer, _text("evaluation", self.evaluation))

    def sample(self, places: Sequence[int]) -> Batch:
        """Windows of the text that perplexity is measured on."""
        length = min(self.length, len(self._evaluation))
        windows = len(self._evaluation) // length
        ids = torch.stack([self._evaluation[place % windows * length :][:length] for place in places])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def example(self, model: Any, batch_size: int) -> Callable[[], object]:
        ids = self._evaluation[: self.length].expand(batch_size, -1).to(model.device)
        return lambda: model(input_ids=ids, use_cache=False, logits_to_keep=1)

    def save_processor(self, folder: Path) -> None:
        self._tokenizer.save_pretrained(folder)


NEW_TOKENS = 24
"""Of a text that is shown, at the most."""


def _name(source: Path | Data) -> str:
    return str(source) if isinstance(source, Path) else source.title


def _text(field: str, path: Path | Data) -> str:
    if isinstance(path, Data):
        try:
            return "\n\n".join(path.read(["text"])["text"])
        except PrunusError as error:
            raise PrunusError(f"task.{field}: {error.field}", error.value, error.remedy) from None
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PrunusError(f"task.{field}", str(path), f"it cannot be read ({error.strerror})") from None
    except ValueError:
        raise PrunusError(f"task.{field}", str(path), "it is no text in UTF-8; give a plain text file") from None
    if "\0" in text:
        raise PrunusError(f"task.{field}", str(path), "it holds zero bytes, as texts do not; give a plain text file")
    return text


def check_length(config: Any, length: int, largest: int) -> None:
    """Refuses texts that a model has no positions or no words for.

    Args:
        length: tokens of a text.
        largest: token id.

    Raises:
        PrunusError: there are fewer positions, or there is no such word.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    positions = getattr(text, "max_position_embeddings", None)
    if isinstance(positions, int) and 0 < positions < length:
        raise PrunusError("task.length", length, f"the model has {positions} positions; take at most that many tokens")
    words = getattr(text, "vocab_size", None)
    if isinstance(words, int) and largest >= words:
        raise PrunusError(
            "task.tokenizer",
            largest,
            f"the model knows {words} tokens, and the tokenizer gives others; take the model's own",
        )


def windows(tokens: int, length: int, stride: int) -> list[tuple[int, int, int]]:
    """Evaluation windows as (start, stop, first counted position within the window); every token but the first of the
    text is in exactly one window's count where windows overlap, and the first of each window never is.
    """
    spans, counted = [], 1
    for start in range(0, tokens - 1, stride):
        stop = min(start + length, tokens)
        spans.append((start, stop, max(counted - start, 1)))
        counted = stop
        if stop == tokens:
            break
    return spans
