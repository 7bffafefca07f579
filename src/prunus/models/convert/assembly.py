"""From a published checkpoint to a folder of `save_pretrained`: every tensor is used, and every parameter filled."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from prunus.anatomy import Attention, anatomy
from prunus.errors import PrunusError, refusing
from prunus.models.convert.file import read_tensors
from prunus.models.convert.published import Published, Shapes, named_family, recognised
from prunus.plan import Plan, write_record
from prunus.storage import vacant_folder, vacant_place
from prunus.structured import narrow

LISTED = 5
"""Names that an error lists of each kind."""


def convert(
    file: str | Path,
    out: str | Path,
    as_: str | None = None,
    *,
    image_size: int | None = None,
    head_width: int | None = None,
) -> PreTrainedModel:
    """Makes a folder that `from_pretrained` loads of a published checkpoint file.

    Narrowed checkpoints of UPop are read as narrowed models: their widths are read off the shapes, and the model computes what
    the published code computes with them. Weights become fp32.

    Args:
        file: `.pth`, `.pt`, `.bin`, TorchScript archive or `.safetensors`. No code in it is run.
        out: the folder to make. One that is there already is not replaced.
        as_: the family, such as `blip_vqa`. Default: told from the names in the file.
        image_size: side of the images in pixels; positions are interpolated. Default: that of the file.
        head_width: of an attention head, which no shape tells. Default: that of the published models, 64, and 88 of EVA's.

    Returns:
        The model that was saved.

    Raises:
        PrunusError: the file cannot be read, is of no family or of another one, or the folder is there.
    """
    folder = vacant_place(out, "out")
    family, tensors = _read(file, as_)
    model = assembled(family, tensors, str(file), image_size, head_width)
    with vacant_folder(folder, "out") as partial:
        model.save_pretrained(partial)
        size = getattr(getattr(model.config, "vision_config", model.config), "image_size", None)
        if size is not None:
            family.image_processor(size).save_pretrained(partial)
    return model


def published_skeleton(
    file: str | Path, as_: str | None = None, *, image_size: int | None = None, head_width: int | None = None
) -> PreTrainedModel:
    """What `convert` makes, without weights, on the meta device.

    Raises:
        PrunusError: see there.
    """
    family, tensors = _read(file, as_)
    return _arranged(family, tensors, str(file), image_size, head_width)[0]


def _read(file: str | Path, as_: str | None) -> tuple[Published, dict[str, Tensor]]:
    tensors = read_tensors(file)
    return recognised(shapes_of(tensors), str(file)) if as_ is None else named_family(as_), tensors


def assembled(
    family: Published,
    tensors: Mapping[str, Tensor],
    file: str = "state dict",
    image_size: int | None = None,
    head_width: int | None = None,
) -> PreTrainedModel:
    """The family's model with these published tensors as its weights, in evaluation mode.

    Raises:
        PrunusError: it lists what is left over, missing or misshapen.
    """
    bare, ours = _arranged(family, dict(tensors), file, image_size, head_width)
    with no_init_weights():
        model = type(bare)(bare.config)
    expected = model.state_dict()
    used: set[int] = set()
    weights = {name: _own(ours[name], expected[name].dtype, used) for name in expected if name in ours}
    for first, *others in _tied(bare):
        given = [name for name in (first, *others) if name in weights]
        if any(not torch.equal(weights[given[0]], weights[name]) for name in given[1:]):
            raise PrunusError("file", file, f"{' and '.join(given)} are one parameter in {family.name}, and differ")
        weights |= dict.fromkeys((first, *others), weights[given[0]])
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return model.eval()


def consumed(family: Published, shapes: Shapes, head_width: int | None = None) -> PreTrainedModel:
    """As `assembled`, from names and shapes alone: a model on the meta device.

    Raises:
        PrunusError: see there.
    """
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return _arranged(family, tensors, "shapes", None, head_width)[0]


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Published name → shape."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _arranged(
    family: Published, tensors: dict[str, Tensor], file: str, image_size: int | None, head_width: int | None
) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """(the model on the meta device, narrow as the tensors are; our name → tensor)."""
    if head_width is not None and head_width < 1:
        raise PrunusError("head_width", head_width, "it must be at least 1; the published models have 64")
    wrong = f"it is no checkpoint of {family.name}, or a damaged one"
    with refusing("file", file, wrong):
        tensors = family.prepare(tensors)
        if image_size is not None:
            tensors = family.resized(tensors, image_size)
        try:
            with torch.device("meta"):
                model = family.build(shapes_of(tensors), head_width or family.head_width)
        except KeyError as error:
            raise PrunusError("file", file, f"{wrong}; missing: {error.args[0]}") from None
        model.tie_weights()
        ours, left_over = family.renamed(tensors)
    _narrow(family, model, ours)
    expected = model.state_dict()
    reachable = {name for names in _tied(model) for name in names if any(other in ours for other in names)}
    problems = {
        "left over": left_over + [name for name in ours if name not in expected],
        "missing": [name for name in expected if name not in ours and name not in reachable],
        "misshapen": [
            f"{name} {tuple(ours[name].shape)} where {tuple(tensor.shape)} belongs"
            for name, tensor in expected.items()
            if name in ours and ours[name].shape != tensor.shape
        ],
    }
    told = [f"{kind}: {_listed(names)}" for kind, names in problems.items() if names]
    if told:
        raise PrunusError("file", file, f"{wrong}; {'; '.join(told)}")
    return model, ours


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _own(tensor: Tensor, dtype: torch.dtype, used: set[int]) -> Tensor:
    """The tensor by itself, of a type, sharing memory with no other.

    Args:
        used: where the memory of others lies; that of this one is added.
    """
    storage = tensor.untyped_storage()
    is_shared = storage.nbytes() != tensor.numel() * tensor.element_size() or storage.data_ptr() in used
    used.add(storage.data_ptr())
    return tensor.detach().to(dtype, copy=is_shared).contiguous()


def _tied(model: PreTrainedModel) -> list[list[str]]:
    """Names of one and the same parameter."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _narrow(family: Published, model: PreTrainedModel, ours: dict[str, Tensor]) -> None:
    """Narrows a dense model to the widths of the tensors, where these are a narrowed model's.

    Which channels stayed no shape tells; the record names the first.
    """
    parts, masks = anatomy(model), {}
    for unit in parts:
        weight = ours.get(f"{unit.path}.{unit.consumer.linear}.weight")
        width = unit.channels
        if weight is not None and weight.ndim == 2:
            width = min(unit.channels, max(1, weight.shape[1] // (unit.consumer.repeats * unit.span)))
        masks[unit.name] = torch.arange(unit.channels, device="cpu") < width
    if all(bool(mask.all()) for mask in masks.values()):
        return
    plan = Plan.from_masks(parts, masks, {"method": "published"})
    narrow(model, parts, plan)
    write_record(model, plan)
    for unit in parts:
        layout = unit.layout
        if isinstance(layout, Attention) and re.fullmatch(family.scale_follows_width, unit.name):
            share = int(masks[unit.name].sum()) / unit.channels
            if not layout.scale_follows_width and share < 1:
                for path in (unit.path, *unit.mirrors):
                    for kind in ("weight", "bias"):
                        name = f"{path}.{layout.query}.{kind}"
                        if name in ours:
                            ours[name] = ours[name] / math.sqrt(share)
