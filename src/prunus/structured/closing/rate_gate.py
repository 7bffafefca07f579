"""A rate that a metric gates (BYOP)."""

from __future__ import annotations

from pydantic import Field

from prunus.typed import Count, Share, Typed


class RateGate(Typed):
    """Holds the ratio where it is while the model is worse than allowed, measured before every update on a part of the *training* data that
    does not train. What has been held back is made up for over the rest of the schedule."""

    metric: str = "loss"
    """What is measured, in a recipe: the loss, or one of the task's metrics where it can measure them on training items. In Python you give
    `measure`, and this is only its name."""
    tolerance: float = Field(ge=0)
    """How much worse it may be than before the first update, in the metric's own unit."""
    patience: Count = 5
    """Updates in a row that the ratio is held at most; the next one goes on in any case, so that the end is reached."""
    share: Share = Field(default=0.05, gt=0, le=0.5)
    """Share of the training items that is held out for it, in a recipe."""
