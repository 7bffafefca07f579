"""The one error a user meets: which field, which value, and what to do about it."""

from __future__ import annotations


class PrunusError(ValueError):
    """A request Prunus refuses, in words that say how to mend it.

    Attributes:
        field: what was wrong: a recipe field, an argument, a file or a module path.
        value: what it held.
        remedy: what to do instead.
    """

    def __init__(self, field: str, value: object, remedy: str):
        self.field, self.value, self.remedy = field, value, remedy
        super().__init__(f"{field} = {value!r}: {remedy}")

    def __reduce__(self) -> tuple[type[PrunusError], tuple[str, object, str]]:
        return type(self), (self.field, self.value, self.remedy)
