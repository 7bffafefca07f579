"""What a model is made of, as data: towers, blocks, units and what each channel costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import nn

from prunus.anatomy.catalog import layouts_of, sets_of
from prunus.anatomy.layers import Layer, Site, layer_at
from prunus.anatomy.layouts import Layout, Sites
from prunus.anatomy.towers import select
from prunus.errors import PrunusError


@dataclass(frozen=True, kw_only=True)
class Unit(Sites):
    """A structure that can be narrowed: an attention (self or cross) or an MLP, gated or not.

    A channel j occupies, in every site, the features {(r, s, j)} for all repeats r and spans s: one head-width index
    in all heads, a rotary pair in all heads (span 2), one hidden neuron, or one of every expert. A site that stores them in another
    order says so.
    """

    name: str
    """Path of its module, and what its layout adds to that."""
    path: str
    """Path of its module."""
    kind: str
    """`attention`, `cross_attention`, `mlp`, or what its layout says."""
    tower: str
    """The part of the model that processes one modality: `vision`, `text`, `language`, `decoder`, `connector`, …"""
    block: str
    """Path of the transformer layer it belongs to; its own path where it stands outside of any."""
    layout: Layout
    """How its module is laid out."""
    twins: tuple[str, ...] = ()
    """Other modules that hold the very same weights."""
    mirrors: tuple[str, ...] = ()
    """Modules that must keep the same shape but carry no gate: momentum (EMA) copies."""

    @property
    def component(self) -> str:
        """Tower and kind, the columns of the paper's Figure 3: `vision.attention`, `decoder.cross_attention`, …"""
        return f"{self.tower}.{self.kind}"

    @property
    def channel_cost(self) -> int:
        """Parameters that leave with one channel: producer rows with their biases, weights of norms, consumer columns."""
        sites = (*self.producers, *self.norms, *self.centred, self.consumer)
        return sum(self.features_per_channel(site) * site.features for site in sites)

    @property
    def linear_paths(self) -> tuple[str, ...]:
        """Paths of its linear layers in the model."""
        return tuple(f"{self.path}.{site.linear}" for site in (*self.producers, self.consumer))

    @property
    def labels(self) -> tuple[str, ...]:
        """What selectors are held against, from the widest to the narrowest."""
        return self.tower, self.component, self.block, self.name

    @property
    def is_attention(self) -> bool:
        """Whether its scores are compared with those of attentions, else with those of MLPs."""
        return self.layout.is_attention


@dataclass(frozen=True)
class Unmapped:
    """A part that holds transformer weights and stays dense, and why."""

    path: str
    type: str
    parameters: int
    reason: str


@dataclass(frozen=True)
class Anatomy:
    """Every unit of a model in execution order, and everything that stays as it is."""

    model: str
    model_type: str
    units: tuple[Unit, ...]
    unmapped: tuple[Unmapped, ...]
    dense: dict[str, int]
    """Parameters outside of all units, by the reason they are not prunable."""
    parameters: int
    tower_parameters: dict[str, int]
    mirrors: dict[str, str] = field(default_factory=dict)
    sets: tuple[Unit, ...] = ()
    """Sets of experts that can leave as a whole. Their weights are those of units, too, so that nothing counts them twice: whoever iterates
    over an anatomy meets units alone."""
    sets_refused: dict[str, str] = field(default_factory=dict)
    """Path of a block whose experts cannot → why."""

    def __iter__(self) -> Iterator[Unit]:
        return iter(self.units)

    def __len__(self) -> int:
        return len(self.units)

    @cached_property
    def by_name(self) -> dict[str, Unit]:
        """Name → unit, or set of experts."""
        return {unit.name: unit for unit in (*self.units, *self.sets)}

    def __getitem__(self, name: str) -> Unit:
        if name not in self.by_name:
            raise PrunusError("unit", name, f"this {self.model} has no such unit; `prunus inspect` lists them")
        return self.by_name[name]

    @property
    def towers(self) -> dict[str, tuple[Unit, ...]]:
        return {name: tuple(u for u in self.units if u.tower == name) for name in dict.fromkeys(u.tower for u in self)}

    @property
    def components(self) -> dict[str, tuple[Unit, ...]]:
        names = dict.fromkeys(unit.component for unit in self.units)
        return {name: tuple(u for u in self.units if u.component == name) for name in names}

    @property
    def prunable(self) -> int:
        """Parameters that would leave if every channel left."""
        return sum(unit.channels * unit.channel_cost for unit in self.units)

    def select(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> tuple[Unit, ...]:
        """Units that a selector of `include` matches and none of `exclude`: globs over names, blocks, towers and components.
        Without `include`, and by `*`, all but those of connectors.

        Raises:
            PrunusError: a pattern matches nothing, or nothing is left.
        """
        if not self.units:
            raise PrunusError(
                "model", self.model, "it has nothing to prune: no module of a known type; `prunus inspect` says why"
            )
        return select(self.units, include, exclude, "unit")

    def select_sets(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> tuple[Unit, ...]:
        """Sets of experts likewise.

        Raises:
            PrunusError: as `select`.
        """
        if not self.sets:
            why = "".join(f"; {path}: {reason}" for path, reason in list(self.sets_refused.items())[:1])
            raise PrunusError("model", self.model, f"it has no experts that can leave as a whole{why}")
        return select(self.sets, include, exclude, "set of experts")

    def __str__(self) -> str:
        lines = [
            f"{self.model} ({self.model_type}): {self.parameters:,} parameters, "
            f"{self.prunable:,} prunable ({self.prunable / max(self.parameters, 1):.1%})",
            "",
            f"{'component':<26}{'units':>6}{'blocks':>8}{'channels':>16}{'parameters/channel':>20}{'prunable':>15}",
        ]
        for name, units in self.components.items():
            blocks = len({unit.block for unit in units})
            prunable = sum(unit.channels * unit.channel_cost for unit in units)
            channels, cost = (_extent([getattr(u, key) for u in units]) for key in ("channels", "channel_cost"))
            lines.append(f"{name:<26}{len(units):>6}{blocks:>8}{channels:>16}{cost:>20}{prunable:>15,}")
        if self.sets:
            counts, costs = (_extent([getattr(one, key) for one in self.sets]) for key in ("channels", "channel_cost"))
            lines += ["", f"whole experts can leave, too: {len(self.sets)} sets of {counts}, {costs} parameters each"]
        lines += ["", f"{'not prunable':<60}{'parameters':>15}"]
        lines += [f"{reason:<60}{count:>15,}" for reason, count in self.dense.items()]
        if self.unmapped:
            lines += ["", "left dense: no layout fits"]
            lines += [f"  {part.path} ({part.type}, {part.parameters:,}): {part.reason}" for part in self.unmapped]
        return "\n".join(lines)


def _extent(values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} – {high:,}"


def linears(model: nn.Module, unit: Unit, path: str | None = None) -> tuple[tuple[Site, Layer], ...]:
    """The unit's producers and, last, its consumer, as (site, layer) pairs."""
    root = model.get_submodule(unit.path if path is None else path)
    sites = (*unit.producers, unit.consumer)
    return tuple((site, layer_at(root, site)) for site in sites)


def gated(model: nn.Module, unit: Unit, path: str | None = None) -> tuple[tuple[Site, Layer], ...]:
    """What the unit's gate multiplies: its producers and the norms that take off their mean, as (site, layer) pairs."""
    root = model.get_submodule(unit.path if path is None else path)
    return tuple((site, layer_at(root, site)) for site in (*unit.producers, *unit.centred))


def module_of(model: nn.Module, name: str) -> str | None:
    """Path of the module that a unit of this name is read off; None where the model has none."""
    if has_module(model, name):
        return name
    path, _, suffix = name.rpartition(".")
    if not has_module(model, path):
        return None
    module = model.get_submodule(path)
    return path if any(layout.name == suffix for layout in (*layouts_of(module), *sets_of(module))) else None


def has_module(model: nn.Module, path: str) -> bool:
    """Whether a model has a module at a path."""
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True
