"""Checkpoints: plain transformers folders, loaded whole, built without weights, or read and written block by block."""

from prunus.checkpoint.described import describe
from prunus.checkpoint.loading import bare_model, load_model, local_folder, random_model
from prunus.checkpoint.narrowed import extract
from prunus.checkpoint.streaming import prune_folder
from prunus.plan.record import plan_of

__all__ = ["bare_model", "describe", "extract", "load_model", "local_folder", "plan_of", "prune_folder", "random_model"]
