"""One pass over the data, many budgets: scores that are kept, and plans that follow from them without data and without weights."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prunus.anatomy import anatomy
from prunus.batches import call_with_batch
from prunus.calibrated.channel_scores import ChannelScores, Header
from prunus.calibrated.method import Calibrated
from prunus.calibrated.narrowing import calibration_of, decided, recorded_plan, scored
from prunus.calibrated.plain import loadable, within_reach
from prunus.calibrated.request import Request, settle, units_of
from prunus.checkpoint import bare_model
from prunus.errors import PrunusError
from prunus.fingerprint import digest_of
from prunus.losses import Loss, own_loss
from prunus.parallel import agreeing, of_first
from prunus.plan import Plan
from prunus.refusals import expect
from prunus.structured import Gates, Whole, cost_of, searchable
from prunus.unstructured import Call, WalkOptions, walk_options


@torch.no_grad()
@agreeing()
def score_channels(
    model: nn.Module, method: Calibrated, batches: Iterable[Any], *, call: Call | None = None, options: WalkOptions | None = None,
    example: Callable[[], object] | None = None, latency: bool = False, loss: Loss = own_loss,
) -> ChannelScores:  # fmt: skip
    """Scores the channels of a model, which stays as it is, and counts what they cost on one call.

    Args:
        model: any model that `anatomy` knows.
        method: its score and selectors count; its budget does not.
        batches: calibration data, whatever `call` accepts; gone through once.
        call: runs a batch; by default `model(**batch)`.
        options: how to walk.
        example: the call; by default, that with the first batch.
        latency: also measure how long it takes, for budgets in milliseconds.
        loss: the training loss on a batch, as for `narrow`.

    Raises:
        PrunusError: as `narrow`.
    """
    request = settle(model, method, batches, call, walk_options(options, None), example, None, loss)
    if method.score.whole_experts:
        raise PrunusError(
            "score", method.score.score, "what whole experts are worth is not kept as a file; take narrow"
        )
    inner, units = request.model, request.units
    gates = Gates(inner, units)
    try:
        found = scored(request, gates).worth
        worth = of_first({name: value.float().cpu().contiguous() for name, value in found.items()})
    finally:
        gates.remove()
    whole = Whole(request.parts, inner, example or partial(request.call or call_with_batch, inner, request.batches[0]))
    macs = whole.macs(units)
    header = Header(
        model=type(inner).__name__, config=_config_of(inner), weights=digest_of(inner), method=method.meant, calibration=calibration_of(request),
        macs=int(macs.total), channel_macs={name: cost_of(cost, 1) for name, cost in macs.channel.items()},
        cached=whole.cached(units, needed=False), latency=whole.milliseconds(units, method.align) if latency else None,
    )  # fmt: skip
    return ChannelScores(worth, header)


def plan_channels(scores: ChannelScores, method: Calibrated, model: nn.Module | None = None) -> Plan:
    """Which channels stay under a budget: the decision of `narrow`, in seconds.

    Args:
        scores: what `score_channels` found.
        method: with the same score; `scores.method(max_parameters=…)` is one.
        model: the model, with weights or on the meta device; by default it is built without weights from its config, which the scores hold.

    Raises:
        PrunusError: the budget is out of reach, or counts what was not measured; the scores are of another model, or another kind.
    """
    expect("scores", scores, ChannelScores, "what score_channels gave, or ChannelScores.load(path)")
    expect("method", method, Calibrated, "how to narrow, such as prunus.Calibrated(ratio=0.3)")
    refuse_allocation(method)
    inner = _built(scores.header) if model is None else searchable(model)
    parts = anatomy(inner)
    parts, units, knobs = units_of(inner, parts, method)
    scores.check(method, units, inner)
    fitted = within_reach(loadable(inner, method, knobs), scores.whole(parts, inner), units, knobs)
    request = Request(inner, fitted, parts, units, knobs, {}, (), None, WalkOptions())
    return recorded_plan(request, method, decided(request, scores.of(units)), scores.header.calibration)


def refuse_allocation(method: Calibrated) -> None:
    """Refuses a method whose decision does not follow from scores.

    Raises:
        PrunusError: see above.
    """
    if method.allocation is not None:
        raise PrunusError(
            "allocation", method.allocation.method, "it looks at the model and data; give scores and batches to narrow"
        )


def _config_of(model: nn.Module) -> dict[str, Any] | None:
    if not isinstance(model, PreTrainedModel):
        return None
    config: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    return {**config, "architectures": [type(model).__name__]}


def _built(header: Header) -> PreTrainedModel:
    if header.config is None:
        raise PrunusError("model", header.model, "it has no config to build it from; give the model")
    with tempfile.TemporaryDirectory() as folder, torch.device("meta"):
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(header.config))
        return bare_model(str(path))
