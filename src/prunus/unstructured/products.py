"""Listening to matrix products: which matrix was multiplied with what, told by the weight and not by the module that calls.

So a weight that a module hands to `F.linear` itself, a `Conv1D`, or one expert of a fused parameter is heard like a linear
layer. Shapes: E experts, T tokens, R rows (outputs), C columns (inputs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from prunus.anatomy import Matrix

Found = Callable[[str, Tensor, Tensor | None], None]
"""Is given a matrix's name, its inputs, (…, C), and its outputs, (…, R), where they are listened to."""
Heard = Iterator[tuple[str, Tensor, Callable[[Tensor], Tensor]]]
"""A matrix's name, its inputs, and what makes its outputs of the product."""

BY_LEFT = {torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.__matmul__}
"""Products x·W with W stored as (C, R), or (E, C, R) for all experts at once; or W·xᵀ, as Mamba's time steps are made."""
WITH_SUMMAND = {torch.addmm, torch.baddbmm, Tensor.addmm, Tensor.baddbmm}
"""As above, with a summand before the factors."""


class Products(TorchFunctionMode):
    """While it is entered, tells of every product with one of these matrices.

    Args:
        model: its weights are in memory.
        targets: the matrices.
        found: is told before anything can change the inputs in place.
        outputs: whether outputs are listened to.
    """

    def __init__(self, model: nn.Module, targets: Iterable[Matrix], found: Found, outputs: bool = False):
        super().__init__()
        self._names = {_key(matrix.view(model)): matrix.name for matrix in targets}
        self._found, self._outputs = found, outputs

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        heard = list(self._heard(func, args, kwargs))
        if not self._outputs:
            for name, inputs, _ in heard:
                self._found(name, inputs, None)
        product = func(*args, **(kwargs or {}))
        if self._outputs:
            for name, inputs, of_product in heard:
                self._found(name, inputs, of_product(product))
        return product

    def _heard(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> Heard:
        if func is F.linear:
            inputs, weight = _arguments(args, kwargs, ("input", "weight"))
            yield from self._known(inputs, weight)
        elif func in BY_LEFT:
            inputs, weight = _arguments(args, kwargs, ("input", "other" if func is torch.matmul else "mat2"))
            yield from self._stored_by_column(inputs, weight)
            if isinstance(weight, Tensor) and weight.ndim > 1:
                yield from self._known(weight.transpose(-1, -2), inputs, lambda product: product.transpose(-1, -2))
        elif func in WITH_SUMMAND:
            _, inputs, weight = _arguments(args, kwargs, ("input", "mat1", "mat2"))
            yield from self._stored_by_column(inputs, weight)

    def _known(
        self, inputs: Any, weight_RC: Any, outputs: Callable[[Tensor], Tensor] = lambda product: product
    ) -> Heard:
        if type(weight_RC) in (Tensor, nn.Parameter) and weight_RC.ndim == 2:
            name = self._names.get(_key(weight_RC))
            if name is not None:
                yield name, inputs, outputs

    def _stored_by_column(self, inputs: Any, weight: Any) -> Heard:
        if type(weight) not in (Tensor, nn.Parameter):
            return
        if weight.ndim == 3:
            if isinstance(inputs, Tensor) and inputs.ndim == 3 and _key(weight[0].T) in self._names:
                for number, (x_TC, weight_CR) in enumerate(zip(inputs, weight, strict=True)):
                    yield from self._known(x_TC, weight_CR.T, itemgetter(number))
        elif weight.ndim == 2:
            yield from self._known(inputs, weight.T)


def _key(weight_RC: Tensor) -> tuple[Any, ...]:
    """What makes two views the same weights."""
    return weight_RC.data_ptr(), weight_RC.shape, weight_RC.stride(), weight_RC.dtype


def _arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(args[i] if i < len(args) else (kwargs or {}).get(name) for i, name in enumerate(names))
