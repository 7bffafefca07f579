"""Checkpoints: plain transformers folders, loaded whole, built without weights, or read and written block by block."""

from prunus.checkpoint.checksums import verify, write_checksums
from prunus.checkpoint.described import describe
from prunus.checkpoint.loading import bare_model, load_model, local_folder, random_model
from prunus.checkpoint.narrowed import extract
from prunus.checkpoint.piecewise import extract_to
from prunus.checkpoint.plausible import check_config, memory, understood
from prunus.checkpoint.streaming import prune_folder
from prunus.checkpoint.zeros import sparsity_in
from prunus.plan import plan_of

__all__ = [
    "bare_model", "check_config", "describe", "extract", "extract_to", "load_model", "local_folder", "memory", "plan_of", "prune_folder",
    "random_model", "sparsity_in", "understood", "verify", "write_checksums",
]  # fmt: skip
