"""Where the parts of a model lie, and the one language in which they are selected, on both roads.

A selector is a shell glob. It is held against a part's labels, from the widest to the narrowest: its tower (`vision`), its
component (`vision.attention`, `decoder.mlp`), the path of its block, and its own name. `language` stands for the text towers
of a model that has no tower of that name, also before a kind (`language.mlp`). `*`, the default, is everything but connectors,
which are left alone unless they are asked for (`connector`, or a path).
"""

from __future__ import annotations

import fnmatch
import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

from torch import nn

from prunus.anatomy.catalog import CONNECTORS, TOWERS
from prunus.errors import PrunusError

CONNECTOR = "connector"
"""The tower that is left alone unless it is asked for."""
LANGUAGE = ("text", "decoder", "joint")
"""Towers that answer to `language` where a model has no tower of that name."""
EVERYTHING = ("*",)
"""What is selected where nobody says anything: all but connectors."""


class Location(NamedTuple):
    """Where a module lies."""

    tower: str
    block: str
    """Path of the outermost list element around it, which is one transformer layer; its own path outside of any."""


class Labelled(Protocol):
    """What can be selected: a unit or a matrix."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Its tower, its component and so on, to its own name: from the widest to the narrowest."""


PartT = TypeVar("PartT", bound=Labelled)
ValueT = TypeVar("ValueT")


def locate(model: nn.Module) -> dict[str, Location]:
    """Path of every module → where it lies, in one pass.

    A path belongs to a connector if any of its components says so, else to the tower that its first telling component
    names, else to the tower that follows from what the model takes in.
    """
    modules: dict[str, nn.Module] = {}
    told: dict[str, str | None] = {}
    blocks: dict[str, str | None] = {}
    for path, module in model.named_modules():
        parent, _, part = path.rpartition(".")
        modules[path] = module
        if not path:
            told[path] = blocks[path] = None
            continue
        told[path] = CONNECTOR if part in CONNECTORS else told[parent] or _told(modules[parent], part, module)
        blocks[path] = blocks[parent] or (path if isinstance(modules[parent], nn.ModuleList) else None)
    rest = _whole(model) if None in told.values() else ""
    return {path: Location(told[path] or rest, blocks[path] or path) for path in modules}


def _told(parent: nn.Module, part: str, module: nn.Module) -> str | None:
    """The tower that one component of a path names."""
    if part in TOWERS:
        return TOWERS[part]
    sense = _sense(module)
    if sense in ("vision", "audio"):
        return sense
    if part not in ("encoder", "decoder") or not (hasattr(parent, "encoder") and hasattr(parent, "decoder")):
        return None
    if _sense(parent) in ("vision", "audio"):  # what it decodes are no words
        return None
    return "text" if part == "encoder" else "decoder"


def _sense(module: nn.Module) -> str:
    """What a model, or one in it, takes in: `vision`, `audio`, `text`, several of them (`joint`), or nothing that it would tell."""
    if not hasattr(module, "main_input_name"):
        return ""
    said = getattr(module, "input_modalities", ())
    modalities = {said} if isinstance(said, str) else set(said)
    asked = inspect.signature(type(module).forward).parameters
    sees = any(name.startswith("pixel_values") or name in IMAGES for name in asked)
    hears = any(name in SOUNDS for name in asked)
    if "input_ids" in asked or "decoder_input_ids" in asked:
        return "joint" if sees or hears else "text"
    if sees or (modalities and modalities <= {"image", "video"}):
        return "vision"
    return "audio" if hears or modalities == {"audio"} else ""


IMAGES = ("flattened_patches", "grid_thw", "image_grid_thw")
SOUNDS = ("input_features", "input_values")
"""How forwards call images and sounds, besides `pixel_values`."""


def _whole(model: nn.Module) -> str:
    """The tower that a model is as a whole."""
    sense = _sense(model)
    if sense and sense != "text":
        return sense
    generates = getattr(model, "can_generate", lambda: False)()
    decodes = generates or getattr(getattr(model, "config", None), "is_decoder", False)
    causal = decodes or any(getattr(module, "is_causal", False) is True for module in model.modules())
    return "language" if causal else "text"


def select(
    parts: Sequence[PartT],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    what: str = "unit",
    named: Collection[str] = (),
) -> tuple[PartT, ...]:
    """The parts that some pattern of `include` matches and none of `exclude`, in their order.

    Args:
        parts: all of one model, at least one.
        include: empty is `*`: everything but connectors.
        what: the parts are called in errors.
        named: towers that have a value of their own; a connector among them is asked for.

    Raises:
        PrunusError: a pattern matches nothing, or nothing is left.
    """
    towers = dict.fromkeys(part.labels[0] for part in parts)
    matched: dict[str, set[int]] = {"include": set(), "exclude": set()}
    for field, patterns in (("include", include or EVERYTHING), ("exclude", exclude)):
        is_list = isinstance(patterns, Collection) and not isinstance(patterns, str)
        if not is_list or not all(isinstance(pattern, str) for pattern in patterns):
            raise PrunusError(field, patterns, "give a list of globs, such as ['*.mlp.*', 'vision']")
        for pattern in patterns:
            alone = field == "include" and pattern in EVERYTHING and CONNECTOR not in named
            is_meant = _matcher(pattern, towers)
            hits = {place for place, part in enumerate(parts) if any(map(is_meant, part.labels))}
            hits -= {place for place in hits if alone and parts[place].labels[0] == CONNECTOR}
            if not hits:
                components = ", ".join(dict.fromkeys(part.labels[1] for part in parts))
                like = f"write names as {parts[0].labels[-1]}, or a tower or component: {components}"
                raise PrunusError(field, pattern, f"it matches no {what}; {like}")
            matched[field] |= hits
    left = matched["include"] - matched["exclude"]
    if not left:
        raise PrunusError("exclude", list(exclude), f"it leaves no {what} to prune; remove a pattern")
    return tuple(parts[place] for place in sorted(left))


def by_name(
    written: Mapping[str, ValueT], labels: Mapping[str, Sequence[str]], field: str = "sparsity"
) -> dict[str, ValueT]:
    """Values that somebody wrote for towers, components, blocks and single parts, one per part that any of them names.

    Args:
        written: selector → value. The narrower label wins; of two that are equally narrow, the later one.
        labels: name of a part → its labels, the tower first.
        field: of the error.

    Raises:
        PrunusError: a selector matches nothing.
    """
    towers = dict.fromkeys(known[0] for known in labels.values())
    found: dict[str, tuple[int, ValueT]] = {}
    for pattern, value in written.items():
        is_meant = _matcher(pattern, towers)
        depths = {name: _depth(known, is_meant) for name, known in labels.items()}
        if max(depths.values(), default=-1) < 0:
            like = " and ".join(next(iter(labels.values()), ("",))[1:])
            remedy = f"it names no tower, component, block or part; towers: {', '.join(towers)}; names are like {like}"
            raise PrunusError(field, pattern, remedy)
        for name, depth in depths.items():
            if depth >= 0 and depth >= found.get(name, (-1, value))[0]:
                found[name] = (depth, value)
    return {name: value for name, (_, value) in found.items()}


def per_tower(
    written: Mapping[str, ValueT],
    towers: Collection[str],
    field: str = "sparsity",
    remedy: str = "no such tower is pruned; towers: {} (the connector only if it is included)",
) -> dict[str, ValueT]:
    """Values by a model's own towers; a tower's own name wins over `language` and globs.

    Args:
        field, remedy: of the error; the model's towers are put into the remedy.

    Raises:
        PrunusError: a name is no tower of the model.
    """
    resolved: dict[str, ValueT] = {}
    for name, value in written.items():
        meant = towers_meant(name, towers)
        if not meant:
            raise PrunusError(field, name, remedy.format(", ".join(towers)))
        resolved |= {tower: value for tower in meant if name == tower or tower not in written}
    return resolved


def towers_meant(name: str, towers: Collection[str]) -> tuple[str, ...]:
    """The towers of a model that a selector names."""
    return tuple(filter(_matcher(name, towers), towers))


def _matcher(pattern: str, towers: Collection[str]) -> Callable[[str], bool]:
    """Whether a label is meant. The index of an expert, [3], would read as a set of characters: names, and an index at the end of a
    glob, are also taken literally."""
    meant, (head, dot, rest) = {pattern}, pattern.partition(".")
    if head == "language" and "language" not in towers:
        meant |= {f"{tower}{dot}{rest}" for tower in LANGUAGE}
    written = meant | {re.sub(r"\[(\d+)\]$", r"[[]\1]", one) for one in meant}
    globs = [re.compile(fnmatch.translate(one)).match for one in written if set(one) & set("*?[")]
    return lambda label: label in meant or any(glob(label) for glob in globs)


def _depth(labels: Sequence[str], is_meant: Callable[[str], bool]) -> int:
    """Place of the narrowest label that is meant; -1 where none is."""
    return next((depth for depth in range(len(labels) - 1, -1, -1) if is_meant(labels[depth])), -1)
