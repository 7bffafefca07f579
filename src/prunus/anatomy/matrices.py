"""The linear weights inside transformer blocks: what unstructured pruning chooses from."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from prunus.anatomy.catalog import OPAQUE
from prunus.anatomy.discover import anatomy, block_of, is_inside, tower_of
from prunus.errors import PrunusError

CONNECTOR = "connector"
"""The tower that is left alone unless it is asked for."""


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
    tower: str
    rows: int
    columns: int

    @property
    def weights(self) -> int:
        return self.rows * self.columns


def matrices(model: nn.Module, mirrors: Mapping[str, str] | None = None, any_type: bool = False) -> tuple[Matrix, ...]:
    """Every linear weight inside the transformer blocks of a model, in the model's order, on any device.

    A block is an element of a module list in which some element holds a unit of the anatomy, or a part that the
    anatomy leaves dense. Weights that several modules share count once, under their first name. Embeddings, heads,
    projections between towers, norms and biases are never among them. Quantised ones are only with `any_type`.
    """
    parts = anatomy(model, mirrors)
    blocks = {unit.block for unit in parts} | {block_of(model, part.path) for part in parts.unmapped}
    lists = {path.rpartition(".")[0] for path in blocks if isinstance(_parent(model, path), nn.ModuleList)}
    found: list[Matrix] = []
    seen: set[int] = set()
    for path, module in model.named_modules():
        block = block_of(model, path)
        if block.rpartition(".")[0] not in lists or not _prunable(model, path, module, parts.mirrors, any_type):
            continue
        assert isinstance(module, nn.Linear)
        if id(module.weight) in seen:
            continue
        seen.add(id(module.weight))
        tower, (rows, columns) = tower_of(model, path), (module.out_features, module.in_features)
        found.append(
            Matrix(name=path, parameter=f"{path}.weight", block=block, tower=tower, rows=rows, columns=columns)
        )
    return tuple(found)


def place_of(model: nn.Module, name: str) -> Place:
    """Where the matrix of that name lies.

    Raises:
        AttributeError: the model has no such layer.
    """
    model.get_parameter(f"{name}.weight")
    return Place(parameter=f"{name}.weight")


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


def sharing(model: nn.Module, name: str) -> list[nn.Linear]:
    """The linear layers that compute with this weight: the one of that path first, and others whose weight is the same."""
    first = model.get_submodule(name)
    assert isinstance(first, nn.Linear)
    others = [m for m in model.modules() if isinstance(m, nn.Linear) and m.weight is first.weight and m is not first]
    return [first, *others]


def choose(
    candidates: Sequence[Matrix],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> tuple[Matrix, ...]:
    """The matrices that are to be pruned.

    Args:
        candidates: of one model.
        include: shell globs over module paths and towers; empty takes everything but the connector.
        exclude: globs that take away again.

    Raises:
        PrunusError: a pattern matches nothing, or nothing is left.
    """
    if not candidates:
        raise PrunusError(
            "model", "no matrices", "it has no transformer block that prunus knows; `prunus inspect` says why"
        )
    for field, patterns in (("include", include), ("exclude", exclude)):
        if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns):
            raise PrunusError(field, patterns, "give a list of globs, such as ['*.mlp.*', 'vision']")
        for pattern in patterns:
            if not any(_matches(matrix, [pattern]) for matrix in candidates):
                towers = ", ".join(dict.fromkeys(matrix.tower for matrix in candidates))
                raise PrunusError(
                    field, pattern, f"it matches no matrix; write paths as {candidates[0].name}, or a tower: {towers}"
                )
    chosen = tuple(
        matrix
        for matrix in candidates
        if (_matches(matrix, include) if include else matrix.tower != CONNECTOR) and not _matches(matrix, exclude)
    )
    if not chosen:
        raise PrunusError("exclude", list(exclude), "it leaves no matrix to prune; remove a pattern")
    return chosen


def _matches(matrix: Matrix, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(label, pattern) for pattern in patterns for label in (matrix.name, matrix.tower))


def _parent(model: nn.Module, path: str) -> nn.Module:
    return model.get_submodule(path.rpartition(".")[0])


def _prunable(model: nn.Module, path: str, module: nn.Module, mirrors: Mapping[str, str], any_type: bool) -> bool:
    if not isinstance(module, nn.Linear):
        return False
    if not any_type and (module.weight.ndim != 2 or not module.weight.is_floating_point()):
        return False
    return type(_parent(model, path)).__name__ not in OPAQUE and not is_inside(path, mirrors)
