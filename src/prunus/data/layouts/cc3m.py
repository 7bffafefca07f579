"""Layout `cc3m`: Conceptual Captions, images of the web with one caption each, as people fetch them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from prunus.data.files import json_of
from prunus.data.layouts.imagefolder import folders_below, images_below
from prunus.data.layouts.published import Published
from prunus.data.source import Found
from prunus.errors import PrunusError

LISTS = ("cc3m.json", "cc3m_train.json", "ccs_filtered.json")


class CC3M(Published):
    """Conceptual Captions as img2dataset fetches them, as shards `00000.tar` or folders `00000`, with a `.txt` beside each image; or a list
    `cc3m.json` of images and captions, as BLIP and LAVIS read it. What a fetch has lost is simply not there.
    """

    layout: Literal["cc3m"] = "cc3m"
    home: ClassVar = "https://ai.google.com/research/ConceptualCaptions/download"
    splits: ClassVar = ("train", "val")

    @cached_property
    def _folder(self) -> Path:
        """That of the split, where there is one."""
        own = self.place / self.split
        if not own.is_dir() and self.split != "train":
            raise PrunusError(
                "split", self.split, f"{self.root} has no folder of that name; shards below the root are those of train"
            )
        return own if own.is_dir() else self.place

    def inputs(self) -> list[Path]:
        folders = [source for source in self._sources if source.is_dir()]
        inside = [path for folder in folders for path in (*folders_below(folder), *sorted(folder.rglob("*.txt")))]
        return [*self._sources, *inside]

    @cached_property
    def _sources(self) -> list[Path]:
        lists = [self._folder / name for name in LISTS if (self._folder / name).is_file()]
        shards = sorted(path for path in self._folder.iterdir() if path.suffix == ".tar" or path.is_dir())
        if not lists and not shards:
            raise self.lacking("shards such as 00000.tar", LISTS[0])
        return lists[:1] or shards

    def rows(self) -> Iterator[Found]:
        for source in self._sources:
            if source.suffix == ".json":
                for number, row in enumerate(json_of(source), start=1):
                    read = {"image": row["image"], "captions": row["caption"]}
                    yield Found(f"{source}, row {number}", source.parent, read)
            elif source.is_dir():
                for path in images_below(source):
                    text = path.with_suffix(".txt")
                    captions = text.read_text(encoding="utf-8").strip() if text.is_file() else None
                    yield Found(str(path), source, {"image": str(path.absolute()), "captions": captions})
            else:
                yield from _shard(source)


def _shard(file: Path) -> Iterator[Found]:
    """The samples of a tar file, in which what belongs together has one name and lies side by side."""
    try:
        with tarfile.open(file) as tar:
            name, sample = "", dict[str, Any]()
            for member in tar:
                stem, _, ending = member.name.rpartition(".")
                if stem != name and sample:
                    yield _sample(file, name, sample)
                    sample = {}
                name = stem
                opened = tar.extractfile(member) if member.isfile() else None
                if opened is not None:
                    sample[ending.lower()] = opened.read()
            if sample:
                yield _sample(file, name, sample)
    except (tarfile.TarError, EOFError) as error:
        raise PrunusError("root", str(file), f"the shard is damaged ({error}); fetch it again") from None


def _sample(file: Path, name: str, sample: dict[str, Any]) -> Found:
    image = next((sample[ending] for ending in ("jpg", "jpeg", "png", "webp") if ending in sample), None)
    text = sample["txt"].decode() if "txt" in sample else json.loads(sample.get("json", b"{}")).get("caption")
    return Found(f"{file}: {name}", file.parent, {"image": image, "captions": text})
