"""Captions of images, on a user's own data, by any model that speaks about images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch.utils.data import Dataset

from prunus.calibration import Batch
from prunus.metric import Metric
from prunus.metrics import caption_scores, check_caption_metrics, mean_of, with_interval
from prunus.tasks.exhibit import Exhibit
from prunus.tasks.on_data import Row, Rows
from prunus.tasks.speaking import SpeakingTask
from prunus.typed import Count


class Caption(SpeakingTask):
    """Captions. A training item is an image with one of its captions; generated ones are compared with all of an image's."""

    name: Literal["caption"] = "caption"
    scores: tuple[Literal["cider", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "meteor", "spice"], ...] = Field(
        default=("cider", "bleu_4", "rouge_l"), min_length=1
    )
    """What is measured; the first is the headline. METEOR and SPICE need Java."""
    words: Literal["plain", "ptb"] = "plain"
    """How captions are cut into words for the scores: runs of letters and digits, or as in published figures, which needs Java."""
    beams: Count = 3
    """Beams of the generation."""

    needs: ClassVar = ("image", "captions")
    by_picture: ClassVar = True

    @property
    def metrics(self) -> dict[str, Metric]:  # type: ignore[override]
        return {name: Metric(unit="plain" if name == "cider" else "share") for name in self.scores}

    @property
    def usual_prompt(self) -> str:
        return str(self.kind.caption_prompt)

    def check(self) -> None:
        super().check()
        if self.evaluation is not None:
            check_caption_metrics(self.scores, self.words)

    def still_data(self) -> Dataset[Any]:
        return Rows.of_parts(self.rows("train"), "captions")

    def collate(self, items: Sequence[Row]) -> Batch:
        rows, _ = self.versions(items)
        images, prompts = self.asked(rows)
        batch: Batch = self.kind.batch(images, prompts, [[row["captions"][row["part"]]] for row in rows])
        return batch

    def read_off(self, model: Any, rows: Sequence[Row]) -> Sequence[tuple[str, list[str]]]:
        """Each caption, and those that are right."""
        captions = self.written(model, rows)
        return [(caption, list(row["captions"])) for caption, row in zip(captions, rows, strict=True)]

    def tell(self, model: Any, rows: Sequence[Row]) -> Sequence[Exhibit]:
        """Captions beside the first of those that are right."""
        return [
            Exhibit(caption, row["captions"][0]) for caption, row in zip(self.written(model, rows), rows, strict=True)
        ]

    def figures(self, found: Sequence[tuple[str, list[str]]]) -> dict[str, float]:
        """The scores; of the headline with an interval, where it is a mean over captions."""
        scores = caption_scores(
            [caption for caption, _ in found], [right for _, right in found], self.scores, self.words
        )
        first = self.scores[0]
        if first not in MEANS:
            return scores.overall
        interval = with_interval(mean_of(scores.each[first]), lambda sums: {first: sums[..., 1] / sums[..., 0]}, first)
        return scores.overall | interval


MEANS = ("cider", "rouge_l", "spice")
"""Scores of a set that are the mean of those of its captions."""
