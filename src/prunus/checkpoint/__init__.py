"""Checkpoints: plain transformers folders, loaded whole, built without weights, or read and written block by block."""

from prunus.checkpoint.checksums import CHECKSUMS, verify, write_checksums
from prunus.checkpoint.described import describe, how_to_load
from prunus.checkpoint.hollow import Hollow
from prunus.checkpoint.loading import bare_model, load_model, local_folder, random_model, without_weights
from prunus.checkpoint.naming import Group, Parts
from prunus.checkpoint.narrowed import extract
from prunus.checkpoint.piecewise import extract_to
from prunus.checkpoint.plausible import check_config, memory, understood
from prunus.checkpoint.shards import Shards
from prunus.checkpoint.streaming import prune_folder
from prunus.checkpoint.work import Work, copy_beside_weights, hashed, identity, refuse_places
from prunus.checkpoint.zeros import sparsity_in
from prunus.plan import plan_of

__all__ = [
    "CHECKSUMS", "Group", "Hollow", "Parts", "Shards", "Work", "bare_model", "check_config", "copy_beside_weights", "describe", "extract", "extract_to", "hashed",
    "how_to_load", "identity", "load_model", "local_folder", "memory", "plan_of", "prune_folder", "random_model", "refuse_places", "sparsity_in", "understood",
    "verify", "without_weights", "write_checksums",
]  # fmt: skip
