"""Visual question answering on easy-VQA. The model is a `BlipForQuestionAnswering`, which generates the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import BlipForQuestionAnswering

from prunus.batches import for_model
from prunus.calibration import Batch, evenly
from prunus.data import Questions, questions_of
from prunus.losses import Prediction
from prunus.metric import Metric
from prunus.metrics import answer_summary
from prunus.models import SPECIAL_TOKENS, bare_blip, warm_blip
from prunus.progress import track
from prunus.tasks.exhibit import Exhibit, small_jpeg, some
from prunus.tasks.kinds import GroupedBlip
from prunus.tasks.task import MEASURED, Task
from prunus.typed import Count


class EasyVQA(Task):
    """easy-VQA. A training item is one image with some of its questions, so the image is encoded once for them all."""

    name: Literal["easy_vqa"] = "easy_vqa"
    image_size: int = Field(default=70, ge=14, le=1024)
    """Side to which images are resized, in pixels."""
    questions_per_item: Count = 5
    """Questions of one image that train together."""
    matching_steps: Count = 450
    """Steps of the question encoder's head start; the image encoder has as many, at most 40."""
    batch_size: Count = 256
    """Questions per evaluation batch."""

    metrics: ClassVar = {"accuracy": Metric(), "accuracy_yes_no": Metric(), "accuracy_other": Metric()}
    measured_on_items: ClassVar = ("loss", "accuracy")
    models: ClassVar = ("BlipForQuestionAnswering",)

    def check(self) -> None:
        questions_of("test")

    @cached_property
    def words(self) -> list[str]:
        """The vocabulary: special tokens, then every word of the training questions and answers."""
        return [*SPECIAL_TOKENS, "?", *self._train.words]

    @cached_property
    def _kind(self) -> GroupedBlip:
        return GroupedBlip(self.words)

    def skeleton(self, **sizes: int) -> BlipForQuestionAnswering:
        return bare_blip(self.words, self.image_size, **sizes)

    def warm_start(self, **sizes: int) -> BlipForQuestionAnswering:
        return warm_blip(self.words, self._train, self.collate, self.matching_steps, **sizes)

    def train_data(self) -> Dataset[Any]:
        return self._train

    @cached_property
    def _train(self) -> Questions:
        return Questions("train", self.image_size, self.questions_per_item)

    @cached_property
    def _test(self) -> Questions:
        return Questions("test", self.image_size, self.questions_per_item)

    def collate(self, items: Sequence[tuple[Tensor, list[str], list[str]]]) -> Batch:
        return self._kind.batch(items)

    def calibration(self, samples: int, batch_size: int) -> list[Batch]:
        """One question each of images spread evenly over the training split, with its answer for the decoder."""
        chosen = evenly(self._train.one_of_each, samples)
        parts = (chosen[start : start + batch_size] for start in range(0, samples, batch_size))
        return [self._asked(self._train, part) | self._kind.begun([row[2] for row in part]) for part in parts]

    def _asked(self, data: Questions, rows: Sequence[tuple[int, str, str]]) -> Batch:
        return self._kind.asked(data.pixels([image for image, _, _ in rows]), [row[1] for row in rows])

    def predict(self, model: nn.Module, batch: Batch) -> Prediction:
        return self._kind.predict(model, batch)

    def measure_on(self, model: Any, items: Sequence[Any]) -> dict[str, float]:
        """Their loss, and the share of questions of which the answer is the likeliest of all words."""
        return self._kind.judge(model, items, MEASURED)

    def evaluate(self, model: Any, limit: int | None = None, progress: bool = True) -> dict[str, float]:
        """Exact match of the generated answer: overall, with an interval, on yes/no questions and on the others."""
        model, rows = model.eval(), self._test.rows[:limit]
        found: list[tuple[float, bool]] = []
        for batch in track(list(self._kind.alike([row[1] for row in rows], self.batch_size)), "evaluating", progress):
            asked = [rows[number] for number in batch]
            said = self._kind.generate(model, self._asked(self._test, asked))
            found += [(float(one == row[2]), row[2] in ("yes", "no")) for one, row in zip(said, asked, strict=True)]
        return answer_summary(found)

    def exhibits(self, model: Any, count: int, limit: int | None = None) -> list[Exhibit]:
        rows = some(self._test.rows[:limit], count)
        said = [self._kind.generate(model, self._asked(self._test, [row]))[0] for row in rows]
        pictures = [small_jpeg(self._test.picture(image)) for image, _, _ in rows]
        return [Exhibit(one, row[2], row[1], [of]) for one, row, of in zip(said, rows, pictures, strict=True)]

    def sample(self, places: Sequence[int]) -> Batch:
        """Of the test questions."""
        rows = [self._test.rows[row % len(self._test.rows)] for row in places]
        return self._asked(self._test, rows)

    def example(self, model: Any, batch_size: int) -> Callable[[], object]:
        inputs = for_model(self.sample(range(batch_size)), model)
        return lambda: model.generate(**inputs, max_new_tokens=1, do_sample=False)

    def save_processor(self, folder: Path) -> None:
        self._kind.save(folder, self.image_size)
