"""The mutation run itself, and the changes that this suite has to notice."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from benchmarks.mutation import LISTED, ROOMS, ROOT, SOURCE, equivalent, files, generated, listed
from benchmarks.mutation import tests_of as chosen_tests


def test_listed_changes_still_fit_the_code() -> None:
    mutants = listed()
    assert len(mutants) >= 24
    for mutant in mutants:
        assert ast.unparse(mutant.tree()) != ast.unparse(ast.parse((SOURCE / mutant.file).read_text())), mutant
        assert mutant.room in ROOMS


def test_every_room_has_files_and_tests() -> None:
    for room in ROOMS:
        assert files([room])
        assert chosen_tests(room), room


def test_generated_changes_change_one_thing_each() -> None:
    file = "allocation/solver.py"
    original = ast.unparse(ast.parse((SOURCE / file).read_text()))
    mutants = generated(file)
    assert len(mutants) > 50
    for mutant in mutants:
        changed = ast.unparse(mutant.tree())
        assert sum(a != b for a, b in zip(original.splitlines(), changed.splitlines(), strict=True)) <= 1, mutant
    assert sum(ast.unparse(mutant.tree()) != original for mutant in mutants) > 0.95 * len(mutants)


def test_reasons_are_about_changes_that_exist() -> None:
    found = {file: {mutant.change for mutant in generated(file)} for file in {file for file, _ in equivalent()}}
    for (file, change), reason in equivalent().items():
        assert change in found[file], f"{file}: {change}: take it out of {LISTED.name}"
        assert len(reason) > 10


@pytest.mark.long
def test_every_listed_change_is_noticed() -> None:
    command = [sys.executable, "-m", "benchmarks.mutation", "--named"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
