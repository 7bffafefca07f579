"""Layout `nlvr`: NLVR v1, statements about drawings of three boxes that are true or false."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from prunus.data.files import rows_of
from prunus.data.layouts.imagefolder import folders_below, images_below
from prunus.data.layouts.published import Published
from prunus.data.source import Found


class NLVR(Published):
    """NLVR v1 as its authors publish it: `train/train.json`, one example a line, and `train/images/…/train-n-m-k.png`, which show the boxes of
    example n-m in up to six orders. A row is an example in one order.
    """

    layout: Literal["nlvr"] = "nlvr"
    home: ClassVar = "https://github.com/lil-lab/nlvr"
    splits: ClassVar = ("train", "dev", "test")

    def inputs(self) -> list[Path]:
        file = self.find(f"{self.split}/{self.split}.json")
        return [
            file,
            *(place for place in [file.parent / "images"] if place.is_dir()),
            *folders_below(file.parent / "images"),
        ]

    def rows(self) -> Iterator[Found]:
        file, *_ = self.inputs()
        orders: dict[str, list[str]] = {}
        for drawing in images_below(file.parent / "images"):
            orders.setdefault(drawing.stem.rpartition("-")[0], []).append(str(drawing.absolute()))
        for where, row in rows_of(file):
            name = f"{self.split}-{row['identifier']}"
            for path in orders.get(name, [f"images/{name}-0.png"]):
                label = str(row["label"]).lower() == "true"
                yield Found(where, file.parent, {"image": path, "text": row["sentence"], "label": label})
