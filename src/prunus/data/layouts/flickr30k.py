"""Layout `flickr30k`: Flickr30k in Karpathy's split, five captions a picture."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from prunus.data.layouts.coco_karpathy import CocoKarpathy


class Flickr30k(CocoKarpathy):
    """Flickr30k captions: Karpathy's `dataset_flickr30k.json`, or `flickr30k_train.json` as BLIP has it; images in `flickr30k-images` or
    `flickr30k_images`, whichever is there.
    """

    layout: Literal["flickr30k"] = "flickr30k"  # type: ignore[assignment]
    home: ClassVar = "https://cs.stanford.edu/people/karpathy/deepimagesent, pictures: https://shannon.cs.illinois.edu/DenotationGraph"
    names: ClassVar = ("dataset_flickr30k.json", "flickr30k_{}.json")
    folders: ClassVar = ("flickr30k-images", "flickr30k_images")

    def place_of(self, path: str, folder: Path) -> str:
        return f"{folder.name}/{Path(path).name}"
