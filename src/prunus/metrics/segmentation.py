"""Mean intersection over union, over a whole data set: pixels are counted class by class over all images, then divided."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def overlap_row(predicted: Tensor, mask: Tensor, classes: int) -> Tensor:
    """What one image adds to the sums, (3 K,): pixels of each class that are right, that are predicted, that are there.

    Args:
        predicted: a class a pixel, (H, W).
        mask: the right class, (H, W); pixels of any number outside of the classes are not looked at.
        classes: K.
    """
    counted = (mask >= 0) & (mask < classes)
    said, there = predicted[counted].long(), mask[counted].long()
    parts = (said[said == there], said, there)
    return torch.cat([torch.bincount(part, minlength=classes) for part in parts]).double()


def overlap_figures(sums: Tensor) -> Mapping[str, Tensor]:
    """Of sums (…, 3 K): `mean_iou` and `mean_accuracy`, over the classes that occur, and `pixel_accuracy`."""
    right, said, there = sums.chunk(3, -1)
    return {
        "mean_iou": (right / (said + there - right)).nanmean(-1),
        "pixel_accuracy": right.sum(-1) / there.sum(-1),
        "mean_accuracy": (right / there).nanmean(-1),
    }
