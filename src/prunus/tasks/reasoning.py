"""Statements about two pictures that are true or false, on a user's own data (NLVR2, NLVR)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from PIL.Image import Image

from prunus.calibration import Batch
from prunus.data import WHERE
from prunus.errors import PrunusError
from prunus.metric import Metric
from prunus.metrics import mean_of, with_interval
from prunus.tasks.class_names import called
from prunus.tasks.exhibit import Exhibit
from prunus.tasks.kinds import PairReader
from prunus.tasks.on_data import DataTask, Row
from prunus.typed import Count


class Reasoning(DataTask):
    """Reasoning about two pictures. Of a row with a single picture, such as NLVR's of three boxes, the model sees the left two thirds and
    the right two thirds, so that every box is whole in one of them and the middle one in both.
    """

    name: Literal["reasoning"] = "reasoning"
    length: Count | None = None
    """Tokens of a statement at the most; None is what the model has positions for."""

    metrics: ClassVar = {"accuracy": Metric()}
    needs: ClassVar = (("images", "image"), "text", "label")
    kinds: ClassVar = PairReader

    def check(self) -> None:
        super().check()
        self.check_same_classes()

    def check_model(self, folder: Path) -> None:
        import pyarrow.compute

        super().check_model(folder)
        self.check_labels(self.for_model(folder).kind.config.num_labels)
        for field in ("train", "evaluation"):
            if getattr(self, field) is not None and "images" in (table := self.rows(field)).column_names:
                column = table.select_columns(["images"]).with_format("arrow")[:]["images"]
                for place, count in enumerate(pyarrow.compute.list_value_length(column).to_pylist()):
                    if (count or 0) > 2:
                        raise _not_two(f"task.{field}: {table[place][WHERE]}: images", count)

    def images(self, row: Row) -> list[Image]:
        """Two pictures."""
        seen = super().images(row)
        if len(seen) == 1:
            width, height = seen[0].size
            third = max(1, width // 3)
            seen = [
                seen[0].crop((0, 0, width - third, height)),
                seen[0].crop((third, 0, max(width, third + 1), height)),
            ]
        if len(seen) != 2:
            raise _not_two(f"{row[WHERE]}: images", len(seen))
        return seen

    def collate(self, items: Sequence[Any]) -> Batch:
        rows, sized = self.versions(items)
        labels = [int(row["label"]) for row in rows]
        texts = [row["text"] for row in rows]
        batch: Batch = self.kind.batch([self.images(row) for row in rows], texts, labels, sized, self.length)
        return batch

    def read_off(self, model: Any, rows: Sequence[Row]) -> Sequence[bool]:
        """Whether each statement is judged rightly."""
        return [judged == int(row["label"]) for judged, row in zip(self.judged(model, rows), rows, strict=True)]

    def judged(self, model: Any, rows: Sequence[Row]) -> list[int]:
        """The likeliest label of each statement."""
        logits = self.kind.logits(model, [self.images(row) for row in rows], [row["text"] for row in rows], self.length)
        return [int(label) for label in logits.argmax(1)]

    def tell(self, model: Any, rows: Sequence[Row]) -> Sequence[Exhibit]:
        """Labels of statements, by their names if they have some."""
        names = None if self.evaluation is None else self.evaluation.class_names()
        return [
            Exhibit(called(names, label), called(names, int(row["label"])), row["text"])
            for label, row in zip(self.judged(model, rows), rows, strict=True)
        ]

    def figures(self, found: Sequence[bool]) -> dict[str, float]:
        """The share that is judged rightly, with an interval."""
        return with_interval(mean_of(found), lambda sums: {"accuracy": sums[..., 1] / sums[..., 0]}, "accuracy")


def _not_two(field: str, count: int) -> PrunusError:
    return PrunusError(field, count, "the model reads two pictures; give one or two")
