"""The one error a user meets: which field, which value, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def refusing(field: str, value: object, what: str) -> Iterator[None]:
    """While the context is open, whatever other libraries raise becomes a refusal that says what could not be done; memory that
    ran out, and what is a refusal already, go through."""
    try:
        yield
    except (PrunusError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            raise
        lines = str(error).strip().splitlines() or ["no reason given"]
        raise PrunusError(field, value, f"{what}: {type(error).__name__}: {lines[0][:300]}") from error


def shown(value: object) -> str:
    """A value as an error prints it: its `repr`, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits; a list that holds itself a thousand times
        return f"a {type(value).__name__} that is too long to be printed"
    return shortened(text)


def shortened(text: str, longest: int = LONGEST) -> str:
    """So many characters of a text, and a sign that there are more."""
    return text if len(text) <= longest else f"{text[:longest]}…"
