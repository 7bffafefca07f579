"""Mutation run: small changes to the code, each of which some test ought to notice.

`python -m benchmarks.mutation`: the changes listed in mutants.yaml, then a seeded sample of generated ones: flipped
comparisons, swapped operators, other constants, dropped terms and signs, swapped reductions. What only makes a message, says something
to people, tunes speed or stands for rounding is left alone (FREE, SAID, SPOKEN, SPEED, NEUTRAL). Prints the score of every room and
the survivors. `--sample N`, `--seed S`, `--rooms ROOM …`, `--named` for the listed ones alone, `--list` to list.

torch and transformers are imported once; every mutant is a fork that reads one module of prunus from a changed syntax tree and runs the
tests of its room until one fails. Nothing is written to the source tree. A survivor is killed by a new test, or named in
mutants.yaml as equivalent, with the reason.
"""

from __future__ import annotations

import argparse
import ast
import gc
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
from inspect import CO_OPTIMIZED
from itertools import islice
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "prunus"
LISTED = Path(__file__).with_name("mutants.yaml")
SECONDS = 240
"""A mutant that runs longer has been noticed: it does not end."""

ROOMS: dict[str, list[str]] = {
    "structured": ["test_settings.py", "test_selection.py", "test_structured*.py", "test_search_family.py", "test_search*.py"],
    "unstructured": [
        "test_pruner_formulas.py", "test_statistics.py", "test_pruners.py", "test_semi_structured.py", "test_numbers.py", "test_walk.py",
        "test_matrices.py", "test_refusals.py",
    ],
    "allocation": ["test_settings.py", "test_allocation_formulas.py", "test_allocation.py"],
    "repair": ["test_settings.py", "test_repair_formulas.py", "test_repair.py", "test_repair_refusals.py"],
    "training": ["test_finished.py", "test_repair_formulas.py", "test_repair.py", "test_damage.py"],
    "plan": ["test_numbers.py", "test_plan.py", "test_record*.py", "test_allocation_formulas.py", "test_narrow*.py", "test_construction*.py", "test_checkpoint.py", "test_matrices.py"],
    "cost.py": ["test_numbers.py", "test_search_family.py"],
    "losses.py": ["test_repair_formulas.py", "test_losses*.py"],
    "batches.py": ["test_batches.py", "test_allocation_formulas.py", "test_streaming.py"],
    "anatomy/layouts.py": ["test_equivalence.py"],
    "tasks": ["test_settings.py", "test_numbers.py", "test_noise.py", "test_text.py", "test_task.py"],
    "metric.py": ["test_report.py"],
}  # fmt: skip
"""Room → its tests, the quick ones first."""

LISTED_ONLY = ("batches.py", "anatomy/layouts.py")
"""Rooms of which only listed changes are tried."""

SLOW = (
    "replay_is_exact", "exact_and_carried_out", "first_order_scores_are_autograd", "noises_may_share", "from_memory_is_that",
    "every_repair_keeps", "exactly_as_many", "keeps_n_of_m", "turns_into_channel_ratios", "drawn_side_by_side", "are_elsewhere",
    "mean_noise_is", "padding_does_not_count", "nm_patterns_survive", "merging_is_exact", "real_language_model", "goes_on_with_the_same",
    "two_processes", "belong_to_one_repair", "quantised_model", "serves_the_structured", "teach_like_the_teacher", "two_prunings",
    "harness", "a_recipe_prunes", "outside_of_autocast",
    "every_cell_keeps", "extracts_exactly_and_resumes", "autograds_whatever", "accumulates_are_those", "hit_to_within", "name_for_its_three",
    "works_under_the_trainer", "comes_back_though_rounds",
    "exports_as_one_graph", "folders_of_version", "evaluation_that_is", "differs_elsewhere", "what_noise_does_not", "prune_batches",
)  # fmt: skip
"""Tests, by a part of their name, that go through every family, start processes or train for long: only what the others do not notice is
shown to them."""

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
        return self.file if self.file in ROOMS else self.file.split("/")[0]

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
"""Messages, checks of the code's own, types, and defaults of arguments, which only tune: nothing that a method computes."""
SAID = ("logger", "logging", "bar", "Progress")
"""Whose calls only tell people something."""
SPOKEN = ("__str__", "__repr__")
SPEED = ("STRIP", "CHUNK", "ITEMS_PER_FILE", "SMALL", "REPEATS", "LIMIT")
"""Constants that say how much is done at a time, or from where on a file is damaged: the results are the same."""
NEUTRAL = ("strict", "sorted", "non_blocking", "cache_enabled", "include_url", "indent", "preserve_rng_state")
"""Arguments of torch and others that change speed, order or looks, or that check what cannot happen."""


def generated(file: str) -> list[Mutant]:
    """Every change that the rules make to a file."""
    source = (SOURCE / file).read_text()
    found = []
    for place, node in enumerate(_places(ast.parse(source))):
        line = getattr(node, "lineno", 1)
        for number, (change, _) in enumerate(_changes(node)):
            words = f"{source.splitlines()[line - 1].strip()} · {change}"
            found.append(Mutant(file, words, line, partial(_changed, file, place, number)))
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
        children = value if isinstance(value, list) else [value]
        if children and isinstance(children[-1], ast.Raise) and all(isinstance(c, ast.Assign) for c in children[:-1]):
            continue  # all that happens is that a message is made
        for child in children:
            if not isinstance(child, ast.AST) or isinstance(child, FREE) or _is_free(child):
                continue
            yield child
            yield from _places(child)


def _is_free(node: ast.AST) -> bool:
    """Whether nothing that a method computes is in there."""
    match node:
        case ast.Expr(value):
            return isinstance(value, ast.Constant)
        case ast.Call(ast.Name(name) | ast.Attribute(ast.Name(name))):
            return name in SAID
        case ast.FunctionDef(name):
            return name in SPOKEN
        case ast.Assign([ast.Name(name)]):
            return name in SPEED or _is_hint(node)
        case ast.keyword(name):
            return name in NEUTRAL
        case _:
            return False


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
        others = COMPARISONS[type(node.ops[0])]
        for other in others[-1:] if _is_tolerance(node.comparators[0]) else others:
            yield other.__name__, _set(node, ops=[other()])


def _is_tolerance(node: ast.AST) -> bool:
    """Whether it is a number so small that it only stands for rounding."""
    return isinstance(node, ast.Constant) and isinstance(node.value, float) and 0 < node.value < 1e-6


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
    if isinstance(value, bool | int | float) and not _is_tolerance(node):
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


OPTIONS = [
    "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--capture", "no", "--rootdir", str(ROOT), "-m", "not long",
]  # fmt: skip
NO_TESTS = 5
"""What pytest returns when it found none."""


def survives(
    room: str, mutants: Sequence[Mutant | None], slow: bool = False
) -> Iterator[tuple[Mutant | None, bool, float]]:
    """For every mutant whether all quick, or all slow, tests of its room pass with it, and the seconds; None is the code as it is.

    Where only functions differ, the room's tests are collected once, and every mutant is a fork in which those functions have other
    code. Where a constant, a class or a default differs, the fork begins before prunus is imported.
    """
    inside = [mutant for mutant in mutants if mutant is None or _is_inside_functions(mutant)]
    if inside:
        here, there = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(here)
            _quietly(lambda: _pytest(room, slow, [_Loop(inside, there)]))
        os.close(there)
        with os.fdopen(here) as lines:
            for line in lines:
                number, alive, seconds = line.split()
                yield inside[int(number)], alive == "True", float(seconds)
        os.waitpid(child, 0)
    for mutant in mutants:
        if mutant is not None and mutant not in inside:
            start = time.monotonic()
            child = os.fork()
            if child == 0:
                sys.meta_path.insert(0, _Finder(mutant))  # type: ignore[arg-type]
                _quietly(lambda: _pytest(room, slow))
            yield mutant, _ended_well(child), time.monotonic() - start


def _pytest(room: str, slow: bool, plugins: Sequence[object] = ()) -> int:
    import pytest

    chosen = " or ".join(SLOW) if slow else " and ".join(f"not {name}" for name in SLOW)
    status = int(pytest.main([*OPTIONS, "-k", chosen, *tests_of(room)], plugins=list(plugins)))
    return 0 if status == NO_TESTS else status


def _quietly(work: Callable[[], int]) -> None:
    """In a fork: never returns."""
    status = 99
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        status = work()
    finally:
        os._exit(status)


def _ended_well(child: int) -> bool:
    stop = time.monotonic() + SECONDS
    while time.monotonic() < stop:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


class _Loop:
    """A pytest plugin: the collected tests run in a fork for every mutant, not here."""

    def __init__(self, mutants: Sequence[Mutant | None], report: int):
        self._mutants, self._report = mutants, report

    def pytest_runtestloop(self, session: Any) -> bool:
        for module in {mutant.module for mutant in self._mutants if mutant is not None}:
            importlib.import_module(module)
        gc.collect()
        self._held = [thing for thing in gc.get_objects() if isinstance(thing, FunctionType) and _is_ours(thing)]
        gc.freeze()  # what the forks share stays shared
        for number, mutant in enumerate(self._mutants):
            start = time.monotonic()
            child = os.fork()
            if child == 0:
                _quietly(lambda mutant=mutant: self._run(session, mutant))  # type: ignore[misc]
            alive = _ended_well(child)
            os.write(self._report, f"{number} {alive} {time.monotonic() - start}\n".encode())
        return True

    def _run(self, session: Any, mutant: Mutant | None) -> int:
        if mutant is not None and not _swap_code(mutant, self._held):
            return 0  # nobody holds such a function: it shows up as a survivor
        for item, following in zip(session.items, [*session.items[1:], None], strict=True):
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.testsfailed:
                return 1
        return 0


def _is_ours(function: FunctionType) -> bool:
    return function.__code__.co_filename.startswith(str(SOURCE))


def _swap_code(mutant: Mutant, held: Sequence[FunctionType]) -> bool:
    """Gives the functions of the loaded module their changed code."""
    file = str(SOURCE / mutant.file)
    new = {_place(code): code for code in _functions(compile(mutant.tree(), file, "exec"))}
    changed = False
    for function in held:
        code = new.get(_place(function.__code__))
        if function.__code__.co_filename != file or code is None or code.co_freevars != function.__code__.co_freevars:
            continue
        if code != function.__code__:
            function.__code__ = code
            changed = True
    return changed


def _place(code: CodeType) -> tuple[object, ...]:
    return code.co_qualname, code.co_firstlineno, next((at for at in code.co_positions() if None not in at), None)


def _functions(code: CodeType) -> Iterator[CodeType]:
    """All function bodies within."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_flags & CO_OPTIMIZED:
                yield constant
            yield from _functions(constant)


def _is_inside_functions(mutant: Mutant) -> bool:
    """Whether module and class bodies are what they were."""
    file = str(SOURCE / mutant.file)
    before, after = ast.parse((SOURCE / mutant.file).read_text()), mutant.tree()
    return _outside(compile(before, file, "exec")) == _outside(compile(after, file, "exec"))


def _outside(code: CodeType) -> tuple[object, ...]:
    """What runs when the module is read, without the functions that it makes."""
    parts: list[object] = []
    for constant in code.co_consts:
        if not isinstance(constant, CodeType):
            parts.append((type(constant), constant))
        elif constant.co_flags & CO_OPTIMIZED and not constant.co_name.endswith(("comp>", "genexpr>")):
            parts.append(constant.co_qualname)
        else:
            parts.append(_outside(constant))
    return code.co_code, code.co_names, tuple(parts)


def run(mutants: Sequence[Mutant], title: str) -> list[Mutant]:
    """Runs them, prints the score of every room, and returns the survivors."""
    reasons, left, counts = equivalent(), [], {}  # type: ignore[var-annotated]
    asked = [mutant for mutant in mutants if (mutant.file, mutant.change) not in reasons]
    for room in dict.fromkeys(mutant.room for mutant in asked):
        members = [mutant for mutant in asked if mutant.room == room]
        quick = list(_shown(survives(room, members)))
        still = list(_shown(survives(room, quick, slow=True))) if quick else []
        counts[room] = [len(members) - len(still), len(members)]
        left += still
    killed, total = (sum(pair[i] for pair in counts.values()) for i in (0, 1))
    print(f"\n{title}: {killed} of {total} noticed" + (f", {killed / total:.0%}" if total else ""))
    for room, (hit, of) in counts.items():
        print(f"  {room:14} {hit} of {of}")
    for mutant in left:
        print(f"  survives: {mutant}")
    print(flush=True)
    return left


def _shown(results: Iterable[tuple[Mutant | None, bool, float]]) -> Iterator[Mutant]:
    """Prints every result, and passes on who is alive."""
    for mutant, alive, seconds in results:
        print(f"{'survives' if alive else 'noticed '} {seconds:5.1f} s  {mutant}", flush=True)
        if alive and mutant is not None:
            yield mutant


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
    parser.add_argument("--trust", action="store_true", help="do not run the tests without any change first")
    parser.add_argument("--list", action="store_true", help="list instead of running")
    asked = parser.parse_args()
    named = [] if asked.generated else [mutant for mutant in listed() if mutant.room in asked.rooms]
    rooms = [room for room in asked.rooms if room not in LISTED_ONLY]
    made = [] if asked.named else [mutant for file in files(rooms) for mutant in generated(file)]
    sample = random.Random(asked.seed).sample(made, min(asked.sample, len(made)))
    if asked.list:
        print(*named, *sample, sep="\n")
        print(f"{len(named)} listed, {len(sample)} of {len(made)} generated")
        return
    preload()
    for room in dict.fromkeys(mutant.room for mutant in [*named, *sample] if not asked.trust):
        if not all(alive for _, alive, _ in survives(room, [None])):
            raise SystemExit(f"the tests of {room} fail without any change; mend that first")
    left = run(named, "listed") if named else []
    if sample:
        run(sample, f"generated, {len(sample)} of {len(made)}, seed {asked.seed}")
    sys.exit(1 if left else 0)


if __name__ == "__main__":
    main()
