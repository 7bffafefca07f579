"""Every name of prunus that the documentation writes is there: `prunus.a.b` resolves in Python as it is written."""

from __future__ import annotations

import importlib
import inspect
import re
from contextlib import suppress
from pathlib import Path

import pytest

import prunus
from prunus.sources import Source
from prunus.steps import Step
from prunus.tasks import Task
from prunus.typed import Typed, known

ROOT = Path(__file__).parent.parent
WRITTEN = re.compile(r"(?<![\w./-])prunus((?:\.[A-Za-z_]\w*)+)(?![\w/])")
"""Not the end of a path or an address, and not the kind of a file format, such as prunus.plan/1."""
FILE = "prunus.json"
"""What looks like a name and is a file's."""


def pages() -> list[Path]:
    docs = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [*docs, *sorted((ROOT / "src" / "prunus").rglob("*.py"))]


def names(page: Path) -> set[str]:
    text = page.read_text()
    if page.suffix == ".py":
        text = "\n".join(line for line in text.splitlines() if not re.match(r"\s*(from|import) ", line))
    return {f"prunus{match[1]}" for match in WRITTEN.finditer(text)} - {FILE}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_names_in_the_documentation_resolve(page: Path) -> None:
    for name in sorted(names(page)):
        found: object = prunus
        for part in name.split(".")[1:]:
            if inspect.ismodule(found) and not hasattr(found, part):
                with suppress(ImportError):  # that nothing has imported yet
                    importlib.import_module(f"{found.__name__}.{part}")
            assert hasattr(found, part), f"{page.name} writes {name}, and there is no {part}"
            found = getattr(found, part)


def test_names_are_found_where_they_are_written() -> None:
    assert "prunus.Lesson" in names(ROOT / "docs" / "repair.md")
    assert "prunus.prune" in names(ROOT / "README.md")
    assert all(name in vars(prunus) or name in ("SearchCallback", "convert") for name in prunus.__all__)


@pytest.mark.parametrize(
    ("entry", "base", "tag"), [("model", Source, "source"), ("task", Task, "name"), ("steps", Step, "step")]
)
def test_the_library_names_all_that_a_recipe_can_hold(entry: str, base: type[Typed], tag: str) -> None:
    (line,) = re.findall(rf"(?m)^\| `{entry}` \| .*$", (ROOT / "docs" / "library.md").read_text(encoding="utf-8"))
    ours = [name for name, cls in known(base, tag).items() if cls.__module__.startswith("prunus.")]
    assert [name for name in ours if not re.search(rf"`{name}\b", line)] == []
