"""What was done to a model, in order, as plans record it; 0.1 wrote it as nested mappings, which are read, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

FOUND = ("scores", "data", "depends_on_batch_size")
"""What 0.1 wrote among the settings of an allocation."""
MAIN = ("search", "narrow", "prune")


class Entry(BaseModel):
    """One thing that was decided or done."""

    model_config = ConfigDict(frozen=True)

    step: str
    """`search`, `narrow`, `allocation`, `edit`, `prune` or `repair`."""
    method: str = ""
    """Name of the method, as in a recipe."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The method's fields; of an edit, what was written."""
    found: dict[str, Any] = Field(default_factory=dict)
    """What the method measured, and on which data."""
    achieved: float | None = None
    """Share of the cost, or of the weights, that is gone afterwards; None where nothing goes, or it is not known."""

    @classmethod
    def of(cls, step: str, method: BaseModel | Mapping[str, Any], achieved: float | None = None, **found: Any) -> Entry:
        """An entry from a method, or from its settings with its name among them."""
        settings = method.model_dump(mode="json") if isinstance(method, BaseModel) else {**method}
        found |= {name: settings.pop(name) for name in FOUND if name in settings}
        return cls(step=step, method=settings.pop("method", ""), settings=settings, found=found, achieved=achieved)

    @property
    def said(self) -> dict[str, Any]:
        """Method, settings and what was found in one mapping."""
        return {**({"method": self.method} if self.method else {}), **self.settings, **self.found}


class Recorded(BaseModel):
    """Data with a history."""

    main: ClassVar[str] = "search"
    """The step that the data are about."""
    history: tuple[Entry, ...] = ()
    """What was decided and done, in order."""

    @model_validator(mode="before")
    @classmethod
    def _of_untyped_histories(cls, data: object) -> object:
        if not isinstance(data, Mapping) or "method" not in data or "history" in data:
            return data
        rest = dict(data)
        try:
            rest["history"] = tuple(_entries(rest.pop("method"), cls.main))
        except (AttributeError, TypeError, ValueError, RecursionError):
            raise ValueError("method is no record of what was done") from None
        return rest

    @property
    def method(self) -> dict[str, Any]:
        """The history as one mapping: what the last search or pruning was told, and by its step what else was done last."""
        last = {entry.step: entry.said for entry in self.history}
        main = next((entry.said for entry in reversed(self.history) if entry.step in MAIN), {})
        return {**{step: said for step, said in last.items() if step not in MAIN}, **main}


def _entries(written: Mapping[str, Any], main: str) -> Iterator[Entry]:
    """The entries of a mapping that 0.1 wrote about a search or a pruning (`main`)."""
    rest = {**written}
    earlier = [rest.pop("earlier")] if "earlier" in rest else []
    for inner in (*rest.pop("steps", ()), *rest.pop("parts", ()), *earlier):
        yield from _entries(inner, main)
    said = {
        step: rest.pop(key, None)
        for key, step in (("allocation", "allocation"), ("edited", "edit"), ("repair", "repair"))
    }
    repair = said.pop("repair")
    for step, about in (*said.items(), (main, rest or None), ("repair", repair)):
        if about is not None:
            yield Entry.of(step, {"method": about} if isinstance(about, str) else about)
