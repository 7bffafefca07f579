"""A search whose gates train, in several processes: `torchrun --nproc-per-node 2 -m tests.search_in_two_processes`."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from prunus import Search, Unified, anatomy
from prunus.structured.gates import Gates
from tests.families import build
from tests.test_equivalence import outputs
from tests.two_processes import end_alike

RATE = 0.05


def loss_of(model: torch.nn.Module, rank: int) -> torch.Tensor:
    """Every process has other words."""
    words = torch.randint(10, 40, (2, 7), generator=torch.Generator().manual_seed(rank))
    return sum(tensor.float().square().mean() for tensor in outputs(model(input_ids=words)))  # type: ignore[return-value]


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = build("llama", 4).model
    gates = Gates(model, anatomy(model).units, exact=True)
    for process in range(2):
        (loss_of(model, process) / 2).backward()
    gates.take_gradients()
    mean = {name: gate.grad.clone() for name, gate in gates.values.items() if gate.grad is not None}
    gates.remove()
    model.zero_grad()

    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    search = Search(wrapped, Unified(ratio=0.4, gate_learning_rate=RATE, l1_mlp=0.0), 2, optimizer=optimizer)
    for step in range(2):
        loss_of(wrapped, rank).backward()
        search.step()
        if step == 0:
            for name, gradient in mean.items():
                torch.testing.assert_close(search.gates.values[name].detach(), 1 - RATE * gradient)
        optimizer.step()
        optimizer.zero_grad()
    tensors = [*search.method_state["zeta"].values(), *model.state_dict().values()]
    end_alike(tensors, f"the same gates, {search.plan().ratio:.2f} gone")


if __name__ == "__main__":
    main()
