"""The imports of the package against the picture in docs/architecture.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "prunus"
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def imports() -> Iterator[tuple[str, str, str, list[str]]]:
    """(importing file, its room, imported module, names) of every import of ours from another room."""
    for file in sorted(PACKAGE.rglob("*.py")):
        inside = file.relative_to(PACKAGE)
        room = inside.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prunus"):
                module = node.module or ""
                names = [alias.name for alias in node.names]
                targets = [module] if "." in module else [f"prunus.{name}" for name in names]
                for target in targets:
                    if target.split(".")[1] != room:
                        yield str(inside), room, target, names


def picture() -> dict[str, set[str]]:
    """Room → rooms that may import it, by the arrows of the picture."""
    drawn = re.search(r"```mermaid\n(.*?)```", PAGE, re.DOTALL)
    assert drawn
    arrows: dict[str, set[str]] = {}
    for line in drawn[1].splitlines()[1:]:
        chain = [name.strip() for name in line.split("-->")]
        for earlier, later in pairwise(chain):
            arrows.setdefault(earlier, set()).add(later)
    return arrows


def reachable(arrows: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for room in arrows.get(waiting.pop(), ()):
            if room not in found:
                found.add(room)
                waiting.append(room)
    return found


def ground() -> set[str]:
    """Modules that every room may import."""
    said = re.search(r"Every room may import (.*?), which", PAGE, re.DOTALL)
    assert said
    return set(re.findall(r"`(\w+)`", said[1]))


def test_no_arrow_of_the_picture_runs_in_a_circle() -> None:
    arrows = picture()
    assert not [room for room in arrows if room in reachable(arrows, room)]


def test_every_room_is_in_the_picture_or_ground() -> None:
    arrows = picture()
    drawn = {*arrows, *(room for rooms in arrows.values() for room in rooms)} | ground()
    rooms = (file for file in PACKAGE.iterdir() if file.suffix == ".py" or (file / "__init__.py").exists())
    there = {file.name.removesuffix(".py") for file in rooms}
    assert there - {"__init__", "__main__"} == drawn


def test_imports_follow_the_arrows() -> None:
    arrows, everywhere = picture(), ground()
    wrong = [
        f"{file} imports {module}"
        for file, room, module, _ in imports()
        if room not in ("__init__", "__main__")
        and (imported := module.split(".")[1]) not in everywhere
        and room not in reachable(arrows, imported)
    ]
    assert not wrong, "\n".join(wrong)


def test_ground_stands_on_ground() -> None:
    everywhere = ground()
    wrong = [
        f"{f} imports {m}" for f, room, m, _ in imports() if room in everywhere and m.split(".")[1] not in everywhere
    ]
    assert not wrong, "\n".join(wrong)


def test_no_private_name_crosses_a_wall() -> None:
    wrong = [
        f"{file}: {name} of {module}" for file, _, module, names in imports() for name in names if name.startswith("_")
    ]
    assert not [line for line in wrong if "__version__" not in line]


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_file_is_long(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 350


HEAVY = ("matplotlib", "gguf", "torchmetrics", "onnx", "lm_eval", "easy_vqa", "transformers", "datasets", "pyarrow")
"""What is imported where it is needed: it takes more memory than a small model, or is an extra."""
ON_THE_TRAINER = ("prunus.structured.callback", "prunus.training.trainer", "prunus.finished")
"""Modules of ours that import the Trainer, which brings 100 MB along."""


def test_no_import_is_hidden_in_a_function() -> None:
    hidden = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, ast.FunctionDef) and function.name != "__getattr__":
                for node in ast.walk(function):
                    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                    names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                    hidden += [
                        f"{file.relative_to(PACKAGE)}: {name}"
                        for name in names
                        if not name.startswith(HEAVY + ON_THE_TRAINER)
                    ]
    assert not hidden, "\n".join(hidden)


def faces() -> dict[str, set[str]]:
    """Room → what it offers."""
    offered: dict[str, set[str]] = {}
    for init in PACKAGE.glob("*/__init__.py"):
        for node in ast.parse(init.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                offered[init.parent.name] = set(ast.literal_eval(node.value))
    return offered


def test_rooms_take_only_what_the_face_of_another_offers() -> None:
    offered, wrong = faces(), []
    for file, _, module, names in imports():
        room = module.split(".")[1]
        if room in offered and names != [room] and module not in ON_THE_TRAINER and not file.startswith("__"):
            inner = module != f"prunus.{room}"
            wrong += [f"{file}: {name} of {module}" for name in names if inner or name not in offered[room]]
    assert not wrong, "\n".join(wrong)
