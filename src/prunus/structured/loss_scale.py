"""What a loss scaler has done to gradients, and what it is going to do."""

from __future__ import annotations

from torch import nn
from torch.amp.grad_scaler import GradScaler, OptState

from prunus.parallel import everyones, local


def will_skip(model: nn.Module, scaler: GradScaler) -> bool:
    """Whether a loss scaler will skip this step, because some gradient is not finite."""
    states = scaler._per_optimizer_states.values()
    found = [number for state in states for number in state.get("found_inf_per_device", {}).values()]
    if found:  # it has been unscaled, and looked at
        return any(float(number) > 0 for number in found)
    sums = [local(parameter.grad).float().sum() for parameter in model.parameters() if parameter.grad is not None]
    return any(everyones(any(not bool(total.isfinite()) for total in sums)))


def scale_left(scaler: GradScaler | None) -> float:
    """The factor by which a loss scaler has made the gradients too large; one where it has been undone already."""
    if scaler is None or not scaler.is_enabled():
        return 1.0
    is_undone = any(state["stage"] is not OptState.READY for state in scaler._per_optimizer_states.values())
    return 1.0 if is_undone else scaler.get_scale()
