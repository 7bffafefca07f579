"""Kinds of models: how each takes images and words, through its own processor. One file a kind, and never one for a single model."""

from prunus.tasks.kinds.answer_classes import AnswerClasses
from prunus.tasks.kinds.blip_like import BlipAnswers, BlipCaptions
from prunus.tasks.kinds.generative import Generative
from prunus.tasks.kinds.kind import Kind, Speaker, kind_of

__all__ = ["AnswerClasses", "BlipAnswers", "BlipCaptions", "Generative", "Kind", "Speaker", "kind_of"]
