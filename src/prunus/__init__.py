"""Prunus makes vision-language transformers small: it prunes them, narrows them, and hands back a plain checkpoint.

Importing it also teaches transformers to load Prunus checkpoints. What is named here is the public interface; nothing
else is promised.
"""

from prunus.anatomy import Anatomy, anatomy
from prunus.checkpoint import extract, plan_of
from prunus.errors import PrunusError
from prunus.plan import Plan
from prunus.structured import Search, SearchCallback, UPop

__version__ = "0.1.0"

__all__ = ["Anatomy", "Plan", "PrunusError", "Search", "SearchCallback", "UPop", "anatomy", "extract", "plan_of"]
