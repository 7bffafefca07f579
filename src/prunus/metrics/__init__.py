"""Figures of merit by their official definitions: one file a family. Each gives what every item adds to some sums, and the figures of
such sums; `with_interval` makes both into numbers with a confidence interval.
"""

from prunus.metrics.bootstrap import Figures, mean_of, with_interval
from prunus.metrics.captions import CaptionScores, caption_scores, check_caption_metrics
from prunus.metrics.classification import TOP, top_figures, top_rows
from prunus.metrics.ranks import best_ranks
from prunus.metrics.retrieval import RECALLS, recall_figures, recall_rows
from prunus.metrics.segmentation import overlap_figures, overlap_row
from prunus.metrics.vqa import answer_figures, answer_rows, answer_summary, normalised, vqa_accuracy, yes_or_no

__all__ = [
    "RECALLS", "TOP", "CaptionScores", "Figures", "answer_figures", "answer_rows", "answer_summary", "best_ranks", "caption_scores", "check_caption_metrics",
    "mean_of", "normalised", "overlap_figures", "overlap_row", "recall_figures", "recall_rows", "top_figures", "top_rows", "vqa_accuracy",
    "with_interval", "yes_or_no",
]  # fmt: skip
