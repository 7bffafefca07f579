"""What a loss scaler has done to gradients, and what it is going to do."""

from __future__ import annotations

from torch import nn
from torch.amp.grad_scaler import GradScaler, OptState

from prunus.parallel import everyones, local


def will_skip(model: nn.Module, scaler: GradScaler) -> bool:
    """Whether a loss scaler will skip this step, because some gradient is not finite: in all processes, or in none."""
    found = [state["found_inf_per_device"] for state in scaler._per_optimizer_states.values()]
    if not any(found):
        sums = [local(parameter.grad).float().sum() for parameter in model.parameters() if parameter.grad is not None]
        return any(everyones(any(not bool(total.isfinite()) for total in sums)))
    mine = [
        any(float(number) > 0 for number in numbers.values()) for numbers in found
    ]  # it has been unscaled, and looked at
    skips = [any(of_all) for of_all in zip(*everyones(mine), strict=True)]
    for numbers, here, anywhere in zip(found, mine, skips, strict=True):
        if anywhere and not here:
            for number in numbers.values():
                number.fill_(1.0)  # so that this process's scaler skips, too
    return any(skips)


def scale_left(scaler: GradScaler | None) -> float:
    """The factor by which a loss scaler has made the gradients too large; one where it has been undone already."""
    if scaler is None or not scaler.is_enabled():
        return 1.0
    is_undone = any(state["stage"] is not OptState.READY for state in scaler._per_optimizer_states.values())
    return 1.0 if is_undone else scaler.get_scale()
