"""VQA accuracy as the evaluation code of the VQA data set computes it (Antol et al. 2015, VQAEval)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prunus.metrics.bootstrap import with_interval

ARTICLES = frozenset(("a", "an", "the"))
NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
}
NUMBERS["none"] = "0"
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
PERIODS = 32
"""So many periods are removed at the most: the official code gives `re.UNICODE`, which is 32, where the count stands."""

_WITH_APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd
    how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't
    'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
    someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
    they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've
    who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd
    you'd've you'll you're you've
"""
CONTRACTIONS = {
    f"{word[:place]}{word[place + 1 :]}": word
    for word in _WITH_APOSTROPHES.split()
    for place, sign in enumerate(word)
    if sign == "'"
} | {"somebody'd": "somebodyd"}
"""A contraction that lacks one apostrophe, and what the official code makes of it."""


def normalised(answer: str) -> str:
    """An answer without articles and most punctuation, in lower case, with digits for number words.

    Examples:
        >>> normalised("The two dogs, dont run!")
        "2 dogs don't run"
    """
    text = answer
    for sign in PUNCTUATION:
        beside_space = f"{sign} " in answer or f" {sign}" in answer
        text = text.replace(sign, "" if beside_space or COMMA_IN_NUMBER.search(answer) else " ")
    text = PERIOD.sub("", text, count=PERIODS)
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """How far a prediction agrees with people's answers: the mean, over each of them left out, of min(1, others alike / 3).

    Prediction and answers are normalised only if the answers differ from one another, as the official code does. A single answer, for
    which there is no official code, is compared as a whole, both sides normalised.

    Args:
        prediction: what a model says.
        answers: of several people, usually ten; or one.

    Returns:
        From 0 to 1.

    Examples:
        >>> round(vqa_accuracy("2", ["2", "2", "two", "3", "3", "3", "3", "3", "3", "3"]), 2)
        0.9
    """
    prediction, *answers = (text.replace("\n", " ").replace("\t", " ").strip() for text in (prediction, *answers))
    if len(answers) == 1 or len(set(answers)) > 1:
        prediction, *answers = (normalised(text) for text in (prediction, *answers))
    if len(answers) == 1:
        return float(prediction == answers[0])
    alike = answers.count(prediction)
    left_out = [min(1.0, (alike - (answer == prediction)) / 3) for answer in answers]
    return sum(left_out) / len(left_out)


def yes_or_no(answers: Sequence[str]) -> bool:
    """Whether most people answered a question with yes or no."""
    closed = [normalised(answer) in ("yes", "no") for answer in answers]
    return 2 * sum(closed) > len(closed)


def answer_rows(found: Sequence[tuple[float, bool]]) -> Tensor:
    """What every question adds to the sums, (questions, 4): one and its accuracy; both again if it is one of yes or no."""
    accuracies, closed = torch.tensor(found, dtype=torch.double).T
    of_all = torch.stack([torch.ones_like(accuracies), accuracies], 1)
    return torch.cat([of_all, of_all * closed[:, None]], 1)


def answer_summary(found: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """The figures of `answer_figures` as numbers, that of all questions with an interval, without those of no question.

    Args:
        found: of every question its accuracy, and whether it is one of yes or no.
    """
    figures = with_interval(answer_rows(found), answer_figures, "accuracy")
    return {name: value for name, value in figures.items() if not math.isnan(value)}


def answer_figures(sums: Tensor) -> Mapping[str, Tensor]:
    """`accuracy`, `accuracy_yes_no` and `accuracy_other` of sums (…, 4); NaN of no question.

    Examples:
        >>> rows = answer_rows([(1.0, True), (0.0, True), (0.9, False)])
        >>> {name: round(float(value), 3) for name, value in answer_figures(rows.sum(0)).items()}
        {'accuracy': 0.633, 'accuracy_yes_no': 0.5, 'accuracy_other': 0.9}
    """
    count, right, closed, closed_right = sums.unbind(-1)
    return {
        "accuracy": right / count,
        "accuracy_yes_no": closed_right / closed,
        "accuracy_other": (right - closed_right) / (count - closed),
    }
