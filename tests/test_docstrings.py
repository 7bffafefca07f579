"""The examples of the docstrings are carried out, and what is public is documented."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import prunus
from prunus.structured import UPop
from prunus.typed import Typed
from tests.families import build

ROOM = Path(prunus.__path__[0])
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(prunus.__path__, "prunus.") if not module.name.endswith("__main__")
)


def vision_language(name: str) -> dict[str, Any]:
    """The names that the examples of a model use, of a tiny random one."""
    case = build(name, 0)
    torch.manual_seed(0)
    count = len(case.inputs["pixel_values"])
    return {
        "model": case.model,
        "ids": case.inputs.get("input_ids"),
        "mask": case.inputs.get("attention_mask"),
        "pixels": case.inputs["pixel_values"],
        "pixels_B23HW": case.inputs["pixel_values"],
        "labels": case.losses.get("labels", torch.arange(count)),
        "image_numbers": torch.arange(count),
    }


def answering() -> dict[str, Any]:
    names = vision_language("blip_answers")
    case = build("blip_answers", 0)
    names["model"].train()
    ids = torch.randint(10, 20, (5, 3))
    answers = torch.randint(10, 20, (len(names["ids"]), 3))
    return names | {"answers": answers, "candidate_ids": ids, "candidate_mask": torch.ones_like(ids), "case": case}


def searching() -> dict[str, Any]:
    case = build("vit", 0)
    optimizer = torch.optim.AdamW(case.model.parameters())
    loader = [{**case.inputs, "labels": torch.arange(len(case.inputs["pixel_values"]))}] * 4
    return {"model": case.model, "optimizer": optimizer, "loader": loader, "UPop": UPop, "extract": prunus.extract}


def walking() -> dict[str, Any]:
    case = build("llama", 0)
    return {"model": case.model, "batches": [case.inputs], "blocks": ["model.layers.0", "model.layers.1"]}


def pruned() -> dict[str, Any]:
    case = build("vit", 0)
    prunus.prune(case.model, prunus.Magnitude(sparsity=0.5), [case.inputs])
    return {"model": case.model, "trainer": SimpleNamespace(train=lambda: None)}


def two_blocks() -> dict[str, Any]:
    case = build("llama", 2)
    return {"model": case.model, "batches": [case.inputs]}


NAMES: dict[str, Callable[[], dict[str, Any]]] = {
    "prunus.calibrated.depth": two_blocks,
    "prunus.anatomy.mirrors": lambda: {"model": build("blip_retrieval", 0).model},
    "prunus.repair.by_hand": lambda: {
        **pruned(),
        "MaskedLoRA": prunus.MaskedLoRA,
        "train": lambda model, optimizer: {},
    },
    "prunus.repair.masks": pruned,
    "prunus.models.blip_nlvr": lambda: vision_language("blip_nlvr"),
    "prunus.models.blip_retrieval": lambda: vision_language("blip_retrieval"),
    "prunus.models.clip_retrieval": lambda: {**vision_language("clip_retrieval"), "clip": build("clip", 0).model},
    "prunus.models.eva_vit": lambda: vision_language("eva_vit"),
    "prunus.models.blip_vqa": answering,
    "prunus.structured.search": searching,
    "prunus.unstructured.walk": walking,
}
"""What the examples of a module take for granted."""


WITH_EXAMPLES = [
    f"prunus.{'.'.join(path.relative_to(ROOM).with_suffix('').parts)}"
    for path in sorted(ROOM.rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_do_what_they_say(name: str) -> None:
    module, said = importlib.import_module(name), list[str]()
    tests = [test for test in doctest.DocTestFinder().find(module, name) if test.examples]
    assert tests
    for test in tests:
        assert "Examples:\n" in (test.docstring or ""), f"{test.name}: the site shows what stands below that"
        assert not [one for one in test.examples if one.options.get(doctest.SKIP)], "an example that nobody carries out"
        test.globs |= {"torch": torch, **NAMES.get(name, dict)()}
        with torch.random.fork_rng():
            doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    assert not said, "".join(said)


def settings() -> list[type[Typed]]:
    """Every class of ours whose fields a user writes."""
    for name in MODULES:
        importlib.import_module(name)
    found: list[type[Typed]] = []
    left: list[type[Typed]] = [Typed]
    while left:
        for one in left.pop().__subclasses__():
            left.append(one)
            if one.__module__.startswith("prunus.") and one not in found:
                found.append(one)
    return sorted(found, key=lambda one: f"{one.__module__}.{one.__qualname__}")


def test_every_setting_has_its_sentence() -> None:
    assert len(settings()) > 40
    lacking = [
        f"{one.__module__}.{one.__qualname__}.{field}"
        for one in settings()
        for field, about in one.model_fields.items()
        if not about.description and not isinstance(about.default, str)  # the name by which recipes find it
    ]
    assert not lacking


@pytest.mark.parametrize("name", prunus.__all__)
def test_every_public_name_is_explained(name: str) -> None:
    thing = getattr(prunus, name)
    about = (thing.__doc__ or "").strip()
    assert about, f"{name} has no docstring"
    assert about.endswith((".", ")", ":", "'", "`")) or ">>>" in about or "\n" in about
    assert not about.startswith(f"{name}(")  # what a dataclass says of itself where nobody has
