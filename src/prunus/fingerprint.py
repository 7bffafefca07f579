"""Which data a model was calibrated on, and which model it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import PrunusError, refusing
from prunus.parallel import agreeing, everyones, several

SAMPLES = 64
"""Numbers of each parameter that tell a model from another."""


class Fingerprint:
    """Passes batches on, and counts and hashes what passes."""

    def __init__(self, batches: Iterable[Any]):
        self._batches = batches
        self._hash = hashlib.sha256()
        self._count = 0
        self._sequences = 0
        self.largest = 0
        """Sequences of the largest batch so far."""

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            named = sorted(batch.items()) if isinstance(batch, Mapping) else [("", batch)]
            tensors = [(name, value) for name, value in named if isinstance(value, Tensor) and value.ndim]
            self._count += 1
            size = tensors[0][1].shape[0] if tensors else 0
            self._sequences += size
            self.largest = max(self.largest, size)
            for name, value in tensors:
                self._hash.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
                with refusing("batches", f"batch {self._count - 1}: {name}", "its numbers cannot be read"):
                    data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
                self._hash.update(data)
            yield batch

    @property
    def digest(self) -> str:
        """SHA-256 of the names, shapes, types and bytes of every tensor so far."""
        return self._hash.hexdigest()

    def check_same(self) -> None:
        """Refuses data that are not the same in all processes.

        Raises:
            PrunusError: see above.
        """
        seen = everyones(self.digest)
        if len(set(seen)) > 1:
            raise PrunusError(
                "batches", f"{len(set(seen))} kinds of data", "every process is to be given all of the batches, the same in each, and takes its part "
                "of them; leave out what shares them out, and fix the seed of what is drawn",
            )  # fmt: skip

    def taken(self) -> list[Any]:
        """All of the batches.

        Raises:
            PrunusError: they are not the same in all processes, or one of these cannot be given them.
        """
        with agreeing():
            batches = list(self)
        self.check_same()
        return batches

    def summary(self, **how: Any) -> dict[str, Any]:
        """For the record: how many batches and sequences, their hash, and whatever else is given."""
        return {"batches": self._count, "sequences": self._sequences, "sha256": self.digest, **how}


def digest_of(model: nn.Module) -> str:
    """SHA-256 of a few numbers of every parameter; of those that are not in memory as plain numbers, of names and shapes."""
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        found.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        if type(parameter) is nn.Parameter and not parameter.is_meta:
            flat = parameter.detach().flatten()
            some = flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES].cpu().contiguous()
            found.update(some.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def refuse_other_models(model: nn.Module) -> None:
    """Refuses models that are not the same in all processes.

    Raises:
        PrunusError: see above.
    """
    if several() and len(set(everyones(digest_of(model)))) > 1:
        raise PrunusError(
            "model", type(model).__name__, "every process is to be given the same weights: load the model in each, or fix the seed by which it is made"
        )  # fmt: skip


def taken(batches: Iterable[Any]) -> list[Any]:
    """The batches as a list, which is the same in all processes.

    Raises:
        PrunusError: as `Fingerprint.taken`, or there are none.
    """
    given = Fingerprint(batches).taken() if several() else list(batches)
    if not given:
        raise PrunusError("batches", "none", "at least one calibration batch is needed")
    return given
