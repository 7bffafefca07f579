"""Whatever loads a dense folder loads the narrow one: `python -m benchmarks.loading_matrix [FAMILY …]`.

For every family of the tests, its model is saved dense and narrow, and loaded by every class of transformers that takes its
config, in every way listed here. The dense load is the control: the narrow one must miss the same tensors and be surprised by
the same ones, be narrow, and hold the saved values. Where a way cannot take a layer of the narrow sizes whoever's it is (torchao
and a layer of one input), there is nothing to compare. Prints a table and fails if one cell is wrong.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tests.families import FAMILIES, build
from tests.test_equivalence import random_plan
from torch import nn

from prunus import extract, plan_of
from prunus.plan.record import marks

NEW_LABELS = 7


@dataclass(frozen=True)
class Way:
    """How a class loads a folder; `load` returns the model and what transformers says of it."""

    name: str
    load: Callable[[Any, Path], tuple[nn.Module, dict[str, Any]]]
    exact: bool = True
    """Whether the weights in memory are those of the file, but for their type."""
    takes: Callable[[int, int], bool] = lambda inputs, outputs: True
    """Whether it can load a dense linear layer of these sizes."""


def _plain(cls: Any, folder: Path, **more: Any) -> tuple[nn.Module, dict[str, Any]]:
    return cls.from_pretrained(folder, output_loading_info=True, **more)  # type: ignore[no-any-return]


def _on_disk(cls: Any, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The last layer of every list of layers lies on disk."""
    model = cls.from_pretrained(folder)
    lists = [path for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)]
    last = {f"{path}.{len(model.get_submodule(path)) - 1}" for path in lists}
    place: dict[str, str] = {}
    for path, module in model.named_modules():
        if any(path.startswith(f"{known}.") for known in place):
            continue
        if path in last:
            place[path] = "disk"
        elif any(below.startswith(f"{path}.".lstrip(".")) for below in last):
            place |= {f"{path}.{name}".lstrip("."): "cpu" for name in (*module._parameters, *module._buffers)}
        else:
            place[path] = "cpu"
    return _plain(cls, folder, device_map=place, offload_folder=tempfile.mkdtemp(dir=folder))


def _torchao(cls: Any, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    from torchao.quantization import Int8WeightOnlyConfig

    return _plain(cls, folder, quantization_config=tf.TorchAoConfig(Int8WeightOnlyConfig()))


@cache
def _torchao_takes(inputs: int, outputs: int) -> bool:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    try:
        quantize_(nn.Linear(inputs, outputs), Int8WeightOnlyConfig())
    except RuntimeError:
        return False
    return True


def _inside(cls: Any, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The class inside of somebody's module, which is extracted, and saved from there."""
    model, said = _plain(cls, folder)
    holder = nn.Module()
    holder.inner = model
    again = Path(tempfile.mkdtemp(dir=folder))
    holder.inner.save_pretrained(again)
    return _plain(cls, again)[0], said


WAYS = (
    Way("plain", _plain),
    Way("bf16", lambda cls, folder: _plain(cls, folder, dtype=torch.bfloat16)),
    Way("disk", _on_disk),
    Way("torchao", _torchao, exact=False, takes=_torchao_takes),
    Way("labels", lambda cls, folder: _plain(cls, folder, num_labels=NEW_LABELS, ignore_mismatched_sizes=True)),
    Way("module", _inside),
)


@dataclass(frozen=True)
class Pair:
    """A family's model, saved dense and narrow."""

    family: str
    small: tf.PreTrainedModel
    dense_folder: Path
    narrow_folder: Path


def saved(family: str, folder: Path, seed: int = 2) -> Pair:
    model = build(family, seed).model
    small = extract(model, random_plan(model, seed))
    model.save_pretrained(folder / "dense")
    small.save_pretrained(folder / "narrow")
    return Pair(family, small, folder / "dense", folder / "narrow")


def towers(pair: Pair, folder: Path) -> Iterator[tuple[str, Pair]]:
    """Every part that is a model of its own, saved alone."""
    dense = type(pair.small).from_pretrained(pair.dense_folder)
    for path, part in pair.small.named_modules():
        if path and isinstance(part, tf.PreTrainedModel) and marks(part):
            dense.get_submodule(path).save_pretrained(folder / path / "dense")
            part.save_pretrained(folder / path / "narrow")
            yield path, Pair(pair.family, part, folder / path / "dense", folder / path / "narrow")


def classes_for(pair: Pair) -> list[type]:
    """Every class of transformers whose config is the family's, or that of a tower, and that loads the dense folder."""
    module = sys.modules[type(pair.small).__module__]
    found = []
    for name in getattr(module, "__all__", ()):
        cls = getattr(module, name)
        if not (isinstance(cls, type) and issubclass(cls, tf.PreTrainedModel)) or name.endswith("PreTrainedModel"):
            continue
        if isinstance(getattr(cls, "config_class", None), type):
            found.append(cls)
    return sorted(found, key=lambda cls: cls is not type(pair.small))


def check(pair: Pair, cls: Any, way: Way) -> str | None:
    """What is wrong with one cell; None if nothing is, "" if the dense folder, or a dense layer of its sizes, does not load either."""
    try:
        _, control = way.load(cls, pair.dense_folder)
    except Exception:
        return ""
    try:
        model, said = way.load(cls, pair.narrow_folder)
    except Exception as error:
        linears = [module for module in pair.small.modules() if isinstance(module, nn.Linear)]
        if not all(way.takes(linear.in_features, linear.out_features) for linear in linears):
            return ""
        return f"{type(error).__name__}: {str(error)[:150]}"
    for key in ("missing_keys", "unexpected_keys"):
        if set(said[key]) != set(control[key]):
            return f"other {key}: {sorted(set(said[key]) ^ set(control[key]))[:3]}"
    if {name for name, *_ in said["mismatched_keys"]} != {name for name, *_ in control["mismatched_keys"]}:
        return f"other shapes: {said['mismatched_keys']}"
    fresh = set(said["missing_keys"]) | {name for name, *_ in said["mismatched_keys"]}
    return _compare(pair, model, fresh, way)


def _compare(pair: Pair, model: nn.Module, fresh: set[str], way: Way) -> str | None:
    known = {tuple(unit.kept) for unit in plan.units.values()} if (plan := plan_of(pair.small)) else set()
    if any(tuple(done.plan.kept) not in known for done in marks(model).values()):
        return "it is narrowed in another way"
    values = pair.small.state_dict()
    by_shape: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for value in values.values():
        by_shape.setdefault(tuple(value.shape), []).append(value)
    compared = 0
    for name, value in model.state_dict().items():
        if name in fresh or not value.is_floating_point():
            continue
        if value.device.type == "meta":  # it lies on disk
            if tuple(value.shape) not in by_shape:
                return f"{name} has shape {tuple(value.shape)}"
            compared += 1
            continue
        if type(value) is not torch.Tensor:
            if not way.exact and tuple(value.shape) in by_shape:
                compared += 1
                continue
            return f"{name} is a {type(value).__name__} of shape {tuple(value.shape)}"
        # classes name the same tensor differently, so the values are looked for, whatever the name
        if not any(torch.equal(value, other.to(value.dtype)) for other in by_shape.get(tuple(value.shape), ())):
            return f"{name} holds values that were not saved"
        compared += 1
    return None if compared or fresh else "nothing was loaded"


def main(families: list[str]) -> int:
    tf.logging.set_verbosity_error()
    tf.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    wrong, cells = [], 0
    print(f"{'family':<20}{'class':<42}" + "".join(f"{way.name:>9}" for way in WAYS))
    for family in families or FAMILIES:
        with tempfile.TemporaryDirectory() as place:
            whole = saved(family, Path(place))
            for label, pair in [("", whole), *towers(whole, Path(place) / "towers")]:
                for cls in [type(pair.small)] if label else classes_for(pair):
                    row = []
                    for way in WAYS:
                        said = check(pair, cls, way)
                        row.append("–" if said == "" else "right" if said is None else "WRONG")
                        cells += said != ""
                        if said:
                            wrong.append(f"{family} {label} <- {cls.__name__}, {way.name}: {said}")
                    if set(row) != {"–"}:
                        print(
                            f"{family:<20}{f'{label} {cls.__name__}'.strip():<42}" + "".join(f"{c:>9}" for c in row),
                            flush=True,
                        )
    print(*wrong, sep="\n")
    print(f"{cells} cells, {len(wrong)} wrong")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
