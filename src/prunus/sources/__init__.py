"""Sources of models, one file each."""

from typing import TYPE_CHECKING

from prunus.sources.dense import dense_folder, described
from prunus.sources.packaged import PackagedSource
from prunus.sources.path import PathSource
from prunus.sources.published import PublishedSource
from prunus.sources.random import RandomSource
from prunus.sources.source import Source, with_tag
from prunus.sources.towers import TowersSource
from prunus.sources.warm_start import WarmStartSource
from prunus.typed import named

if TYPE_CHECKING:
    AnySource = Source
else:
    AnySource = named(Source, "source")
"""Any source, by its name in a recipe."""

__all__ = [
    "AnySource", "PackagedSource", "PathSource", "PublishedSource", "RandomSource", "Source", "TowersSource", "WarmStartSource", "dense_folder",
    "described", "with_tag",
]  # fmt: skip
