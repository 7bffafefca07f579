"""Data sets, as items that tasks make batches of: one file a data set; and versions of their pictures."""

from prunus.data.augment import AnyAugmentation, Augmentation, Augmented
from prunus.data.easy_vqa import COLORS, IMAGE_MEAN, IMAGE_STD, SHAPES, NamedImages, Questions, balanced

__all__ = [
    "COLORS", "IMAGE_MEAN", "IMAGE_STD", "SHAPES", "AnyAugmentation", "Augmentation", "Augmented", "NamedImages", "Questions", "balanced",
]  # fmt: skip
