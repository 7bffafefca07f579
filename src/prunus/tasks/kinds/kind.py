"""What a kind of model is: how it takes images and words, through its own processor."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from PIL.Image import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoProcessor, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from prunus.calibration import Batch
from prunus.checkpoint import understood
from prunus.errors import PrunusError
from prunus.losses import Prediction, own_prediction
from prunus.tasks.kinds.parts import taken_size

PROCESSOR_FILES = (
    "*processor_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model",
    "chat_template*", "additional_chat_templates", "qformer_tokenizer",
)  # fmt: skip
"""Files and folders of a model's folder that turn raw inputs into tensors."""


def copy_processor(source: Path, folder: Path) -> None:
    """Puts a model's tokenizer and processor, the files as they are, into another folder."""
    for found in (path for pattern in PROCESSOR_FILES for path in source.glob(pattern)):
        if found.is_dir():
            shutil.copytree(found, folder / found.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(found, folder / found.name)


class Kind(ABC):
    """Base of the kinds: what is read of a model's folder, and nothing before it is needed.

    A kind of one's own is a subclass of one of the bases that tasks ask for (such as `Speaker`); it is known once it is imported.
    """

    takes: ClassVar[str] = "others"
    """What models these are, for errors."""

    def __init__(self, folder: str, processor: str | None = None):
        """
        Args:
            folder: with the model's config.
            processor: folder or hub id of the processor; None is the model's own.
        """
        self.folder, self.source = folder, processor or folder

    @classmethod
    @abstractmethod
    def fits(cls, config: Any) -> bool:
        """Whether a model with this config is of this kind."""

    @cached_property
    def config(self) -> Any:
        """The model's."""
        return read_config(self.folder)

    @cached_property
    def processor(self) -> Any:
        """The model's, as transformers makes it."""
        return load_processor(self.source, self.config)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures that the model takes.

        Raises:
            PrunusError: they may have any.
        """
        size = taken_size(getattr(self.processor, "image_processor", self.processor))
        if size is None:
            raise PrunusError(
                "task.augment",
                architecture(self.config),
                "such a model takes pictures of any size; leave the augmentation out",
            )
        return size

    def check(self) -> None:
        """Reads the processor.

        Raises:
            PrunusError: there is none, or a package that it needs is missing.
        """
        _ = self.processor

    def check_loss(self) -> None:  # noqa: B027 - most have one
        """Refuses, with a `PrunusError`, a model without a training loss: by default none."""

    def predict(self, model: nn.Module, batch: Batch) -> Prediction:
        """The training loss of a batch, with the logits behind it."""
        return own_prediction(model, batch)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The training loss of a batch, a scalar."""
        return self.predict(model, batch).loss

    def save(self, folder: Path) -> None:
        """Puts the processor beside a model: its files as they are, where they are at hand."""
        source = Path(self.source)
        if not source.is_dir():
            self.processor.save_pretrained(folder)
            return
        copy_processor(source, folder)


class Speaker(Kind):
    """Base of the kinds that say something about images: answers, captions, whatever they are asked for."""

    takes: ClassVar = "models that speak about images: image-text-to-text, BLIP, ViLT's answers"

    prompt: str = "{question}"
    """How a question is put to such a model, unless a task says otherwise."""
    caption_prompt: str = ""
    """What such a model is told when a caption is wanted."""

    @abstractmethod
    def batch(
        self,
        images: Sequence[Sequence[Image]],
        prompts: Sequence[str],
        targets: Sequence[Sequence[str]] | None = None,
    ) -> Batch:
        """Inputs of the model, with labels where targets are given.

        Args:
            images: of every row.
            prompts: one a row.
            targets: of every row the right answers, by several people perhaps; a kind that learns from one takes the most frequent.
        """

    @abstractmethod
    def generate(
        self,
        model: Any,
        images: Sequence[Sequence[Image]],
        prompts: Sequence[str],
        new_tokens: int,
        beams: int = 1,
        **how: Any,
    ) -> list[str]:
        """What a model says, without the prompt and without special tokens.

        Args:
            new_tokens: at the most.
            beams: of the search; one takes the likeliest token each time.
            how: more settings of transformers' generation, such as `length_penalty`; a kind that does not generate passes over them.
        """

    @abstractmethod
    def score(
        self,
        model: Any,
        images: Sequence[Sequence[Image]],
        prompts: Sequence[str],
        candidates: Sequence[str],
        best: int,
    ) -> Tensor:
        """Log-likelihoods of candidates, summed over their tokens, (rows, candidates).

        Args:
            candidates: the same for all rows.
            best: of each row only so many are looked at, those whose first token is likeliest; of the others it is -inf.
        """


AnyKind = TypeVar("AnyKind", bound=Kind)


def fits(base: type[Kind], config: Any) -> bool:
    """Whether a kind that derives from `base` fits a config."""
    return any(cls.fits(config) for cls in _finished(base))


def kind_of(base: type[AnyKind], folder: str, processor: str | None = None) -> AnyKind:
    """The kind of the model in a folder, among those that derive from `base`.

    Raises:
        PrunusError: there is no config, or no kind fits it.
    """
    config = read_config(folder)
    found = next((cls for cls in _finished(base) if cls.fits(config)), None)
    if found is None:
        name = (config.architectures or [config.model_type])[0]
        raise PrunusError(
            "task", name, f"the task does not know how such a model takes its inputs; it is for {base.takes}"
        )
    return found(folder, processor)


def read_config(folder: str) -> Any:
    """The config of a model."""
    with understood(folder, doing="read the config"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def architecture(config: Any) -> str:
    """The class that a config names; empty if it names none."""
    return str((config.architectures or [""])[0])


def load_processor(source: str, config: Any) -> Any:
    """A model's processor. Where torchvision is missing, which only videos need, it is one that takes no videos.

    Raises:
        PrunusError: there is none, or a package that it needs is missing.
    """
    with understood(source, doing="read the processor"):
        try:
            processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
        except (ImportError, ValueError) as error:
            if "torchvision" not in str(error).lower() or type(config) not in PROCESSOR_MAPPING:
                raise
            processor = _without_videos(PROCESSOR_MAPPING[type(config)]).from_pretrained(source)
    if not isinstance(processor, ProcessorMixin):
        raise PrunusError(
            "task.processor",
            source,
            "the folder has no processor for images and words; name the folder or hub id of one",
        )
    if getattr(processor, "num_query_tokens", 0) is None:  # of folders from before processors knew
        processor.num_query_tokens = getattr(config, "num_query_tokens", None)
    return processor


def _without_videos(cls: Any) -> Any:
    """A class of processors without the part that is for videos."""

    class Still(cls):  # type: ignore[misc]
        @classmethod
        def get_attributes(own) -> list[str]:  # noqa: N804
            return [name for name in super().get_attributes() if name != "video_processor"]

        @classmethod
        def from_args_and_dict(own, args: Any, processor_dict: dict[str, Any], **more: Any) -> Any:  # noqa: N804
            return super().from_args_and_dict(args, {**processor_dict, "video_processor": None}, **more)

    Still.__name__ = cls.__name__
    return Still


def _finished(cls: type[AnyKind]) -> Iterator[type[AnyKind]]:
    """A class and those that derive from it, as far as they are no mere bases."""
    if not getattr(cls, "__abstractmethods__", None):
        yield cls
    for one in cls.__subclasses__():
        yield from _finished(one)
