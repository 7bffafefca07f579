"""Layout `hub`: a data set of the hub, or a folder that the library `datasets` knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, constants

from prunus.data.source import Data, Found
from prunus.errors import PrunusError, refusing

SAVED = ("state.json", "dataset_dict.json")
"""Files of a folder that `save_to_disk` wrote."""
TOGETHER = 64
WAIT = 10
"""Seconds for the hub to say which commit it has."""


class Hub(Data):
    """A data set by its hub id, of which the rows that are taken are fetched; a folder made by `save_to_disk`; or a folder of data files,
    as it would lie on the hub.
    """

    layout: Literal["hub"] = "hub"
    path: str
    """Hub id or folder."""
    name: str | None = None
    """Of one of several configurations."""
    split: str = "train"
    """Such as train or validation."""
    revision: str | None = None
    """Branch, tag or commit of the hub."""

    @property
    def _folder(self) -> Path | None:
        folder = Path(self.path).expanduser()
        return folder if folder.is_dir() else None

    def inputs(self) -> list[Path]:
        return [] if self._folder is None else [self._folder, *sorted(self._folder.rglob("*"))]

    def version(self) -> str | None:
        """The commit that the hub has now; None of a folder, and where the hub cannot be asked."""
        if self._folder is not None or constants.HF_HUB_OFFLINE:
            return None
        try:
            found: str | None = HfApi().dataset_info(self.path, revision=self.revision, timeout=WAIT).sha
        except Exception:  # whatever keeps the hub from answering
            return None
        return found

    @property
    def title(self) -> str:
        return f"{self.path} [{self.split}]"

    @cached_property
    def _data(self) -> Any:
        import datasets

        with refusing("path", self.path, "it cannot be loaded"):
            if self._folder is not None and any((self._folder / name).is_file() for name in SAVED):
                found = datasets.load_from_disk(str(self._folder))
                if not isinstance(found, Mapping):
                    return found
            else:
                online = not datasets.config.HF_HUB_OFFLINE
                place, stream = str(self._folder or self.path), self._folder is not None or online
                found = datasets.load_dataset(place, self.name, revision=self.revision, streaming=stream)
            if self.split not in found:
                raise PrunusError("split", self.split, f"there is no such split; there are {', '.join(found)}")
            return found[self.split]

    def classes(self) -> Sequence[str] | None:
        label = self.columns.get("label", "label")
        names = getattr((self._data.features or {}).get(label), "names", None)
        return list(names) if names else None

    def rows(self) -> Iterator[Found]:
        number, folder = 0, self._folder or Path()
        with refusing("path", self.path, "it cannot be read"):
            for table in self._data.with_format("arrow").iter(TOGETHER):
                for row in table.to_pylist():
                    number += 1
                    yield Found(f"{self.title}, row {number}", folder, row)
