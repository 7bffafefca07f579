"""Narrowed models: `extract`, and what makes every transformers model narrow itself when it is built.

A saved model is a plain transformers checkpoint. Its configs carry a record (`prunus.plan.record`), and importing prunus
lets every part apply its own record at the end of its construction, before anybody looks at its shapes: base models, heads,
towers, quantisers, device maps and `from_config` all meet a narrow model.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from prunus.anatomy import Anatomy, anatomy, has_module, module_of, survey, weight_of
from prunus.checkpoint.checksums import weight_files
from prunus.checkpoint.naming import keys_in_files
from prunus.errors import PrunusError
from prunus.extensions import load_own
from prunus.plan import (
    RECORD,
    DensePart,
    Narrowing,
    Plan,
    SparsityPlan,
    UnitPlan,
    mark,
    marks,
    plan_of,
    recorded,
    records_of,
    write_record,
)
from prunus.refusals import refuse_unusable, unwrapped
from prunus.structured import fold_gates, narrow, remove_gates, retire
from prunus.unstructured import RECORD as SPARSITY
from prunus.unstructured import UNSTRUCTURED, parse_pattern, sparsity_of

Model = TypeVar("Model", bound=nn.Module)


def extract(model: Model, plan: Plan, inplace: bool = False, parts: Anatomy | None = None) -> Model:
    """The physically smaller model that computes what the masked one does.

    Args:
        model: the model that was searched, with or without its gates: those that are on it become part of the weights. A
            `torch.compile`, `DistributedDataParallel` or `DataParallel` around it is taken off.
        plan: `Search.plan()`, or any plan for this model. A model that was extracted before is narrowed further; one that
            the plan was applied to already, or that was built from the config of such a model, stays as it is.
        inplace: narrow `model` itself, which saves the memory of a copy. An optimiser over its old weights is refused at
            its next step.
        parts: the anatomy that the plan is about, where its channels are others than those that `anatomy` gives.

    Returns:
        A model of the same class. Every transformers model in it keeps its part of the plan in its config, so that
        `save_pretrained` and the stock `from_pretrained` of any class that loads the dense folder round-trip it, in any
        process that imported prunus.

    Raises:
        PrunusError: the plan was made for another model; or its weights are absent, quantised or sharded.
    """
    inner = unwrapped(model)
    if inplace and inner is not model:
        raise PrunusError("inplace", type(model).__name__, "take the wrapper off before its model is narrowed in place")
    for name in plan.units:
        path = module_of(inner, name)
        if path is not None:
            refuse_unusable(inner, path)
    parts, before = parts or anatomy(inner, plan.mirrors or None), plan_of(inner)
    applied = before is not None and plan.units.items() <= before.units.items() and not _fits(plan, parts)
    if not applied:
        plan.check(parts)
    zeros = sparsity_of(inner)
    leaving = [name for name in plan.units if not applied and parts[name].sliced]
    if zeros is not None and leaving:
        raise PrunusError(
            "plan",
            leaving[0],
            "the model was pruned, and its record names experts by number; drop whole experts first, and prune afterwards",
        )
    small: Model = inner if inplace else copy.deepcopy(inner)  # type: ignore[assignment]
    fold_gates(small)
    remove_gates(small)
    if not applied:
        before_narrowing = list(small.parameters()) if inplace else []
        narrow(small, parts, plan)
        stay = {id(parameter) for parameter in small.parameters()}
        retire(parameter for parameter in before_narrowing if id(parameter) not in stay)
        write_record(small, plan if before is None else plan.after(before))
        if zeros is not None:
            _count_zeros_again(small, zeros)
    return small


def _count_zeros_again(model: nn.Module, record: SparsityPlan) -> None:
    """Makes the record of zeros say what the narrow weights say: their sizes, their zeros, and n:m only where it is left."""
    pattern, found = parse_pattern(record.pattern), survey(model)
    counted, holds = {}, True
    for name, known in record.matrices.items():
        zeros = weight_of(model, name) == 0
        rows, columns = zeros.shape
        about = {"rows": rows, "columns": columns, "pruned": int(zeros.sum()), "asked": None}
        is_cut = (known.rows, known.columns) != (rows, columns)
        counted[name] = known.model_copy(update=about) if is_cut else known
        holds = holds and (pattern is None or pattern.holds(zeros))
    sizes = {part.name: part.weights for part in found.left_dense}
    left_dense = {
        name: DensePart(weights=sizes.get(name, p.weights), reason=p.reason) for name, p in record.left_dense.items()
    }
    updated = record.model_copy(update={
        "matrices": counted, "pattern": record.pattern if holds else UNSTRUCTURED, "left_dense": left_dense,
        "block_weights": found.weights if record.block_weights else 0,
    })  # fmt: skip
    setattr(model.config, SPARSITY, updated.model_dump(mode="json"))


def _fits(plan: Plan, parts: Anatomy) -> bool:
    try:
        plan.check(parts)
    except PrunusError:
        return False
    return True


def narrow_as_recorded(part: PreTrainedModel) -> None:
    """Narrows a part that was just built by what its config says of it. Names of other classes are passed over.

    Raises:
        PrunusError: the record is damaged, or is for other widths than the config builds.
    """
    record = recorded(part)
    if isinstance(record, Plan):
        _narrow_as_0_1_did(part, record)
    elif record is not None:
        _narrow_part(part, record)


def _narrow_part(part: PreTrainedModel, record: Narrowing) -> None:
    done = {path + suffix for path, suffix in marks(part)}  # by a part inside of it
    planned = {
        name: unit
        for name, unit in {**record.copies, **record.units}.items()
        if name not in done and module_of(part, name) is not None
    }
    if not planned:
        return
    copies = (
        record.copies.keys() - record.units.keys()
    )  # what is both is said by the whole, which knows its momentum copies
    parts = anatomy(part, {})  # copies are recorded by themselves
    known = parts.by_name
    followers = {twin + unit.name.removeprefix(unit.path) for unit in known.values() for twin in unit.twins}
    wide: dict[str, UnitPlan] = {}
    for name, unit in planned.items():
        where = f"config.{RECORD}.units[{name}]"
        if name in followers or (name not in known and not has_module(part, name)):
            continue  # a unit of another class, whose module has the same path
        if name not in known:
            raise PrunusError(
                where, unit.channels, f"this {parts.model} has such a module, but nothing in it that can be narrowed; "
                "the folder was saved with another release of transformers, or its config was changed",
            )  # fmt: skip
        if known[name].channels == unit.channels:
            wide[name] = unit
        elif known[name].channels == len(unit.kept):
            mark(part.get_submodule(known[name].path), name.removeprefix(known[name].path), unit, name in copies)
        else:
            raise PrunusError(
                where, unit.channels, f"the config builds a {parts.model} in which the unit has {known[name].channels} channels; "
                f"leave the sizes as they were saved, or delete the entry {RECORD} to build a dense model",
            )  # fmt: skip
    narrow(part, parts, Plan(model=parts.model, ratio=0, units=wide), copies)


def _narrow_as_0_1_did(part: PreTrainedModel, plan: Plan) -> None:
    """Version 0.1 wrote one plan, for the saved class, into the outermost config; parts inside of it pass it over."""
    if any(module_of(part, name) is None for name in plan.units) or not all(has_module(part, m) for m in plan.mirrors):
        return
    parts = anatomy(part, plan.mirrors)
    if _fits(plan, parts):
        narrow(part, parts, plan)
        delattr(part.config, RECORD)
        write_record(part, plan)


def explain(error: Exception, cls: type[PreTrainedModel], folder: Path) -> None:
    """Says what is wrong with a narrowed checkpoint that did not load; silent where that is not known.

    Raises:
        PrunusError: naming the file that is damaged, the tensor that does not fit, or the class that fits.
    """
    config = cls.config_class.from_pretrained(folder)
    if not records_of(config):
        return
    with torch.device("meta"):
        model = cls(config)
    plan = recorded(model)
    if isinstance(plan, Plan):
        raise PrunusError(
            "model",
            str(folder),
            f"prunus 0.1 saved it as {plan.model}, and as that it loads; save it again for other classes",
        ) from error
    for file in weight_files(folder):
        check_file(file, model)


def check_file(path: Path, model: PreTrainedModel) -> None:
    """Names a damaged weight file, or a tensor that does not fit the plan.

    Raises:
        PrunusError: there is one.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise PrunusError("weights", str(path), f"the file is damaged ({error}); save the model again") from None
    expected = model.state_dict()
    for name, key in keys_in_files(model, found).items():
        wanted = tuple(expected[name].shape)
        if found[key] != wanted:
            raise PrunusError(
                "weights", str(path), f"shape mismatch: {key} is {found[key]}, the plan asks for {wanted}"
            )


def teach_transformers() -> None:
    """Lets transformers' own constructors and loaders know of narrowed models, and of our own, once in a process."""
    if getattr(PreTrainedModel.post_init, "__wrapped__", None) is not None:
        return
    post_init = PreTrainedModel.post_init
    from_pretrained = PreTrainedModel.from_pretrained.__func__
    from_dict = PreTrainedConfig.from_dict.__func__
    get_config_dict = PreTrainedConfig.get_config_dict.__func__

    @wraps(post_init)
    def narrowing_post_init(self: PreTrainedModel) -> None:
        post_init(self)
        narrow_as_recorded(self)

    @wraps(from_pretrained)
    def explaining_from_pretrained(cls: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return from_pretrained(cls, path, *args, **kwargs)
        except PrunusError:
            raise
        except Exception as error:
            folder = Path(path, kwargs.get("subfolder", "")) if isinstance(path, str | os.PathLike) else None
            if folder is not None and (folder / "config.json").exists() and cls.config_class is not None:
                explain(error, cls, folder)
            raise

    @wraps(from_dict)
    def reading_from_dict(cls: Any, /, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        quantiser = config_dict.get("quantization_config")
        if isinstance(quantiser, Mapping) and quantiser.get("quant_method") == "prunus":  # as version 0.1 wrote it
            config_dict = {**config_dict, RECORD: quantiser.get("plan")}
            del config_dict["quantization_config"]
        return from_dict(cls, config_dict, **kwargs)

    @wraps(get_config_dict)
    def registering_get_config_dict(cls: Any, *args: Any, **kwargs: Any) -> Any:
        found = get_config_dict(cls, *args, **kwargs)
        kind = found[0].get("model_type")
        if isinstance(kind, str) and kind not in CONFIG_MAPPING and "auto_map" not in found[0]:
            load_own()  # whose names transformers may not have heard yet
        return found

    PreTrainedModel.post_init = narrowing_post_init
    PreTrainedModel.from_pretrained = classmethod(explaining_from_pretrained)
    PreTrainedConfig.from_dict = classmethod(reading_from_dict)
    PreTrainedConfig.get_config_dict = classmethod(registering_get_config_dict)


teach_transformers()
