"""Attentions that nobody has named: what parts of a module look like one, and every way in which they may make one.

A guess is no knowledge: it counts only if a trial proves that the module, cut as the guess says, computes what the masked
one does (`proof`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import ClassVar, TypeGuard

from torch import Tensor, nn

from prunus.anatomy.forwards import keep_rotation
from prunus.anatomy.layers import Site
from prunus.anatomy.layouts import Attention, Layout, Proposal, Sites
from prunus.anatomy.norms import Norm, NormSites, norms_in, sites_of, weighted
from prunus.anatomy.rotation import ROTATIONS, tables_of, turned_features, turned_sizes
from prunus.anatomy.trial import MisfitError, linear_at

ROLE = re.compile(r"(?:to_|w|lin_|linear_)?(q|k|v)(?:uer(?:y|ies)|eys?|alues?)?(?:_?(?:proj|lin|linear|layer|states))?")
"""How the layers that make queries, keys and values are called."""
FUSED = re.compile(r"(?:.*_)?w?_?(?:qkv|query_key_value|c_attn|att_proj)(?:_?(?:proj|lin|linear))?", re.IGNORECASE)
"""How a layer that makes all three is called."""
OUT = re.compile(r"(?:.*_)?(?:o|out|output|dense|proj|projection|fc_out|final)(?:_?(?:proj|lin|linear|layer|net))?")
"""How the output layer is called, where there are several others."""
WIDTHS = re.compile(
    r"(?!all_)(?:.*_)?(?:head_(?:dim|size|width|features)|key_value_proj_dim|dim_per_head|d_kv|kv_channels)"
)
"""Attributes that hold the head width."""
HEADS = re.compile(r"num_(?:attention_)?heads|(?:n|num)_?heads?")
"""Attributes that hold the number of heads of the queries."""


@dataclass(frozen=True)
class TriedAttention(Attention):
    """One guess at an attention whose queries, keys and values are layers of their own."""

    is_tried: ClassVar[bool] = True
    gates: tuple[str, ...] = field(default=(), kw_only=True)
    """Layers whose outputs multiply what the heads give."""
    norms: tuple[Norm, ...] = field(default=(), kw_only=True)
    """Over the channels."""
    tables: tuple[str, ...] = field(default=(), kw_only=True)
    """Parameters, (positions, head width), that multiply queries or keys."""

    def sites(self, module: nn.Module) -> Sites:
        columns = linear_at(module, self.out).in_features
        width, turned = self._width(module), 0
        names = tuple(dict.fromkeys(name for name in (self.query, self.key, self.value, *self.gates) if name))
        layers = {name: linear_at(module, name) for name in names}
        if self.query == self.key and (layers[self.query].out_features - columns) <= 0:
            raise MisfitError(
                f"its {self.query} has no rows for keys and values beside those for {columns} inputs of its {self.out}"
            )
        for name, rows in {self.out: columns, **{name: layer.out_features for name, layer in layers.items()}}.items():
            if rows % width:
                raise MisfitError(f"its {name} has {rows} features there, no multiple of head width {width}")
        order: tuple[int, ...] = ()
        if self.rotation is not None:
            turned = turned_features(module, width)
            order = self.rotation.order(width, turned)
        span = 1 if self.rotation is None else self.rotation.span
        plain = tuple(f % (width // span) for f in range(width))
        return Sites(
            producers=tuple(
                Site(name, layer.out_features // width, layer.in_features + (layer.bias is not None))
                for name, layer in layers.items()
            ),
            consumer=Site(self.out, columns // width, linear_at(module, self.out).out_features, 1),
            channels=width // span, span=span, order=() if order == plain else order, turned=turned, **self._others(module, width),
        )  # fmt: skip

    def factor(self, linear: str, share: float) -> float:
        if linear == self.out and any(norm.is_weightless for norm in self.norms):
            return float(share**-0.5)
        return super().factor(linear, share)

    def refit(self, norm: str, weight: Tensor, share: float) -> Tensor:
        known = {one.path: one for one in self.norms}
        if norm in known:
            return known[norm].refit(weight, share)
        factor = self.factor(self.query, share)  # of the queries that a table multiplies
        return weight / factor

    def shrink(self, module: nn.Module, kept: Tensor, before: Sites) -> None:
        core, width = module.get_submodule(self.core), len(kept) * before.span
        for name, size in dict.fromkeys(self.totals, width * before.consumer.repeats).items():
            setattr(core, name, size)
        if self.width:
            setattr(core, self.width, width)
        for norm in self.norms:
            norm.shrink(module, before.channels, len(kept), before.channels * before.span)
        if self.rotation is not None:
            index, columns = self.rotation.columns(kept, before.turned)
            turned = int((kept < before.turned // before.span).sum()) * before.span
            for name, _ in turned_sizes(module):
                setattr(module, name, turned)
            keep_rotation(module, index, columns, turned, tables_of(module) or "")

    def _others(self, module: nn.Module, width: int) -> NormSites:
        found = sites_of(self.norms, module, width)
        tables = tuple(Site(name, 1, len(module.get_parameter(name)), 1) for name in self.tables)
        return {**found, "norms": (*found["norms"], *tables)}


@dataclass(frozen=True)
class AttentionByConvention(Proposal):
    """Whatever has layers that are called queries, keys, values and output."""

    is_attention: ClassVar[bool] = True
    lacks: ClassVar[str] = "it has no layers for queries, keys, values and output"

    def resembles(self, module: nn.Module) -> bool:
        """Whether a module has such layers, and no module in it has them all."""
        return _layers(module) is not None

    def candidates(self, module: nn.Module) -> Iterator[Layout]:
        layers = _layers(module)
        if layers is None:
            return
        query, key, value, out, gates = layers
        core = _core(module, query)
        inside = module.get_submodule(core)
        base = TriedAttention(query, key, value, out, core=core, width="", gates=gates)
        widths = [name for name in _sizes(inside) if WIDTHS.fullmatch(name)]
        counts = [name for name in _sizes(inside) if HEADS.fullmatch(name)]
        named = [replace(base, width=name) for name in widths] or [replace(base, heads=name) for name in counts]
        rotations = [None, *ROTATIONS] if tables_of(module) else [None]
        for guess in named:
            try:
                width, columns = guess._width(module), linear_at(module, out).in_features
            except MisfitError:
                yield guess
                continue
            norms = _norms(module, guess, width)
            tables = tuple(
                n for n, p in module._parameters.items() if p is not None and p.ndim == 2 and p.shape[1] == width
            )
            totals = tuple(n for n, size in _sizes(inside).items() if size == columns and n not in (*widths, *counts))
            choices = product(
                rotations, [norms, ()] if norms else [()], [tables, ()] if tables else [()],
                [(), totals] if totals else [()], (False, True),
            )  # fmt: skip
            for rotation, over, known, sizes, scale in choices:
                found = replace(
                    guess, rotation=rotation, norms=over, tables=known, totals=sizes, scale_follows_width=scale
                )
                yield found
                if scale and query == key:
                    yield replace(found, grouped=True)


def _layers(module: nn.Module) -> tuple[str, str, str, str, tuple[str, ...]] | None:
    """Paths of the layers for queries, keys, values (empty, where keys serve) and output, and of those that gate the output."""
    layers = dict(_linears(module))
    roles: dict[str, str] = {}
    for path in layers:
        role = next(filter(None, (ROLE.fullmatch(part) for part in reversed(path.split(".")))), None)
        if role is not None:
            if role[1] in roles:
                return None
            roles[role[1]] = path
    fused = [path for path in layers if FUSED.fullmatch(path.rpartition(".")[2])]
    if not roles and len(fused) == 1:
        roles = dict.fromkeys("qkv", fused[0])
    others = [path for path in layers if path not in roles.values()]
    if not {"q", "k"} <= roles.keys() or not others:
        return None
    named = [path for path in others if any(OUT.fullmatch(part) for part in path.split("."))]
    if len(others) > 1 and len(named) != 1:
        return None
    out = named[0] if named else others[0]
    first = {path.partition(".")[0] for path in (*roles.values(), out)}
    if len(first) == 1:  # a module in it has them all
        return None
    columns = getattr(layers[out], "in_features", None)
    gates = tuple(path for path in others if path != out and getattr(layers[path], "out_features", None) == columns)
    return roles["q"], roles["k"], roles.get("v", ""), out, gates


def _linears(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers at most two steps down, adapted ones too."""
    for name, child in module._modules.items():
        if child is None:
            continue
        if _is_linear(child):
            yield name, child
        else:
            yield from ((f"{name}.{part}", leaf) for part, leaf in child._modules.items() if _is_linear(leaf))


def _is_linear(module: nn.Module | None) -> TypeGuard[nn.Module]:
    return isinstance(module, nn.Linear) or hasattr(module, "base_layer")


def _core(module: nn.Module, query: str) -> str:
    """Path of the module that holds the sizes: the one around the queries, unless it holds nothing else."""
    around = query.rpartition(".")[0]
    return (
        around
        if around and any(WIDTHS.fullmatch(n) or HEADS.fullmatch(n) for n in _sizes(module.get_submodule(around)))
        else ""
    )


def _sizes(module: nn.Module) -> dict[str, int]:
    return {name: size for name, size in vars(module).items() if type(size) is int and size > 0}


def _norms(module: nn.Module, guess: TriedAttention, width: int) -> tuple[Norm, ...]:
    """Norms in a module over as many channels as one head has, or all heads of a layer."""
    totals = {width, *(linear_at(module, name).out_features for name in (guess.query, guess.key, guess.value) if name)}
    found = []
    for name, norm, weight in norms_in(module._modules.items()):
        if weight is not None:
            found += [weighted(name, norm, weight)] if weight.numel() in totals and not weight.shape[-1] % width else []
        elif ROLE.match(name):
            found.append(Norm(name, is_weightless=name.startswith("v"), is_wide=not name.startswith("v")))
    return tuple(found)
