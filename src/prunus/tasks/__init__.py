"""Tasks: one file each, with its data, loss and metric."""

from prunus.tasks.easy_vqa import EasyVQA
from prunus.tasks.task import Task

__all__ = ["EasyVQA", "Task"]
