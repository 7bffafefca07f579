"""Evaluation: saved models on tasks, here or in a process of their own."""

from prunus.evaluation.evaluate import Evaluation, evaluate_elsewhere, evaluate_here, evaluate_once, read_task
from prunus.evaluation.fresh import in_fresh_process
from prunus.evaluation.harness import harness_scores
from prunus.evaluation.lmms import lmms_scores
from prunus.evaluation.warm import keeping_warm

__all__ = [
    "Evaluation",
    "evaluate_elsewhere",
    "evaluate_here",
    "evaluate_once",
    "harness_scores",
    "in_fresh_process",
    "keeping_warm",
    "lmms_scores",
    "read_task",
]
