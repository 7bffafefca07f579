"""Experts as a whole: what each of them adds to what its layer gives.

Shapes: T tokens, E experts, K experts of a token, C columns.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunus.anatomy import INSIDE, Unit
from prunus.calibrated.method import Calibrated
from prunus.errors import PrunusError
from prunus.modules import replaced
from prunus.unstructured import Stop, Visit, counted_positions, mask_of_text


def refuse_for_whole_experts(method: Calibrated, is_pruned: bool) -> None:
    """Refuses what cannot be where experts leave as a whole.

    Raises:
        PrunusError: a compensation, a limit of what is computed on a call, or a model that was pruned.
    """
    if method.compensation != "none":
        raise PrunusError("compensation", method.compensation, "nothing makes up for whole experts; take none")
    for name in ("max_macs", "max_milliseconds", "max_bytes"):
        if getattr(method, name) is not None:
            raise PrunusError(
                name,
                getattr(method, name),
                "every token goes to as many experts as before; take ratio or max_parameters",
            )
    if is_pruned:
        raise PrunusError(
            "model",
            "pruned",
            "its record of zeros names experts by number; drop whole experts first, and prune afterwards",
        )


@dataclass
class Tally:
    """What single experts gave, weighted by the router, in all calls so far."""

    text_mask: str
    norms: Tensor
    """Σ g ‖f(x)‖ of each expert, (E,)."""
    tokens: Tensor
    """Those that are routed to each, (E,)."""

    def hear(self, visit: Visit, forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Runs experts, and then, one expert a row, those of the tokens that are no padding."""
        output = forward(*args, **kwargs)
        hidden_TC, *routing = inspect.signature(forward).bind(*args, **kwargs).args
        if routing:
            self._routed(visit, forward, hidden_TC, *routing)
        else:
            self._batched(visit, hidden_TC, output)
        return output

    def _routed(
        self, visit: Visit, forward: Callable[..., Tensor], hidden_TC: Tensor, index_TK: Tensor, weight_TK: Tensor
    ) -> None:
        """Of experts that are given all tokens and who goes where."""
        counted_T = counted_positions(visit, hidden_TC, self.text_mask)
        rows_TC = hidden_TC.reshape(-1, hidden_TC.shape[-1])
        chosen_TK = index_TK < len(self.tokens)
        if counted_T is not None:
            chosen_TK = chosen_TK & counted_T[:, None]
        token, place = chosen_TK.nonzero(as_tuple=True)
        expert = index_TK[token, place]
        given = forward(rows_TC[token], expert[:, None], weight_TK[token, place][:, None])
        self._add(expert, given.reshape(len(token), -1))

    def _batched(self, visit: Visit, hidden_EC: Tensor, output: Tensor) -> None:
        """Of experts that are given the tokens of all of them, one expert's after the other's, and zeros where a token is not theirs."""
        experts = len(self.tokens)
        hidden_ETC = hidden_EC.reshape(experts, -1, hidden_EC.shape[-1])
        counted_T = counted_positions(visit, hidden_ETC[0], self.text_mask)
        routed_ET = hidden_ETC.ne(0).any(-1)
        if counted_T is not None:
            routed_ET = routed_ET & counted_T
        expert, token = routed_ET.nonzero(as_tuple=True)
        self._add(expert, output.reshape(hidden_ETC.shape[0], hidden_ETC.shape[1], -1)[expert, token])

    def _add(self, expert: Tensor, given: Tensor) -> None:
        found = given.float().norm(dim=-1).to(self.norms)
        self.norms.index_add_(0, expert, found)
        self.tokens.index_add_(0, expert, torch.ones_like(found))


def worth_of_experts(model: nn.Module, unit: Unit, stop: Stop) -> Tensor:
    """Mean of g ‖f(x)‖ over the tokens that are routed to each expert, (E,), fp32; 0 where there are none.

    Raises:
        PrunusError: no token was routed to any, or what an expert gives is not finite.
    """
    experts = model.get_submodule(f"{unit.path}.{INSIDE}".removeprefix("."))
    device = next(experts.parameters()).device
    tally = Tally(
        mask_of_text(model, unit.tower),
        *(torch.zeros(unit.channels, dtype=torch.float64, device=device) for _ in range(2)),
    )
    for visit in stop.visits:
        with replaced(experts, partial(tally.hear, visit, experts.forward)):
            stop.run(visit)
        stop.rest(visit)
    if not bool(tally.tokens.any()):
        raise PrunusError(
            "batches", unit.name, "no calibration token was routed to its experts; give more, or exclude it"
        )
    if not bool(tally.norms.isfinite().all()):
        raise PrunusError(
            unit.name,
            "nan or infinity",
            "what an expert gives is not finite; look at the batches, or walk in bf16 or fp32",
        )
    return (tally.norms / tally.tokens.clamp_min(1)).float()
