"""What every task over a user's own data has in common: rows, pictures, and the kind of the model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from prunus.calibration import Batch
from prunus.data import WHERE, AnyAugmentation, AnyData, Augmented, Data, Needs, open_image, shared_pictures
from prunus.errors import PrunusError
from prunus.losses import Prediction
from prunus.progress import track
from prunus.tasks.exhibit import Exhibit, small_jpeg, some
from prunus.tasks.kinds import Kind, fits, kind_of, read_config
from prunus.tasks.task import Split, Task
from prunus.typed import Count

Row = dict[str, Any]
"""A row of data: the fixed columns, and `where` it is from; of a training item also the number of its `row`, and its `part`."""


class Rows(Dataset[Any]):
    """Items of a table of rows: row i, or row r with one of its parts, such as its second caption."""

    def __init__(self, table: Any, places: Sequence[tuple[int, int]] | None = None):
        """
        Args:
            table: rows by number.
            places: row and part of every item; None takes every row as it is.
        """
        self.table, self.places = table, places

    @classmethod
    def of_parts(cls, table: Any, column: str) -> Self:
        """An item for each part of each row, such as a picture with one of its captions."""
        counts = [len(parts) for parts in table[column]]
        return cls(table, [(row, part) for row, count in enumerate(counts) for part in range(count)])

    def __len__(self) -> int:
        return len(self.table if self.places is None else self.places)

    def __getitem__(self, index: int) -> Row:
        row, part = (index, 0) if self.places is None else self.places[index]
        return {**self.table[row], "row": row, "part": part}


class Opened(Dataset[Any]):
    """Items whose pictures are open.

    Args:
        items: with pictures as the data have them.
        opened: opens those of a row.
    """

    def __init__(self, items: Any, opened: Callable[[Row], Row]):
        self.items, self.opened = items, opened

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Row:
        return self.opened(self.items[index])


class DataTask(Task):
    """Base of the tasks over a user's own data. One of your own has a `name`, `metrics`, the columns it `needs`, the base of the
    `kinds` of models that can do it, and `collate`, `read_off` and `figures`.
    """

    train: AnyData | None = None
    """Rows that are trained on, and that calibration takes."""
    evaluation: AnyData | None = None
    """Rows that the metrics are measured on."""
    processor: str | None = None
    """Folder or hub id of the processor; None is the model's own."""
    config: str | None = None
    """Folder of a model with the config that says what kind it is; None is the evaluated one."""
    batch_size: Count = 16
    """Rows of an evaluation batch."""
    augment: AnyAugmentation | None = None
    """Other versions of the pictures for training; None takes them as they are. Calibration always does."""

    needs: ClassVar[Needs]
    """Columns that every row has to have; of several in one entry any."""
    by_picture: ClassVar[bool] = False
    """Whether rows of the same picture are one row, with the captions of all of them."""
    kinds: ClassVar[type[Kind]]
    """What the task asks of a model."""

    @abstractmethod
    def read_off(self, model: Any, rows: Sequence[Row]) -> Sequence[Any]:
        """What a model makes of rows of the evaluation split, one by one, for `figures`."""

    @abstractmethod
    def figures(self, found: Sequence[Any]) -> dict[str, float]:
        """The metrics, of what `read_off` has returned."""

    def check(self) -> None:
        for field in ("train", "evaluation"):
            data: Data | None = getattr(self, field)
            if data is not None:
                try:
                    data.check(self.wanted)
                except PrunusError as error:
                    raise PrunusError(f"task.{field}: {error.field}", error.value, error.remedy) from None

    def check_split(self, split: Split) -> None:
        self._data(split)

    @property
    def wanted(self) -> Needs:
        """Columns that every row has to have with these settings: by default those that it `needs`."""
        return self.needs

    def data_state(self) -> list[Any]:
        return [data.kept.state for data in (self.train, self.evaluation) if data is not None]

    def remarks(self) -> list[str]:
        if self.train is None or self.evaluation is None:
            return []
        shared = shared_pictures(self.train.kept, self.evaluation.kept)
        said = (
            f"{shared:,} of the pictures of task.evaluation are in task.train, too: the figures may flatter the model"
        )
        return [said] if shared else []

    def damaged(self) -> Iterator[PrunusError]:
        for field in ("train", "evaluation"):
            data: Data | None = getattr(self, field)
            for error in data.kept.damaged() if data is not None else ():
                yield PrunusError(f"task.{field}: {error.field}", error.value, error.remedy)

    def for_model(self, folder: Path) -> Self:
        """The same for the kind of the model in `folder`, unless another is named."""
        return self if self.config else self.model_copy(update={"config": str(folder)})

    def check_model(self, folder: Path) -> None:
        """Refuses a model of a kind that cannot do the task, one without a processor, and one that takes no augmented pictures."""
        kind = self.for_model(folder).kind
        kind.check()
        if self.augment is not None:
            _ = kind.size

    def check_loss(self) -> None:
        self.kind.check_loss()

    def check_same_classes(self) -> None:
        """Refuses splits of which each numbers classes of other names.

        Raises:
            PrunusError: they do.
        """
        named = [data.class_names() for data in (self.train, self.evaluation) if data is not None]
        if len(named) == 2 and named[0] != named[1]:
            raise PrunusError(
                "task.evaluation", named[1], "its classes are not those of task.train; give both the same ones"
            )

    def check_labels(self, classes: int) -> None:
        """Refuses labels that are none of so many classes.

        Raises:
            PrunusError: naming the row.
        """
        for field in ("train", "evaluation"):
            if getattr(self, field) is not None:
                table = self.rows(field)
                labels = table.select_columns(["label"])[:]["label"]
                worst = max(range(len(labels)), key=labels.__getitem__)
                if labels[worst] >= classes:
                    raise PrunusError(
                        f"task.{field}: {table[worst][WHERE]}: label", labels[worst], f"there are {classes} classes, with numbers from 0; take a "
                        "model that knows as many as the data have",
                    )  # fmt: skip

    @cached_property
    def kind(self) -> Any:
        """How the model takes images and words: one of `kinds`."""
        if self.config is None:
            raise PrunusError("task.config", None, "name the folder of a model")
        self.refuse_unsuited(read_config(self.config))
        return kind_of(self.kinds, self.config, self.processor)

    @property
    def takes(self) -> str:  # type: ignore[override]
        """What models it is for, for errors."""
        return self.kinds.takes

    @classmethod
    def suits(cls, config: Any) -> bool:
        return fits(cls.kinds, config)

    def rows(self, field: str) -> Any:
        """The table of `train` or `evaluation`.

        Raises:
            PrunusError: there is none.
        """
        if field not in self._tables:
            data = self._data(field)
            self._tables[field] = data.pictures(self.wanted) if self.by_picture else data.read(self.wanted)
        return self._tables[field]

    def _data(self, field: str) -> Data:
        data: Data | None = getattr(self, field)
        if data is None:
            raise PrunusError(f"task.{field}", None, "there are no such data; name a file, or a layout and its folder")
        return data

    @cached_property
    def _tables(self) -> dict[str, Any]:
        return {}

    def images(self, row: Row) -> list[Image]:
        """The pictures of a row, from one file or several; none where the row has none."""
        held = row.get("images") or ([row["image"]] if row.get("image") is not None else [])
        return [open_image(image, row[WHERE]) for image in held]

    def opened(self, row: Row) -> Row:
        """A row with its pictures open, for versions to be made of them: one as `image`, others as `images`."""
        seen = self.images(row)
        return row | ({"image": seen[0], "images": None} if len(seen) == 1 else {"image": None, "images": seen})

    def still_data(self) -> Dataset[Any]:
        """The training items, with their pictures as they are."""
        return Rows(self.rows("train"))

    def train_data(self) -> Dataset[Any]:
        still = self.still_data()
        return still if self.augment is None else Augmented(Opened(still, self.opened), self.augment, self.kind.size)

    def versions(self, items: Sequence[Any]) -> tuple[list[Row], bool]:
        """The rows of a batch of training items, some of which may be several versions of one, and whether their pictures have the size
        that the model takes.
        """
        rows = [row for item in items for row in (item if isinstance(item, list) else [item])]
        return rows, all(row.get("sized", False) for row in rows)

    def predict(self, model: nn.Module, batch: Batch) -> Prediction:
        return self.kind.predict(model, batch)  # type: ignore[no-any-return]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.kind.loss(model, batch)  # type: ignore[no-any-return]

    @torch.no_grad()
    def evaluate(self, model: Any, limit: int | None = None, progress: bool = True) -> dict[str, float]:
        model.eval()
        found: list[Any] = []
        table = self.rows("evaluation")
        places = range(len(table))[:limit]
        batches = [places[start : start + self.batch_size] for start in range(0, len(places), self.batch_size)]
        for batch in track(batches, f"evaluating {self.name}", progress):
            found += self.read_off(model, [table[place] for place in batch])
        return self.figures(self.finish(model, found))

    def exhibits(self, model: Any, count: int, limit: int | None = None) -> list[Exhibit]:
        table = self.rows("evaluation")
        rows = [table[place] for place in some(range(len(table))[:limit], count)]
        return [
            replace(one, pictures=[small_jpeg(picture) for picture in self.images(row)])
            for one, row in zip(self.tell(model, rows), rows, strict=False)
        ]

    def tell(self, model: Any, rows: Sequence[Row]) -> Sequence[Exhibit]:
        """In words what a model makes of rows, one by one, for `exhibits`, which adds their pictures: by default nothing."""
        return []

    def finish(self, model: Any, found: Sequence[Any]) -> Sequence[Any]:
        """What becomes of all that was read off, while the model is at hand: by default nothing."""
        return found

    def sample(self, places: Sequence[int]) -> Batch:
        """Of the rows that are trained on, or else evaluated."""
        if self.train is not None:
            return super().sample(places)
        table = Rows(self.rows("evaluation"))
        return self.collate([table[place % len(table)] for place in places])

    def save_processor(self, folder: Path) -> None:
        self.kind.save(folder)


def said(text: str, row: Mapping[str, Any], field: str) -> str:
    """A prompt with the columns of a row in their places.

    Raises:
        PrunusError: it names a column that is not there.
    """
    try:
        return text.format_map(row)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise PrunusError(
            f"task.{field}", text, f"{{column}} stands for a column of the data, and this does not fit ({error})"
        ) from None
