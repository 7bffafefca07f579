"""Layout `imagenet`: ImageNet-1k, a folder for each of its classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from prunus.data.files import rows_of
from prunus.data.layouts.imagefolder import class_rows, folders_below
from prunus.data.layouts.published import Published
from prunus.data.source import Found

NAMES = ("LOC_synset_mapping.txt", "synset_words.txt")
SOLUTION = "LOC_val_solution.csv"


class ImageNet(Published):
    """ImageNet: `train/n01440764/…JPEG` and `val/n01440764/…JPEG`; or as on Kaggle, with `val` in one folder and `LOC_val_solution.csv`. With
    `LOC_synset_mapping.txt` or `synset_words.txt` classes are called by their first name, such as tench; else by their folder's.
    """

    layout: Literal["imagenet"] = "imagenet"
    home: ClassVar = "https://image-net.org/download.php"
    splits: ClassVar = ("train", "val")

    @cached_property
    def _folder(self) -> Path:
        return self.find(f"ILSVRC/Data/CLS-LOC/{self.split}", self.split)

    @cached_property
    def _flat(self) -> bool:
        return not any(path.is_dir() for path in self._folder.iterdir())

    @cached_property
    def _synsets(self) -> dict[str, str]:
        """Folder → name, in the order of the labels."""
        for name in NAMES:
            if (self.place / name).is_file():
                lines = (self.place / name).read_text(encoding="utf-8").splitlines()
                pairs = (line.split(" ", 1) for line in lines if " " in line)
                return _alone({synset: words.split(",")[0].strip() for synset, words in sorted(pairs)})
        folder = self.find("ILSVRC/Data/CLS-LOC/train", "train") if self._flat else self._folder
        return {path.name: path.name for path in sorted(folder.iterdir()) if path.is_dir()}

    def inputs(self) -> list[Path]:
        given = [self.place / name for name in (*NAMES, SOLUTION) if (self.place / name).is_file()]
        return [self._folder, *folders_below(self._folder), *given]

    def classes(self) -> Sequence[str]:
        return list(self._synsets.values())

    def rows(self) -> Iterator[Found]:
        numbers = {synset: number for number, synset in enumerate(self._synsets)}
        if not self._flat:
            for found in class_rows(self._folder):
                synset = found.values.get("label")
                read = {**found.values, "label": numbers.get(str(synset), synset)}
                yield Found(found.where, found.folder, read)
            return
        solution = self.place / SOLUTION
        if not solution.is_file():
            raise self.lacking("folders of classes", SOLUTION)
        for where, row in rows_of(solution):
            label = numbers.get(str(row["PredictionString"]).split(" ")[0], row["PredictionString"])
            yield Found(where, self._folder, {"image": f"{row['ImageId']}.JPEG", "label": label})


def _alone(names: dict[str, str]) -> dict[str, str]:
    """The names, with the synset beside those that two classes have, such as crane."""
    often = Counter(names.values())
    return {synset: name if often[name] == 1 else f"{name} ({synset})" for synset, name in names.items()}
