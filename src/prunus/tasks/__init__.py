"""Tasks: one file each, with its batches, loss and metrics."""

from typing import TYPE_CHECKING

from prunus.metric import Metric
from prunus.tasks.easy_vqa import EasyVQA
from prunus.tasks.noise import Noise
from prunus.tasks.task import Task
from prunus.tasks.text import Text
from prunus.typed import named

if TYPE_CHECKING:
    AnyTask = Task
else:
    AnyTask = named(Task, "name")
    """Every task a recipe can name: any subclass of `Task` that is imported."""

__all__ = ["AnyTask", "EasyVQA", "Metric", "Noise", "Task", "Text"]
