"""Studies as typed data: recipes that are repeated with other methods, budgets and seeds, and what is to be found out."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, field_validator, model_validator

from prunus.bounded_yaml import read_yaml, yaml_text
from prunus.errors import PrunusError
from prunus.metric import UNDECLARED
from prunus.recipe import Recipe, recipe_of
from prunus.storage import writable_path
from prunus.studies.findings import AnyFinding
from prunus.typed import Seed, Typed, read_typed
from prunus.variants import put

Changes = dict[str, Any]
"""Place in a recipe, such as steps.0.method.ratio → its value."""
MOST = 10_000
"""Cells of a study."""
PLACE = "{data}"
"""In texts of a study: the folder of the data, which the caller names."""


class Part(Typed):
    """One recipe, and the axes along which it is varied."""

    recipe: dict[str, Any]
    """The recipe, without `output` and `seed`."""
    axes: dict[str, dict[str, Changes]] = Field(default_factory=dict)
    """Axis → label → what it changes, later axes after earlier ones; the first axis makes the rows of the table, the others its columns."""
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)
    """A cell is carried out once for each."""
    chance: Annotated[float, Field(ge=0, le=1)] | None = None
    """The headline, a share, of a model that knows nothing, such as .1 where it is the accuracy over ten classes; qualities begin there."""
    leave_out: tuple[dict[str, str | tuple[str, ...]], ...] = ()
    """Combinations that make no cell: axis → label, or several of them; `seed` is an axis, too."""

    @field_validator("seeds")
    @classmethod
    def _all_different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise PrunusError("", list(seeds), "name every seed once")
        return seeds

    @model_validator(mode="after")
    def _axes_can_be_named(self) -> Part:
        for place in ("output", "seed"):
            if place in self.recipe:
                raise PrunusError(f"recipe.{place}", self.recipe[place], "a study sets it for every cell; leave it out")
        for axis, labels in self.axes.items():
            refuse_path(f"axes.{axis}", axis)
            if axis in ("part", "seed"):
                raise PrunusError(f"axes.{axis}", axis, "every study has an axis of this name; take another")
            if not labels:
                raise PrunusError(f"axes.{axis}", {}, "give it at least one label")
            for label in labels:
                refuse_path(f"axes.{axis}.{label}", label)
        for combination in self.leave_out:
            for axis, named in combination.items():
                there = self.axes.get(axis, {}) if axis != "seed" else [str(seed) for seed in self.seeds]
                for label in _several(named):
                    if label not in there:
                        raise PrunusError("leave_out", combination, f"there is no {axis} {label} among the axes")
        return self

    def cells(self) -> Iterator[tuple[dict[str, str], int]]:
        """Every combination of labels, by axis, and seed that makes a cell."""
        for labels, seed in product(self._labels(), self.seeds):
            if not any(self._is_left_out(combination, {**labels, "seed": str(seed)}) for combination in self.leave_out):
                yield labels, seed

    def _labels(self) -> Iterator[dict[str, str]]:
        for chosen in product(*self.axes.values()):
            yield dict(zip(self.axes, chosen, strict=True))

    @staticmethod
    def _is_left_out(combination: Mapping[str, str | tuple[str, ...]], cell: Mapping[str, str]) -> bool:
        return all(cell[axis] in _several(labels) for axis, labels in combination.items())


def _several(labels: str | tuple[str, ...]) -> tuple[str, ...]:
    return (labels,) if isinstance(labels, str) else labels


class Study(Typed):
    """Cells that are carried out one by one, and findings that are read off them."""

    title: str
    """What the page is called."""
    note: str = ""
    """What a reader of the numbers has to know, such as how small the data are."""
    parts: dict[str, Part] = Field(min_length=1)
    """Name → a recipe with its axes."""
    findings: tuple[AnyFinding, ...] = ()
    """Claims that the cells speak for or against."""
    smoke: Changes = Field(default_factory=dict)
    """What is changed in every recipe so that all cells end within minutes; places that a recipe lacks are passed over, and `*` stands for
    every entry of a list."""
    keep_models: bool = True
    """Whether models and checkpoints of a cell stay once its report is written; without them it takes a megabyte instead of hundreds."""
    output: Path
    """Folder of the study."""
    _data: str | None = PrivateAttr(default=None)
    """What stands for {data}."""

    @field_validator("output")
    @classmethod
    def _is_a_place(cls, output: Path) -> Path:
        return writable_path(output)

    @model_validator(mode="after")
    def _names_and_findings_fit(self) -> Study:
        for name in self.parts:
            refuse_path(f"parts.{name}", name)
        axes: dict[str, set[str]] = {}
        for part in self.parts.values():
            for axis, labels in part.axes.items():
                axes.setdefault(axis, set()).update(labels)
        for number, finding in enumerate(self.findings):
            try:
                finding.check(axes, set(self.parts))
            except PrunusError as error:
                raise PrunusError(f"findings.{number}.{error.field}", error.value, error.remedy) from None
        return self


@dataclass(frozen=True)
class Cell:
    """One recipe of a study."""

    part: str
    labels: Mapping[str, str]
    """Axis → label."""
    seed: int
    recipe: Recipe
    data: str | None = None
    """What stands for {data} in it."""
    chance: float | None = None
    """Of its part."""

    @property
    def name(self) -> str:
        """Such as vqa/upop/2x/seed-0."""
        return "/".join([self.part, *self.labels.values(), f"seed-{self.seed}"])

    @cached_property
    def identity(self) -> str:
        """What tells its recipe from others, wherever the output and the folder of the data lie."""
        return self._hashed(self.recipe.model_dump(mode="json", exclude={"output"}))

    @cached_property
    def origin(self) -> str:
        """What tells its dense model, and how it is evaluated, from others of the study, but for the seed."""
        return self._hashed(self.recipe.model_dump(mode="json", include={"model", "task", "evaluate_limit"}))

    def _hashed(self, settings: dict[str, Any]) -> str:
        return hashlib.sha256(json.dumps(_without_folder(settings, self.data), sort_keys=True).encode()).hexdigest()[
            :16
        ]


def _without_folder(value: Any, data: str | None) -> Any:
    """Settings in which {data} stands again for the folder of the data."""
    if isinstance(value, dict):
        return {key: _without_folder(entry, data) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_folder(entry, data) for entry in value]
    return PLACE + value.removeprefix(data) if data and isinstance(value, str) and value.startswith(data) else value


def study_file(name: str) -> Path:
    """The file of a study: a path, or the name of one that comes with prunus."""
    own = Path(str(resources.files("prunus").joinpath(f"recipes/studies/{name}.yaml")))
    return own if "/" not in name and own.is_file() else Path(name)


def load_study(path: str | Path, data: str | None = None, output: str | None = None) -> Study:
    """Reads a study from YAML.

    Args:
        path: the file.
        data: what stands for {data} in it.
        output: a folder instead of the study's own.

    Raises:
        PrunusError: the file is absent or no YAML, or a field is unknown, missing or wrong.
    """
    given = read_yaml(yaml_text(path, "study", str(path)), "study", str(path))
    if not isinstance(given, dict):
        raise PrunusError("study", str(path), "it must be a mapping with title, parts and output")
    if output is not None:
        given["output"] = output
    try:
        given = _with_data(given, data)
    except PrunusError as error:
        raise PrunusError(f"{path}: {error.field}", error.value, error.remedy) from None
    study = read_typed(Study, given, str(path))
    study._data = data
    return study


def folder_of(study: Study, smoke: bool = False) -> Path:
    """Where a study, or its small version, keeps cells and page."""
    return study.output / "smoke" if smoke else study.output


def cells_of(study: Study, smoke: bool = False) -> list[Cell]:
    """All recipes of a study, read and checked as recipes are.

    Args:
        smoke: with the changes of `smoke`, and the first seed only.

    Raises:
        PrunusError: naming the cell whose recipe is wrong, or there are too many.
    """
    cells: list[Cell] = []
    for name, part in study.parts.items():
        for labels, seed in part.cells():
            if smoke and seed != part.seeds[0]:
                continue
            if len(cells) == MOST:
                raise PrunusError("parts", len(study.parts), "these are more than ten thousand cells; take fewer")
            cells.append(_cell(study, name, labels, seed, smoke))
    return cells


def telling_first(study: Study, cells: Iterable[Cell]) -> list[Cell]:
    """Cells in the order in which a study that may be interrupted says most: those that findings look at before the rest, first seeds of all
    parts before second ones, and among those of one seed finding by finding, as they stand in the study.
    """

    def place(cell: Cell) -> tuple[bool, int, int]:
        labels = {"part": cell.part, **cell.labels}
        looking = next(
            (number for number, one in enumerate(study.findings) if one.looks_at(labels)), len(study.findings)
        )
        return looking == len(study.findings), study.parts[cell.part].seeds.index(cell.seed), looking

    return sorted(cells, key=place)


def _cell(study: Study, name: str, labels: dict[str, str], seed: int, smoke: bool) -> Cell:
    part = study.parts[name]
    data = copy.deepcopy(part.recipe)
    where = "/".join([name, *labels.values()])
    for axis, label in labels.items():
        for field, value in part.axes[axis][label].items():
            try:
                put(data, field, copy.deepcopy(value), grows=True)
            except LookupError:
                raise PrunusError(
                    f"parts.{name}.axes.{axis}.{label}", field, "the recipe has no such place, or an earlier one is missing"
                ) from None  # fmt: skip
    for field, value in study.smoke.items() if smoke else ():
        _put_everywhere(data, field.split("."), value)
    data["output"] = str(folder_of(study, smoke).joinpath("cells", name, *labels.values(), f"seed-{seed}"))
    data["seed"] = seed
    recipe = recipe_of(data, f"cell {where}")
    headline = recipe.task.headline
    if part.chance is not None and recipe.task.metrics.get(headline, UNDECLARED).unit != "share":
        raise PrunusError(f"parts.{name}.chance", part.chance, f"{headline} is no share; leave chance out")
    return Cell(name, labels, seed, recipe, study._data, part.chance)


def _put_everywhere(data: Any, places: list[str], value: Any) -> None:
    """Changes what is there, and nothing else."""
    place, *rest = places
    if place == "*" and isinstance(data, list):
        for entry in range(len(data)):
            _put_everywhere(data, [str(entry), *rest], value)
        return
    if isinstance(data, list) and place.isdecimal() and int(place) < len(data):
        key: Any = int(place)
    elif isinstance(data, dict) and place in data:
        key = place
    else:
        return
    if rest:
        _put_everywhere(data[key], rest, value)
    else:
        data[key] = copy.deepcopy(value)


def _with_data(value: Any, data: str | None) -> Any:
    if isinstance(value, dict):
        return {key: _with_data(entry, data) for key, entry in value.items()}
    if isinstance(value, list):
        return [_with_data(entry, data) for entry in value]
    if isinstance(value, str) and PLACE in value:
        if data is None:
            raise PrunusError("data", None, f"{value} needs the folder of the data; name it (--data)")
        return value.replace(PLACE, data)
    return value


def refuse_path(field: str, name: str) -> None:
    """Refuses names that are no name of a folder.

    Raises:
        PrunusError: see above.
    """
    if not name or "/" in name or "\\" in name or name.startswith("."):
        raise PrunusError(field, name, "a folder is named after it; take a name without / that begins with no dot")
