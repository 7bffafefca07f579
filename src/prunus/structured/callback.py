"""A search under `transformers.Trainer`."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from transformers.trainer_callback import ExportableState

from prunus.errors import PrunusError
from prunus.finished import Finished
from prunus.parallel import refuse_sharding_launcher
from prunus.plan import Plan
from prunus.structured.method import SearchMethod
from prunus.structured.preflight import COMPILED, REPLICAS, SHARDED
from prunus.structured.search import Search


class SearchCallback(Finished, ExportableState):  # type: ignore[misc]
    """Runs a search under `transformers.Trainer`, over all of its steps.

    Works with gradient accumulation, autocast, loss scaling, several processes, clipping and resuming. Scores are read
    before gradients are clipped: the callback clips to the Trainer's `max_grad_norm` itself, after reading. The state of
    the search is part of `trainer_state.json` in every checkpoint, so it is found wherever a checkpoint was moved to.

    Args:
        method: what to search for.
        mirrors: momentum copies, as in `anatomy`.
        example: one call of the model, as in `Search`, for budgets in multiply-accumulates.
        measure: how good the model is, as in `Search`, for methods that wait for it.

    Attributes:
        search: the `Search`, once training has begun. After training, `search.plan()` is the result.

    Raises:
        PrunusError: when the Trainer is made or begins to train, for settings under which a plan would be wrong.
    """

    def __init__(
        self, method: SearchMethod, mirrors: Mapping[str, str] | None = None, *,
        example: Callable[[], object] | None = None, measure: Callable[[], float] | None = None,
    ):  # fmt: skip
        if not isinstance(method, SearchMethod):
            raise PrunusError(
                "method", type(method).__name__, "give a search method, such as UPop(ratio=0.5). If the Trainer made this "
                "callback: leave restore_callback_states_from_checkpoint off, the search resumes without it",
            )  # fmt: skip
        self.method, self.mirrors, self._example, self._measure = method, mirrors, example, measure
        self.search: Search | None = None
        self._max_grad_norm = 0.0
        self._clips = False
        """Whether clipping is ours for now; still so when a training was interrupted."""

    def plan(self) -> Plan:
        """The decision, after training."""
        if self.search is None:
            raise PrunusError("search", None, "train first; the plan exists when training has ended")
        return self.search.plan()

    def state(self) -> dict[str, Any]:
        """What the Trainer writes into `trainer_state.json`."""
        search = None if self.search is None else base64.b64encode(self.search.state()).decode()
        return {"args": {"method": self.method.model_dump(mode="json")}, "attributes": {"search": search}}

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _check(args)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: nn.Module, optimizer: Any = None, **kwargs: Any
    ) -> None:
        _check(args)
        super().on_train_begin(args, state, control, model)
        if self.search is not None:
            self.search.close()
        self.search = Search(
            model, self.method, state.max_steps, self.mirrors,
            optimizer=optimizer, example=self._example, measure=self._measure,
        )  # fmt: skip
        if state.global_step > 0:
            self.search.load_state(self._saved(state), "trainer_state.json")
        self.search.gates.mark_saved(True)
        if not self._clips or args.max_grad_norm:
            self._max_grad_norm, args.max_grad_norm, self._clips = args.max_grad_norm or 0.0, 0.0, True

    def _saved(self, state: Any) -> bytes:
        """The state of the search in the checkpoint that is resumed from."""
        found = (state.stateful_callbacks or {}).get(type(self).__name__)
        search = found["attributes"].get("search") if isinstance(found, dict) else None
        if search is None:
            raise PrunusError(
                "resume_from_checkpoint", f"step {state.global_step}", "the checkpoint holds no state of a search: it was "
                "saved by a training without one SearchCallback, or by prunus 0.1; begin the search anew",
            )  # fmt: skip
        return base64.b64decode(search)

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: nn.Module, optimizer: Any = None, **kwargs: Any
    ) -> None:
        assert self.search is not None
        if self.is_over:
            super().on_pre_optimizer_step(args, state, control, model)
            return
        scaler = getattr(optimizer, "scaler", None)
        if scaler is not None:
            scaler.unscale_(optimizer.optimizer)
        self.search.step(scaler=scaler)
        if self._max_grad_norm > 0:
            nn.utils.clip_grad_norm_(model.parameters(), self._max_grad_norm)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        args.max_grad_norm, self._clips = self._max_grad_norm, False
        if self.search is not None:
            self.search.gates.mark_saved(False)


def _check(args: Any) -> None:
    if args.load_best_model_at_end:
        raise PrunusError(
            "load_best_model_at_end", True, "weights of an earlier step have not learned to do without the channels that "
            "the plan takes; leave it off, and choose the best model while you retrain the extracted one",
        )  # fmt: skip
    refuse_sharding_launcher()
    if args.torch_compile:
        raise PrunusError("torch_compile", True, COMPILED)
    if getattr(args, "deepspeed", None):
        raise PrunusError("deepspeed", True, "it takes gradients away before they can be read; train by DDP")
    if args.fsdp:
        raise PrunusError("fsdp", args.fsdp, SHARDED)
    if args.n_gpu > 1:
        raise PrunusError("n_gpu", args.n_gpu, REPLICAS)
