"""What the channels of a model are worth, as a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from prunus.anatomy import Anatomy, Unit
from prunus.calibrated.method import Calibrated
from prunus.errors import PrunusError
from prunus.fingerprint import digest_of
from prunus.storage import refuse_newer, results_file, write_bytes
from prunus.structured import Cached, Example, LatencyTable, Price, Whole
from prunus.typed import Typed

FORMAT: Literal["prunus.scores/1"] = "prunus.scores/1"


class Header(Typed):
    """What is known beside the scores: of which model and which data they are, and what was counted on a call."""

    format: Literal["prunus.scores/1"] = FORMAT
    model: str
    """Class of the model."""
    config: dict[str, Any] | None
    """Its config; None where it has none."""
    weights: str
    """Digest of some of its weights."""
    method: dict[str, Any]
    """Settings that the scores depend on."""
    calibration: dict[str, Any]
    """Which data they were taken of."""
    macs: int
    """Multiply-accumulates of the call."""
    channel_macs: dict[str, float]
    """Unit → those that leave with a channel."""
    cached: tuple[Cached, ...]
    """What attentions keep in a key-value cache; empty where the call filled none."""
    latency: LatencyTable | None
    """Milliseconds of the call, if they were measured."""


@dataclass(frozen=True)
class ChannelScores:
    """What the channels of a model are worth, and what they cost."""

    worth: Mapping[str, Tensor]
    """Unit → (channels,), fp32, on the CPU."""
    header: Header
    """Of which model and data they are."""

    def save(self, path: str | Path) -> None:
        """Writes one file: the scores as safetensors, everything else as JSON in its header.

        Raises:
            PrunusError: nothing can be written there.
        """
        write_bytes(results_file(path), save(dict(self.worth), {"prunus": self.header.model_dump_json()}))

    @classmethod
    def load(cls, path: str | Path) -> ChannelScores:
        """Reads what `save` wrote.

        Raises:
            PrunusError: the file is absent, damaged, or holds no scores.
        """
        if Path(path).is_dir():
            raise PrunusError("scores", str(path), "it is a folder; name the file in it, such as scores.safetensors")
        try:
            with safe_open(str(path), framework="pt") as file:
                text = (file.metadata() or {}).get("prunus", "")
                worth = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            refuse_newer("scores", text[:40], FORMAT)
            header = Header.model_validate_json(text)
        except OSError as error:
            raise PrunusError("scores", str(path), f"it cannot be read ({error.strerror or error})") from None
        except (SafetensorError, ValidationError, ValueError):
            raise PrunusError("scores", str(path), "it holds no scores, or is damaged; score the model again") from None
        if any(x.ndim != 1 or x.dtype != torch.float32 or not bool(x.isfinite().all()) for x in worth.values()):
            raise PrunusError("scores", str(path), "it is damaged: a score is no finite number; score the model again")
        return cls(worth, header)

    def method(self, **settings: Any) -> Calibrated:
        """A method with the settings that these scores were taken with, and others: `scores.method(max_parameters=100_000_000)`."""
        return Calibrated(**{**self.header.method, **settings})

    def of(self, units: Sequence[Unit]) -> dict[str, Tensor]:
        """Those of some units."""
        return {unit.name: self.worth[unit.name] for unit in units}

    def whole(self, parts: Anatomy, model: nn.Module, example: Example | None = None) -> Whole:
        """The model, priced by what was counted when it was scored; no other example is looked at."""
        return _Counted(parts, model, self.header)

    def check(self, method: Calibrated, units: Sequence[Unit], model: nn.Module) -> None:
        """Refuses scores of another model, or of another kind.

        Raises:
            PrunusError: see above.
        """
        score = method.score.model_dump(mode="json")
        if score != self.header.method["score"]:
            raise PrunusError(
                "scores", str(self.header.method["score"]), f"the method asks for {score}; score the model again, or take scores.method(…)"
            )  # fmt: skip
        for unit in units:
            found = self.worth.get(unit.name)
            if found is None or len(found) != unit.channels:
                there = "none" if found is None else str(len(found))
                raise PrunusError(
                    "scores", unit.name, f"it has {unit.channels} channels in this {type(model).__name__}, and the file scores {there}: it is of another "
                    "model, or of other units",
                )  # fmt: skip
        if not any(parameter.is_meta for parameter in model.parameters()) and digest_of(model) != self.header.weights:
            raise PrunusError(
                "scores", self.header.model, "they were taken of other weights than this model has; score it again"
            )


class _Counted(Whole):
    """A model, priced by what was counted on a call of it earlier."""

    def __init__(self, parts: Anatomy, model: nn.Module, header: Header):
        super().__init__(parts, model)
        self._header = header

    def macs(self, units: Sequence[Unit]) -> Price:
        return Price(self._header.macs, {unit.name: self._header.channel_macs[unit.name] for unit in units})

    def cached(self, units: Sequence[Unit], needed: bool = True) -> tuple[Cached, ...]:
        if needed and not self._header.cached:
            raise PrunusError(
                "storage.cache_tokens",
                None,
                "when the model was scored its call filled no key-value cache; leave it out",
            )
        names = {unit.name for unit in units}
        return tuple(one if one.unit in names else one.model_copy(update={"unit": ""}) for one in self._header.cached)

    def milliseconds(self, units: Sequence[Unit], align: int) -> LatencyTable:
        if self._header.latency is None:
            raise PrunusError(
                "max_milliseconds", None, "no time was measured when the model was scored; score it with latency=True"
            )
        return self._header.latency
