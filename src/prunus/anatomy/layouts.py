"""How a kind of module is laid out: where its channels lie, and what it needs once it is narrow.

A layout names paths within a module of one type, never a model. It is all that `anatomy`, gates and surgery ask of an
architecture; a layout of another kind is a subclass of `Layout`, and everything else stays as it is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunus.anatomy.forwards import keep_rotation, take_own_forward
from prunus.anatomy.layers import Linear, Site, inputs, outputs
from prunus.anatomy.rotation import Rotation, tables_of, turned_features, turned_sizes
from prunus.anatomy.trial import MisfitError, keeps_zero, linear_at, prove_mlp


@dataclass(frozen=True, kw_only=True)
class Sites:
    """The linear layers of a unit and how its channels lie in them."""

    producers: tuple[Site, ...]
    """Layers that lose rows."""
    consumer: Site
    """The layer that loses columns."""
    channels: int
    """Channels of the unit."""
    span: int = 1
    """Features of one channel in each repeat: 2 for rotary pairs."""
    order: tuple[int, ...] = ()
    """Feature of one repeat → its channel. Empty: feature f belongs to channel f mod channels."""
    norms: tuple[Site, ...] = ()
    """Norms over the features, and tables that multiply them, which lose as many weights."""
    centred: tuple[Site, ...] = ()
    """Those that take off their mean, and so give something where a channel is silent: gates act behind them, too."""
    sliced: bool = False
    """A channel is one slice, along `side`, of every parameter or buffer that a site names: an expert as a whole."""
    least: int = 1
    """Channels without which its module cannot run."""
    turned: int = 0
    """Features of each repeat that rotary positions turn, where the layout has to know."""

    def features_of(self, site: Site, kept: Tensor) -> Tensor:
        """Features of `site` that belong to the channels `kept` (sorted, int64), in storage order."""
        order = site.order or self.order
        if order:
            width, stays = len(order), torch.zeros(self.channels, dtype=torch.bool, device=kept.device)
            within = stays.index_fill_(0, kept, True)[torch.tensor(order, device=kept.device)].nonzero().flatten()
        else:
            width = self.channels * self.span
            within = torch.cat([kept + span * self.channels for span in range(self.span)])
        starts = torch.arange(site.repeats, device=kept.device)[:, None] * width
        return (starts + within).flatten()

    def features_per_repeat(self, site: Site) -> int:
        """Features of one repeat of `site`."""
        return len(site.order) or self.channels * self.span

    def features_per_channel(self, site: Site) -> int:
        """Features of `site` that belong to one channel."""
        return site.repeats * (self.features_per_repeat(site) // self.channels)

    def spread(self, values: Tensor, repeats: int, order: tuple[int, ...] = ()) -> Tensor:
        """A value for every channel, (channels,), as one for every feature of a layer with so many repeats, (features,).

        Args:
            order: of the layer, where it has its own.
        """
        order = order or self.order
        if not order:
            return values.repeat(self.span * repeats)
        return values[torch.tensor(order, device=values.device)].repeat(repeats)

    def gather(self, values: Tensor, order: tuple[int, ...] = ()) -> Tensor:
        """The sum over the features of every channel: (features,) → (channels,)."""
        order = order or self.order
        if not order:
            return values.view(-1, self.channels).sum(0)
        of_features = values.view(-1, len(order)).sum(0)
        return of_features.new_zeros(self.channels).index_add_(
            0, torch.tensor(order, device=values.device), of_features
        )


@dataclass(frozen=True)
class Layout(ABC):
    """What a module type is to pruning."""

    is_attention: ClassVar[bool]
    """Whether its scores are compared with those of attentions, else with those of MLPs."""
    is_tried: ClassVar[bool] = False
    """Whether it counts for a module only if a trial proves it; others count unless a trial proves them wrong."""
    name: str = field(default="", kw_only=True)
    """What the unit's name adds to the path of its module, where a module holds several units or is a whole block. All
    named layouts of a type that fit are units; of those without a name, the first that fits."""
    kind: str = field(default="", kw_only=True)
    """Second half of the unit's component, such as `cross0`. Empty: said by the module's place in the model."""

    @property
    def mixes(self) -> bool:
        """Whether what is made of one channel depends on the others: in an attention, through queries and keys."""
        return self.is_attention

    @abstractmethod
    def sites(self, module: nn.Module) -> Sites:
        """The layers of a module, and its channels.

        Raises:
            MisfitError: the layout does not describe the module; the message says why.
        """

    def factor(self, linear: str, share: float) -> float:
        """By what a producer's rows, or the columns of the consumer, are multiplied when this share of the channels stays."""
        return 1.0

    def scales(self, site: Site, before: Sites, share: float) -> Tensor | None:
        """The same for each of a layer's repeats, (repeats,); None where nothing is multiplied."""
        factor = self.factor(site.linear, share)
        return None if factor == 1 else torch.full((site.repeats,), factor, device="cpu", dtype=torch.float64)

    def refit(self, norm: str, weight: Tensor, share: float) -> Tensor:
        """What becomes of the weights of a norm that stay."""
        return weight

    def candidates(self, module: nn.Module) -> Iterable[Layout]:
        """What is to be tried on a module; itself, where there is no choice."""
        return (self,)

    @abstractmethod
    def shrink(self, module: nn.Module, kept: Tensor, before: Sites) -> None:
        """Makes a module whose weights are cut compute with them: sizes, forward, rotation.

        Args:
            kept: channels that stay, sorted, int64, on the CPU.
            before: what `sites` gave before the cut.
        """


@dataclass(frozen=True)
class Proposal(Layout):
    """Not a layout itself: whatever it finds in a module is tried, and counts once a trial proves it."""

    is_tried: ClassVar[bool] = True
    lacks: ClassVar[str]
    """What is said of a module in which it finds nothing."""

    def sites(self, module: nn.Module) -> Sites:
        raise MisfitError(self.lacks)

    def shrink(self, module: nn.Module, kept: Tensor, before: Sites) -> None:
        raise MisfitError(self.lacks)


@dataclass(frozen=True)
class Attention(Layout):
    """An attention: a channel is one index of the head width, in all heads. Keys and values may have fewer heads than queries.

    One path for `query`, `key` and `value` is one layer for all three, whose rows are whole heads in any order: (3, heads,
    width), queries before fewer keys and values, or by groups.
    """

    is_attention: ClassVar[bool] = True
    query: str
    """Path of the linear layer that makes the queries."""
    key: str
    """Of the one that makes the keys."""
    value: str
    """Of the one that makes the values."""
    out: str
    """Of the output layer."""
    core: str = field(default="", kw_only=True)
    """Path of the module that holds the sizes the forward reads."""
    width: str = field(default="head_dim", kw_only=True)
    """Attribute of `core`: the head width; empty where none holds it."""
    heads: str = field(default="", kw_only=True)
    """Attribute of `core`: the number of heads, where none holds their width."""
    totals: tuple[str, ...] = field(default=(), kw_only=True)
    """Attributes of `core`: heads × width."""
    rotary: bool = field(default=False, kw_only=True)
    """q and k are rotated, all or the first channels of each head: i and i + half go together, and the rotation tables are narrowed with
    them."""
    rotation: Rotation | None = field(default=None, kw_only=True)
    """They are rotated otherwise."""
    scale_follows_width: bool = field(default=False, kw_only=True)
    """The forward divides the logits by sqrt(current width), so surgery folds sqrt(new/old) into the queries."""
    grouped: bool = field(default=False, kw_only=True)
    """One layer makes queries, keys and values, and its heads are ordered by groups: some queries, their key, their value."""
    unless: str = field(default="", kw_only=True)
    """Entry of the module's config with which it computes something else."""
    own_forward: Callable[..., Any] | None = field(default=None, kw_only=True)
    """A forward for any head width, (module, …), where the stock one derives the width from something else."""

    def sites(self, module: nn.Module) -> Sites:
        width, turns, turned = self._width(module), self._turns, 0
        names = tuple(dict.fromkeys((self.query, self.key, self.value)))
        rows, columns = outputs(linear_at(module, self.query)), inputs(linear_at(module, self.out))
        shared = rows - columns
        if self.unless and getattr(getattr(module, "config", None), self.unless, None):
            raise MisfitError(f"its config says {self.unless}")
        if len(names) > 1 and shared:
            raise MisfitError("its queries and its output layer disagree on heads × width")
        if len(names) == 1 and (shared <= 0 or shared % (2 * width) or columns % (shared // 2)):
            raise MisfitError(
                f"its fused qkv has {rows} rows: not {columns}, the inputs of its output layer, and keys and values"
            )
        for name in names:
            if outputs(linear_at(module, name)) % width:
                raise MisfitError(
                    f"{name} has {outputs(linear_at(module, name))} rows, no multiple of head width {width}"
                )
        order: tuple[int, ...] = ()
        span = 1 if turns is None else turns.span
        if turns is not None:
            turned = turned_features(module, width)
            order = turns.order(width, turned)
        return Sites(
            producers=tuple(_producer(module, name, outputs(linear_at(module, name)) // width) for name in names),
            consumer=_consumer(module, self.out, columns // width), channels=width // span, span=span, turned=turned,
            order=() if order == tuple(feature % (width // span) for feature in range(width)) else order,
        )  # fmt: skip

    @property
    def _turns(self) -> Rotation | None:
        return self.rotation or (Rotation() if self.rotary else None)

    def factor(self, linear: str, share: float) -> float:
        return math.sqrt(share) if self.scale_follows_width and linear == self.query else 1.0

    def scales(self, site: Site, before: Sites, share: float) -> Tensor | None:
        found = super().scales(site, before, share)
        if found is None or not self.query == self.key == site.linear:
            return found
        head, queries = torch.arange(site.repeats, device="cpu"), before.consumer.repeats
        groups = (site.repeats - queries) // 2 if self.grouped else 1
        is_query = head % (site.repeats // groups) < queries // groups
        return torch.where(is_query, found, 1.0)

    def shrink(self, module: nn.Module, kept: Tensor, before: Sites) -> None:
        core, width = module.get_submodule(self.core), len(kept) * before.span
        for name, size in dict.fromkeys(self.totals, width * before.consumer.repeats).items():
            setattr(core, name, size)
        if self.width:
            setattr(core, self.width, width)
        if self.own_forward is not None:
            take_own_forward(module, self.own_forward)
        if self._turns is not None:
            index, columns = self._turns.columns(kept, before.turned)
            turned = int((kept < before.turned // before.span).sum()) * before.span
            for name, _ in turned_sizes(module):
                setattr(module, name, turned)
            keep_rotation(module, index, columns, turned, tables_of(module) or "position_embeddings")

    def _width(self, module: nn.Module) -> int:
        try:
            core = module.get_submodule(self.core)
        except AttributeError:
            raise MisfitError(f"it has no {self.core}") from None
        if not self.width:
            heads, columns = getattr(core, self.heads, None), inputs(linear_at(module, self.out))
            if not isinstance(heads, int) or heads < 1 or columns % heads:
                raise MisfitError(f"it has no head width, and no number of heads that divides {columns}")
            return columns // heads
        width = getattr(core, self.width, None)
        if not isinstance(width, int) or width < 1:
            raise MisfitError(f"it has no head width {self.width}")
        return width


@dataclass(frozen=True)
class Mlp(Layout):
    """An MLP: one producer (`up`), or two that are multiplied (`up` and `gate`), and one consumer."""

    is_attention: ClassVar[bool] = False
    up: str
    down: str
    gate: str | None = None
    """Path of the gate. The path of `up` again: one layer is both, its first half of rows the gate."""
    activation: str | None = None
    """Attribute that holds the activation; None where it need not be looked at, since a gate multiplies it."""
    kind: str = field(default="mlp", kw_only=True)

    def sites(self, module: nn.Module) -> Sites:
        names = (self.up,) if self.gate is None else tuple(dict.fromkeys((self.gate, self.up)))
        repeats = 2 if self.gate == self.up else 1
        producers = tuple(_producer(module, name, repeats) for name in names)
        consumer = _consumer(module, self.down, 1)
        channels = inputs(linear_at(module, self.down))
        if any(outputs(linear_at(module, name)) != repeats * channels for name in names):
            raise MisfitError("the layers of its MLP disagree on the hidden width")
        if self.gate is None and self.activation and not keeps_zero(module, self.activation):
            raise MisfitError(
                f"its activation {self.activation} does not map 0 to 0, so a pruned neuron would still speak"
            )
        return Sites(producers=producers, consumer=consumer, channels=channels)

    def shrink(self, module: nn.Module, kept: Tensor, before: Sites) -> None:
        """Nothing: an MLP reads its width off its layers."""


@dataclass(frozen=True)
class TriedMlp(Mlp):
    """An MLP of a type that nobody has named: it counts only if a trial run equals the formula."""

    activation: str = "act_fn"

    def resembles(self, module: nn.Module) -> bool:
        """Whether a module has parts of these names, so that a trial is worth its while."""
        return {self.up, self.down, self.gate or self.up} <= module._modules.keys() and hasattr(module, self.activation)

    def sites(self, module: nn.Module) -> Sites:
        prove_mlp(module, self.up, self.down, self.gate, self.activation)
        return super().sites(module)


def _producer(module: nn.Module, path: str, repeats: int) -> Site:
    """Rows and their biases leave."""
    layer = linear_at(module, path)
    return Site(path, repeats, inputs(layer) + (layer.bias is not None), 0 if _stores_rows(layer) else 1)


def _consumer(module: nn.Module, path: str, repeats: int) -> Site:
    """Columns leave."""
    layer = linear_at(module, path)
    return Site(path, repeats, outputs(layer), 1 if _stores_rows(layer) else 0)


def _stores_rows(layer: Linear) -> bool:
    return isinstance(layer, nn.Linear)
