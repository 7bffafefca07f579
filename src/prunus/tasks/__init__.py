"""Tasks: one file each, with its data, loss and metric."""

from prunus.tasks.easy_vqa import EasyVQA
from prunus.tasks.task import Task

TASKS: dict[str, type[EasyVQA]] = {"easy_vqa": EasyVQA}

__all__ = ["TASKS", "EasyVQA", "Task"]
