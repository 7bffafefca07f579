"""What a model's tensors are called in its files, and how transformers makes ones of the others while loading."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from prunus.anatomy import Matrix, by_parameter
from prunus.checkpoint.shards import Shards
from prunus.errors import PrunusError
from prunus.refusals import refuse_weight

Read = Callable[[str], Tensor]


@dataclass(frozen=True, eq=False)
class Group:
    """Tensors of the files and those of the model that are made of them: one of one as a rule, more where transformers
    merges, splits or turns weights while it loads (experts, gate and up in one, qkv)."""

    first: str
    """A name in the model; the others follow from it."""
    keys: dict[str, str]
    """Name in the files → name once the renamings are done."""
    converter: WeightConverter | None = None
    """None: the bytes are the same in both."""
    patterns: tuple[str, ...] = ()
    """Which of the converter's inputs each key is."""

    def load(self, model: PreTrainedModel, read: Read) -> dict[str, Tensor]:
        """The model's tensors, by name.

        Args:
            read: gives a tensor of the files, in the type in which the model wants it.
        """
        if self.converter is None:
            return {self.first: read(next(iter(self.keys)))}
        converter = copy.deepcopy(self.converter)
        for key, pattern in zip(self.keys, self.patterns, strict=True):
            converter.add_tensor(self.first, key, pattern, _later(read, key))
        made = converter.convert(self.first, model=model, config=model.config)
        return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()}

    def save(self, model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The files' tensors, by name: `load` the other way round.

        Args:
            tensors: all that `load` gives.
        """
        if self.converter is None:
            return {next(iter(self.keys)): tensors[self.first]}
        reverse = copy.deepcopy(self.converter.reverse_transform())
        renamed = ""
        for name, tensor in tensors.items():
            renamed, pattern = reverse.rename_source_key(name)
            reverse.add_tensor(renamed, name, pattern, tensor)
        made = reverse.convert(renamed, model=model, config=model.config)
        keys = {shown: key for key, name in self.keys.items() for shown in _with_and_without(model, name)}
        return {keys.get(n, n): t[0] if isinstance(t, list) else t for n, t in made.items()}


def groups(model: PreTrainedModel, keys: Iterable[str]) -> list[Group]:
    """Which tensors of the files make which of the model, by the rules of `from_pretrained`; what it passes over is in
    none."""
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix, wanted = model.base_model_prefix, model.state_dict(keep_vars=True)
    found: dict[str, Group] = {}
    for key in sorted(keys, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, wanted)
        if name not in wanted and key in wanted:
            name, pattern = rename_source_key(key, [], [], prefix, wanted)
        if name not in wanted:
            continue
        if pattern is None:
            found.setdefault(name, Group(name, {key: name}))
            continue
        before = found.get(name, Group(name, {}, by_pattern[pattern]))
        keys_so_far = {**before.keys, key: rename_source_key(key, renamings, [])[0]}
        found[name] = Group(name, keys_so_far, before.converter, (*before.patterns, pattern))
    return list(found.values())


def keys_in_files(model: PreTrainedModel, keys: Iterable[str]) -> dict[str, str]:
    """Name in the model → name in the files, for every tensor whose bytes are the same in both."""
    return {group.first: next(iter(group.keys)) for group in groups(model, keys) if group.converter is None}


def _later(read: Read, key: str) -> Callable[[], Tensor]:
    return lambda: read(key)


def _with_and_without(model: PreTrainedModel, name: str) -> tuple[str, ...]:
    """A head's files may leave out the base model's prefix, and the other way round."""
    prefix = f"{model.base_model_prefix}."
    return (name, prefix + name, name.removeprefix(prefix))


class Parts:
    """Which tensors of the files make which parameters and buffers of a model.

    Attributes:
        groups: by the name of the parameter or buffer.
    """

    def __init__(self, model: PreTrainedModel, shards: Shards):
        self.model, self.shards = model, shards
        self.groups: dict[str, Group] = {}
        for group in groups(model, shards.places):
            names = [group.first] if group.converter is None else group.load(model, self._without_bytes)
            self.groups |= dict.fromkeys(names, group)
        self._names: dict[int, list[str]] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            self._names.setdefault(id(tensor), []).append(name)

    def knows(self, tensor: Tensor) -> bool:
        """Whether the files hold a parameter or buffer."""
        return any(name in self.groups for name in self._names.get(id(tensor), ()))

    def of(self, tensor: Tensor) -> tuple[str, Group]:
        """Where a parameter comes from, and the one of its names that the group knows: tied parameters have several."""
        for name in self._names[id(tensor)]:
            if name in self.groups:
                return name, self.groups[name]
        name = self._names[id(tensor)][0]
        raise PrunusError("weights", name, f"no file in {self.shards.folder} holds it; load the model and use prune")

    def load(self, parameter: Tensor, shards: Shards) -> Tensor:
        """The values of a parameter or buffer, in its type and main memory."""
        name, group = self.of(parameter)
        return group.load(self.model, lambda key: shards.read(key).to(parameter.dtype))[name]

    def refuse_weights(self, chosen: Sequence[Matrix]) -> None:
        """Refuses weights that cannot be pruned, as `prune` does; one is in memory at a time."""
        for parameter, own in by_parameter(chosen).items():
            refuse_weight(own[0].name, self.load(self.model.get_parameter(parameter), self.shards))

    def dtypes_to_write(self, parameters: Iterable[str]) -> dict[str, torch.dtype]:
        """Tensors in the files that cannot hold what these parameters become, and the type that does.

        Raises:
            PrunusError: what transformers makes of the files cannot be turned round.
        """
        dtypes: dict[str, torch.dtype] = {}
        for name in dict.fromkeys(parameters):
            parameter = self.model.get_parameter(name)
            _, group = self.of(parameter)
            places = {key: self.shards.places[key] for key in group.keys}
            if group.converter is not None:
                try:
                    back = group.save(self.model, group.load(self.model, self._without_bytes))
                except Exception:  # a converter of transformers may raise anything; what it gave is compared below
                    back = {}
                if {key: tuple(t.shape) for key, t in back.items()} != {key: p.shape for key, p in places.items()}:
                    raise PrunusError(
                        "model", name, "transformers computes it from what the files hold, which cannot be turned round; "
                        "load the model and use prune",
                    )  # fmt: skip
            dtypes |= {key: parameter.dtype for key, p in places.items() if not _holds(p.dtype, parameter.dtype)}
        return dtypes

    def _without_bytes(self, key: str) -> Tensor:
        place = self.shards.places[key]
        return torch.empty(place.shape, dtype=place.dtype, device="meta")


def _holds(stored: torch.dtype, dtype: torch.dtype) -> bool:
    """Whether every number of a type is one of the stored type, too."""
    wider = {torch.float16: (torch.float32, torch.float64), torch.bfloat16: (torch.float32, torch.float64)}
    return stored in (dtype, *wider.get(dtype, (torch.float64,)))
