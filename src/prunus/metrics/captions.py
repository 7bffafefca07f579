"""Captions against references: BLEU, ROUGE-L, CIDEr, METEOR and SPICE, by the scorers of the COCO captions (`pycocoevalcap`)."""

from __future__ import annotations

import importlib
import re
import shutil
import socket
import subprocess
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from prunus.errors import PrunusError, refusing
from prunus.parallel import is_first

Words = Literal["plain", "ptb"]
"""How sentences are cut into words: `plain`, the runs of letters and digits in lower case, and single signs where a script puts no
spaces between words; `ptb`, the Penn Treebank tokenizer of the published figures, which needs Java."""

WITHOUT_JAVA = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider")
WITH_JAVA = ("meteor", "spice")
_SCORERS = {"bleu": ("bleu.bleu", "Bleu"), "rouge_l": ("rouge.rouge", "Rouge"), "cider": ("cider.cider", "Cider"),
            "meteor": ("meteor.meteor", "Meteor"), "spice": ("spice.spice", "Spice")}  # fmt: skip
"""Module and class."""


@dataclass(frozen=True)
class CaptionScores:
    """Scores of a set of captions, by the name of the metric, as the scorers give them: CIDEr from 0 to 10, the others to 1."""

    overall: dict[str, float]
    """Of the set. For BLEU and METEOR it is not the mean over captions."""
    each: dict[str, list[float]]
    """Of every caption; CIDEr's rare words are those of the whole set."""


def caption_scores(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    metrics: Sequence[str] = WITHOUT_JAVA,
    words: Words = "plain",
) -> CaptionScores:
    """Scores captions.

    Args:
        candidates: one for each image.
        references: one or more for each image.
        metrics: names out of `WITHOUT_JAVA` and `WITH_JAVA`.
        words: how sentences are cut into words.

    Raises:
        PrunusError: a package or Java is missing, a metric is unknown, or an image has no reference.
    """
    check_caption_metrics(metrics, words)
    if len(candidates) != len(references) or not len(candidates):
        raise PrunusError("references", len(references), f"give some for each of the {len(candidates)} captions")
    bare = next((place for place, some in enumerate(references) if not some), None)
    if bare is not None:
        raise PrunusError("references", f"caption {bare}", "it has no reference; give one or more")
    said = dict(enumerate(_cut([[one] for one in candidates], words)))
    true = dict(enumerate(_cut(references, words)))
    overall: dict[str, float] = {}
    each: dict[str, list[float]] = {}
    for name in dict.fromkeys("bleu" if metric.startswith("bleu") else metric for metric in metrics):
        with refusing("metrics", name, "its scorer failed"):
            score, scores = _scorer(name).compute_score(true, said, **({"verbose": 0} if name == "bleu" else {}))
        if name == "bleu":
            found = zip(WITHOUT_JAVA, score, scores, strict=False)
        else:
            found = zip([name], [score], [_f_scores(scores) if name == "spice" else scores], strict=True)
        for metric, one, several in found:
            if metric in metrics:
                overall[metric], each[metric] = float(one), [float(value) for value in several]
    return CaptionScores(overall, each)


def check_caption_metrics(metrics: Sequence[str], words: Words = "plain") -> None:
    """Refuses what cannot be computed here.

    Raises:
        PrunusError: a metric is unknown, a package or Java is missing, or SPICE's models cannot be fetched.
    """
    for metric in metrics:
        if metric not in (*WITHOUT_JAVA, *WITH_JAVA):
            raise PrunusError(
                "metrics", metric, f"there is none of that name; take {', '.join((*WITHOUT_JAVA, *WITH_JAVA))}"
            )
        if metric in WITH_JAVA and not _java_runs():
            raise PrunusError(
                "metrics",
                metric,
                f"its scorer is a Java program; install Java 8 or later, or take {', '.join(WITHOUT_JAVA)}",
            )
    if words == "ptb" and not _java_runs():
        raise PrunusError("words", words, "this tokenizer is a Java program; install Java 8 or later, or take plain")
    _module("cider.cider")
    if "spice" in metrics and is_first():  # which alone evaluates
        _try_spice()


WAIT = 30.0
"""Seconds for a server to answer."""


@cache
def _try_spice() -> None:
    """Scores one caption: its program is old, needs 8 GB, and does not run under every Java.

    Raises:
        PrunusError: it cannot.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(WAIT)
    try:
        with refusing("metrics", "spice", "its scorer fetches models of CoreNLP once, and could not"):
            scorer = _scorer("spice")
    finally:
        socket.setdefaulttimeout(before)
    with refusing("metrics", "spice", "its Java program does not run here; try Java 8, or take another metric"):
        scorer.compute_score({0: ["a cat"]}, {0: ["a cat"]})


def _java_runs() -> bool:
    """Whether there is a Java that starts: some systems have a command that only says how to install one."""
    place = shutil.which("java")
    return place is not None and _starts(place)


@cache
def _starts(program: str) -> bool:
    return subprocess.run([program, "-version"], capture_output=True, check=False).returncode == 0


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f"pycocoevalcap.{name}")
    except ImportError as error:
        raise PrunusError(
            "metrics",
            f"pycocoevalcap.{name}",
            f"{error.msg}; the scorers are in an extra: pip install 'prunus[captions]'",
        ) from None


WITHOUT_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Khmer, kana and Han, which put no spaces between words."""


@cache
def _word() -> re.Pattern[str]:
    """Letters and digits in a run, with their marks; or one sign of a script without spaces."""
    marks = "".join(chr(code) for code in range(0x300, 0x1F000) if unicodedata.category(chr(code)).startswith("M"))
    return re.compile(f"[{WITHOUT_SPACES}]|(?:(?![{WITHOUT_SPACES}])[^\\W_][{marks}]*)+")


def _scorer(name: str) -> Any:
    module, cls = _SCORERS[name]
    return getattr(_module(module), cls)()


def _f_scores(scores: Sequence[dict[str, dict[str, float]]]) -> list[float]:
    return [score["All"]["f"] for score in scores]


def _cut(groups: Sequence[Sequence[str]], words: Words) -> list[list[str]]:
    """Groups of sentences, each a string of words with one space between them."""
    if words == "plain":
        return [[" ".join(_word().findall(text.lower())) for text in group] for group in groups]
    with refusing("words", words, "the tokenizer failed"):
        given = {
            place: [{"caption": " ".join(text.split()) or "."} for text in group] for place, group in enumerate(groups)
        }
        found = _module("tokenizer.ptbtokenizer").PTBTokenizer().tokenize(given)
        return [found[place] for place in range(len(groups))]
