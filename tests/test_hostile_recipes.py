"""Recipes of strangers: bounded before they are built, and refused in one clear error."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
import yaml

from prunus import PrunusError
from prunus.bounded_yaml import read_yaml
from prunus.recipe import demo_recipe, dump_recipe, load_recipe, parse_recipe
from prunus.run import run
from prunus.storage import claim_folder, locked

BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join(10 * [f'*a{n - 1}'])}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "line 5.*more than 100,000 values"),
        ("a: &a [1]\nb: {<<: [*a, *a]}", "not YAML"),
        ("seed: " + 5000 * "9", "line 1.*number of 5,000 characters"),
        ("a: 1\nb: &b [1, *b]", "line 2.*holds itself"),
        ("a: " + 1000 * "[", "more than 40 levels"),
        ("a: 1\na: 2", "line 2|stands there twice"),
        ("a: 2001-99-99", "line 1"),
        ("a: !!timestamp no", "line 1"),
        ("a: !!bool perhaps", "line 1"),
        ("a: !!int ''", "line 1"),
        ("a: !!python/object/apply:os.system ['true']", "line 1"),
        ("a: \x00", "not YAML"),
        ("? [1, 2]\n: 3", "line"),
        ("a: " + 300_000 * "x", "characters"),
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_yaml_is_bounded_before_it_is_built(text: str, message: str) -> None:
    with pytest.raises(PrunusError, match=message):
        read_yaml(text, "recipe", "r.yaml")


def test_aliases_are_copies() -> None:
    data = read_yaml("a: &a {b: 1}\nc: *a\nd: {<<: *a, e: 2}", "recipe", "r.yaml")
    data["a"]["b"] = 5
    assert data["c"] == {"b": 1}
    assert data["d"] == {"b": 1, "e": 2}


@pytest.mark.parametrize(
    "change",
    [
        "steps.0.train.learning_rate=.inf",
        "steps.0.train.learning_rate=1e300",
        "steps.0.train.learning_rate=.nan",
        "steps.0.train.tower_learning_rates={vision: -1}",
        "steps.0.train.weight_decay=1e300",
        "steps.0.train.weight_decay=.inf",
        "steps.0.train.steps=1000000000000",
        "steps.0.train.batch_size=1000000000000",
        "measure.repeats=1000000000000",
        "seed=-1",
        "seed=100000000000000000000",
        "steps.0.method.ratio=.nan",
        "task.image_size=1000000",
    ],
)
def test_absurd_numbers_are_refused_by_field(change: str) -> None:
    with pytest.raises(PrunusError, match=change.partition("=")[0].rpartition(".")[2]):
        demo_recipe((change,))


def test_decay_and_rate_together_leave_something_of_a_weight() -> None:
    with pytest.raises(PrunusError, match="all of a weight"):
        demo_recipe(("steps.0.train.learning_rate=1", "steps.0.train.weight_decay=2"))


def test_a_rank_of_a_million_and_a_million_draws_are_refused() -> None:
    data = yaml.safe_load(dump_recipe(demo_recipe()))
    prune = {"step": "prune", "method": {"method": "wanda"}, "allocate": {"method": "ecoflap", "draws": 10**6}}
    repair = {"step": "repair", "method": {"method": "lora", "rank": 10**6}, "train": {"steps": 1, "learning_rate": 1}}
    for steps, field in (([prune], "draws"), ([{**prune, "allocate": None}, repair], "rank")):
        with pytest.raises(PrunusError, match=field):
            parse_recipe(yaml.safe_dump({**data, "steps": steps}), "r.yaml")


@pytest.mark.parametrize(
    "output", ["''", "/", "..", ".", "~", "runs/..", "' '", '"a\\0b"', "x" * 300, "/".join(2000 * ["aa"])]
)
def test_outputs_that_are_no_place_are_refused(output: str) -> None:
    with pytest.raises(PrunusError, match="output"):
        demo_recipe((f"output={output}",))


def test_the_home_folder_is_expanded() -> None:
    assert demo_recipe(("output=~/runs/one",)).output == Path.home() / "runs" / "one"


def test_what_is_not_ours_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for place in ("file", "full", "file/inside", "/dev/null", "/proc/prunus"):
        with pytest.raises(PrunusError, match="output"):
            claim_folder(tmp_path / place, "recipe.yaml")
    assert os.listdir(tmp_path / "full") == ["mine"]
    claim_folder(tmp_path / "new", "recipe.yaml")
    (tmp_path / "full" / "recipe.yaml").touch()
    claim_folder(tmp_path / "full", "recipe.yaml")


def test_a_refused_output_is_said_by_run(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(PrunusError, match="holds other things, such as mine"):
        run(demo_recipe((f"output={tmp_path}",)))


def _hold(folder: Path, ready: multiprocessing.synchronize.Event) -> None:
    with locked(folder):
        ready.set()
        multiprocessing.Event().wait(60)


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=_hold, args=(tmp_path, ready))
    other.start()
    try:
        assert ready.wait(30)
        with pytest.raises(PrunusError, match=f"process {other.pid} is at work"), locked(tmp_path):
            pass
    finally:
        other.kill()
        other.join()
    with locked(tmp_path):
        pass  # a process that was killed holds nothing


def test_recipes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    with pytest.raises(PrunusError, match="UTF-8"):
        load_recipe(tmp_path / "binary.yaml")
    with pytest.raises(PrunusError, match="cannot be read"):
        load_recipe(tmp_path)
