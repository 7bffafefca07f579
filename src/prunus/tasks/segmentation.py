"""Classes of pixels, on a user's own data, looked at in windows and, if that is wanted, at several scales."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from prunus.calibration import Batch
from prunus.data import IGNORED, WHERE, open_mask
from prunus.errors import PrunusError
from prunus.metric import Metric
from prunus.metrics import overlap_figures, overlap_row, with_interval
from prunus.tasks.exhibit import Exhibit
from prunus.tasks.kinds import Segmenting
from prunus.tasks.on_data import DataTask, Row
from prunus.typed import Count


class Segmentation(DataTask):
    """Semantic segmentation, evaluated as Segmenter's authors do: a picture is resized, looked at in overlapping square windows of the
    model's size, and the likelihoods are averaged over scales and mirror images, at the size of its mask.
    """

    name: Literal["segmentation"] = "segmentation"
    side: Count | None = None
    """Shorter side of a picture at scale 1, in pixels; None is the model's size. The longer one is at most four times as long."""
    stride: Count | None = None
    """From one window to the next, in pixels; None is the model's size, without overlap."""
    scales: tuple[float, ...] = Field(default=(1.0,), min_length=1)
    """Such as .5, .75, 1, 1.25, 1.5, 1.75 for multi-scale evaluation."""
    mirror: bool = False
    """Whether every scale is also looked at with left and right exchanged."""
    ignore: tuple[int, ...] = ()
    """Classes that neither loss nor metric counts."""

    metrics: ClassVar = {"mean_iou": Metric(), "pixel_accuracy": Metric(), "mean_accuracy": Metric()}
    needs: ClassVar = ("image", "mask")
    kinds: ClassVar = Segmenting

    def check(self) -> None:
        super().check()
        firsts = {data.first_class for data in (self.train, self.evaluation) if data is not None}
        if len(firsts) > 1:
            raise PrunusError(
                "task.evaluation: first_class", sorted(firsts), "both splits must number their classes alike; set it for both"
            )  # fmt: skip

    def check_model(self, folder: Path) -> None:
        super().check_model(folder)
        kind = self.for_model(folder).kind
        for field, data in (("train", self.train), ("evaluation", self.evaluation)):
            classes = {} if data is None else data.kept.mask_classes
            for one in sorted(classes.keys() - set(self.ignore)):
                kind.check_class(f"task.{field}: {classes[one]}: mask", one)
        window = kind.size[0]
        if self.stride is not None and self.stride > window:
            raise PrunusError("task.stride", self.stride, f"windows of {window} pixels leave gaps; take at most that")

    def mask(self, row: Row) -> Image.Image:
        """Classes of the pixels, `IGNORED` where none counts."""
        if row.get("sized"):  # a version of one
            return row["mask"]  # type: ignore[no-any-return]
        first = max((data.first_class for data in (self.train, self.evaluation) if data is not None), default=0)
        mask = open_mask(row["mask"], row[WHERE], first)
        classes = np.array(mask)
        classes[np.isin(classes, self.ignore)] = IGNORED
        if self.config is not None:
            self.kind.check_class(f"{row[WHERE]}: mask", int(classes.max()))
        return Image.fromarray(classes)

    def opened(self, row: Row) -> Row:
        return super().opened(row) | {"mask": self.mask(row)}

    def collate(self, items: Sequence[Any]) -> Batch:
        rows, sized = self.versions(items)
        images, masks = [self.images(row)[0] for row in rows], [self.mask(row) for row in rows]
        if not sized:
            size = self.kind.size[::-1]
            images = [image.resize(size, Image.Resampling.BILINEAR) for image in images]
            masks = [mask.resize(size, Image.Resampling.NEAREST) for mask in masks]
        batch: Batch = self.kind.batch(images, [torch.from_numpy(np.array(mask)) for mask in masks])
        return batch

    def read_off(self, model: Any, rows: Sequence[Row]) -> Sequence[Tensor]:
        """What each picture adds to the sums."""
        return [overlap_row(*self.seen(model, row), self.kind.config.num_labels) for row in rows]

    def tell(self, model: Any, rows: Sequence[Row]) -> Sequence[Exhibit]:
        """How many pixels of each picture are given their class, of those that count."""
        found = []
        for said, mask in (self.seen(model, row) for row in rows):
            counted = mask != IGNORED
            share = float(((said == mask) & counted).sum() / counted.sum().clamp(min=1))
            right = f"every pixel, classes: {len(set(mask[counted].tolist()))}"
            found.append(Exhibit(f"{share:.1%} of the pixels", right))
        return found

    def seen(self, model: Any, row: Row) -> tuple[Tensor, Tensor]:
        """The likeliest class of every pixel, and the right one, (H, W) of the mask, on the CPU."""
        image, mask = self.images(row)[0], torch.from_numpy(np.array(self.mask(row)).astype(np.int64))
        size = tuple(mask.shape)
        return self.kind.classes(model, image, size, self.side, self.stride, self.scales, self.mirror), mask

    def calibration(self, samples: int, batch_size: int) -> list[Batch]:
        """Pictures alone: a model's own loss may pass over one of its classes."""
        return [{"pixel_values": batch["pixel_values"]} for batch in super().calibration(samples, batch_size)]

    def sample(self, places: Sequence[int]) -> Batch:
        return {"pixel_values": super().sample(places)["pixel_values"]}

    def figures(self, found: Sequence[Tensor]) -> dict[str, float]:
        """Over all pixels; the mean of the classes' intersections over unions with an interval."""
        return with_interval(torch.stack(list(found)), overlap_figures, "mean_iou")
