"""What the published code computed, to hold a model of ours against that a converter filled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from prunus import Plan, anatomy
from prunus.models.convert import assembled, families
from prunus.structured.gates import Gates
from prunus.structured.scores import gate_gradient
from tests.shared import golden

OUTPUTS, GRADIENTS = 1e-4, 1e-3
"""The largest difference that counts as none, relative to the largest value."""


class Fixture:
    """A published model at a tiny size.

    Args:
        name: of its files.
        head_width: of its attentions.
        masked: regular expression for the published name of a mask → that of the weight that reads what it masks.
        family: that converts it; default: the one called as its files are.
    """

    def __init__(self, name: str, head_width: int, masked: Mapping[str, str], family: str | None = None):
        self.name, self.head_width, self.masked, self.family = name, head_width, masked, families()[family or name]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(golden(f"models/{self.name}.safetensors"))

    def section(self, name: str) -> dict[str, Tensor]:
        """Its tensors without the section's name."""
        found = {
            key.removeprefix(f"{name}/"): value for key, value in self.tensors.items() if key.startswith(f"{name}/")
        }
        assert found, name
        return found

    def model(self, **changed: Tensor) -> Any:
        """Ours, with some published tensors replaced."""
        published = {name: tensor.clone() for name, tensor in (self.section("sd") | changed).items()}
        return assembled(self.family, published, head_width=self.head_width)

    def gates(self, model: nn.Module, section: str) -> dict[str, Tensor]:
        """Unit → the values of its mask, or of what the section has of it."""
        readers = {f"{unit.path}.{unit.consumer.linear}.weight": unit.name for unit in anatomy(model)}
        gates = {}
        for name, values in self.section(section).items():
            weight = next(
                match.expand(reader) for mask, reader in self.masked.items() if (match := re.fullmatch(mask, name))
            )
            (ours,) = self.family.renamed({weight: torch.zeros(1, 1)})[0]
            gates[readers[ours]] = values.flatten()
        assert gates.keys() == set(readers.values())
        return gates

    def plan(self, model: nn.Module) -> Plan:
        """What the binary masks keep."""
        return Plan.from_masks(
            anatomy(model), {name: gate > 0 for name, gate in self.gates(model, "alpha_bin").items()}
        )

    def check(self, section: str, **found: Tensor) -> None:
        """Holds outputs against those of a section."""
        expected = self.section(section)
        for name, tensor in found.items():
            assert difference(tensor, expected[name]) <= OUTPUTS, name

    def check_gradients(self, model: nn.Module, gates: Gates, section: str) -> None:
        """Holds the gradients of the gates, after a backward pass, against those of a section."""
        units = {unit.name: unit for unit in anatomy(model)}
        for name, expected in self.gates(model, section).items():
            found = gate_gradient(model, units[name], gates.values[name])
            assert found is not None
            assert difference(found, expected) <= GRADIENTS, name


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference, relative to the largest value that is expected."""
    assert found.shape == expected.shape
    return float((found.detach() - expected).abs().max() / expected.abs().max())
