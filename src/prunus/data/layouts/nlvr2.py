"""Layout `nlvr2`: NLVR2, statements about two photographs that are true or false."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from prunus.data.files import rows_of
from prunus.data.layouts.published import Published
from prunus.data.source import Found


class NLVR2(Published):
    """NLVR2 as its authors publish it: `train.json`, `dev.json`, `test1.json`, one example a line; images in `images/train/…`, `dev`, `test1`,
    or in one folder `images`.
    """

    layout: Literal["nlvr2"] = "nlvr2"
    home: ClassVar = "https://github.com/lil-lab/nlvr"
    splits: ClassVar = ("train", "dev", "test1", "test2")

    def inputs(self) -> list[Path]:
        return [self.find(f"nlvr2/data/{self.split}.json", f"data/{self.split}.json", f"{self.split}.json")]

    def rows(self) -> Iterator[Found]:
        folder = self.find(f"images/{self.split}", self.split, "images")
        for where, row in rows_of(self.inputs()[0]):
            name = str(row["identifier"]).rpartition("-")[0]
            inside = (
                f"{row['directory']}/"
                if (folder / str(row.get("directory", ""))).is_dir() and "directory" in row
                else ""
            )
            yield Found(where, folder, {
                "images": [f"{inside}{name}-img{side}.png" for side in (0, 1)], "text": row["sentence"],
                "label": str(row["label"]).lower() == "true",
            })  # fmt: skip
