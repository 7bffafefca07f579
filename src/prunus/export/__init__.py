"""Out of the door: models as graphs that other runtimes run, each checked against the model before it counts."""

from prunus.export.checking import TOLERANCE
from prunus.export.export import Exported, Graph, Graphs, export, export_folder
from prunus.export.formats import FORMATS, Format
from prunus.export.gguf import write_gguf
from prunus.export.inputs import real_batches

__all__ = [
    "FORMATS", "TOLERANCE", "Exported", "Format", "Graph", "Graphs", "export", "export_folder", "real_batches", "write_gguf",
]  # fmt: skip
