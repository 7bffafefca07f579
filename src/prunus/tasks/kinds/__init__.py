"""Kinds of models: how each takes images and words, through its own processor. One file a kind, and never one for a single model."""

from prunus.tasks.kinds.answer_classes import AnswerClasses
from prunus.tasks.kinds.blip_like import BlipAnswers, BlipCaptions
from prunus.tasks.kinds.classifier import Classifier, Labeller
from prunus.tasks.kinds.dual_encoder import BlipMatching, DualEncoder, Towers, blip_words
from prunus.tasks.kinds.generative import Generative
from prunus.tasks.kinds.grouped_blip import GroupedBlip
from prunus.tasks.kinds.kind import Kind, Speaker, architecture, copy_processor, fits, kind_of, read_config
from prunus.tasks.kinds.pair_reader import PairReader, ViltPairs
from prunus.tasks.kinds.parts import Parted
from prunus.tasks.kinds.segmenter import Segmenting

__all__ = [
    "AnswerClasses", "BlipAnswers", "BlipCaptions", "BlipMatching", "Classifier", "DualEncoder", "Generative", "GroupedBlip",
    "Kind", "Labeller", "PairReader", "Parted", "Segmenting", "Speaker", "Towers", "ViltPairs", "architecture", "blip_words", "copy_processor",
    "fits", "kind_of", "read_config",
]  # fmt: skip
