"""Whole blocks that leave: those that change least what passes through them, or without which the loss grows least, or both."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin

from prunus.anatomy import anatomy, locate
from prunus.batches import bf16_autocast, calls_the_model, checked
from prunus.calibrated.plain import Built, built, built_with, take_stock_sizes, write_entries
from prunus.errors import PrunusError
from prunus.fingerprint import refuse_other_models, taken
from prunus.losses import Loss, own_loss, refuse_no_function, scalar
from prunus.modules import quiet
from prunus.parallel import agreeing, of_first
from prunus.plan import configs_of, plan_of
from prunus.progress import track
from prunus.refusals import expect, plain_model
from prunus.typed import Count, Typed
from prunus.undo import structure_kept
from prunus.unstructured import Call, Walk, WalkOptions, counted_positions, mask_of_text, sparsity_of, walk_options

Model = TypeVar("Model", bound=nn.Module)
By = Literal["cosine", "loss", "both"]
NUMBERS = re.compile(r"ind(ex|ic)es|(layers|blocks)$")
"""Entries of a config that name blocks by their numbers, which would be others, such as `fullatt_block_indexes`."""


class Depth(Typed):
    """How many whole blocks leave, and by what. The config says how many are left, so that the result loads where prunus is not."""

    blocks: Count
    """How many leave."""
    by: By = "cosine"
    """`cosine`: the mean of 1 − cos(x, y) over tokens, x a block's input and y its output (ShortGPT); `loss`: the loss without it, one block after
    the other, each time without those that have left; `both`: the loss, of the nearest by cosine, twice as many as are still to leave."""
    include: tuple[str, ...] = Field(default=("*",))
    """Blocks that may leave: globs over towers, components and blocks. `*` is all but connectors."""
    exclude: tuple[str, ...] = ()
    """Blocks that stay, likewise."""


@dataclass(frozen=True)
class Stack:
    """A list of blocks whose length a config says."""

    path: str
    config: str
    """Dotted path of the config within the model's."""
    entry: str
    """Such as `num_hidden_layers`."""
    lists: tuple[str, ...]
    """Entries with a value for each block, such as `layer_types`."""

    def written(self, model: PreTrainedModel, gone: Iterable[int]) -> dict[str, Any]:
        """What the config says once some blocks have gone."""
        config, left = configs_of(model.config)[self.config], set(gone)
        entries: dict[str, Any] = {self.entry: getattr(config, self.entry) - len(left)}
        for name in self.lists:
            entries[name] = [value for place, value in enumerate(getattr(config, name)) if place not in left]
        return entries | (_stages(config, left) if _names_stages(config) else {})


STAGES = ("stage_names", "out_features", "out_indices")
"""Entries by which a config says behind which blocks a backbone gives features (DINOv2, BEiT)."""


def _names_stages(config: Any) -> bool:
    return isinstance(config, BackboneConfigMixin) and bool(config.stage_names)


def _stages(config: Any, gone: set[int]) -> dict[str, Any]:
    """What such entries say once some blocks have gone: features from behind the same blocks or, of one that has gone, the one before it."""
    names = config.stage_names[: len(config.stage_names) - len(gone)]
    given = [place % len(config.stage_names) for place in config._out_indices or ()]
    behind = [place - sum(block < place for block in gone) for place in given]
    return {
        "stage_names": names, "_out_indices": behind or None,
        "_out_features": [names[place] for place in behind] or None,
    }  # fmt: skip


@torch.no_grad()
@agreeing()
def drop_blocks(
    model: Model, method: Depth, batches: Iterable[Any], *, call: Call | None = None, loss: Loss = own_loss, options: WalkOptions | None = None,
    inplace: bool = False,
) -> tuple[Model, tuple[str, ...]]:  # fmt: skip
    """Makes a model shorter: whole blocks leave, and its config says how many are left.

    Of several processes each does all of it, and the first decides.

    Args:
        model: a transformers model.
        method: how many, and by what.
        batches: calibration data, whatever `call` accepts; with what the loss needs where that counts.
        call: runs a batch; by default `model(**batch)`.
        loss: the training loss on a batch; by default the model's own.
        options: how to walk.
        inplace: shorten `model` itself. Otherwise it is as it was before.

    Returns:
        The model, which loads with the stock class where prunus is not, and the paths that the blocks had, in the order in which they
        left. Whatever exception leaves this function, the model is as it was before.

    Raises:
        PrunusError: no entry of the config says how many blocks there are, or no more can leave; the model was narrowed or pruned; batches
            that it cannot take, or a loss that is not finite.

    Examples:
        >>> shorter, gone = drop_blocks(model, Depth(blocks=1), batches)
        >>> len(gone), model.config.num_hidden_layers - shorter.config.num_hidden_layers
        (1, 1)
    """
    expect("method", method, Depth, "how many blocks leave, such as prunus.Depth(blocks=2)")
    inner = plain_model(model)
    refuse_no_function(loss)
    options = walk_options(options, None)
    if not isinstance(inner, PreTrainedModel):
        raise PrunusError(
            "model", type(inner).__name__, "its config must say how many blocks it has; give a transformers model"
        )
    if plan_of(inner) is not None or sparsity_of(inner) is not None:
        raise PrunusError(
            "model", type(inner).__name__, "it was narrowed or pruned, block by block; drop blocks first, and narrow or prune afterwards"
        )  # fmt: skip
    refuse_other_models(inner)
    given = taken(checked(batches, calls_the_model(call)))
    stacks = stacks_of(inner, method)
    changes = distances(inner, stacks, given, call, options) if method.by != "loss" else {}
    gone = of_first(chosen(inner, method, stacks, changes, given, loss, options))  # devices may round otherwise
    small = inner if inplace else copy.deepcopy(inner)
    with structure_kept(small):
        for stack in dict.fromkeys(stacks.values()):
            left = [place for place in range(len(small.get_submodule(stack.path))) if f"{stack.path}.{place}" in gone]
            write_entries(small, stack.config, stack.written(small, left))
            blocks: Any = small.get_submodule(stack.path)
            for place in reversed(left):
                del blocks[place]
        take_stock_sizes(small)
    return small, tuple(gone)


def stacks_of(model: PreTrainedModel, method: Depth) -> dict[str, Stack]:
    """Path of every block that may leave → the list that it is in.

    Raises:
        PrunusError: blocks are named in a list whose length no entry of a config says.
    """
    found: dict[str, Stack | None] = {}
    allowed: dict[str, Stack] = {}
    for unit in anatomy(model).select(method.include, method.exclude):
        path, _, place = unit.block.rpartition(".")
        if not place.isdigit() or not isinstance(model.get_submodule(path), nn.ModuleList):
            continue
        if path not in found:
            found[path] = _stack(model, path)
        stack = found[path]
        if stack is not None:
            allowed[unit.block] = stack
        elif "*" not in method.include:
            raise PrunusError(
                "include",
                unit.block,
                f"no entry of the config of {type(model).__name__} says how many {path} there are; exclude it",
            )
    if not allowed:
        raise PrunusError(
            "model", type(model).__name__, "it has no two blocks or more of which an entry of its config says how many"
        )
    return allowed


def distances(
    model: nn.Module, blocks: Iterable[str], batches: Sequence[Any], call: Call | None, options: WalkOptions
) -> dict[str, float]:
    """The mean of 1 − cos(x, y) over the tokens that are no padding, for every block."""
    found: dict[str, float] = {}
    towers = locate(model)
    with bf16_autocast(model, options.bf16), Walk(model, batches, list(blocks), call, sequential=False) as walk:
        for stop in walk:
            total, tokens = 0.0, 0
            text_mask = mask_of_text(model, towers[stop.block].tower)
            for visit in stop.visits:
                before, after = _hidden(visit.arguments.values()), _hidden([stop.run(visit)])
                cosines = torch.cosine_similarity(before.float(), after.float(), dim=-1).flatten()
                counted = counted_positions(visit, before, text_mask)
                cosines = cosines if counted is None else cosines[counted]
                total, tokens = total + float((1 - cosines).double().sum()), tokens + len(cosines)
                stop.rest(visit)
            found[stop.block] = total / max(tokens, 1)
        unreached = list(walk.pending)
    if unreached:
        raise PrunusError(
            "batches", unreached[0], "no calibration batch reached this block; give batches that use it, or exclude it"
        )
    return found


def chosen(
    model: PreTrainedModel, method: Depth, stacks: Mapping[str, Stack], changes: Mapping[str, float], batches: Sequence[Any], loss: Loss,
    options: WalkOptions,
) -> list[str]:  # fmt: skip
    """The blocks that leave, in that order.

    Raises:
        PrunusError: no other can leave.
    """
    with torch.device("meta"):
        whole = built(type(model)(copy.deepcopy(model.config)))
    gone: list[str] = []
    refused: set[str] = set()

    def can_leave(block: str) -> bool:
        """Whether the stock class builds the others as they are."""
        if block not in refused and not _is_sayable(model, stacks[block], [*gone, block], whole):
            refused.add(block)
        return block not in refused

    for _ in track(range(method.blocks), "blocks", options.progress):
        waiting = sorted((block for block in stacks if block not in gone), key=lambda block: changes.get(block, 0.0))
        able: Iterator[str] = filter(can_leave, waiting)
        if method.by == "both":
            able = islice(able, 2 * (method.blocks - len(gone)))
        if method.by == "cosine":
            best = next(able, None)
        else:
            best = min(
                able, key=lambda block: _loss_without(model, stacks, [*gone, block], batches, loss), default=None
            )
        if best is None:
            raise PrunusError(
                "blocks", method.blocks, f"no more than {len(gone)} of {len(stacks)} can leave: of the others, the config cannot say which are left"
            )  # fmt: skip
        gone.append(best)
        refused.clear()
    return gone


def _loss_without(
    model: PreTrainedModel, stacks: Mapping[str, Stack], gone: Sequence[str], batches: Sequence[Any], loss: Loss
) -> float:
    with quiet(model), _without(model, stacks, gone):
        total = sum(float(scalar(loss, model, batch)) for batch in batches) / len(batches)
    if not math.isfinite(total):
        raise PrunusError(
            "batches", "loss", f"without {gone[-1]} it is not finite; look at the batches, or take by: cosine"
        )
    return total


@contextmanager
def _without(model: PreTrainedModel, stacks: Mapping[str, Stack], gone: Sequence[str]) -> Iterator[None]:
    """While the context is open, the model does not have these blocks."""
    with ExitStack() as restoring:
        for stack in {stacks[block] for block in gone}:
            blocks, config = model.get_submodule(stack.path), configs_of(model.config)[stack.config]
            modules, places = blocks._modules, _places(stack, gone)
            left = [module for place, module in enumerate(modules.values()) if place not in places]
            for name, value in stack.written(model, places).items():
                restoring.callback(setattr, config, name, getattr(config, name))
                setattr(config, name, value)
            restoring.callback(setattr, blocks, "_modules", modules)
            blocks._modules = {str(place): module for place, module in enumerate(left)}
        yield


def _stack(model: PreTrainedModel, path: str) -> Stack | None:
    """How a config says the length of a list of blocks, found by trying to say one less; None where none does."""
    with torch.device("meta"):
        before = built(type(model)(copy.deepcopy(model.config)))
    length = len(model.get_submodule(path))
    for inside, config in configs_of(model.config).items():
        said = {
            name: value for name, value in config.to_dict().items() if not (name in STAGES and _names_stages(config))
        }
        numbered = any(
            NUMBERS.search(name) and isinstance(value, list | tuple) and value for name, value in said.items()
        )
        lists = tuple(name for name, value in said.items() if isinstance(value, list | tuple) and len(value) == length)
        for entry, value in said.items():
            if type(value) is int and value == length > 1 and not numbered:
                for following in dict.fromkeys((lists, ())):
                    stack = Stack(path, inside, entry, following)
                    if _is_sayable(model, stack, [f"{path}.{length - 1}"], before):
                        return stack
    return None


def _is_sayable(model: PreTrainedModel, stack: Stack, gone: Sequence[str], before: Built) -> bool:
    """Whether the stock class, by the config that would be written, builds what is left of a list as it is."""
    places = _places(stack, gone)
    if len(places) >= len(model.get_submodule(stack.path)):
        return False
    after = built_with(model, stack.config, stack.written(model, places))
    return after is not None and after == Built(
        dict(_renumbered(before.shapes, stack.path, places)), dict(_renumbered(before.settings, stack.path, places))
    )


def _places(stack: Stack, gone: Sequence[str]) -> set[int]:
    return {int(block.rpartition(".")[2]) for block in gone if block.rpartition(".")[0] == stack.path}


def _renumbered(held: Mapping[str, Any], path: str, gone: set[int]) -> Iterator[tuple[str, Any]]:
    """What is held by name, without blocks that go, and under the numbers that the others get."""
    for name, value in held.items():
        if not name.startswith(f"{path}."):
            yield name, value
            continue
        place, dot, rest = name.removeprefix(f"{path}.").partition(".")
        if not place.isdigit():
            yield name, value
        elif int(place) not in gone:
            yield f"{path}.{int(place) - sum(other < int(place) for other in gone)}{dot}{rest}", value


def _hidden(values: Iterable[Any]) -> Tensor:
    """The first tensor of numbers among arguments or outputs of a block, (…, D)."""
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
        if isinstance(value, tuple):
            return _hidden(value)
    raise PrunusError("model", "block", "it is given, or gives, no hidden states")
