"""Repairs a pruned LLaMA in several processes: `torchrun --nproc-per-node 2 -m tests.two_processes FOLDER METHOD`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import TensorDataset

from prunus import RESSA, MaskedFinetune, Training, repair
from prunus.repair.masks import check_zeros, zeros_of
from tests.test_repair import pruned


def end_alike(tensors: Iterable[torch.Tensor], found: str) -> None:
    """Ends a process that has the same tensors as the first one, and says so."""
    for value in tensors:
        theirs = value.clone()
        dist.broadcast(theirs, 0)
        assert torch.equal(theirs, value), "processes disagree"
    print(f"rank {dist.get_rank()}: {found}", flush=True)
    dist.barrier()
    os._exit(0)  # without teardown: destroying the group waits now and then for ever, leaving it whole may abort


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    dense, model, _ = pruned("llama", seed=4)
    masks = zeros_of(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ids = torch.randint(10, 40, (16, 7), generator=torch.Generator().manual_seed(0))
    training = Training(steps=3, batch_size=2, gradient_accumulation=2, learning_rate=1e-2, weight_decay=0.1, bf16=True)
    method = RESSA(rank=2) if name == "ressa" else MaskedFinetune()
    repair(
        model,
        method,
        TensorDataset(ids),
        training,
        dense,
        collate=lambda rows: {"input_ids": torch.stack([row[0] for row in rows])},
        folder=folder,
    )
    assert dist.get_world_size() == 2
    check_zeros(model, masks)
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
    end_alike(model.state_dict().values(), "the same weights, every zero kept")


if __name__ == "__main__":
    main()
