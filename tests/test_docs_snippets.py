"""Commands, recipes and Python that the documentation shows: commands are ones that there are, with their options, what is a recipe is read,
what is Python is Python. Files that are named are there. (What is carried out: test_docs_run.py, test_tutorials.py.)
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from prunus.cli import app
from prunus.recipe import parse_recipe
from tests.snippets import FENCED, PAGES, ROOT
from tests.snippets import blocks as blocks_of

SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
COMMANDS: Any = typer.main.get_command(app)


def blocks(page: Path, language: str) -> list[str]:
    return [block.text for block in blocks_of(page.read_text()) if block.language == language]


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every call of prunus that a page shows, in blocks and in running text."""
    text = page.read_text()
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    spans = [" ".join(span.split()) for span in SPAN.findall(FENCED.sub("", text))]
    for line in lines + spans:
        call = re.match(r"(?:torchrun .* -m )?prunus ([a-z]+ .*|[a-z]+$)", line.strip())
        if call and (arguments := shlex.split(call[1], comments=True))[0] in COMMANDS.commands:
            yield arguments


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_have_the_options_that_are_shown(page: Path) -> None:
    for name, *arguments in commands(page):
        options = {option for parameter in COMMANDS.commands[name].params for option in parameter.opts}
        used = {argument.partition("=")[0] for argument in arguments if re.match(r"--?[a-z]", argument)}
        assert used <= options, f"{page.name}: prunus {name} {' '.join(arguments)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_is_python(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_recipes_are_read(page: Path) -> None:
    for block in blocks(page, "yaml"):
        data = yaml.safe_load(block)
        if isinstance(data, dict) and {"model", "task", "steps", "output"} <= data.keys():
            parse_recipe(block, page.name)


def test_commands_are_found() -> None:
    shown = [arguments for page in PAGES for arguments in commands(page)]
    assert len(shown) > 40
    known = "compress inspect evaluate export quantise compare bench plan sweep convert"
    assert set(known.split()) <= {name for name, *_ in shown}


NAMED = re.compile(r"(?<![\w./-])((?:tests|recipes|src|benchmarks)/[\w/.-]+\.(?:py|yaml|md))(?![\w/])")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_benchmarks_tests_and_recipes_that_are_named_are_there(page: Path) -> None:
    text = page.read_text()
    files = {f"benchmarks/{name}.py" for name in re.findall(r"python -m benchmarks\.(\w+)", text)} | set(
        NAMED.findall(text)
    )
    assert not [file for file in sorted(files) if not (ROOT / file).exists()]
