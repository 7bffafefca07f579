"""Models that transformers lacks or that no hub is needed for."""

from prunus.models.packaged import bare_blip, small_blip, whiten
from prunus.models.smollm2 import smollm2

__all__ = ["bare_blip", "small_blip", "smollm2", "whiten"]
