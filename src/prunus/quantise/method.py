"""How weights are quantised: settings, and what torchao makes of them."""

from __future__ import annotations

import importlib
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import nn

from prunus.errors import PrunusError
from prunus.typed import Count, Typed

GROUP = 32


class Quantisation(Typed):
    """Weights of linear layers in whole numbers, w ≈ scale · q, with q in −2^(bits−1) … 2^(bits−1) − 1; activations stay as they are.

    The numbers are symmetric around zero, so a weight that is zero stays zero. Only nn.Linear inside of the blocks is quantised, and of
    those what torchao's kernels take; the result names the rest.
    """

    to: Literal["int8", "int4"] = "int8"
    """`int8`: one scale a row. `int4`: one scale for each `group` of a row; kept one number a byte, as torchao has no packed form that runs
    on every device and is saved as safetensors."""
    group: Count = GROUP
    """Of int4: neighbouring weights of a row that share a scale."""
    include: tuple[str, ...] = ()
    """Globs over module paths and towers; empty is everything but the connector."""
    exclude: tuple[str, ...] = ()
    """Globs that take away again."""

    @model_validator(mode="after")
    def _groups_are_of_int4(self) -> Quantisation:
        if self.to == "int8" and self.group != GROUP:
            raise PrunusError(
                "group", self.group, "int8 has one scale a row, and no groups; leave it out, or take int4"
            )
        return self

    def config(self) -> Any:
        """The settings as torchao has them.

        Raises:
            PrunusError: torchao is not installed.
        """
        quantization = _torchao()
        if self.to == "int8":
            return quantization.Int8WeightOnlyConfig()
        granularity = quantization.PerGroup(self.group)
        int4 = torch.int4  # type: ignore[attr-defined]
        return quantization.IntxWeightOnlyConfig(weight_dtype=int4, granularity=granularity)

    def takes(self, rows: int, columns: int) -> str | None:
        """Why a layer of this shape cannot be quantised; None if it can."""
        if self.to == "int4" and columns % self.group:
            return f"{columns} inputs are no multiple of group = {self.group}"
        return _refusal(self, rows, columns)


@cache
def _refusal(settings: Quantisation, rows: int, columns: int) -> str | None:
    """What torchao says to a layer of this shape, which is tried once."""
    try:
        layer = nn.Sequential(nn.Linear(columns, rows, device="cpu", dtype=torch.float32))
        _torchao().quantize_(layer, settings.config())
        layer(torch.zeros(1, columns))
    except (RuntimeError, ValueError, AssertionError, NotImplementedError) as error:
        return f"torchao cannot quantise {rows} × {columns}: {str(error).strip().splitlines()[0][:120]}"
    return None


def _torchao() -> Any:
    if find_spec("torchao") is None:
        raise PrunusError("quantise", "torchao", "it is not installed; run: pip install 'prunus[quantise]'")
    return importlib.import_module("torchao.quantization")
