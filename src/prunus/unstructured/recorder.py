"""Listens to the matrices of a block while batches run through it, and keeps statistics of what they are given and give.

Shapes: N sequences, T tokens, C columns, Q queries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_mask

from prunus.anatomy import LANGUAGE, Matrix
from prunus.errors import PrunusError
from prunus.modules import replaced
from prunus.unstructured.products import Products
from prunus.unstructured.statistics import NAMES, Needs, Source, Statistics
from prunus.unstructured.walk import Stop, Visit

MASKED = -1e3
"""Additive masks: anything below this switches a position off."""
ENCODER_STATES = ("encoder_hidden_states", "key_value_states")


class Recorder:
    """Statistics of the inputs and outputs of some matrices of one block, whose weights are in memory.

    Matrices that are given the very same tensors (q, k and v; gate and up) share one set of statistics. Positions that an
    attention mask switches off for everybody are padding and do not count; an expert counts the tokens routed to it.

    Args:
        apart: names of matrices that have statistics of their own, whatever they are given.

    Attributes:
        statistics: by the matrix's name, of those that were given any token.
    """

    def __init__(self, model: nn.Module, targets: Sequence[Matrix], needs: Needs, apart: Collection[str] = ()):
        self._model, self._targets, self._needs = model, targets, needs
        self._outputs = any(kind.source == "outputs" for kind in needs)
        self._apart = {matrix.name for matrix in targets} if self._outputs else apart
        self._rows = {matrix.name: matrix.rows for matrix in targets}
        self._routed = {matrix.name for matrix in targets if matrix.is_expert}
        self._experts = _modules_of_experts(model, targets)
        self._text_mask = mask_of_text(model, targets[0].tower if targets else "")
        self._leader: dict[str, str] = {}
        self._own: dict[str, Statistics] = {}
        self._calls: Counter[str] = Counter()
        self._shared: Counter[str] = Counter()
        self._seen: list[tuple[Tensor, str]] = []
        self._deaf, self._sequences = False, 0

    @property
    def statistics(self) -> dict[str, Statistics]:
        return {
            name: self._own[leader]
            for name, leader in self._leader.items()
            if not self._needs or self._own[leader].tokens
        }

    @property
    def parted(self) -> set[str]:
        """Matrices that were given what another was, but not in every call of either: the statistics are not theirs."""
        return {
            name
            for name, leader in self._leader.items()
            if name != leader and not self._shared[name] == self._calls[name] == self._calls[leader]
        }

    @contextmanager
    def listening(self, visit: Visit) -> Iterator[None]:
        """While the context is open, the stop of this visit runs it heard, and inputs count as the visit's."""
        with ExitStack() as cleanup:
            for experts in self._experts:
                cleanup.enter_context(replaced(experts, partial(self._run_experts, visit, experts, experts.forward)))
            cleanup.callback(self._seen.clear)
            cleanup.callback(setattr, visit, "modes", visit.modes)
            products = Products(self._model, self._targets, partial(self._hear, visit), self._outputs)
            visit.modes = replace(visit.modes, functions=(*visit.modes.functions, products))
            yield

    def _run_experts(
        self, visit: Visit, experts: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Runs experts as they are, unheard, and then those tokens that count, one expert at a time and heard."""
        self._deaf = True
        output = forward(*args, **kwargs)
        self._deaf = False
        hidden_TC = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        counted_T = counted_positions(visit, hidden_TC, self._text_mask)

        def counting(value: Any) -> Any:
            is_by_token = isinstance(value, Tensor) and value.ndim and value.shape[0] == len(hidden_TC)
            return value[counted_T] if is_by_token and counted_T is not None else value

        self._sequences = sequences_of(visit, hidden_TC)[0]
        try:
            with _one_at_a_time(experts):
                forward(*map(counting, args), **{name: counting(value) for name, value in kwargs.items()})
        finally:
            self._sequences = 0
        return output

    def _hear(self, visit: Visit, name: str, x_NTC: Tensor, y_NTR: Tensor | None = None) -> None:
        if self._deaf:
            return
        shared = next((leader for tensor, leader in self._seen if tensor is x_NTC), name)
        leader = self._leader.setdefault(name, name if name in self._apart else shared)
        self._calls[name] += 1
        if leader != name:
            self._shared[name] += shared == leader
            return
        if name not in self._apart:
            self._seen.append((x_NTC, name))
        if name not in self._own:
            self._own[name] = Statistics(self._needs, self._rows[name], x_NTC.shape[-1], x_NTC.device)
        counted_T, sequences, sequence_T = self._counted_rows(visit, name, x_NTC)
        heard: dict[Source, Tensor | None] = {"inputs": x_NTC, "outputs": y_NTR}
        try:
            for source, seen in heard.items():
                if seen is not None:
                    seen_TW = seen.reshape(-1, seen.shape[-1])
                    counted = seen_TW if counted_T is None else seen_TW[counted_T]
                    self._own[name].add(counted, sequences, sequence_T, source)
        except PrunusError as error:
            raise PrunusError(
                name, error.value, f"{NAMES[source]} of this layer is not finite in calibration batch {visit.batch}; "
                "look at that batch, or walk in bf16 or fp32 instead of fp16",
            ) from None  # fmt: skip

    def _counted_rows(self, visit: Visit, name: str, x_NTC: Tensor) -> tuple[Tensor | None, int, Tensor]:
        """Which tokens are no padding and were routed here, bool (N·T,), None for all; how many sequences the visit has, and
        which of them each of those tokens belongs to (those of an expert count as one)."""
        x_TC = x_NTC.reshape(-1, x_NTC.shape[-1])
        if self._sequences:
            return None, self._sequences, torch.zeros(len(x_TC), dtype=torch.long, device=x_TC.device)
        sequences, sequence_T = sequences_of(visit, x_NTC)
        counted = counted_positions(visit, x_NTC, self._text_mask)
        if name not in self._routed:
            return (None, sequences, sequence_T) if counted is None else (counted, sequences, sequence_T[counted])
        if counted is None and has_padding(visit, self._text_mask):
            raise PrunusError(
                "batches", name, "it is an expert that is given some of the tokens, and which of them are padding cannot be told; "
                "give batches without padding (batch size 1), or exclude it",
            )  # fmt: skip
        routed = x_TC.ne(0).any(1)  # experts that are all run on all tokens get zeros for those that are not theirs
        routed = routed if counted is None else routed & counted
        return routed, sequences, sequence_T[routed]


def _modules_of_experts(model: nn.Module, targets: Sequence[Matrix]) -> list[nn.Module]:
    """Modules that are given all tokens of a block and the experts' choice of them, and hold some of these matrices."""
    found: dict[int, nn.Module] = {}
    for matrix in targets:
        path = matrix.parameter.split(".")
        if "experts" in path and matrix.is_expert:
            experts = model.get_submodule(".".join(path[: path.index("experts") + 1]))
            one_by_one = isinstance(experts, nn.ModuleDict | nn.ModuleList)
            if type(experts).forward not in (nn.ModuleDict.forward, nn.ModuleList.forward) and (
                one_by_one or hasattr(experts, "is_transposed")
            ):
                found[id(experts)] = experts
    return list(found.values())


@contextmanager
def _one_at_a_time(experts: nn.Module) -> Iterator[None]:
    """While the context is open, fused experts multiply one matrix after the other."""
    config = getattr(experts, "config", None)
    before = getattr(config, "_experts_implementation", None)
    if config is None or before is None:
        yield
        return
    config._experts_implementation = "eager"
    try:
        yield
    finally:
        config._experts_implementation = before


def gather(
    model: nn.Module, targets: Sequence[Matrix], needs: Needs, stop: Stop, then: Callable[[Visit], object] | None = None
) -> dict[str, Statistics]:
    """Runs a block for all batches that have stopped at it, and returns what its matrices were given; experts that no token was
    routed to are left out.

    Args:
        then: is told of every batch once the block has been run for it.

    Raises:
        PrunusError: no batch used a matrix that is no expert.
    """
    apart: set[str] = set()
    recorder = _heard(model, targets, needs, stop, apart, then)
    while recorder.parted:
        apart |= recorder.parted
        recorder = _heard(model, targets, needs, stop, apart)
    for matrix in targets:
        if needs and not matrix.is_expert and matrix.name not in recorder.statistics:
            raise PrunusError(
                "batches", matrix.name, "no calibration batch used this layer; give batches that do, or exclude it"
            )
    return recorder.statistics


def _heard(
    model: nn.Module, targets: Sequence[Matrix], needs: Needs, stop: Stop, apart: Collection[str],
    then: Callable[[Visit], object] | None = None,
) -> Recorder:  # fmt: skip
    recorder = Recorder(model, targets, needs, apart)
    for visit in stop.visits:
        with recorder.listening(visit):
            stop.run(visit)
        if then is not None:
            then(visit)
        stop.rest(visit)
    return recorder


def sequences_of(visit: Visit, x_NTC: Tensor) -> tuple[int, Tensor]:
    """How many sequences a layer's inputs come from, and which of them each of its rows belongs to, (N·T,).

    Inputs that were flattened to (N·T, C), as OPT's MLPs do it, or were packed, as Qwen's images are, come from the
    sequences of the visit.
    """
    rows = x_NTC.shape[:-1].numel()
    if x_NTC.ndim > 2:
        sequences = x_NTC.shape[0]
    else:
        bounds = visit.arguments.get("cu_seqlens")
        if isinstance(bounds, Tensor) and int(bounds[-1]) == rows:
            lengths = bounds.diff().to(x_NTC.device)
            return len(lengths), torch.repeat_interleave(lengths)
        given = (value for value in visit.arguments.values() if isinstance(value, Tensor))
        sequences = next((x.shape[0] for x in given if x.ndim == 3 and x.shape[:2].numel() == rows), 1)
    return sequences, torch.arange(rows, device=x_NTC.device) * sequences // max(rows, 1)


def mask_of_text(model: nn.Module, tower: str) -> str:
    """Which of a batch's masks is over the tokens of a tower; none in one that reads no text."""
    if tower == "decoder" and getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return "decoder_attention_mask"
    return "attention_mask" if tower in ("language", *LANGUAGE) else ""


def has_padding(visit: Visit, text_mask: str = "") -> bool:
    """Whether a mask of the block's inputs, or of the batch, switches a position off for everybody."""
    masks = (_allowed(visit.arguments.get("attention_mask")), _allowed(visit.masks.get(text_mask)))
    return any(allowed is not None and not bool(allowed.all()) for allowed in masks)


def counted_positions(visit: Visit, x_NTC: Tensor, text_mask: str = "") -> Tensor | None:
    """Which rows of a layer's flattened inputs are no padding, bool (N·T,); None where all count.

    Read off the mask that the model gave the block: a position counts if any query may look at it. Besides, the batch's mask of
    that name holds where it is over these positions: some blocks are given no mask (Nemotron-H's experts, RWKV), one under a name
    or in a form of its own (XLM, XLNet, LongT5), or one in which padding looks at itself (Grounding DINO).
    """
    from_encoder = any(x_NTC is visit.arguments.get(name) for name in ENCODER_STATES)
    counted = _by_mask_of_block(visit, x_NTC, from_encoder)
    if not from_encoder and text_mask in visit.masks:
        whole = _by_mask_of_batch(visit.masks[text_mask], x_NTC)
        counted = whole if counted is None else counted if whole is None else counted & whole.to(counted.device)
    return None if counted is None or bool(counted.all()) else counted


def _by_mask_of_block(visit: Visit, x_NTC: Tensor, from_encoder: bool) -> Tensor | None:
    allowed = _allowed(visit.arguments.get("encoder_attention_mask" if from_encoder else "attention_mask"))
    if allowed is None:
        return None
    positions = x_NTC.shape[:-1]
    queries = visit.arguments.get("query_length")  # a Q-Former's: its mask is over queries, then text
    if isinstance(queries, int) and 0 < queries != positions[-1] == allowed.shape[-1] - queries:
        allowed = allowed[..., queries:]
    if allowed.ndim == 2 and len(allowed) == 1:
        allowed = allowed.expand(positions.numel() // allowed.shape[-1], -1)  # one mask for all sequences
    # else it is a mask over other positions than this layer's inputs
    return allowed.reshape(-1) if allowed.numel() == positions.numel() else None


def _by_mask_of_batch(mask_NT: Tensor, x_NTC: Tensor) -> Tensor | None:
    allowed = _allowed(mask_NT)
    positions = x_NTC.shape[:-1]
    if allowed is None or allowed.numel() != positions.numel():
        return None
    if len(positions) > 1 and positions[:2] == allowed.shape[::-1] != allowed.shape:
        allowed = allowed.T  # XLNet and FSMT have time first
    elif len(positions) > 1 and positions != allowed.shape:
        return None
    return allowed.reshape(-1).to(x_NTC.device)


def _allowed(mask: Any) -> Tensor | None:
    """Which positions some query may look at, bool (N, T) or (T,), from a mask of any kind that transformers uses.

    Raises:
        PrunusError: a mask of an unknown kind.
    """
    if isinstance(mask, BlockMask):
        batch, heads, queries, keys = mask.shape
        mask = create_mask(mask.mask_mod, batch, heads, queries, keys, device=str(mask.kv_indices.device))
    if isinstance(mask, dict):  # by the kind of layer (full, sliding): padding is the same in all
        mask = next((value for value in mask.values() if value is not None), None)
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise PrunusError(
            "attention_mask", type(mask).__name__, "prunus cannot read padding off this; load the model with attn_implementation='sdpa'"
        )  # fmt: skip
    if mask.is_floating_point():
        additive = bool((mask < 0).any()) or not bool(mask.any())
        allowed = mask > MASKED if additive else mask > 0
    else:
        allowed = mask > 0 if mask.dtype != torch.bool else mask
        if _says_what_is_hidden(allowed):
            allowed = ~allowed
    while allowed.ndim > 2:
        allowed = allowed.any(dim=1)  # heads, then queries
    return allowed


def _says_what_is_hidden(mask: Tensor) -> bool:
    """Whether a boolean mask over queries and keys is true where a query must not look: it is if an earlier query's entry for a
    token is true and the token's own is not. Nobody is shown a token that does not see itself."""
    queries, keys = mask.shape[-2:] if mask.ndim > 2 else (0, 0)
    if queries != keys or queries < 2:
        return False
    own = mask.diagonal(dim1=-2, dim2=-1)[..., None, :]
    return bool((mask.triu(1) & ~own).any())
