"""What a model's tensors are called in its files."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key


def keys_in_files(model: PreTrainedModel, keys: Iterable[str]) -> dict[str, str]:
    """Name in the model → name in the files, for every tensor whose bytes are the same in both.

    Older checkpoints name some modules differently; transformers' own rules translate. What it would compute from
    several tensors (merged experts, split qkv) has no name in the files.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if not isinstance(t, WeightRenaming)]
    wanted = model.state_dict(keep_vars=True)
    found: dict[str, str] = {}
    for key in keys:
        name, converted = rename_source_key(key, renamings, converters, model.base_model_prefix, wanted)
        if name not in wanted and key in wanted:
            name, converted = key, None
        if converted is None and name in wanted:
            found[name] = key
    return found
