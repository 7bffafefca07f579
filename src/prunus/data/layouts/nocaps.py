"""Layout `nocaps`: NoCaps, ten captions each of Open Images with objects that COCO has no captions of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from prunus.data.files import json_of
from prunus.data.layouts.published import Published
from prunus.data.source import Found


class NoCaps(Published):
    """NoCaps as nocaps.org publishes it: `nocaps_val_4500_captions.json`, images in `val` or `images`. The test split has no captions."""

    layout: Literal["nocaps"] = "nocaps"
    home: ClassVar = "https://nocaps.org/download"
    splits: ClassVar = ("val", "test")
    split: str = "val"
    domain: Literal["in-domain", "near-domain", "out-domain"] | None = None
    """Images with objects that COCO's captions name, partly or not at all; None takes all."""

    def inputs(self) -> list[Path]:
        names = {"val": "nocaps_val_4500_captions.json", "test": "nocaps_test_image_info.json"}
        return [self.find(names[self.split])]

    def rows(self) -> Iterator[Found]:
        (file,) = self.inputs()
        folder, data = self.find(self.split, "images"), json_of(file)
        captions: dict[Any, list[str]] = {}
        for said in data.get("annotations", ()):
            captions.setdefault(said["image_id"], []).append(said["caption"])
        for number, image in enumerate(data["images"], start=1):
            if self.domain in (None, image.get("domain")):
                row = {"image": image["file_name"], "question_id": image["id"], "captions": captions.get(image["id"])}
                yield Found(f"{file}, row {number}", folder, row)
