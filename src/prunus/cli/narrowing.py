"""Commands on budgets of narrowing: one pass of scores, many plans and models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from prunus.batches import default_device
from prunus.calibrated import Calibrated, ChannelScores, Cost, plan_channels, refuse_budgets, score_channels
from prunus.calibrated import sweep as swept
from prunus.checkpoint import load_model, local_folder
from prunus.cli.options import ImportOption
from prunus.cost import human
from prunus.errors import PrunusError
from prunus.evaluation import read_task
from prunus.metric import written
from prunus.storage import results_file, results_folder


def plan(
    scores: Path,
    out: Annotated[Path, typer.Option("--out", "-o", help="The plan to write, JSON.")] = Path("plan.json"),
    ratio: Annotated[float | None, typer.Option(help="Share of the searched units' cost that goes.")] = None,
    max_parameters: Annotated[int | None, typer.Option(help="Parameters that stay at most.")] = None,
    max_macs: Annotated[int | None, typer.Option(help="Multiply-accumulates of the scored call, at most.")] = None,
    max_bytes: Annotated[int | None, typer.Option(help="Bytes of the weights on disk, at most.")] = None,
    max_milliseconds: Annotated[
        float | None, typer.Option(help="Milliseconds of the scored call, at most, where they were measured.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="With --max-bytes: float32, bfloat16 or float16.")] = None,
    cache_tokens: Annotated[
        int, typer.Option(help="With --max-bytes: tokens in the key-value cache, counted beside the weights.")
    ] = 0,
    cache_batch: Annotated[int, typer.Option(help="With --cache-tokens: sequences.")] = 1,
    align: Annotated[int, typer.Option(help="Kept widths are multiples of 1, 8, 16, 32, 64 or 128.")] = 1,
    scope: Annotated[str, typer.Option(help="Who competes: unit, component or everyone.")] = "unit",
    extensions: ImportOption = None,
) -> None:
    """Which channels stay under a budget, by SCORES (of `prunus.score_channels`, or scores.safetensors of a recipe's step `narrow`).
    Neither data nor weights are read."""
    place = results_file(out, "--out")
    found = ChannelScores.load(scores)
    amounts = {
        "ratio": ratio, "max_parameters": max_parameters, "max_macs": max_macs, "max_bytes": max_bytes,
        "max_milliseconds": max_milliseconds,
    }  # fmt: skip
    storage = {"dtype": dtype, "cache_tokens": cache_tokens, "cache_batch": cache_batch}
    method = found.method(**amounts, storage=storage, align=align, scope={"scope": scope})
    decided = plan_channels(found, method)
    decided.save(place)
    kept = sum(len(unit.kept) for unit in decided.units.values())
    total = sum(unit.channels for unit in decided.units.values())
    typer.echo(
        f"{decided.model}: {decided.ratio:.2%} of the searched cost goes, {kept:,} of {total:,} channels stay: {out}"
    )


def sweep(
    model: str,
    task: Annotated[str, typer.Option(help="A task's name, or its settings as JSON.")],
    ratios: Annotated[
        str, typer.Option(help="Budgets: shares of the searched units' cost that go.")
    ] = "0.1,0.2,0.3,0.4,0.5",
    method: Annotated[
        str,
        typer.Option(help='How to narrow, as in a recipe, JSON: {"score": {"score": "fluctuation"}, "plain": true}.'),
    ] = "{}",
    cost: Annotated[Cost, typer.Option(help="What the picture shows; milliseconds are measured then.")] = "parameters",
    samples: Annotated[int, typer.Option(min=1, help="Training items that channels are scored and fitted on.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Of them, at once.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Evaluate on this many items only.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for pareto.json, pareto.png and scores.safetensors.")] = Path(
        "sweep"
    ),
    extensions: ImportOption = None,
) -> None:
    """Narrows MODEL (folder or hub id) to several budgets from one pass of scores, without training, and evaluates what comes of each on a
    task. No model is saved: `prunus plan` on the scores, or a recipe, makes the one that you choose."""
    methods = _methods(method, ratios)
    place = results_folder(out, "--out")
    chosen, folder = read_task(task, "--task"), local_folder(model)
    chosen.check()
    chosen.check_split("evaluation")
    chosen = chosen.for_model(folder)
    chosen.check_model(folder)
    chosen.check_calibration(samples)
    by_loss, headline = methods[0].asks_for_loss, chosen.headline
    if by_loss:
        chosen.check_loss()
    dense = load_model(folder).to(default_device()).eval()
    refuse_budgets(dense, methods)
    batches, loss = chosen.shown(samples, batch_size, by_loss)
    scores = score_channels(dense, methods[0], batches, latency=cost == "milliseconds", loss=loss)
    scores.save(place / "scores.safetensors")
    found = swept(
        dense, methods, batches, scores=scores, call=loss if by_loss else None, measure=lambda small: chosen.measure(small, limit)[headline], quality=headline,
        higher_is_better=chosen.metrics[headline].higher_is_better,
    )  # fmt: skip
    found.save(place, cost)
    typer.echo(f"{'gone':>6}{'parameters':>12}{headline:>12}")
    for point in found.points:
        quality = written({headline: point.quality}, chosen.metrics)[headline]
        front = "  no other is as small and as good" if cost in point.front else ""
        typer.echo(f"{point.ratio:>6.1%}{human(point.parameters):>12}{quality:>12}{front}")
    typer.echo(f"{place / 'pareto.json'}   {place / 'pareto.png'}")


def _methods(text: str, ratios: str) -> list[Calibrated]:
    """One for each ratio, with the settings that are given as JSON."""
    try:
        shares = [float(share) for share in ratios.split(",")]
    except ValueError:
        raise PrunusError("--ratios", ratios, "give shares with commas between them, such as 0.1,0.2,0.3") from None
    try:
        settings: Any = json.loads(text)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise PrunusError("--method", text, 'give settings as JSON, such as {"score": {"score": "fluctuation"}}')
    if "ratio" in settings:
        raise PrunusError("--method", text, "--ratios says how much goes; leave ratio out")
    return [Calibrated(**settings, ratio=share) for share in shares]
