"""Hard negatives of several processes: `torchrun --nproc-per-node 2 -m tests.retrieval_in_two_processes`.

Two processes with half of a batch each have the matching loss and the gradients of one with all of it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.families import IMAGE, VOCABULARY, build
from tests.two_processes import end_alike

PAIRS = 4


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(PAIRS, 7, dtype=torch.long)
    mask[:2, 5:] = 0  # the first process's texts are shorter
    return {
        "input_ids": torch.randint(10, VOCABULARY, (PAIRS, 7), generator=generator),
        "attention_mask": mask,
        "pixel_values": torch.randn(PAIRS, 3, IMAGE, IMAGE, generator=generator),
        "labels": torch.tensor([3, 5, 3, 6]),  # the first and the third text are of one image
    }


def step(given: dict[str, Tensor]) -> tuple[Any, Tensor]:
    """A model after a training step, and its matching loss; negatives are the most similar, not drawn."""
    model: Any = build("blip_retrieval", 3).model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.draw = lambda weights: weights.argmax(1)
    loss = model(**given).itm_loss
    loss.backward()
    return model, loss.detach()


def main() -> None:
    given = batch()
    whole, expected = step(given)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    rows = slice(rank * PAIRS // 2, (rank + 1) * PAIRS // 2)
    own = {name: tensor[rows] for name, tensor in given.items()}
    if rank == 0:
        own |= {name: own[name][:, :5] for name in ("input_ids", "attention_mask")}
    model, loss = step(own)
    dist.all_reduce(loss)
    torch.testing.assert_close(loss / 2, expected)
    for (name, parameter), twin in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert (parameter.grad is None) == (twin.grad is None), name
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            torch.testing.assert_close(parameter.grad / 2, twin.grad, rtol=1e-4, atol=1e-6)
    assert model.queue.ids.tolist() == whole.queue.ids.tolist()
    end_alike([loss, model.queue.texts, model.queue.images], "the same negatives")


if __name__ == "__main__":
    main()
