"""What a model's tensors are called in its files, and how transformers makes ones of the others while loading."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

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
