"""A folder explains itself: a model card, a second copy of what the config records, and checksums, beside what transformers saves.

Importing prunus lets `save_pretrained` write them for models that carry a record: narrowed ones, and those with zeros. A model of a class of
ours that carries none gets a card, which says what to import.
"""

from __future__ import annotations

import json
import os
import re
from functools import wraps
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from transformers import PreTrainedConfig, PreTrainedModel

from prunus.anatomy import anatomy, locate
from prunus.checkpoint.checksums import CHECKSUMS, weight_files, write_checksums
from prunus.errors import PrunusError
from prunus.plan import RECORD, Recorded, configs_of, marks, plan_of, records_of, true_record
from prunus.storage import is_in_passing, refuse_newer, write_text
from prunus.structured import warn_of_gates
from prunus.unstructured import RECORD as SPARSITY
from prunus.unstructured import recorded_sparsity

CARD, COPY = "README.md", "prunus.json"
FORMAT = "prunus.folder/1"
MARK = "<!-- Written by prunus, and written anew when the model is saved here again; without this line it is left alone. -->"


def describe(folder: Path, model: PreTrainedModel) -> None:
    """Writes the model card and the second copy of the records into a checkpoint folder.

    A README.md of anybody else stays as it is.

    Args:
        model: what the folder holds, with weights or without; its config says what was done.
    """
    configs = configs_of(model.config)
    records = {path: _entries(config) for path, config in configs.items()}
    kept = {path: entries for path, entries in records.items() if entries}
    write_text(folder / COPY, json.dumps({"format": FORMAT, "configs": kept}, indent=1) + "\n")
    if _is_ours(folder / CARD):
        write_text(folder / CARD, card(model))


def card(model: PreTrainedModel) -> str:
    """The model card: what was done, to what, how to load it, and who is misled."""
    plan, sparsity, parts = plan_of(model), recorded_sparsity(model), anatomy(model)
    name, done = type(model).__name__, ["narrowed"] * (plan is not None) + ["sparse"] * (sparsity is not None)
    origin = str(getattr(model.config, "_name_or_path", "") or "")
    base = origin if re.fullmatch(r"[\w.-]+/[\w.-]+", origin) and not os.path.exists(origin) else None
    tags = ["prunus", *(["pruned", *done] if done else [])]
    about = ModelCardData(library_name="transformers", tags=tags, base_model=base)
    removed: dict[str, int] = {}
    channels: dict[str, tuple[int, int]] = {}
    units, places = parts.by_name, locate(model)
    home = _home(type(model))
    for unit_name, unit_plan in (plan.units if plan else {}).items():
        if unit_name in units:
            unit = units[unit_name]
            gone = unit_plan.channels - len(unit_plan.kept)
            for path in (unit.path, *unit.mirrors):
                tower = places[path].tower
                removed[tower] = removed.get(tower, 0) + gone * unit.channel_cost
            kept, total = channels.get(unit.tower, (0, 0))
            channels[unit.tower] = kept + len(unit_plan.kept), total + unit_plan.channels
    before = parts.parameters + sum(removed.values())
    lines = [
        "---", about.to_yaml().strip(), "---", MARK, f"# {name}" + (f", {' and '.join(done)} by Prunus" if done else ""), "",
        f"{parts.parameters:,} parameters" + (f"; {before:,} before ({1 - parts.parameters / before:.1%} fewer)." if plan else "."),
        "", "## Load it", "", "```python", how_to_load(model), "```", "",
    ]  # fmt: skip
    if plan is not None:
        lines += [
            "Any class and option that load the dense checkpoint load this one: base models, heads, towers, quantisers, device maps. "
            "Without `import prunus` transformers builds the dense shapes and refuses these weights. Do not follow its advice to pass "
            "`ignore_mismatched_sizes=True`: that replaces the narrow weights by random ones. If the entry `prunus` of `config.json` is "
            f"lost, `prunus.load_model` takes it from `{COPY}`.", "",
        ]  # fmt: skip
    elif sparsity is not None:
        without = ", so it loads without prunus, too" if home == "transformers" else ""
        lines += [f"Pruned weights are zeros in place{without}.", ""]
    if _is_own(type(model)):
        lines += [
            "Once `prunus` is imported, the Auto classes of transformers know it, too; without prunus they do not.",
            "",
        ]
    if not done:
        return "\n".join(lines)
    lines += ["## What was done", ""]
    if plan is not None:
        lines += [f"Structured pruning removed {plan.ratio:.2%} of the searched cost: {_told(plan)}.", ""]
    if sparsity is not None:
        lines += [
            f"Unstructured pruning ({sparsity.pattern}) made {sparsity.sparsity:.2%} of the weights in "
            f"{len(sparsity.matrices)} matrices zero: {_told(sparsity)}.", "",
        ]  # fmt: skip
    lines += [
        "| tower | parameters | before | channels kept | zeros in pruned matrices |",
        "| --- | --: | --: | --: | --: |",
    ]
    for tower, count in parts.tower_parameters.items():
        kept, total = channels.get(tower, (0, 0))
        zeros = f"{sparsity.towers[tower]:.2%}" if sparsity is not None and tower in sparsity.towers else "–"
        share = f"{kept:,} of {total:,}" if total else "–"
        lines.append(f"| {tower} | {count:,} | {count + removed.get(tower, 0):,} | {share} | {zeros} |")
    if plan is not None:
        lines += [
            "", "## Who is misled", "",
            "The sizes in `config.json` are those of the dense model. What computes shapes from them instead of asking the modules "
            "(servers with paged key-value caches, converters to GGUF or ONNX that rebuild the graph) needs the narrow widths, which "
            "differ from layer to layer: `prunus inspect` lists them.",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def how_to_load(model: PreTrainedModel, folder: str = "path/to/this/folder") -> str:
    """Python that loads a model from its folder."""
    name = type(model).__name__
    lines = [
        f"from {_home(type(model))} import {name}",
        "",
        f"model = {name}.from_pretrained({json.dumps(folder, ensure_ascii=False)})",
    ]
    if plan_of(model) is not None:
        lines.insert(0, "import prunus  # teaches transformers to build the narrow shapes; pip install prunus")
    return "\n".join(lines)


def _home(kind: type[PreTrainedModel]) -> str:
    """The module that one imports a class from."""
    package = kind.__module__.split(".")
    return {"transformers": "transformers", "prunus": ".".join(package[:2])}.get(package[0], kind.__module__)


def _is_own(kind: type[PreTrainedModel]) -> bool:
    return kind.__module__.startswith("prunus.")


def _told(record: Recorded) -> str:
    return ", then ".join(f"{entry.step} `{json.dumps(entry.said)}`" for entry in record.history) or "nobody said how"


def restore_records(folder: Path, config: PreTrainedConfig) -> bool:
    """Puts records that the config in a folder has lost back into `config`, from the folder's second copy.

    Returns:
        Whether any were lost.

    Raises:
        PrunusError: the copy is damaged.
    """
    if not (folder / COPY).exists():
        return False
    try:
        text = (folder / COPY).read_text(encoding="utf-8")
        refuse_newer(COPY, text[:200], FORMAT)
        noted = json.loads(text)
        assert noted["format"] == FORMAT
        found = {path: dict(entries) for path, entries in noted["configs"].items()}
    except PrunusError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError):
        raise PrunusError(
            COPY, str(folder / COPY), "it is damaged; save the model again, or take a copy that is whole"
        ) from None
    if records_of(config) or hasattr(config, SPARSITY):
        return False
    lost, configs = False, configs_of(config)
    for path, entries in found.items():
        for key in {RECORD, SPARSITY} & entries.keys():
            if path in configs and not hasattr(configs[path], key):
                setattr(configs[path], key, entries[key])
                lost = True
    return lost


def teach_saving() -> None:
    """Lets `save_pretrained` describe what has a record, once in a process."""
    save_pretrained = PreTrainedModel.save_pretrained
    if getattr(save_pretrained, "__wrapped__", None) is not None:
        return

    @wraps(save_pretrained)
    def describing_save_pretrained(
        self: PreTrainedModel, save_directory: Any, is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> Any:
        warn_of_gates(self)
        with true_record(self):
            result = save_pretrained(self, save_directory, is_main_process, *args, **kwargs)
            if is_main_process and not getattr(self, "_hf_peft_config_loaded", False) and not is_in_passing():
                _describe_or_clear(Path(save_directory), self)
        return result

    PreTrainedModel.save_pretrained = describing_save_pretrained


def _describe_or_clear(folder: Path, model: PreTrainedModel) -> None:
    if not (folder / "config.json").exists():
        return
    if marks(model) or any(_entries(config) for config in configs_of(model.config).values()):
        _remove_stale_weights(folder)
        describe(folder, model)
        if weight_files(folder):
            write_checksums(folder)
        return
    for file in (COPY, CHECKSUMS):  # of a model that was here before
        (folder / file).unlink(missing_ok=True)
    if _is_ours(folder / CARD):
        if _is_own(type(model)):
            write_text(folder / CARD, card(model))
        else:
            (folder / CARD).unlink(missing_ok=True)


def _remove_stale_weights(folder: Path) -> None:
    """Removes the one weight file of a model that was here before, where shards were saved after it: transformers leaves it,
    and would load it instead of them."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists() and index.exists() and single.stat().st_mtime_ns < index.stat().st_mtime_ns:
        single.unlink()


def _entries(config: PreTrainedConfig) -> dict[str, Any]:
    found = {key: getattr(config, key, None) for key in (RECORD, SPARSITY)}
    return {key: entry for key, entry in found.items() if entry is not None}


def _is_ours(path: Path) -> bool:
    """Whether a file may be written: there is none, or prunus wrote it."""
    try:
        return not path.exists() or MARK in path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


teach_saving()
