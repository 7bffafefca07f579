"""Perplexity by its definition, calibration windows, and a run that prunes a language model from a recipe."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prunus import PrunusError, load_model, sparsity_of, text_batches
from prunus.calibration import spread
from prunus.cli import app
from prunus.evaluation import harness_scores
from prunus.recipe import parse_recipe
from prunus.run import run
from prunus.tasks import Text
from prunus.tasks.text import check_length, windows
from tests.shared import FOLDER

WORDS = [f"w{index}" for index in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaMA with a tokenizer of forty words, and a text."""
    path = tmp_path_factory.mktemp("text")
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", eos_token="w1").save_pretrained(path / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path / "model")
    generator = torch.Generator().manual_seed(1)
    draws = torch.randint(0, 40, (400,), generator=generator).tolist()
    (path / "text.txt").write_text(" ".join(WORDS[draw] for draw in draws))
    return path


def task(folder: Path, **fields) -> Text:
    text = folder / "text.txt"
    return Text(tokenizer=str(folder / "model"), evaluation=text, training=text, **{"length": 16, **fields})


@given(st.integers(2, 300), st.integers(2, 40), st.data())
def test_windows_count_every_token_once(tokens: int, length: int, data) -> None:
    stride = data.draw(st.integers(1, length))
    counted: list[int] = []
    for start, stop, first in windows(tokens, length, stride):
        assert 1 <= first < stop - start <= length
        counted += range(start + first, stop)
    assert len(counted) == len(set(counted))
    never = set(range(0, tokens, stride)) if stride == length else {0}
    assert set(range(tokens)) - set(counted) <= never | {0}


@pytest.mark.parametrize("stride", [None, 5, 1])
def test_perplexity_is_the_exponential_of_the_mean_loss(folder: Path, stride: int | None) -> None:
    settings = task(folder, stride=stride)
    model = load_model(folder / "model").eval()
    ids, losses = settings._evaluation, []
    for start, stop, first in windows(len(ids), 16, stride or 16):
        with torch.no_grad():
            log = model(input_ids=ids[None, start:stop]).logits[0].double().log_softmax(-1)
        losses += [-log[i - 1, ids[start + i]].item() for i in range(first, stop - start)]
    assert settings.evaluate(model, progress=False)["perplexity"] == pytest.approx(
        math.exp(sum(losses) / len(losses)), rel=1e-5
    )


def test_calibration_windows_are_spread_and_repeatable(folder: Path) -> None:
    settings = task(folder)
    one, other = settings.calibration(5, 2), settings.calibration(5, 2)
    assert [len(batch["input_ids"]) for batch in one] == [2, 2, 1]
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(one, other, strict=True))
    by_hand = text_batches(settings._tokenizer, (folder / "text.txt").read_text(), 5, 16, 2)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(one, by_hand, strict=True))
    assert spread(torch.arange(10), 5).tolist() == [0, 2, 4, 6, 8]
    with pytest.raises(PrunusError, match="there are 31"):
        settings.calibration(32, 1)


def test_training_items_and_the_measured_call_are_windows_of_the_text(folder: Path) -> None:
    settings, model = task(folder), load_model(folder / "model")
    data = settings.train_data()
    batch = settings.collate([data[2], data[5]])
    text = settings._evaluation
    assert torch.equal(batch["input_ids"], torch.stack([text[32:48], text[80:96]]))
    assert torch.equal(batch["labels"], batch["input_ids"])
    assert bool((batch["attention_mask"] == 1).all())
    seen: list[dict[str, Any]] = []
    model.register_forward_pre_hook(lambda module, args, given: seen.append(given), with_kwargs=True)
    settings.example(model, 3)()
    assert torch.equal(seen[0]["input_ids"], text[:16].expand(3, -1))
    assert (seen[0]["use_cache"], seen[0]["logits_to_keep"]) == (False, 1)
    settings.evaluate(model, limit=2, progress=False)
    assert [len(given["input_ids"][0]) for given in seen[1:]] == [16, 16]


def test_long_windows_are_counted_piece_by_piece(folder: Path) -> None:
    settings, model = task(folder, length=300), load_model(folder / "model")
    model.config.max_position_embeddings = 300
    ids, losses = settings._evaluation, []
    for start, stop in ((0, 300), (300, len(ids))):
        with torch.no_grad():
            log = model(input_ids=ids[None, start:stop]).logits[0].double().log_softmax(-1)
        losses += [-log[i - 1, ids[start + i]].item() for i in range(1, stop - start)]
    found = settings.evaluate(model, progress=False)["perplexity"]
    assert found == pytest.approx(math.exp(sum(losses) / (len(ids) - 2)), rel=1e-5)


def test_rows_of_a_data_set_are_one_text(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A JSONL whose column is called otherwise gives what the same text in a file gives, in a recipe, too."""
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    words = (folder / "text.txt").read_text().split()
    parts = [" ".join(words[start : start + 50]) for start in range(0, len(words), 50)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"content": part}) for part in parts))
    (tmp_path / "joined.txt").write_text("\n\n".join(parts))
    rows = {"layout": "table", "files": str(tmp_path / "rows.jsonl"), "columns": {"text": "content"}}
    settings = [Text.model_validate({"tokenizer": str(folder / "model"), "length": 16, "evaluation": source, "training": source})
                for source in (rows, str(tmp_path / "joined.txt"))]  # fmt: skip
    settings[0].check()
    model = LlamaForCausalLM.from_pretrained(folder / "model")
    assert settings[0].evaluate(model, progress=False) == settings[1].evaluate(model, progress=False)
    assert torch.equal(settings[0].train_data()[3][0], settings[1].train_data()[3][0])
    assert Text.model_validate(settings[0].model_dump(mode="json")) == settings[0]
    assert settings[0].model_dump(mode="json", exclude_defaults=True)["evaluation"]["files"] == rows["files"]
    with pytest.raises(
        PrunusError, match=r"task.evaluation: .*rows.jsonl: text = None: there is no such column; there are content"
    ):
        Text.model_validate({"evaluation": {**rows, "columns": {}}}).check()
    with pytest.raises(ValidationError, match="did you mean table"):
        Text.model_validate({"evaluation": {"layout": "tabel"}})


def test_texts_that_a_model_cannot_read_are_refused(folder: Path, tmp_path: Path) -> None:
    def check(text: str | bytes, **more: Any) -> None:
        path = tmp_path / "text.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        settings = Text(evaluation=path, **{"length": 16, **more})
        settings.check()
        settings.check_model(folder / "model")

    check("w3 w4")
    check("w3 w4", length=64)
    for text, more, message in (
        ("w3", {}, "1 tokens leave none to predict"),
        ("w3 w4", {"length": 65}, "64 positions"),
        (b"w3 \xff", {}, "UTF-8"),
        ("w3 \0 w4", {}, "zero bytes"),
        ("w3 w4", {"training": tmp_path / "absent.txt"}, "no such file"),
    ):
        with pytest.raises(PrunusError, match=message):
            check(text, **more)  # type: ignore[arg-type]
    named = Text(evaluation=tmp_path / "text.txt", tokenizer="other")
    assert named.for_model(folder) is named
    assert Text(evaluation=tmp_path / "text.txt").for_model(folder).tokenizer == str(folder)
    with pytest.raises(PrunusError, match=r"task\.tokenizer"):
        _ = Text(evaluation=tmp_path / "text.txt")._evaluation
    with pytest.raises(PrunusError, match=r"task\.training"):
        Text(evaluation=tmp_path / "text.txt").train_data()


def test_lengths_and_words_are_compared_with_the_text_model_s() -> None:
    text = SimpleNamespace(max_position_embeddings=8, vocab_size=10)
    for config in (text, SimpleNamespace(get_text_config=lambda: text)):
        check_length(config, 8, 9)
        with pytest.raises(PrunusError, match=r"task\.length"):
            check_length(config, 9, 9)
        with pytest.raises(PrunusError, match="knows 10 tokens"):
            check_length(config, 8, 10)
    for positions in (None, -1):  # relative, or not said
        check_length(SimpleNamespace(max_position_embeddings=positions, vocab_size=None), 99, 99)
    with pytest.raises(PrunusError, match=r"task\.length"):
        check_length(SimpleNamespace(max_position_embeddings=1), 2, 0)


RECIPE = """
model: {path: MODEL}
task: {name: text, training: TEXT, evaluation: TEXT, length: 16}
steps:
  - step: prune
    method: {method: sparsegpt, sparsity: 0.5}
    calibration: {samples: 8, batch_size: 4}
    walk: {progress: false}
measure: {batch_size: 1, repeats: 1}
evaluate_limit: 5
output: OUT
"""


def recipe(folder: Path, out: Path) -> str:
    text = RECIPE.replace("MODEL", str(folder / "model")).replace("TEXT", str(folder / "text.txt"))
    return text.replace("OUT", str(out))


@pytest.mark.long
def test_a_recipe_prunes_a_language_model(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(parse_recipe(recipe(folder, tmp_path / "run"), "test"))
    assert report.sparsity == pytest.approx(0.5, abs=1e-3)
    assert set(report.models["compressed"]["metrics"]) == {"perplexity", "perplexity_low", "perplexity_high"}
    small = load_model(tmp_path / "run/1-prune/model")
    record = sparsity_of(small)
    assert record is not None
    assert record.calibration["sequences"] == 8
    for name, matrix in record.matrices.items():
        assert int((small.get_submodule(name).weight == 0).sum()) == matrix.pruned
    page = (tmp_path / "run/report.html").read_text()
    assert "of the weights in blocks set to zero" in page
    assert [set(sample.said) for sample in report.samples] == [{"dense", "compressed"}] * 5
    assert all(sample.asked and sample.right for sample in report.samples)
    (shares,) = report.passed_over.values()
    assert sum(shares.values()) < 1
    assert all(abs(share - 0.5) < 0.05 for shares in report.retained.values() for share in shares)
    app(["inspect", str(tmp_path / "run/1-prune/model")], standalone_mode=False)
    said = capsys.readouterr().out
    assert "sparsegpt" in said
    assert record.calibration["sha256"] in said
    app(
        ["evaluate", str(tmp_path / "run/1-prune/model"), "--json", str(tmp_path / "found.json"), "--limit", "3",
         "--task", json.dumps({"name": "text", "evaluation": str(folder / "text.txt"), "length": 16})],
        standalone_mode=False,
    )  # fmt: skip
    assert json.loads((tmp_path / "found.json").read_text())["metrics"]["perplexity"] > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("steps.0.step=retrain", "steps"),
        ("steps.0.method.pattern=5:8", "sparsity = 0.5"),
        ("steps.0.method.method=wander", r"steps\.0.*method = 'wander'"),
        ("task.stride=17", "gaps"),
        ("task.evaluation=nowhere.txt", "no such file"),
        ("steps.0.include=[nothing]", "matches no matrix"),
        ("steps.0.calibration.samples=1000", "there are 31"),
    ],
)
def test_wrong_recipes_are_refused_before_work(folder: Path, tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(PrunusError, match=message):
        run(parse_recipe(recipe(folder, tmp_path / "run"), "test", (change,)))
    assert not list(tmp_path.glob("run/*/model*"))


def test_a_bare_pattern_in_yaml_is_what_was_written(folder: Path, tmp_path: Path) -> None:
    text = recipe(folder, tmp_path).replace("sparsity: 0.5", "pattern: 2:4")
    step = parse_recipe(text, "test").steps[0]
    assert step.method.pattern == "2:4"  # type: ignore[union-attr]


def test_training_after_pruning_is_refused(folder: Path, tmp_path: Path) -> None:
    text = recipe(folder, tmp_path).replace(
        "measure:", "  - {step: retrain, train: {steps: 1, learning_rate: 0.1}}\nmeasure:"
    )
    with pytest.raises(PrunusError, match="would fill the zeros"):
        parse_recipe(text, "test")


def test_the_harness_evaluates_what_prunus_saved(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra `eval`")
    (tmp_path / "data.json").write_text("\n".join(json.dumps({"text": "w3 w4 w5", "answer": " w6"}) for _ in range(3)))
    (tmp_path / "words.yaml").write_text(
        f"""
task: prunus_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "data.json"}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: ["w6", "w7"]
doc_to_target: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
    )
    scores = harness_scores(folder / "model", ["prunus_words"], batch_size=1, task_folder=tmp_path)
    assert set(scores) == {"prunus_words acc"}
    with pytest.raises(PrunusError, match="no such task"):
        harness_scores(folder / "model", ["prunus_nothing"])


def test_scores_of_the_harness_are_its_numbers_without_their_errors(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def simple_evaluate(**given: Any) -> dict[str, Any]:
        asked.update(given)
        return {"results": {"a": {"alias": "a", "acc,none": 0.5, "acc_stderr,none": 0.1, "f1,strict": 0.25}}}

    def manager(include_path: str | None) -> SimpleNamespace:
        return SimpleNamespace(all_tasks=["a"], path=include_path)

    for name, parts in {
        "lm_eval": {"simple_evaluate": simple_evaluate},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {
            "HFLM": lambda pretrained, tokenizer, batch_size: (type(pretrained), batch_size)
        },
        "lm_eval.tasks": {"TaskManager": manager},
    }.items():
        module = ModuleType(name)
        vars(module).update(parts)
        monkeypatch.setitem(sys.modules, name, module)
    assert harness_scores(folder / "model", ["a"], limit=7, batch_size=3) == {"a acc": 0.5, "a f1,strict": 0.25}
    assert (asked["limit"], asked["tasks"], asked["task_manager"].path) == (7, ["a"], None)
    assert asked["model"] == (LlamaForCausalLM, 3)
    harness_scores(folder / "model", ["a"], task_folder=tmp_path)
    assert asked["task_manager"].path == str(tmp_path)
    with pytest.raises(PrunusError, match="no such task"):
        harness_scores(folder / "model", ["b"])


@pytest.mark.long
def test_a_real_language_model_is_better_pruned_by_better_methods() -> None:
    """stories260K, a real LLaMA of 260 thousand weights, on text that it has never seen."""
    from prunus import Magnitude, SparseGPT, WalkOptions, Wanda, prune

    source = FOLDER / "data" / "stories260k"
    if not source.exists():
        pytest.skip("stories260k is not here: it lies outside of the project")
    model = load_model(source).eval()
    torch.manual_seed(0)
    starts = torch.full((16, 1), model.config.bos_token_id)
    stories = model.generate(starts, max_new_tokens=200, do_sample=True, eos_token_id=None)
    held_out = model.generate(starts, max_new_tokens=200, do_sample=True, eos_token_id=None)
    losses = {}
    for method in (Magnitude(sparsity=0.5), Wanda(sparsity=0.5), SparseGPT(sparsity=0.5)):
        pruned = load_model(source).eval()
        prune(pruned, method, [{"input_ids": stories}], options=WalkOptions(progress=False))
        with torch.no_grad():
            losses[method.method] = pruned(input_ids=held_out, labels=held_out).loss.item()
    assert losses["sparsegpt"] < losses["wanda"] < losses["magnitude"]
