"""Classes that are found by name, whoever defined them and wherever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from prunus.errors import PrunusError
from prunus.extensions import load_extension, place_of
from prunus.typed import Typed, known, named


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


def test_a_file_is_imported_once_and_a_new_process_can_do_the_same(tmp_path: Path) -> None:
    file = tmp_path / "own_fruit.py"
    file.write_text(
        "from typing import Literal\nfrom tests.test_extensions import Fruit\n\n\n"
        "class Medlar(Fruit):\n    kind: Literal['medlar'] = 'medlar'\n"
    )
    load_extension(str(file))
    load_extension(str(file))
    medlar = known(Fruit, "kind")["medlar"]
    assert place_of(medlar) == str(file.resolve())
    assert place_of(Plum) == __name__
    assert place_of(PrunusError) is None
    code = f"from prunus.extensions import load_extension; load_extension({str(file)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize(("name", "text"), [("absent.py", None), ("no_such_module_at_all", None), ("bad.py", "1/0")])
def test_what_cannot_be_imported_is_one_error(tmp_path: Path, name: str, text: str | None) -> None:
    where = str(tmp_path / name) if name.endswith(".py") else name
    if text is not None:
        Path(where).write_text(text)
    with pytest.raises(PrunusError, match="import"):
        load_extension(where)
