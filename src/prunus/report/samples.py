"""Items of the evaluation split with what every model makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from prunus.tasks import Exhibit


class Sample(BaseModel):
    """An item, shown to every model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    asked: str
    """The question; empty where the task is the same for every item."""
    right: str
    """What would have been right."""
    pictures: list[str]
    """JPEG files, small, base64."""
    said: dict[str, str]
    """Model → what it said."""


def collected(exhibits: Mapping[str, Sequence[Exhibit]]) -> list[Sample]:
    """The same items, shown to several models.

    Args:
        exhibits: model → what it made of them, in the same order.
    """
    return [
        Sample(
            asked=same[0].asked, right=same[0].right, pictures=list(same[0].pictures),
            said={name: one.said for name, one in zip(exhibits, same, strict=True)},
        )
        for same in zip(*exhibits.values(), strict=False)
    ]  # fmt: skip
