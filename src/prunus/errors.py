"""The one error a user meets: which field, which value, and what to do about it."""

from __future__ import annotations

LONGEST = 200
"""Characters of a value that are shown."""


class PrunusError(ValueError):
    """A request Prunus refuses, in words that say how to mend it.

    Attributes:
        field: what was wrong: a recipe field, an argument, a file or a module path.
        value: what it held.
        remedy: what to do instead.
    """

    def __init__(self, field: str, value: object, remedy: str):
        self.field, self.value, self.remedy = field, value, remedy
        super().__init__(f"{field} = {shown(value)}: {remedy}")

    def __reduce__(self) -> tuple[type[PrunusError], tuple[str, object, str]]:
        return type(self), (self.field, self.value, self.remedy)


def shown(value: object) -> str:
    """A value as an error prints it: its `repr`, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits; a list that holds itself a thousand times
        return f"a {type(value).__name__} that is too long to be printed"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
