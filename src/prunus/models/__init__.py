"""Models that transformers lacks or that no hub is needed for."""

from prunus.models.packaged import small_blip, whiten

__all__ = ["small_blip", "whiten"]
