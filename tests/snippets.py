"""Blocks of code on a page of the documentation, and how they are carried out: in the order of the page, in the folder one is in."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import signal
import sys
import tempfile
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from prunus.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "recipes").rglob("README.md"))]
LANGUAGES = ("bash", "python", "yaml", "json", "mermaid", "text")
FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
QUICK = {r"\{steps: \d+": "{steps: 2, bf16: false", r"(?m)^output:": "measure: {batch_size: 2, repeats: 1}\noutput:"}
"""In recipes: trainings of two steps, and one measurement."""
LEFT = {
    "make demo": "it makes an environment, and trains for minutes; tests/test_run.py runs the demo's recipe small",
    "make test": "it is what runs this",
    "python3 -m venv": "it makes an environment for what follows, as `make demo` does",
    "pip install": "it fetches packages",
    "torchrun": "it starts eight processes, or those of two machines; tests/test_processes.py starts two",
    "python -m benchmarks.ablations": "an hour, and it writes a page of the documentation",
    "python -m benchmarks.fuzz  ": "minutes; tests/test_fuzz.py goes through some of its cases",
    "python -m benchmarks.fuzz --suite": "a minute, in processes of its own",
    "python -m benchmarks.real_data": "it reads data that lie outside of the project, and trains for minutes",
}
"""How lines begin that are not carried out, and why."""


class Block(NamedTuple):
    """A fenced block."""

    line: int
    """Of its first line on the page."""
    language: str
    text: str


def blocks(text: str) -> Iterator[Block]:
    """All blocks of a page's text."""
    for found in FENCED.finditer(text):
        yield Block(text[: found.start(3)].count("\n"), found[2], textwrap.dedent(found[3]))


def lines_left(page: Path) -> Iterator[str]:
    """The shell lines of a page that are not carried out."""
    for block in blocks(page.read_text()):
        if block.language == "bash":
            yield from (line for line in block.text.splitlines() if line.startswith(tuple(LEFT)))


def carry_out(
    page: str, text: str, given: Callable[[str, dict[str, Any]], dict[str, Any]] = lambda block, names: {}
) -> None:
    """Carries a page out: Python in one namespace, shell lines as the programs that they call, recipes into the files that their first line names.

    Args:
        page: its name, for tracebacks.
        given: names that a block of Python finds beside those that the page itself has made; of its text and of the names so far.
    """
    names: dict[str, Any] = {"__name__": page}
    own: set[str] = set()
    for block in blocks(text):
        if block.language == "python":
            found = {name: value for name, value in given(block.text, names).items() if name not in own}
            names |= found
            exec(compile("\n" * block.line + block.text, f"{page}.md", "exec", dont_inherit=True), names)
            own |= {name for name, value in names.items() if value is not found.get(name)} - {"__name__"}
        elif block.language == "bash":
            for line in block.text.splitlines():
                run_line(line)
        elif block.language == "yaml" and (file := re.match(r"# (\S+\.yaml)\n", block.text)):
            Path(file[1]).write_text(quick(block.text))


def quick(recipe: str) -> str:
    """A recipe that is over at once."""
    for written, instead in QUICK.items():
        recipe = re.sub(written, instead, recipe)
    return recipe


def run_line(line: str) -> None:
    """Carries out a line of a shell in this process, unless it is one of those that are left."""
    if line.startswith(tuple(LEFT)):
        return
    program, *arguments = shlex.split(line, comments=True)
    if program == "prunus":
        app(arguments, standalone_mode=False)
    else:
        assert [program, *arguments[:1]] == ["python", "-m"], line
        sys.modules.pop(arguments[1], None)  # which another test has imported
        with patch.object(sys, "argv", arguments[1:]):
            runpy.run_module(arguments[1], run_name="__main__")


def in_child(function: Callable[..., None], *arguments: Any, seconds: int = 200) -> None:
    """Calls a function in a process of its own, which has imported what this one has: classes that a page defines are known there alone.

    Raises:
        AssertionError: with what the function raised.
    """
    with tempfile.TemporaryFile("w+") as said, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, where this process has several threads
        child = os.fork()
        if not child:
            status = 1
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(seconds)
                function(*arguments)
                status = 0
            except BaseException:
                traceback.print_exc(file=said)
                said.flush()
            finally:
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        said.seek(0)
        assert ended == 0, said.read() or f"it took more than {seconds} seconds, or died: status {ended}"
