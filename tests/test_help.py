"""What `help` says of the public names."""

from __future__ import annotations

import inspect

import pytest

import prunus
from prunus.typed import Typed

METHODS = [
    name
    for name in prunus.__all__
    if isinstance(getattr(prunus, name), type) and issubclass(getattr(prunus, name), Typed)
]


@pytest.mark.parametrize("name", METHODS)
def test_every_field_has_its_sentence_where_help_shows_it(name: str) -> None:
    cls = getattr(prunus, name)
    shown = inspect.getdoc(cls) or ""
    for field in cls.model_fields:
        line = next(line for line in shown.splitlines() if line.startswith(f"    {field} ("))
        assert "): " in line, line


def test_a_default_is_shown_with_its_field() -> None:
    assert "    schedule (default 'cosine'): How p_t grows to p." in (inspect.getdoc(prunus.UPop) or "")
    assert "    steps (required): " in (inspect.getdoc(prunus.Training) or "")


@pytest.mark.parametrize("name", [name for name in prunus.__all__ if inspect.isfunction(getattr(prunus, name))])
def test_every_function_says_what_it_does_and_takes(name: str) -> None:
    shown = inspect.getdoc(getattr(prunus, name)) or ""
    assert shown
    if len(inspect.signature(getattr(prunus, name)).parameters) > 2:
        assert "Args:" in shown, name
