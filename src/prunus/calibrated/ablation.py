"""What channels that look at each other are worth: what their unit loses without each, one at a time.

A consumer is given nothing of queries and keys, so what it is given says little of a channel that both share with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from prunus.anatomy import Unit
from prunus.calibrated.consumers import Consumer
from prunus.calibrated.listening import listening
from prunus.structured import Gates
from prunus.unstructured import Stop, counted_positions, mask_of_text


def ablated(model: nn.Module, unit: Unit, consumers: Sequence[Consumer], gates: Gates, stop: Stop) -> Tensor:
    """‖W x − W x'‖² / ‖W x‖² of every channel, (channels,): x' is what the consumer is given without it. Of the first batch that uses it."""
    (consumer,) = consumers
    W_RC, tower = consumer.weight(model), mask_of_text(model, unit.tower)
    opened = torch.ones(unit.channels)
    lost = torch.zeros(unit.channels)
    with listening(consumer.layer.owner) as listener:
        for visit in stop.visits:
            whole = listener.run(partial(stop.run, visit))
            if not whole:
                stop.rest(visit)
                continue
            masks = [counted_positions(visit, x, tower) for x in whole]
            energy = sum(float((rows(x, mask) @ W_RC.T).square().sum()) for x, mask in zip(whole, masks, strict=True))
            for channel in range(unit.channels):
                gates.set({unit.name: opened.index_fill(0, torch.tensor([channel]), 0.0)})
                without = listener.run(partial(stop.run, visit), len(whole))
                for x, less, mask in zip(whole, without, masks, strict=True):
                    lost[channel] += float(((rows(x, mask) - rows(less, mask)) @ W_RC.T).square().sum()) / max(
                        energy, 1e-30
                    )
            gates.set({unit.name: opened})
            stop.rest(visit)
            break
    return lost


def rows(x_NTC: Tensor, counted_T: Tensor | None) -> Tensor:
    """The tokens that are no padding, (T, C), fp32."""
    x_TC = x_NTC.reshape(-1, x_NTC.shape[-1]).float()
    return x_TC if counted_T is None else x_TC[counted_T]
