"""Families of recipes in one file: what they share, and names for what differs.

    variants:
      - wanda: {steps.0.method: {method: wanda}}
        sparsegpt: {steps.0.method: {method: sparsegpt}}
      - "0.5": {steps.0.method.sparsity: 0.5}
        "2:4": {steps.0.method.pattern: "2:4"}

are four recipes: wanda/0.5, wanda/2:4, sparsegpt/0.5 and sparsegpt/2:4. A single mapping is a single choice.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from itertools import product
from typing import Any

from prunus.errors import PrunusError

FIELD = "variants"
SHOWN = 12
"""Names that an error lists."""
MOST = 10_000
"""Recipes in one file."""


def variant_names(data: Mapping[str, Any], source: str) -> list[str]:
    """Names of a file's recipes, in its order; none where it is a single one.

    Raises:
        PrunusError: `variants` is not what it should be.
    """
    choices = _choices(data, source)
    return ["/".join(names) for names in product(*choices)] if choices else []


def of_variant(data: dict[str, Any], name: str | None, source: str) -> dict[str, Any]:
    """The recipe of a file that has this name, with a run folder of its own.

    Args:
        data: the file's, which is changed.
        name: such as wanda/2:4; None for a file of a single recipe.
        source: the file's name, for errors.

    Raises:
        PrunusError: there is no such variant, none was named, or it changes what the recipe does not have.
    """
    choices = _choices(data, source)
    data.pop(FIELD, None)
    if not choices:
        if name is not None:
            raise PrunusError("variant", name, f"{source} is a single recipe; leave it out")
        return data
    known = ["/".join(names) for names in product(*choices)]
    if name not in known:
        near = difflib.get_close_matches(name or "", known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
        raise PrunusError("variant", name, f"{hint}name one of {', '.join(known[:SHOWN])}{more} (--variant)")
    for choice, chosen in zip(choices, next(n for n in product(*choices) if "/".join(n) == name), strict=True):
        for field, value in choice[chosen].items():
            try:
                put(data, field, value, grows=True)
            except LookupError:
                raise PrunusError(
                    f"{source}: {FIELD}.{chosen}", field, "the recipe has no such place, or an earlier one is missing"
                ) from None
    if isinstance(data.get("output"), str):
        data["output"] += "-" + name.replace("/", "-").replace(":", "of")
    return data


def put(data: Any, field: str, value: Any, grows: bool = False) -> None:
    """Writes a value at a place such as steps.0.method.ratio; what is missing on the way becomes a mapping.

    Args:
        grows: whether the place after a list's last entry may be written, too.

    Raises:
        LookupError: there is no such place.
    """
    *parents, last = field.split(".")
    try:
        for key in parents:
            data = data[int(key)] if isinstance(data, list) else data.setdefault(key, {})
        if isinstance(data, list) and grows and int(last) == len(data):
            data.append(value)
        else:
            data[int(last) if isinstance(data, list) else last] = value
    except (IndexError, ValueError, TypeError, AttributeError):
        raise LookupError(field) from None


def _choices(data: Mapping[str, Any], source: str) -> list[dict[str, dict[str, Any]]]:
    given = data.get(FIELD)
    if given is None:
        return []
    choices = given if isinstance(given, list) else [given]
    for choice in choices:
        if not isinstance(choice, dict) or not choice:
            raise PrunusError(
                f"{source}: {FIELD}", choice, "give a mapping of names to what they change, or a list of such"
            )
        for name, changes in choice.items():
            if "/" in name or not name or not isinstance(changes, dict):
                raise PrunusError(
                    f"{source}: {FIELD}", name, "a name without / stands for a mapping of places to values, such as {steps.0.method.ratio: 0.5}"
                )  # fmt: skip
    if math.prod(map(len, choices)) > MOST:
        raise PrunusError(f"{source}: {FIELD}", len(choices), "these are more than ten thousand recipes; take fewer")
    return choices
