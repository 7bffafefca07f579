"""Whole heads as channels: what a config can say of attentions that rotate their heads, or scale them by their width."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from prunus.anatomy import Anatomy, Layout, MisfitError, Site, Sites, Unit


@dataclass(frozen=True)
class Heads(Layout):
    """A channel is a head of keys and values with all queries that look at it. Heads do not look at each other.

    It is made of a unit that is there, and never read off a module.
    """

    is_attention = True

    @property
    def mixes(self) -> bool:
        return False

    def sites(self, module: nn.Module) -> Sites:
        raise MisfitError("whole heads are made of an attention that was found")

    def shrink(self, module: nn.Module, kept: Tensor, before: Sites) -> None:
        """Nothing: the stock forward reads the number of heads off the layers, or off numbers that its config says."""


def with_heads(parts: Anatomy) -> Anatomy:
    """The anatomy with whole heads, a group of queries with its keys and values, for the channels of attentions.

    Attentions of fused queries, keys and values, and those with norms over several heads, stay as they are.
    """
    return replace(parts, units=tuple(of_heads(unit) or unit for unit in parts))


def of_heads(unit: Unit) -> Unit | None:
    """The unit of whole heads of an attention; None where there is none."""
    if not unit.is_attention or len(unit.producers) != 3:
        return None
    queries, keys, values = (site.repeats for site in unit.producers)
    is_grouped = keys == values and queries % keys == 0 and unit.consumer.repeats == queries
    if not is_grouped or any(norm.repeats != 1 for norm in (*unit.norms, *unit.centred)):
        return None
    width = unit.features_per_channel(unit.consumer) // queries * unit.channels

    def whole(site: Site) -> Site:
        of_group = site.repeats // keys * width
        return replace(site, repeats=1, order=tuple(feature // of_group for feature in range(site.repeats * width)))

    return replace(
        unit, producers=tuple(map(whole, unit.producers)), consumer=whole(unit.consumer), channels=keys, span=1, order=(), norms=(), centred=(),
        turned=0,
        layout=Heads(name=unit.layout.name, kind=unit.layout.kind),
    )  # fmt: skip
