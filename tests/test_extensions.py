"""Classes that are found by name, whoever defined them and wherever."""

from __future__ import annotations

import os
import subprocess
import sys
from abc import abstractmethod
from pathlib import Path
from typing import Literal

import pytest

from prunus.errors import PrunusError
from prunus.extensions import load_extension, place_of
from prunus.typed import Typed, known, named, refuse_nameless


class Fruit(Typed):
    kind: str
    weight: int = 1


class Plum(Fruit):
    kind: Literal["plum"] = "plum"


class Basket(Typed):
    fruit: named(Fruit, "kind")  # type: ignore[valid-type]
    more: tuple[named(Fruit, "kind"), ...] = ()  # type: ignore[valid-type]


def test_a_subclass_is_known_once_it_is_defined() -> None:
    with pytest.raises(PrunusError, match="take one of plum"):
        Basket(fruit={"kind": "sloe"})

    class Sloe(Fruit):
        kind: Literal["sloe"] = "sloe"
        bitter: bool = True

    basket = Basket(fruit={"kind": "sloe", "bitter": False}, more=({"kind": "plum"}, Plum(weight=2)))
    assert type(basket.fruit) is Sloe
    assert basket.model_dump(mode="json") == {
        "fruit": {"kind": "sloe", "weight": 1, "bitter": False},
        "more": [{"kind": "plum", "weight": 1}, {"kind": "plum", "weight": 2}],
    }
    assert Basket.model_validate(basket.model_dump(mode="json")) == basket


@pytest.mark.parametrize(
    ("value", "field"),
    [({}, "fruit.kind"), ({"kind": 3}, "fruit.kind"), ({"kind": "plum", "weight": "x"}, "fruit.weight"), (3, "fruit")],
)
def test_a_wrong_one_is_refused_by_its_field(value: object, field: str) -> None:
    with pytest.raises(PrunusError) as refusal:
        Basket(fruit=value)
    assert refusal.value.field == field


def test_a_subclass_without_a_name_of_its_own_is_no_second_one_of_that_name() -> None:
    class Heavy(Plum):
        weight: int = 9

    assert known(Fruit, "kind")["plum"] is Plum
    assert Basket(fruit=Heavy()).fruit.weight == 9


def test_a_class_that_is_defined_again_replaces_itself_and_two_of_one_name_are_refused() -> None:
    class Stone(Typed):
        kind: str

    def again() -> type[Stone]:
        class Quince(Stone):
            kind: Literal["quince"] = "quince"

        return Quince

    first, second = again(), again()
    assert known(Stone, "kind")["quince"] is second is not first

    class Other(Stone):
        kind: Literal["quince"] = "quince"

    with pytest.raises(PrunusError, match="rename one"):
        known(Stone, "kind")


def test_a_file_is_imported_once_and_known_by_its_place(tmp_path: Path) -> None:
    file = own_fruit(tmp_path)
    load_extension(str(file))
    load_extension(str(file))
    medlar = known(Fruit, "kind")["medlar"]
    assert place_of(medlar) == str(file.resolve())
    assert place_of(Plum) == __name__
    assert place_of(PrunusError) is None


def own_fruit(folder: Path) -> Path:
    """A file with a class of its own."""
    file = folder / "own_fruit.py"
    file.write_text(
        "from typing import Literal\nfrom tests.test_extensions import Fruit\n\n\n"
        "class Medlar(Fruit):\n    kind: Literal['medlar'] = 'medlar'\n"
    )
    return file


@pytest.mark.parametrize(("name", "text"), [("absent.py", None), ("no_such_module_at_all", None), ("bad.py", "1/0")])
def test_what_cannot_be_imported_is_one_error(tmp_path: Path, name: str, text: str | None) -> None:
    where = str(tmp_path / name) if name.endswith(".py") else name
    if text is not None:
        Path(where).write_text(text)
    with pytest.raises(PrunusError, match="import"):
        load_extension(where)


@pytest.mark.parametrize("text", ["import sys\nsys.exit()", "raise SystemExit(0)"])
def test_a_script_that_ends_the_process_does_not_end_this_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "script.py").write_text(text)
    with pytest.raises(PrunusError, match=r"import = .*SystemExit"):
        load_extension(tmp_path / "script.py")


def test_a_class_that_is_not_finished_is_told_from_one_that_is_not_there() -> None:
    class Fig(Fruit):
        kind: Literal["fig"] = "fig"

        @abstractmethod
        def taste(self) -> str: ...

    with pytest.raises(PrunusError, match=r"fruit.kind = 'fig': .*Fig is not finished; write taste"):
        Basket(fruit={"kind": "fig"})
    with pytest.raises(PrunusError, match=r"fruit = 'plum': write it as a mapping that has kind"):
        Basket(fruit="plum")


def test_what_would_come_back_from_json_as_another_class_is_refused() -> None:
    class Small(Plum):
        pass

    for basket in (Basket(fruit=Small()), Basket(fruit=Plum(), more=(Plum(), Small()))):
        with pytest.raises(PrunusError, match=r"Small.*new processes would take Plum"):
            refuse_nameless(basket, Basket.model_validate(basket.model_dump(mode="json")))
    basket = Basket(fruit=Plum(), more=(Plum(weight=2),))
    refuse_nameless(basket, Basket.model_validate(basket.model_dump(mode="json")))
    with pytest.raises(PrunusError, match=r"<locals>.Small.*defined in a function"):
        place_of(Small)


def test_a_new_process_imports_the_same_file_and_a_module_run_by_its_name_by_that_name(tmp_path: Path) -> None:
    (tmp_path / "orchard").mkdir()
    (tmp_path / "orchard" / "__init__.py").touch()
    code = (
        "from prunus.extensions import load_extension, place_of\nclass Own: pass\nprint(place_of(Own))\n"
        f"load_extension({str(own_fruit(tmp_path))!r})\nfrom tests.test_extensions import Fruit, known\n"
        "print(*known(Fruit, 'kind'))"
    )
    (tmp_path / "orchard" / "go.py").write_text(code)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    command = [sys.executable, "-m", "orchard.go"]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path},
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.stdout.split() == ["orchard.go", "plum", "medlar"]
