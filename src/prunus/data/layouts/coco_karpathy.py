"""Layout `coco_karpathy`: COCO captions in Karpathy's split, five or so a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from prunus.data.files import json_of
from prunus.data.layouts.published import Published
from prunus.data.source import Found


class CocoKarpathy(Published):
    """COCO captions: Karpathy's `dataset_coco.json`, or `coco_karpathy_train.json` as BLIP has it; images in `train2014` and `val2014`.
    The training split has Karpathy's `restval`, too, as is usual.
    """

    layout: Literal["coco_karpathy"] = "coco_karpathy"
    home: ClassVar = (
        "https://cs.stanford.edu/people/karpathy/deepimagesent, pictures: https://cocodataset.org/#download"
    )
    splits: ClassVar = ("train", "val", "test")
    names: ClassVar = ("dataset_coco.json", "coco_karpathy_{}.json")
    folders: ClassVar = ("train2014", "val2014")
    """Of images, one of which lies in the folder that paths start from."""

    def inputs(self) -> list[Path]:
        return [self.find(*(name.format(self.split) for name in self.names))]

    def rows(self) -> Iterator[Found]:
        (file,) = self.inputs()
        data, folder = json_of(file), self.find(*self.folders)
        read = self._of_karpathy(data) if isinstance(data, dict) else self._of_blip(data)
        for number, (path, captions) in read:
            yield Found(
                f"{file}, row {number}", folder.parent, {"image": self.place_of(path, folder), "captions": captions}
            )

    def place_of(self, path: str, folder: Path) -> str:
        """Where an image lies, from the parent of `folder`, which is one of `folders`."""
        return path

    def _of_karpathy(self, data: dict[str, Any]) -> Iterator[tuple[int, tuple[str, list[str]]]]:
        taken = ("train", "restval") if self.split == "train" else (self.split,)
        for number, image in enumerate(data["images"], start=1):
            if image["split"] in taken:
                path = f"{image.get('filepath', self.folders[0])}/{image['filename']}"
                yield number, (path, [said["raw"] for said in image["sentences"]])

    def _of_blip(self, data: list[dict[str, Any]]) -> Iterator[tuple[int, tuple[str, list[str]]]]:
        captions: dict[str, list[str]] = {}
        first: dict[str, int] = {}
        for number, row in enumerate(data, start=1):
            said = row["caption"]
            first.setdefault(row["image"], number)
            captions.setdefault(row["image"], []).extend([said] if isinstance(said, str) else said)
        for path, all_of_them in captions.items():
            yield first[path], (path, all_of_them)
