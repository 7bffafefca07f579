"""VQA accuracy and caption scores against the official code: its values, kept beside the project, and cases worked out by hand."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from prunus import PrunusError
from prunus.metrics import caption_scores, captions, normalised, vqa_accuracy
from tests.shared import FOLDER


def known(name: str) -> dict:
    file = FOLDER / "data" / name
    if not file.exists():
        pytest.skip(f"{name} is not here: it lies outside of the project")
    return json.loads(file.read_text())


def test_vqa_accuracy_is_the_official_codes() -> None:
    found = known("vqa-accuracy-check.json")
    accuracies = []
    for item in found["items"]:
        accuracies.append(100 * vqa_accuracy(item["prediction"], item["answers"]))
        assert round(accuracies[-1], 2) == pytest.approx(item["accuracy"], abs=1e-6), item["case"]
        if len({" ".join(answer.split()) for answer in item["answers"]}) > 1:
            assert normalised(item["prediction"].strip()) == item["prediction_compared"]
            assert [normalised(answer.strip()) for answer in item["answers"]] == item["answers_compared"]
    assert round(sum(accuracies) / len(accuracies), 2) == pytest.approx(found["overall"]["overall"], abs=1e-6)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("The cat", "cat"), ("None", "0"), ("ten", "10"), ("dont", "don't"), ("x,y", "x y"), ("x, y", "x y"), ("1,000", "1000"),
        ("1,000!", "1000"), ("yes.", "yes"), ("3.5", "3.5"), ("black-white", "black white"), ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"), ("shes", "shes"), ("what time?", "what time"),
    ],
)  # fmt: skip
def test_answers_are_normalised_as_officially(said: str, meant: str) -> None:
    assert normalised(said) == meant


def test_the_left_out_person_does_not_count() -> None:
    """Three others make a full point; of three who agree with the prediction, each sees two others."""
    assert vqa_accuracy("red", ["red"] * 3 + ["blue"] * 7) == pytest.approx((3 * 2 / 3 + 7 * 1) / 10)
    assert vqa_accuracy("red", ["red"] * 4 + ["blue"] * 6) == 1
    assert vqa_accuracy("green", ["red"] * 4 + ["blue"] * 6) == 0


def test_answers_that_agree_are_compared_as_they_are() -> None:
    assert vqa_accuracy("The Cat", ["cat"] * 10) == 0
    assert vqa_accuracy("The Cat", ["cat"] * 9 + ["dog"]) == 1


def test_one_answer_is_compared_as_a_whole() -> None:
    assert [vqa_accuracy(said, ["yes"]) for said in ("yes", "Yes.", "no", "yes yes")] == [1, 1, 0, 0]


def test_caption_scores_are_the_official_codes() -> None:
    pytest.importorskip("pycocoevalcap.cider.cider")
    found = known("cider-check.json")
    images = found["images"]
    scores = caption_scores([image["candidate"] for image in images], [image["references"] for image in images])
    names = {
        "bleu_1": "Bleu_1",
        "bleu_2": "Bleu_2",
        "bleu_3": "Bleu_3",
        "bleu_4": "Bleu_4",
        "rouge_l": "ROUGE_L",
        "cider": "CIDEr",
    }
    assert set(scores.overall) == set(names)
    for ours, theirs in names.items():
        assert scores.overall[ours] == pytest.approx(found["overall"][theirs], abs=1e-6)
        assert scores.each[ours] == pytest.approx([image["scores"][theirs] for image in images], abs=1e-6)


def test_a_caption_like_its_references_scores_highest() -> None:
    pytest.importorskip("pycocoevalcap.cider.cider")
    said = ["a dog runs on grass", "two people ride horses", "the sea at night"]
    true = [[caption, caption.title() + "."] for caption in said]
    perfect = caption_scores(said, true, ["cider", "bleu_4", "rouge_l"]).overall
    assert perfect["cider"] == pytest.approx(10 * 4 / 4 * (1 + 1 + 1) / 3, rel=0.35) or perfect["cider"] > 6
    assert perfect["rouge_l"] == pytest.approx(1)
    mixed = caption_scores(said[1:] + said[:1], true, ["cider", "bleu_4", "rouge_l"]).overall
    assert all(mixed[name] < perfect[name] for name in perfect)


@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
@pytest.mark.long
def test_meteor_and_the_treebank_tokenizer_run_where_java_is() -> None:
    pytest.importorskip("pycocoevalcap.meteor.meteor")
    scores = caption_scores(
        ["a dog runs", "The sea, at night."], [["a dog runs"], ["the sea at night"]], ["meteor", "rouge_l"], "ptb"
    )
    assert scores.overall["rouge_l"] == pytest.approx(1)
    assert scores.overall["meteor"] == pytest.approx(1, abs=0.02)


def test_what_needs_java_is_refused_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for arguments in ({"metrics": ["spice"]}, {"metrics": ["meteor"]}, {"words": "ptb"}):
        with pytest.raises(PrunusError, match="install Java"):
            caption_scores(["a"], [["a"]], **arguments)


@pytest.mark.parametrize(
    ("said", "true", "metrics", "match"),
    [
        (["a"], [["a"]], ["bleu_5"], "take bleu_1"),
        (["a"], [["a"], ["b"]], ["cider"], "each of the 1 captions"),
        ([], [], ["cider"], "each of the 0 captions"),
        (["a", "b"], [["a"], []], ["cider"], "caption 1"),
    ],
)
def test_what_cannot_be_scored_is_refused(said: list, true: list, metrics: list, match: str) -> None:
    pytest.importorskip("pycocoevalcap.cider.cider")
    with pytest.raises(PrunusError, match=match):
        caption_scores(said, true, metrics)


class Spice:
    """Its models are there, and its program fails."""

    def compute_score(self, true: Any, said: Any) -> None:
        raise subprocess.CalledProcessError(1, "java")


def no_server() -> None:
    assert socket.getdefaulttimeout(), "it would wait for ever"
    raise OSError("timed out")


@pytest.mark.parametrize(
    ("scorer", "match"),
    [(no_server, "fetches models of CoreNLP once, and could not: OSError"), (Spice, "does not run here")],
)
def test_spice_that_cannot_be_run_is_refused_before_it_is_needed(
    scorer: Any, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pycocoevalcap.cider.cider")
    monkeypatch.setattr(captions, "_java_runs", lambda: True)
    monkeypatch.setattr(captions, "_scorer", lambda name: scorer())
    with pytest.raises(PrunusError, match=match):
        captions.check_caption_metrics(["cider", "spice"])
    assert socket.getdefaulttimeout() is None


def test_a_java_that_does_not_start_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "java").write_text("#!/bin/sh\necho no runtime is installed >&2\nexit 1\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(PrunusError, match="install Java"):
        caption_scores(["a"], [["a"]], ["meteor"])


def test_words_of_every_script_are_cut() -> None:
    said = ["一只猫 on a mat.", "हिन्दी में", "قِطّة على السرير 🐈", "A dog, runs_fast"]
    cut = ["一 只 猫 on a mat", "हिन्दी में", "قِطّة على السرير", "a dog runs fast"]
    assert captions._cut([said], "plain") == [cut]
