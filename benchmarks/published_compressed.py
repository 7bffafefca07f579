"""The compressed rows of UPop's tables, of all seven models: `python -m benchmarks.published_compressed`.

Nobody published how many channels each unit kept. Mask-based pruning takes the same share of every component, and UPop's Table 7 tells the shares of
one search: such plans are applied to the models on the meta device, and counted as the paper counts. Of the other searches a row only tells
the ratio, in the code's own cost: then what is printed is between what any plan of that ratio leaves, and whether the paper's figure lies
there; for multiply-accumulates, any such plan that leaves the paper's parameters, too. Where the paper has no mask-based row of a model, a
search is also counted as if it had taken the same share of every component.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from benchmarks.published_counts import MODELS
from prunus.anatomy import Anatomy, anatomy
from prunus.cost import channel_macs
from prunus.models import PublishedCount, as_published
from prunus.models.as_published import RUNS
from prunus.plan import Plan
from prunus.structured import narrow

ATTENTION_COST = {"DeiT-S": 12, "Segmenter-S": 12}
"""Of an attention channel in the published code, where an MLP channel costs one. In the others 36."""
TABLE_7 = {
    "vision.attention": 0.81, "text.attention": 0.58, "text.cross0": 0.18, "text.cross1": 0.19, "vision.mlp": 0.72, "text.mlp": 0.47,
}  # fmt: skip
"""Component → the share that stayed, in whole percent."""


@dataclass(frozen=True)
class Row:
    """One row of the paper."""

    model: str
    method: str
    ratio: float
    """Of the code's cost that leaves."""
    millions: str
    """Parameters, as printed."""
    giga: str
    """Multiply-accumulates, as printed."""


ALIKE = ("mask-based", "the same share")
"""How the methods begin by which every component loses the ratio."""
PRINTED = """
BLIP-NLVR      | mask-based              | 0.5   | 146.18 | 66.88
BLIP-NLVR      | shares of Table 7       | 0.5   | 150.15 | 89.36
BLIP-NLVR      | unified                 | 0.5   | 149.90 | 95.01
BLIP-NLVR      | unified                 | 0.667 | 106.33 | 68.19
BLIP-NLVR      | UPop                    | 0.5   | 150.15 | 89.36
BLIP-NLVR      | UPop                    | 0.667 | 109.01 | 65.29
BLIP-NLVR      | UPop                    | 0.75  | 88.61  | 50.35
BLIP-NLVR      | UPop                    | 0.8   | 76.81  | 39.93
BLIP-NLVR      | UPop                    | 0.9   | 54.48  | 19.08
BLIP-Caption   | mask-based              | 0.5   | 124.9  | 33.2
BLIP-Caption   | mask-based              | 0.75  | 75.4   | 17.1
BLIP-Caption   | unified                 | 0.5   | 124.7  | 44.2
BLIP-Caption   | unified                 | 0.75  | 77.5   | 25.6
BLIP-Caption   | UPop                    | 0.5   | 127.1  | 39.8
BLIP-Caption   | UPop                    | 0.75  | 76.5   | 22.2
BLIP-VQA       | mask-based              | 0.5   | 205.8  | 96.4
BLIP-VQA       | mask-based              | 0.75  | 128.4  | 51.7
BLIP-VQA       | unified                 | 0.5   | 216.4  | 118.7
BLIP-VQA       | unified                 | 0.75  | 135.3  | 77.3
BLIP-VQA       | UPop                    | 0.5   | 211.3  | 109.4
BLIP-VQA       | UPop                    | 0.75  | 133.3  | 62.3
BLIP-Retrieval | mask-based, COCO        | 0.5   | 249.5  | 77.3
BLIP-Retrieval | mask-based, Flickr      | 0.5   | 249.3  | 77.2
BLIP-Retrieval | unified, COCO           | 0.5   | 253.1  | 103.4
BLIP-Retrieval | unified, COCO           | 0.75  | 148.7  | 61.4
BLIP-Retrieval | unified, Flickr         | 0.5   | 252.3  | 104.1
BLIP-Retrieval | unified, Flickr         | 0.75  | 148.7  | 60.8
BLIP-Retrieval | UPop, COCO              | 0.5   | 248.9  | 88.3
BLIP-Retrieval | UPop, COCO              | 0.75  | 147.9  | 50.2
BLIP-Retrieval | UPop, Flickr            | 0.5   | 250.5  | 91.0
BLIP-Retrieval | UPop, Flickr            | 0.75  | 147.6  | 51.0
CLIP ViT-L/14  | the same share, COCO    | 0.5   | 473.7  | 196.3
CLIP ViT-L/14  | the same share, Flickr  | 0.75  | 278.5  | 102.6
CLIP ViT-L/14  | UPop, COCO              | 0.5   | 473.7  | 196.3
CLIP ViT-L/14  | UPop, COCO              | 0.75  | 280.2  | 105.9
CLIP ViT-L/14  | UPop, Flickr            | 0.5   | 474.3  | 201.1
CLIP ViT-L/14  | UPop, Flickr            | 0.75  | 278.5  | 102.6
DeiT-S         | the same share          | 0.1   | 19.9   | 4.1
DeiT-S         | the same share          | 0.5   | 11.4   | 2.3
DeiT-S         | UPop                    | 0.1   | 19.9   | 4.1
DeiT-S         | UPop                    | 0.2   | 17.8   | 3.7
DeiT-S         | UPop                    | 0.3   | 15.7   | 3.2
DeiT-S         | UPop                    | 0.4   | 13.5   | 2.8
DeiT-S         | UPop                    | 0.5   | 11.4   | 2.3
Segmenter-S    | mask-based              | 0.3   | 18.9   | 27.3
Segmenter-S    | UPop                    | 0.1   | 23.9   | 33.7
Segmenter-S    | UPop                    | 0.15  | 22.7   | 32.0
Segmenter-S    | UPop                    | 0.2   | 21.5   | 30.4
Segmenter-S    | UPop                    | 0.3   | 18.9   | 27.6
"""
ROWS = tuple(
    Row(model, method, float(ratio), millions, giga)
    for model, method, ratio, millions, giga in (
        [cell.strip() for cell in line.split("|")] for line in PRINTED.strip().splitlines()
    )
)


@dataclass(frozen=True)
class Component:
    """Units whose channels all cost the same, such as all vision attentions."""

    channels: int
    removable: int
    """Channels that may leave: every unit keeps one."""
    cost: float
    """Of a channel in the published code."""
    parameters: float
    """That leave with a channel."""
    macs: float
    """That leave with a channel."""


@dataclass(frozen=True)
class Costs:
    """What a model and its channels cost, counted as the paper counts."""

    dense: PublishedCount
    components: Mapping[str, Component]


@cache
def costs(model: str) -> Costs:
    """Counts a model by its name, on the meta device."""
    with torch.device("meta"):
        built = MODELS[model][0]()
        dense, parts = as_published(built), anatomy(built)
        run = next(run for kind, run in RUNS.items() if isinstance(built, kind))
        macs = channel_macs(built, lambda: run(built), parts.units).channel
    components = {}
    for name, units in _components(parts).items():
        channels = sum(parts[unit].channels for unit in units)
        first = parts[units[0]]
        components[name] = Component(
            channels, channels - len(units), ATTENTION_COST.get(model, 36) if first.is_attention else 1,
            first.channel_cost * (1 + len(first.mirrors)), sum(macs[unit] * parts[unit].channels for unit in units) / channels,
        )  # fmt: skip
    return Costs(dense, components)


def _components(parts: Anatomy) -> dict[str, list[str]]:
    """Component → its units. The decoder of a Segmenter is wide as its encoder."""
    found: dict[str, list[str]] = {}
    for unit in parts:
        found.setdefault(unit.component, []).append(unit.name)
    return found


def narrowed(model: str, kept: Mapping[str, int]) -> PublishedCount:
    """Counts a model of which each component keeps so many channels, as evenly in its units as they go."""
    with torch.device("meta"):
        built = MODELS[model][0]()
        parts = anatomy(built)
        masks = {}
        for component, units in _components(parts).items():
            for place, name in enumerate(units):
                stay = kept[component] * (place + 1) // len(units) - kept[component] * place // len(units)
                masks[name] = torch.arange(parts[name].channels, device="cpu") < stay
        narrow(built, parts, Plan.from_masks(parts, masks))
        return as_published(built)


@cache
def counted(row: Row) -> PublishedCount | None:
    """Of a row that tells how many channels stay. As in the published code, the channel at the cut does."""
    parts = costs(row.model).components
    if row.method == "shares of Table 7":
        return narrowed(row.model, {name: round(TABLE_7[name] * part.channels) for name, part in parts.items()})
    if not row.method.startswith(ALIKE):
        return None
    return narrowed(
        row.model, {name: part.channels - round(row.ratio * part.channels) + 1 for name, part in parts.items()}
    )


def most(parts: Sequence[Component], values: Sequence[float], cost: float) -> float:
    """The largest sum of the values of channels that leave, when these together cost so much (the fractional knapsack)."""
    total = 0.0
    for part, value in sorted(zip(parts, values, strict=True), key=lambda pair: pair[1] / pair[0].cost, reverse=True):
        number = min(part.removable, cost / part.cost)
        total, cost = total + number * value, cost - number * part.cost
    return total


def between(row: Row) -> tuple[tuple[float, float], tuple[float, float] | None]:
    """What any plan of the row's ratio leaves: of parameters, and of multiply-accumulates with the paper's parameters, to their last digit;
    None where no such plan leaves those."""
    model, parts = costs(row.model), list(costs(row.model).components.values())
    cost = row.ratio * sum(part.channels * part.cost for part in parts)
    weights, macs = [part.parameters for part in parts], [part.macs for part in parts]
    largest, smallest = most(parts, weights, cost), -most(parts, [-weight for weight in weights], cost)
    left = (model.dense.parameters - largest, model.dense.parameters - smallest)
    said, half = 1e6 * float(row.millions), rounding(row.millions) * 1e6
    if not left[0] - half <= said <= left[1] + half:
        return left, None
    gone = (model.dense.parameters - said - half, model.dense.parameters - said + half)
    bounds = [_bound(parts, [sign * value for value in macs], cost, gone) for sign in (1, -1)]
    return left, (model.dense.flops - bounds[0], model.dense.flops + bounds[1])


def _bound(parts: Sequence[Component], values: Sequence[float], cost: float, gone: tuple[float, float]) -> float:
    """The largest sum of values of channels that cost so much and have so many parameters: the least of its duals, which are convex in
    the price of a parameter."""

    def dual(price: float) -> float:
        priced = [value - price * part.parameters for value, part in zip(values, parts, strict=True)]
        return most(parts, priced, cost) + price * gone[price > 0]

    low, high = -1e6, 1e6
    for _ in range(300):
        one, other = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, other) if dual(one) < dual(other) else (one, high)
    return dual((low + high) / 2)


def rounding(printed: str) -> float:
    """Half of the last digit."""
    return 0.5 * 10.0 ** -len(printed.partition(".")[2])


def is_printed(value: float, printed: str) -> bool:
    """Whether a value is what was printed, to its last digit."""
    return abs(value - float(printed)) <= rounding(printed) + 1e-9


def judged(row: Row) -> tuple[str, str, str]:
    """Cells of the table: millions of parameters, G multiply-accumulates, and whether these are as printed."""
    count = counted(row)
    if count is not None:
        found = [("M", count.parameters / 1e6, row.millions), ("G", count.flops / 1e9, row.giga)]
        said = [
            f"{name} yes" if is_printed(value, printed) else f"{name} {value / float(printed) - 1:+.2%}"
            for name, value, printed in found
        ]
        millions, giga = (f"{value:.{len(printed.partition('.')[2]) + 1}f}" for _, value, printed in found)
        return millions, giga, ", ".join(said)
    (least, largest), macs = between(row)
    millions = f"{least / 1e6:.1f} to {largest / 1e6:.1f}"
    if macs is None:
        return millions, "–", "M outside"
    low, high = macs[0] / 1e9, macs[1] / 1e9
    within = low <= float(row.giga) <= high or is_printed(low, row.giga) or is_printed(high, row.giga)
    return millions, f"{low:.1f} to {high:.1f}", "within" if within else "M within, G outside"


def main() -> None:
    """Prints the table."""
    print(
        f"| {'model':<14} | {'method':<22} | ratio |        M counted | paper M |       G counted | paper G | as printed |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for row in ROWS:
        millions, giga, said = judged(row)
        print(
            f"| {row.model:<14} | {row.method:<22} | {row.ratio:<5} | {millions:>16} | {row.millions:>7} | {giga:>15} | {row.giga:>7} | {said} |"
        )


if __name__ == "__main__":
    main()
