"""What was done to a model, in order, as a plan records it; earlier versions wrote it as nested mappings, which are read, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

FOUND = ("scores", "data", "depends_on_batch_size")
"""What earlier versions wrote among the settings of an allocation."""
MAIN = ("search", "prune")


class Entry(BaseModel):
    """One thing that was decided or done."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    step: str
    """`search`, `allocation`, `edit`, `prune` or `repair`."""
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
        settings = method.model_dump(mode="json") if isinstance(method, BaseModel) else dict(method)
        found |= {name: settings.pop(name) for name in FOUND if name in settings}
        name = settings.pop("method", "")
        return cls(step=step, method=name, settings=settings, found=found, achieved=achieved)

    @property
    def said(self) -> dict[str, Any]:
        """All but the step in one mapping."""
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
            rest["history"] = tuple(read_history(rest.pop("method"), cls.main))
        except (AttributeError, TypeError, ValueError, RecursionError):
            raise ValueError("method is no record of what was done") from None
        return rest

    @property
    def method(self) -> dict[str, Any]:
        """The history as one mapping: what the last search or pruning was told, and by its step what else was done last."""
        last = {"" if entry.step in MAIN else entry.step: entry.said for entry in self.history}
        return {**{step: said for step, said in last.items() if step}, **last.get("", {})}


def read_history(written: Mapping[str, Any], main: str) -> Iterator[Entry]:
    """The entries of a mapping from before histories were typed.

    Args:
        main: the step that mapping was about: `search`, or `prune`.

    Raises:
        AttributeError, TypeError, ValueError: it is none.
    """
    rest = dict(written)
    for earlier in (
        *rest.pop("steps", ()),
        *rest.pop("parts", ()),
        *([rest.pop("earlier")] if "earlier" in rest else ()),
    ):
        yield from read_history(earlier, main)
    others = {step: rest.pop(key) for key, step in OTHERS.items() if key in rest}
    repair = others.pop("repair", None)
    for step, said in others.items():
        yield Entry.of(step, {"method": said} if isinstance(said, str) else said)
    if rest:
        yield Entry.of(main, rest)
    if repair is not None:
        yield Entry.of("repair", repair)


OTHERS = {"allocation": "allocation", "edited": "edit", "repair": "repair"}
"""Key in such a mapping → the step it was."""
