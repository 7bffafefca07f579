"""Data sets, as items that tasks make batches of: one file a data set."""

from prunus.data.easy_vqa import COLORS, IMAGE_MEAN, IMAGE_STD, SHAPES, NamedImages, Questions, balanced

__all__ = ["COLORS", "IMAGE_MEAN", "IMAGE_STD", "SHAPES", "NamedImages", "Questions", "balanced"]
