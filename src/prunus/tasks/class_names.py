"""One numbering of classes for two splits, of which one may lack some of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from prunus.errors import PrunusError, shown

Names = Sequence[str] | None
"""Of classes by their numbers; None where there are only numbers."""


def all_names(given: Names, splits: Iterable[Names]) -> list[str] | None:
    """Names of all classes: those that are given, or those of the split that has more.

    Raises:
        PrunusError: there is one alone.
    """
    names = given if given is not None else max(splits, key=lambda own: len(own or ()), default=None)
    if names is not None and len(names) == 1:
        raise PrunusError(
            "task.classes", list(names), "one class leaves nothing to tell apart; name them all here, or give a folder for each of them"
        )  # fmt: skip
    return None if names is None else list(names)


def places_among(names: Names, own: Names, field: str, given: bool) -> list[int] | None:
    """The number of each class of a split among all names; None where its own numbers are those.

    Args:
        names: of all classes.
        own: of the split.
        field: what errors call the split.
        given: whether `names` are the user's, who may call the classes otherwise than the data do, in the same order.

    Raises:
        PrunusError: its classes have other names, or not as many.
    """
    if own is not None and names is not None and set(own) <= set(names):
        return None if list(own) == list(names[: len(own)]) else [names.index(name) for name in own]
    if not given and own != names:
        raise PrunusError(
            field, own, f"its classes are not those of the other split ({shown(names)}); give both the same ones, or name all as classes"
        )  # fmt: skip
    if own is not None and names is not None and len(own) != len(names):
        raise PrunusError(
            "task.classes", len(names), f"the data have another number of classes, and other names: {shown(own)}"
        )
    return None


def renumbered(table: Any, places: Sequence[int] | None) -> Any:
    """A table whose labels are numbers among all names."""
    if places is None:
        return table
    labels = [places[label] for label in table.select_columns(["label"])[:]["label"]]
    return table.remove_columns("label").add_column("label", labels)


def called(names: Sequence[str] | None, label: int) -> str:
    """A class by its name, or by its number where it has none."""
    return names[label] if names and label < len(names) else str(label)
