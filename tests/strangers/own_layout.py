"""A layout of one's own: lines of a text file. Known to prunus once it is imported: `--import own_layout.py`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from prunus.data import Data, Found


class Pairs(Data):
    """Lines such as `a.jpg: a cat`."""

    layout: Literal["pairs"] = "pairs"
    file: str

    def inputs(self) -> list[Path]:
        return [Path(self.file)]

    def rows(self) -> Iterator[Found]:
        for number, line in enumerate(Path(self.file).read_text().splitlines(), start=1):
            image, _, caption = line.partition(": ")
            yield Found(f"{self.file}:{number}", Path(self.file).parent, {"image": image, "captions": caption})
