"""Mutation run: small changes to the code, each of which some test ought to notice.

`python -m benchmarks.mutation`: the changes listed in mutants.yaml, then a seeded sample of generated ones: flipped
comparisons, swapped operators, other constants, dropped terms and signs, swapped reductions. Prints the score of every room and
the survivors. `--sample N`, `--seed S`, `--rooms ROOM …`, `--named` for the listed ones alone, `--list` to list.

torch and transformers are imported once; every mutant is a fork that reads one module of prunus from a changed syntax tree and runs the
tests of its room until one fails. Nothing is written to the source tree. A survivor is killed by a new test, or named in
mutants.yaml as equivalent, with the reason.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "prunus"
LISTED = Path(__file__).with_name("mutants.yaml")
SECONDS = 240
"""A mutant that runs longer has been noticed: it does not end."""

ROOMS: dict[str, list[str]] = {
    "structured": ["test_selection.py", "test_structured*.py", "test_upop*.py", "test_search*.py"],
    "unstructured": ["test_pruner_formulas.py", "test_statistics.py", "test_pruners.py", "test_cuts.py", "test_walk.py", "test_semi_structured.py", "test_meaning.py"],
    "allocation": ["test_allocation_formulas.py", "test_cuts.py", "test_meaning.py", "test_allocation.py"],
    "repair": ["test_repair_formulas.py", "test_meaning.py", "test_repair.py"],
    "plan": ["test_numbers.py", "test_plan.py", "test_pruner_formulas.py", "test_allocation_formulas.py", "test_refusals.py", "test_record*.py"],
    "cost.py": ["test_numbers.py"],
    "losses.py": ["test_repair_formulas.py", "test_refusals.py", "test_losses*.py"],
    "tasks": ["test_numbers.py", "test_text.py", "test_tasks.py"],
}  # fmt: skip
"""Room → its tests, the quick ones first."""

SLOW = (
    "not replay_is_exact and not exact_and_carried_out and not first_order_scores_are_autograd and not noises_may_share "
    "and not from_memory_is_that and not every_family and not every_repair_keeps and not exactly_as_many and not keeps_n_of_m"
)
"""Tests that go through every family or hundreds of random cases, left out here: the quick ones must notice."""

PRELOADED = (
    "torch", "torch._dynamo", "torch.utils.checkpoint", "torch.utils.flop_counter", "transformers", "accelerate", "pydantic", "hypothesis",
    "pytest", "safetensors.torch", "yaml", "rich.progress", "torchmetrics", "matplotlib.pyplot", "transformers.trainer",
    *(f"transformers.models.{name}.modeling_{name}" for name in ("llama", "clip", "vit", "blip", "t5", "opt", "bert", "blip_2", "instructblip")),
)  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A changed module."""

    file: str
    """Relative to src/prunus."""
    change: str
    """In words, without line numbers, so that it names the same change after an edit elsewhere."""
    line: int
    tree: Callable[[], ast.Module]

    @property
    def room(self) -> str:
        return self.file.split("/")[0]

    @property
    def module(self) -> str:
        return "prunus." + self.file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.change}"


# listed changes


def listed() -> list[Mutant]:
    """The changes of mutants.yaml.

    Raises:
        SystemExit: one of them no longer fits its file; write it anew.
    """
    found = []
    for entry in yaml.safe_load(LISTED.read_text())["named"]:
        source = (SOURCE / entry["file"]).read_text()
        if source.count(entry["old"]) != 1:
            raise SystemExit(
                f"mutants.yaml: {entry['name']}: {entry['old']!r} is not once in {entry['file']}; write it anew"
            )
        line = source[: source.index(entry["old"])].count("\n") + 1
        found.append(
            Mutant(entry["file"], entry["name"], line, partial(ast.parse, source.replace(entry["old"], entry["new"])))
        )
    return found


def equivalent() -> dict[tuple[str, str], str]:
    """(file, change) → why no test can notice it."""
    return {
        (entry["file"], entry["change"]): entry["reason"] for entry in yaml.safe_load(LISTED.read_text())["equivalent"]
    }


# generated changes

COMPARISONS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
OPERATORS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
SWAPS = {
    "min": "max",
    "max": "min",
    "argmin": "argmax",
    "argmax": "argmin",
    "any": "all",
    "all": "any",
    "sum": "mean",
    "mean": "sum",
}
DROPPED = ("abs", "sqrt", "square", "square_", "neg", "exp", "log")
FREE = (ast.Raise, ast.Assert, ast.arguments, ast.Import, ast.ImportFrom)
"""Messages, types and defaults of type hints: nothing that a method computes. Defaults of arguments are constants of calls."""


def generated(file: str) -> list[Mutant]:
    """Every change that the rules make to a file."""
    found = []
    for place, node in enumerate(_places(ast.parse((SOURCE / file).read_text()))):
        for number, (change, _) in enumerate(_changes(node)):
            found.append(Mutant(file, change, getattr(node, "lineno", 0), partial(_changed, file, place, number)))
    return found


def _changed(file: str, place: int, number: int) -> ast.Module:
    tree = ast.parse((SOURCE / file).read_text())
    node = next(islice(_places(tree), place, None))
    _, make = list(_changes(node))[number]
    make()
    return ast.fix_missing_locations(tree)


def _places(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that may change, in the tree's order."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, FREE) or _is_text(child):
                continue
            if isinstance(child, ast.Assign) and isinstance(child.targets[0], ast.Name) and _is_hint(child):
                continue
            yield child
            yield from _places(child)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_hint(node: ast.Assign) -> bool:
    """`Name = Literal[…]` and the like."""
    value = node.value
    return (
        isinstance(value, ast.Subscript)
        and isinstance(value.value, ast.Name)
        and value.value.id in ("Literal", "Callable", "Annotated")
    )


Change = tuple[str, Callable[[], object]]
"""What it becomes, and what makes it so in place."""


def _changes(node: ast.AST) -> Iterator[Change]:
    """(words, what makes the change in place)."""
    before = ast.unparse(node)
    for kind, rule in RULES:
        if isinstance(node, kind):
            for after, make in rule(node):
                yield f"{before} → {after}", make


def _set(node: ast.AST, **fields: Any) -> Callable[[], object]:
    return lambda: [setattr(node, name, value) for name, value in fields.items()]


def _comparison(node: ast.Compare) -> Iterator[Change]:
    if len(node.ops) == 1:
        for other in COMPARISONS[type(node.ops[0])]:
            yield other.__name__, _set(node, ops=[other()])


def _operator(node: ast.BinOp | ast.AugAssign) -> Iterator[Change]:
    other = OPERATORS.get(type(node.op))
    if other is not None:
        yield other.__name__, _set(node, op=other())


def _term(node: ast.BinOp) -> Iterator[Change]:
    if isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div):
        nothing = ast.Constant(0 if isinstance(node.op, ast.Add | ast.Sub) else 1)
        yield "without its right side", _set(node, right=nothing)


def _sign(node: ast.UnaryOp) -> Iterator[Change]:
    if isinstance(node.op, ast.USub):
        yield "without its sign", _set(node, op=ast.UAdd())
    elif isinstance(node.op, ast.Not | ast.Invert):
        yield "without its sign", _set(node, operand=ast.UnaryOp(node.op, node.operand))


def _junction(node: ast.BoolOp) -> Iterator[Change]:
    yield "and ↔ or", _set(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())


def _condition(node: ast.IfExp) -> Iterator[Change]:
    yield "not its test", _set(node, test=ast.UnaryOp(ast.Not(), node.test))


def _constant(node: ast.Constant) -> Iterator[Change]:
    value = node.value
    if isinstance(value, bool | int | float):
        new = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value * 2 or 1.0
        yield repr(new), _set(node, value=new)


def _call(node: ast.Call) -> Iterator[Change]:
    called = node.func
    if isinstance(called, ast.Name) and called.id in ("min", "max", "any", "all"):
        yield SWAPS[called.id], _set(called, id=SWAPS[called.id])
    elif isinstance(called, ast.Attribute) and called.attr in SWAPS:
        yield SWAPS[called.attr], _set(called, attr=SWAPS[called.attr])
    elif (
        isinstance(called, ast.Attribute)
        and called.attr in DROPPED
        and ast.unparse(called.value) not in ("torch", "math")
    ):
        bare = ast.Attribute(called.value, "clone", ast.Load())
        yield f"without {called.attr}", _set(node, func=bare, args=[], keywords=[])


RULES: list[tuple[Any, Callable[[Any], Iterator[Change]]]] = [
    (ast.Compare, _comparison), (ast.BinOp | ast.AugAssign, _operator), (ast.BinOp, _term), (ast.UnaryOp, _sign),
    (ast.BoolOp, _junction), (ast.IfExp, _condition), (ast.Constant, _constant), (ast.Call, _call),
]  # fmt: skip


# running


class _Changed(SourceFileLoader):
    """Loads a module from a syntax tree."""

    def __init__(self, name: str, path: str, tree: ast.Module):
        super().__init__(name, path)
        self._tree = tree

    def get_code(self, fullname: str) -> Any:
        return compile(self._tree, self.path, "exec")


class _Finder:
    def __init__(self, mutant: Mutant):
        self._mutant = mutant

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != self._mutant.module:
            return None
        file = str(SOURCE / self._mutant.file)
        package = [str(Path(file).parent)] if file.endswith("__init__.py") else None
        return spec_from_file_location(
            name, file, loader=_Changed(name, file, self._mutant.tree()), submodule_search_locations=package
        )


def tests_of(room: str) -> list[str]:
    return list(dict.fromkeys(str(path) for pattern in ROOMS[room] for path in sorted((ROOT / "tests").glob(pattern))))


def preload() -> None:
    """What every fork starts with. Nothing of prunus: a fork reads that itself, with its change."""
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", MPLBACKEND="agg")
    for name in PRELOADED:
        importlib.import_module(name)
    import torch
    from hypothesis import settings

    torch.set_num_threads(1)
    settings.register_profile("mutation", derandomize=True, database=None, deadline=None)
    settings.load_profile("mutation")
    if any(name.split(".")[0] == "prunus" for name in sys.modules):
        raise SystemExit("prunus must not be imported before the forks; run this as python -m benchmarks.mutation")


def survives(mutant: Mutant | None, tests: Sequence[str]) -> bool:
    """Whether all tests pass with the change, or, without one, as things are."""
    child = os.fork()
    if child == 0:
        _run_tests(mutant, tests)
    stop = time.monotonic() + SECONDS
    while time.monotonic() < stop:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _run_tests(mutant: Mutant | None, tests: Sequence[str]) -> None:
    """In a fork: never returns."""
    status = 99
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        if mutant is not None:
            sys.meta_path.insert(0, _Finder(mutant))  # type: ignore[arg-type]
        import pytest

        status = int(
            pytest.main(
                [
                    "-x",
                    "-q",
                    "-p",
                    "no:cacheprovider",
                    "-p",
                    "no:xdist",
                    "-m",
                    "not long",
                    "-k",
                    SLOW,
                    "--rootdir",
                    str(ROOT),
                    *tests,
                ]
            )
        )
    finally:
        os._exit(status)


def run(mutants: Iterable[Mutant], title: str) -> list[Mutant]:
    """Runs them, prints the score of every room, and returns the survivors."""
    reasons, counts, left = equivalent(), {}, []  # type: ignore[var-annotated]
    for mutant in mutants:
        if (mutant.file, mutant.change) in reasons:
            continue
        start = time.monotonic()
        alive = survives(mutant, tests_of(mutant.room))
        killed, total = counts.get(mutant.room, (0, 0))
        counts[mutant.room] = (killed + (not alive), total + 1)
        print(f"{'SURVIVES' if alive else 'killed  '} {time.monotonic() - start:5.1f} s  {mutant}", flush=True)
        if alive:
            left.append(mutant)
    killed, total = (sum(pair[i] for pair in counts.values()) for i in (0, 1))
    print(f"\n{title}: {killed} of {total} noticed" + (f", {killed / total:.0%}" if total else ""))
    for room, (hit, of) in counts.items():
        print(f"  {room:14} {hit} of {of}")
    for mutant in left:
        print(f"  survives: {mutant}")
    print(flush=True)
    return left


UNTOUCHED = ("__init__.py", "drawing.py", "easy_vqa.py")
"""Exports, pictures, and the demo's data and warm start."""


def files(rooms: Sequence[str]) -> list[str]:
    found = [
        path
        for room in rooms
        for path in ([SOURCE / room] if room.endswith(".py") else sorted((SOURCE / room).glob("*.py")))
    ]
    return [str(path.relative_to(SOURCE)) for path in found if path.name not in UNTOUCHED]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", nargs="+", default=list(ROOMS), choices=list(ROOMS))
    parser.add_argument("--named", action="store_true", help="only the listed changes")
    parser.add_argument("--generated", action="store_true", help="only the generated changes")
    parser.add_argument("--list", action="store_true", help="list instead of running")
    asked = parser.parse_args()
    named = [] if asked.generated else [mutant for mutant in listed() if mutant.room in asked.rooms]
    made = [] if asked.named else [mutant for file in files(asked.rooms) for mutant in generated(file)]
    sample = random.Random(asked.seed).sample(made, min(asked.sample, len(made)))
    if asked.list:
        print(*named, *sample, sep="\n")
        print(f"{len(named)} listed, {len(sample)} of {len(made)} generated")
        return
    preload()
    for room in dict.fromkeys(mutant.room for mutant in [*named, *sample]):
        if not survives(None, tests_of(room)):
            raise SystemExit(f"the tests of {room} fail without any change; mend that first")
    left = run(named, "listed") if named else []
    if sample:
        run(sample, f"generated, {len(sample)} of {len(made)}, seed {asked.seed}")
    sys.exit(1 if left else 0)


if __name__ == "__main__":
    main()
