"""Layout `ade20k`: the scene parsing benchmark of ADE20K, 150 classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from prunus.data.layouts.imagefolder import folders_below, images_below
from prunus.data.layouts.published import Published
from prunus.data.source import Found

SPLITS = {"train": "training", "val": "validation"}


class ADE20K(Published):
    """ADEChallengeData2016: `images/training/…jpg`, `annotations/training/…png`, and `objectInfo150.txt` with the names. In its masks the
    first class is 1, and 0 is none of them.
    """

    layout: Literal["ade20k"] = "ade20k"
    home: ClassVar = "https://sceneparsing.csail.mit.edu"
    splits: ClassVar = tuple(SPLITS)
    first_class: int = 1
    """What masks give the first class; pixels below it are not counted."""

    def inputs(self) -> list[Path]:
        return [*self._folders, *(below for folder in self._folders for below in folders_below(folder))]

    @property
    def _folders(self) -> list[Path]:
        return [self.find(f"{kind}/{SPLITS[self.split]}") for kind in ("images", "annotations")]

    def mask_classes(self) -> Sequence[str] | None:
        for file in self.place.glob("**/objectInfo150.txt"):
            lines = file.read_text(encoding="utf-8").splitlines()[1:]
            return [line.split("\t")[-1].split(",")[0].strip() for line in lines if line.strip()]
        return None

    def rows(self) -> Iterator[Found]:
        images, masks = self._folders
        stems = {
            path.relative_to(folder).with_suffix("") for folder in (images, masks) for path in images_below(folder)
        }
        for stem in sorted(stems):
            image, mask = (images / stem).with_suffix(".jpg"), (masks / stem).with_suffix(".png")
            yield Found(str(image), images, {"image": str(image.absolute()), "mask": str(mask.absolute())})
