"""A repair of somebody's own: only what is no matrix trains, norms and biases."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import nn

from prunus import Matrix, PrunusError
from prunus.repair import Repair


class Vectors(Repair):
    """Trains all parameters of one dimension; so no zero of a matrix can be lost."""

    method: Literal["vectors"] = "vectors"
    biases: bool = True
    """Off: weights of norms alone."""

    def check(self, candidates: Sequence[Matrix], pruned: Collection[str]) -> None:
        if not pruned:
            raise PrunusError("method", self.method, "nothing is pruned")

    @contextmanager
    def around(self, model: nn.Module, *rest: Any) -> Iterator[Any]:
        frozen = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and (parameter.ndim > 1 or not (self.biases or name.endswith("weight")))
        ]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            with super().around(model, *rest) as teacher:
                yield teacher
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
