"""Tasks: one file each, with its batches, loss and metrics."""

from typing import TYPE_CHECKING

from prunus.metric import Metric
from prunus.tasks.caption import Caption
from prunus.tasks.classification import Classification
from prunus.tasks.easy_vqa import EasyVQA
from prunus.tasks.exhibit import Exhibit
from prunus.tasks.instruction import Instruction
from prunus.tasks.kinds import Generative, Parted, Speaker, copy_processor, kind_of
from prunus.tasks.noise import Noise
from prunus.tasks.on_data import DataTask
from prunus.tasks.reasoning import Reasoning
from prunus.tasks.retrieval import Retrieval
from prunus.tasks.segmentation import Segmentation
from prunus.tasks.speaking import SpeakingTask
from prunus.tasks.task import Split, Task
from prunus.tasks.text import Text
from prunus.tasks.vqa import Vqa
from prunus.typed import named

if TYPE_CHECKING:
    AnyTask = Task
else:
    AnyTask = named(Task, "name")
    """Every task a recipe can name: any subclass of `Task` that is imported."""

__all__ = [
    "AnyTask", "Caption", "Classification", "DataTask", "EasyVQA", "Exhibit", "Generative", "Instruction", "Metric", "Noise", "Parted",
    "Reasoning", "Retrieval", "Segmentation", "Speaker", "SpeakingTask", "Split", "Task", "Text", "Vqa", "copy_processor", "kind_of",
]  # fmt: skip
