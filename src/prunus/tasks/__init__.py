"""Tasks: one file each, with its data, loss and metric."""

from typing import Annotated

from pydantic import Field

from prunus.tasks.easy_vqa import EasyVQA
from prunus.tasks.noise import Noise
from prunus.tasks.task import Task
from prunus.tasks.text import Text

AnyTask = Annotated[EasyVQA | Text | Noise, Field(discriminator="name")]
"""Every task a recipe can name."""

__all__ = ["AnyTask", "EasyVQA", "Noise", "Task", "Text"]
