"""What is carried out in two processes at once, and what such checks have in common."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from prunus import WalkOptions
from prunus.parallel import barrier, of_first
from tests.families import VOCABULARY

QUIET = WalkOptions(progress=False)
CHECKS: list[Callable[[pytest.MonkeyPatch], None]] = []
MESH: list[Any] = []
FOLDERS: list[Path] = []
"""Of both processes, with what one process alone has left there."""


def check(function: Callable[[pytest.MonkeyPatch], None]) -> Callable[[pytest.MonkeyPatch], None]:
    """Marks what is carried out."""
    CHECKS.append(function)
    return function


def alone(function: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a function returns where there is one process: this one."""
    with monkeypatch.context() as patched:
        patched.setattr(dist, "is_initialized", lambda: False)
        return function()


def words(count: int, items: int = 2) -> list[dict[str, Tensor]]:
    """Batches of text, of different lengths, with padding."""
    generator = torch.Generator().manual_seed(count)
    batches = []
    for number in range(count):
        ids = torch.randint(10, VOCABULARY, (items, 5 + number), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, : number + 1] = 0
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": ids})
    return batches


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A folder of all processes, for the time of the context."""
    with tempfile.TemporaryDirectory() as own:
        yield Path(of_first(own))
        barrier()


def sharded(model: nn.Module) -> nn.Module:
    """Every layer, and the model, under FSDP2."""
    for layer in model.get_submodule("model.layers").children():
        fully_shard(layer, mesh=MESH[0])
    return fully_shard(model, mesh=MESH[0])
