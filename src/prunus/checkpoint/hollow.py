"""A model whose weights stay in files, and are in memory while somebody computes with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunus.checkpoint.naming import Group, Parts
from prunus.checkpoint.on_use import OnUse, hollow
from prunus.checkpoint.shards import Shards
from prunus.unstructured import Weights


class Hollow(Weights):
    """Weights that live in files: those of a block for as long as it runs, others from their first use to the next stop.

    Between two stops all batches pass the same modules, so an embedding is read once and gone when the first block runs.

    Args:
        model: of `without_weights`; its parameters get their types and devices, and no memory.
        device: where blocks are run.
    """

    def __init__(self, model: PreTrainedModel, parts: Parts, device: torch.device):
        self.model, self.parts = model, parts
        self._sources: dict[nn.Parameter, tuple[Tensor, Group]] = {}
        """What stood for it on the meta device, and where it comes from."""
        made: dict[int, nn.Parameter] = {}
        for module in model.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None and parameter.is_meta:
                    if id(parameter) not in made:
                        made[id(parameter)] = hollow(parameter, device)
                        self._sources[made[id(parameter)]] = (parameter, parts.of(parameter)[1])
                    setattr(module, name, made[id(parameter)])  # not past it: recurrent layers keep lists of their own
                elif parameter is not None:
                    parameter.data = parameter.data.to(device)
            for name, buffer in list(module._buffers.items()):
                if buffer is not None and buffer.is_meta and parts.knows(buffer):
                    module._buffers[name] = parts.load(buffer, parts.shards).to(device)
                elif buffer is not None and not buffer.is_meta:
                    module._buffers[name] = buffer.to(device)
        self.on_use = OnUse(self._sources, self._fill)
        """While it is entered, parameters are read when somebody computes with them."""

    @contextmanager
    def block(self, path: str) -> Iterator[None]:
        self.on_use.release()
        for parameter in self.model.get_submodule(path).parameters():
            if parameter in self._sources:
                self.on_use.fill(parameter)
        try:
            yield
        finally:
            self.on_use.release()

    def group_of(self, parameter: nn.Parameter) -> Group:
        """The tensors of the files that it is made of."""
        return self._sources[parameter][1]

    def is_hollow(self, parameter: nn.Parameter) -> bool:
        """Whether its memory comes and goes; one that was cut has its own."""
        return parameter in self._sources

    def shards_of(self, group: Group) -> Shards:
        """The files in which they are now."""
        return self.parts.shards

    def _fill(self, parameter: nn.Parameter) -> None:
        meta, group = self._sources[parameter]
        shards, key = self.shards_of(group), next(iter(group.keys))
        if group.converter is None and (shards.places[key].dtype, "cpu") == (parameter.dtype, parameter.device.type):
            shards.read(key, into=parameter)
        else:
            parameter.copy_(self.parts.load(meta, shards))
