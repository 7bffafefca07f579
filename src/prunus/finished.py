"""Trainings that are resumed after their last step."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback


class Finished(TrainerCallback):  # type: ignore[misc]
    """Ends a training whose steps had all been done when it was resumed, without another one.

    In the middle of an epoch, `transformers.Trainer` begins a step before it asks whether any is left. That step gets no
    gradients here, so that weights and optimiser stay as they are, and is not counted, evaluated or saved.
    """

    is_over = False

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        self.is_over = state.global_step >= state.max_steps

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        if self.is_over:
            model.zero_grad()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if self.is_over:
            state.global_step = state.max_steps
            control.should_save = control.should_evaluate = control.should_log = False
            control.should_training_stop = True
        return control
