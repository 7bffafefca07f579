"""The weights inside transformer blocks: which of them unstructured pruning chooses from, and why others stay dense."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from transformers.pytorch_utils import Conv1D

from prunus.anatomy.catalog import EXPERTS, FUSED_EXPERTS, OPAQUE, entry
from prunus.anatomy.discover import anatomy
from prunus.anatomy.mirrors import is_inside
from prunus.anatomy.routers import ROUTER, is_router
from prunus.anatomy.towers import Location, locate, select
from prunus.anatomy.units import Anatomy
from prunus.errors import PrunusError
from prunus.refusals import packed


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a matrix lies: in a parameter, which may hold several, as it is or transposed."""

    parameter: str
    """Qualified name of the parameter."""
    index: int | None = None
    """Which slice of a fused parameter, (experts, rows, columns); None is all of it."""
    transposed: bool = False
    """Whether it is stored as (columns, rows)."""

    def part(self, tensor: Tensor) -> Tensor:
        """The matrix, (rows, columns), within a tensor of the parameter's shape, such as its gradient: a view."""
        part = tensor if self.index is None else tensor[self.index]
        return part.T if self.transposed else part

    def view(self, model: nn.Module) -> Tensor:
        """The weight, (rows, columns), without its history; what is written into it is written into the model."""
        return self.part(model.get_parameter(self.parameter).detach())


@dataclass(frozen=True, kw_only=True)
class Matrix(Place):
    """One weight that maps inputs to outputs inside a transformer block, (rows, columns) = (outputs, inputs)."""

    name: str
    """Path of the linear layer, or name of the parameter, with its index: `layers.0.mlp.experts.down_proj[3]`."""
    block: str
    """Path of the transformer layer it lies in."""
    tower: str
    """The part of the model that processes one modality."""
    rows: int
    """Outputs."""
    columns: int
    """Inputs."""
    component: str = ""
    """Tower and kind: that of the unit it belongs to (`vision.attention`), else `….experts` or `….other`."""

    @property
    def labels(self) -> tuple[str, ...]:
        """What selectors are held against, from the widest to the narrowest."""
        return self.tower, self.component, self.block, self.parameter, self.name

    @property
    def weights(self) -> int:
        """How many there are."""
        return self.rows * self.columns

    @property
    def is_expert(self) -> bool:
        """Whether a router decides which tokens it sees."""
        return EXPERTS in self.name.replace("[", ".").split(".") or self.index is not None


@dataclass(frozen=True)
class LeftDense:
    """A weight inside the blocks that is no candidate, and why."""

    name: str
    weights: int
    reason: str


@dataclass(frozen=True)
class Survey:
    """Every weight of two or more dimensions inside the transformer blocks of a model."""

    matrices: tuple[Matrix, ...]
    left_dense: tuple[LeftDense, ...]

    @property
    def weights(self) -> int:
        """Of all of them together."""
        return sum(m.weights for m in self.matrices) + sum(part.weights for part in self.left_dense)


def matrices(model: nn.Module, mirrors: Mapping[str, str] | None = None, any_type: bool = False) -> tuple[Matrix, ...]:
    """Every weight inside the transformer blocks of a model that can be pruned, in the model's order, on any device.

    These are linear layers, `Conv1D` layers and the single experts of fused parameters. `survey` also says what else there is
    and why it is no candidate. Weights that several modules share count once, under their first name. Quantised ones are
    only among them with `any_type`.

    Args:
        model: any module.
        mirrors: momentum copies, as in `anatomy`; they are left out.
        any_type: list weights of types that nobody can prune, too.
    """
    return survey(model, mirrors, any_type).matrices


def survey(
    model: nn.Module, mirrors: Mapping[str, str] | None = None, any_type: bool = False, parts: Anatomy | None = None
) -> Survey:
    """The weights inside the transformer blocks of a model: candidates, and what is left dense, each with its reason.

    A block is an element of a module list in which some element holds a unit of the anatomy, or a part that the
    anatomy leaves dense. Embeddings, heads, projections between towers, norms and biases are outside of all this.

    Args:
        parts: the model's anatomy, where it has been read already.
    """
    parts = anatomy(model, mirrors) if parts is None else parts
    places = locate(model)
    blocks = {unit.block for unit in parts} | {places[part.path].block for part in parts.unmapped}
    lists = {path.rpartition(".")[0] for path in blocks if isinstance(_parent(model, path), nn.ModuleList)}
    components = {path: unit.component for unit in parts for path in unit.linear_paths}
    found: list[Matrix] = []
    dense: dict[str, LeftDense] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        place = places[path]
        if place.block.rpartition(".")[0] not in lists or is_inside(path, parts.mirrors):
            continue
        for local, parameter in module._parameters.items():
            if parameter is None or id(parameter) in seen or not _is_weight(module, local, parameter):
                continue
            seen.add(id(parameter))
            reason = _why_dense(model, path, module, local, parameter, any_type)
            if reason is None:
                known = components.get(path) or components.get(f"{path}.{local}", "")
                found += _held(path, module, local, parameter, place, known)
            else:
                name = path if isinstance(module, nn.Linear | Conv1D) else f"{path}.{local}"
                before = dense[name].weights if name in dense else 0
                dense[name] = LeftDense(name, before + parameter.numel(), reason)
    return Survey(tuple(found), tuple(dense.values()))


def _is_weight(module: nn.Module, local: str, parameter: Tensor) -> bool:
    if isinstance(module, nn.Linear):
        return local != "bias"
    return (
        sum(size > 1 for size in parameter.shape) >= 2 and "bias" not in local and "Norm" not in type(module).__name__
    )


def _held(
    path: str, module: nn.Module, local: str, parameter: Tensor, place: Location, component: str
) -> Iterator[Matrix]:
    """The matrices that a parameter holds."""
    where = f"{path}.{local}"
    transposed = not isinstance(module, nn.Linear) and bool(_transposed(module, parameter))
    fused = parameter.ndim == 3 and not isinstance(module, nn.Linear | Conv1D)
    rows, columns = parameter.shape[:-3:-1] if transposed else parameter.shape[-2:]
    if isinstance(module, nn.Linear):
        rows, columns = module.out_features, module.in_features
    for index in range(parameter.shape[0]) if fused else [None]:
        name = path if index is None else f"{where}[{index}]"
        matrix = Matrix(
            name=name, parameter=where, index=index, transposed=transposed, tower=place.tower, block=place.block, rows=rows,
            columns=columns,
        )  # fmt: skip
        kind = "experts" if matrix.is_expert else "other"
        yield replace(matrix, component=component or f"{place.tower}.{kind}")


def _transposed(module: nn.Module, parameter: Tensor) -> bool | None:
    """Whether a layer stores its matrices as (inputs, outputs); None where it is not known what it stores."""
    if isinstance(module, Conv1D):
        return True
    if parameter.ndim != 3:
        return None
    if isinstance(getattr(module, "is_transposed", None), bool):  # transformers says it of its experts
        return bool(module.is_transposed)
    return entry(FUSED_EXPERTS, module)


def _why_dense(
    model: nn.Module, path: str, module: nn.Module, local: str, parameter: Tensor, any_type: bool
) -> str | None:
    """Why a weight is no candidate; None where it is one."""
    parents = _ancestors(model, path)
    is_layer = isinstance(module, nn.Linear | Conv1D)
    reason = _why_part_is_dense(module, parents)
    if reason is None and is_layer and local != "weight":
        reason = REPARAMETRISED
    if reason is None and not (any_type and is_layer):
        reason = packed(parameter)
    if reason is None and not is_layer and _transposed(module, parameter) is None:
        kind = type(module).__name__
        if isinstance(module, nn.Embedding | nn.modules.conv._ConvNd):
            return f"{NO_MAP} ({kind})"
        return f"parameter of {kind}: no layout in the catalog names it"
    return reason


def _why_part_is_dense(module: nn.Module, parents: Sequence[tuple[nn.Module, str]]) -> str | None:
    around = [module, *(parent for parent, _ in reversed(parents))]
    if any(hasattr(parent, "adapter_layer_names") and below != "base_layer" for parent, below in parents):
        return ADAPTER
    if any(isinstance(one, ParametrizationList) for one in around):
        return REPARAMETRISED
    opaque = next(filter(None, (entry(OPAQUE, one) for one in around[:2])), None)
    if opaque is None and is_router(module, parents):
        return ROUTER
    return opaque


ADAPTER = "adapter: merge it into the weights first (merge_and_unload)"
REPARAMETRISED = "reparametrised (torch.nn.utils): make the weight permanent first"
NO_MAP = "no linear map"
MEANT_DENSE = (NO_MAP, ROUTER)
"""How the reasons begin for which nobody expects a weight to be pruned."""


def _ancestors(model: nn.Module, path: str) -> list[tuple[nn.Module, str]]:
    """The modules around a path, the model first, each with the component of the path that follows it."""
    parts, around = path.split("."), []
    module = model
    for part in parts:
        around.append((module, part))
        module = module.get_submodule(part)
    return around


def place_of(model: nn.Module, name: str) -> Place:
    """Where the matrix of that name lies.

    Raises:
        AttributeError: the model has no such layer.
    """
    fused = re.fullmatch(r"(.+)\[(\d+)\]", name)
    parameter = fused[1] if fused else f"{name}.weight"
    owner = model.get_submodule(parameter.rpartition(".")[0])
    transposed = bool(_transposed(owner, model.get_parameter(parameter)))
    return Place(parameter=parameter, index=int(fused[2]) if fused else None, transposed=transposed)


def weight_of(model: nn.Module, name: str) -> Tensor:
    """The weight of a matrix by its name, (rows, columns); what is written into it is written into the model.

    Raises:
        AttributeError: the model has no such layer.
    """
    return place_of(model, name).view(model)


def by_block(chosen: Sequence[Matrix]) -> dict[str, list[Matrix]]:
    """Block → its matrices, both in the order given."""
    blocks: dict[str, list[Matrix]] = {}
    for matrix in chosen:
        blocks.setdefault(matrix.block, []).append(matrix)
    return blocks


def by_parameter(chosen: Iterable[Matrix]) -> dict[str, list[Matrix]]:
    """Parameter → the matrices that it holds."""
    parameters: dict[str, list[Matrix]] = {}
    for matrix in chosen:
        parameters.setdefault(matrix.parameter, []).append(matrix)
    return parameters


def sharing(model: nn.Module, matrix: Matrix) -> list[nn.Module]:
    """The layers that compute with this weight, its own first; none for an expert of a fused parameter."""
    if matrix.index is not None:
        return []
    first = model.get_submodule(matrix.name)
    weight = first.get_parameter("weight")
    others = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m.weight is weight and m is not first]
    return [first, *others]


def choose(
    candidates: Sequence[Matrix],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    named: Collection[str] = (),
) -> tuple[Matrix, ...]:
    """The matrices that are to be pruned.

    Args:
        candidates: of one model.
        include: selectors: shell globs over names, blocks, towers and components. Empty is `*`: everything but connectors.
        exclude: selectors that take away again.
        named: towers that have a sparsity of their own; a connector among them is asked for.

    Raises:
        PrunusError: a pattern matches nothing, or nothing is left.
    """
    if not candidates:
        raise PrunusError(
            "model", "no matrices", "it has no transformer block that prunus knows; `prunus inspect` says why"
        )
    return select(candidates, include, exclude, "matrix", named)


def _parent(model: nn.Module, path: str) -> nn.Module:
    return model.get_submodule(path.rpartition(".")[0])
