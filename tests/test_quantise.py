"""Quantised models: the same bits again, zeros that stay zeros, and a word for every layer that is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from rich.console import Console
from typer.testing import CliRunner

from prunus import Magnitude, PrunusError, anatomy, extract, load_model, plan_of, prune, sparsity_of
from prunus.cli import app
from prunus.cost import size, stored_bytes
from prunus.export import write_gguf
from prunus.quantise import Quantisation, Quantised, quantise_folder
from prunus.recipe import Recipe, parse_recipe
from prunus.run import run
from tests.families import build
from tests.test_equivalence import random_plan

quantization = pytest.importorskip("torchao.quantization")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any], Path]:
    """A narrowed llama, half of whose weights are zero in 2:4 where a row is a multiple of four."""
    case = build("llama", 0)
    small = extract(case.model, random_plan(case.model, 0))
    prune(small, Magnitude(sparsity=0.5), [case.inputs])
    folder = tmp_path_factory.mktemp("quantise") / "narrow"
    small.save_pretrained(folder)
    return small, case.inputs, folder


@pytest.mark.parametrize("settings", [Quantisation(), Quantisation(to="int4", group=4)], ids=lambda found: found.to)
def test_a_narrowed_model_is_saved_and_loaded_with_the_same_bits(settings: Any, narrow: Any, tmp_path: Path) -> None:
    small, inputs, folder = narrow
    found = quantise_folder(folder, tmp_path / "packed", settings)
    packed = load_model(tmp_path / "packed").eval()
    stock = tf.LlamaForCausalLM.from_pretrained(tmp_path / "packed").eval()
    with torch.no_grad():
        one, other, wanted = (model(**inputs).logits for model in (packed, stock, small))
    assert torch.equal(one, other)
    assert 0 < (one - wanted).abs().max() < wanted.abs().max()
    assert plan_of(packed) == plan_of(small)
    assert found.lost == 0
    assert found.zeros[1] >= found.zeros[0] > 0
    assert found.gained == found.zeros[1] - found.zeros[0]
    counted = counted_zeros(packed)
    assert sum(counted.values()) == found.zeros[1]
    record = sparsity_of(packed)
    assert record is not None
    assert {name: matrix.pruned for name, matrix in record.matrices.items() if name in counted} == counted
    assert found.bytes == (stored_bytes(small), stored_bytes(packed))
    assert found.bytes[1] < found.bytes[0]
    assert size(packed).parameters == size(small).parameters
    assert found.matrices + sum(count for count, _ in found.left.values()) == 7 * small.config.num_hidden_layers
    assert 0 < found.error < 0.2
    assert str(Quantised.of(tmp_path / "packed")) == str(found)


def counted_zeros(packed: Any) -> dict[str, int]:
    """Of every quantised matrix, by its name."""
    weights = ((name, module.weight) for name, module in packed.named_modules() if isinstance(module, torch.nn.Linear))
    return {
        name: int((weight.dequantize() == 0).sum())
        for name, weight in weights
        if type(weight) is not torch.nn.Parameter
    }


def test_what_another_release_has_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "quantised.json").write_text('{"to": "int8"}')
    with pytest.raises(PrunusError, match=r"quantised.json cannot be read; quantise the model again"):
        Quantised.of(tmp_path)


def test_zeros_that_rounding_adds_are_counted_and_recorded(tmp_path: Path) -> None:
    case = build("llama", 0)
    prune(case.model, Magnitude(sparsity=0.5), [case.inputs])
    name = "model.layers.0.mlp.up_proj"
    weight = case.model.get_submodule(name).weight
    with torch.no_grad():
        weight[0, weight[0] != 0] = 1e-6  # far below a step of a row with one large weight
        weight[0, 0] = 1.0
        few = int((weight[0] == 1e-6).sum())
    case.model.save_pretrained(tmp_path / "sparse")
    before = sparsity_of(case.model)
    found = quantise_folder(tmp_path / "sparse", tmp_path / "packed", Quantisation(include=(f"*{name}",)))
    packed = load_model(tmp_path / "packed")
    record = sparsity_of(packed)
    assert record is not None
    assert before is not None
    assert found.gained >= few > 0
    assert record.matrices[name].pruned == counted_zeros(packed)[name] == found.zeros[1]
    assert {n: m for n, m in record.matrices.items() if n != name} == {
        n: m for n, m in before.matrices.items() if n != name
    }
    assert (
        f"{found.gained:,} more by rounding, {found.zeros[0] / found.weights:.2%} → {found.zeros[1] / found.weights:.2%}"
        in str(found)
    )


def test_int4_leaves_rows_that_no_group_divides(narrow: Any, tmp_path: Path) -> None:
    found = quantise_folder(narrow[2], tmp_path / "packed", Quantisation(to="int4", group=16))
    assert found.left
    assert all("no multiple of group = 16" in reason for reason in found.left)
    packed = load_model(tmp_path / "packed")
    assert type(packed.model.layers[0].mlp.up_proj.weight).__name__ == "IntxUnpackedToInt8Tensor"
    assert type(packed.model.layers[0].mlp.down_proj.weight) is torch.nn.Parameter
    assert torch.equal(packed.lm_head.weight, narrow[0].lm_head.weight)


def test_two_of_four_holds_and_the_record_stays(tmp_path: Path) -> None:
    case = build("llama", 0)
    prune(case.model, Magnitude(pattern="2:4"), [case.inputs], exclude=["*down_proj"])
    case.model.save_pretrained(tmp_path / "sparse")
    told = CliRunner().invoke(
        app, ["quantise", str(tmp_path / "sparse"), "--to", "int8", "--out", str(tmp_path / "out")]
    )
    assert told.exit_code == 0, told.output
    assert "2:4 holds" in told.output
    assert "zeros kept" in told.output
    packed = load_model(tmp_path / "out")
    record, before = sparsity_of(packed), sparsity_of(case.model)
    assert record is not None
    assert record.pattern == "2:4"
    assert record == before.with_zeros(counted_zeros(packed))  # type: ignore[union-attr]
    inspected = CliRunner().invoke(app, ["inspect", str(tmp_path / "out")])
    assert inspected.exit_code == 0, inspected.output
    assert "zeros as recorded" in inspected.output


def test_what_has_no_name_lies_beside_the_model(narrow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    monkeypatch.setattr("prunus.cli.outward.quantise_folder", lambda model, folder, settings: made.append(folder))
    for model in (narrow[2], f"{narrow[2]}/", "organisation/model"):
        CliRunner().invoke(app, ["quantise", str(model), "--to", "int8"])
    monkeypatch.chdir(narrow[2])
    CliRunner().invoke(app, ["quantise", ".", "--to", "int4"])
    beside = narrow[2].parent
    assert made == [beside / "narrow-int8", beside / "narrow-int8", Path("model-int8"), beside / "narrow-int4"]


@pytest.mark.parametrize(
    "command", ["quantise m --to int8", "export m --to onnx", "compare a b --task noise", "inspect m"]
)
def test_commands_for_one_process_are_refused_to_several(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = CliRunner().invoke(app, command.split()).exception
    assert isinstance(refused, PrunusError)
    assert refused.field == "WORLD_SIZE"
    assert "is for one process" in refused.remedy


def test_what_cannot_be_quantised_is_refused(narrow: Any, tmp_path: Path) -> None:
    quantise_folder(narrow[2], tmp_path / "packed", Quantisation(include=("*q_proj",)))
    with pytest.raises(PrunusError, match="quantised already"):
        quantise_folder(tmp_path / "packed", tmp_path / "again", Quantisation())
    with pytest.raises(PrunusError, match="quantised or packed"):
        write_gguf(tmp_path / "packed", tmp_path / "made.gguf")
    with pytest.raises(PrunusError, match="there already"):
        quantise_folder(narrow[2], tmp_path / "packed", Quantisation())
    with pytest.raises(PrunusError, match="nothing can be quantised"):
        quantise_folder(narrow[2], tmp_path / "none", Quantisation(to="int4", group=4096))
    assert not (tmp_path / "none").exists()
    with pytest.raises(PrunusError, match="no groups"):
        Quantisation(to="int8", group=64)


def test_zeros_that_are_lost_are_said_and_not_claimed(
    narrow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With numbers that are not symmetric around zero, as torchao also has them."""
    skew = quantization.IntxWeightOnlyConfig(
        weight_dtype=torch.int4, granularity=quantization.PerGroup(4), mapping_type=quantization.MappingType.ASYMMETRIC
    )
    monkeypatch.setattr(Quantisation, "config", lambda self: skew)
    found = quantise_folder(narrow[2], tmp_path / "packed", Quantisation(to="int4", group=4))
    packed = load_model(tmp_path / "packed")
    record = sparsity_of(packed)
    assert record is not None
    name = next(iter(record.matrices))
    zeros = int((packed.get_submodule(name).weight.dequantize() == 0).sum())
    assert record.matrices[name].pruned == zeros
    assert found.lost == 0 or "LOST" in str(found)


def test_a_recipe_ends_with_it() -> None:
    text = """
model: {path: somewhere}
task: {name: noise}
steps:
  - {step: quantise, method: {to: int4}}
  - {step: prune, method: {method: magnitude, sparsity: 0.5}}
output: runs/quantised
"""
    with pytest.raises(PrunusError, match="nothing can follow the step quantise") as refused:
        parse_recipe(text, "here")
    assert "steps.1" in refused.value.field


def test_bytes_of_plain_weights_are_those_of_their_numbers() -> None:
    model = build("vit", 0).model
    assert stored_bytes(model) == 4 * anatomy(model).parameters


@pytest.mark.usefixtures("quick_reports")
def test_a_run_quantises_last_and_its_report_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build("llama", 0).model.save_pretrained(tmp_path / "dense")
    recipe = Recipe.model_validate({
        "model": {"path": str(tmp_path / "dense")}, "task": {"name": "noise", "items": 4, "length": 8},
        "steps": [{"step": "prune", "method": {"method": "magnitude", "sparsity": 0.5}, "calibration": {"samples": 2, "batch_size": 2}},
                  {"step": "quantise", "method": {"to": "int8"}}],
        "measure": {"batch_size": 1, "repeats": 1}, "output": str(tmp_path / "run"),
    })  # fmt: skip
    report = run(recipe, Console(quiet=True))
    assert report is not None
    assert "matrices in int8" in report.outcome
    assert "zeros kept" in report.outcome
    assert report.models["compressed"]["bytes"] < report.models["dense"]["bytes"]
    assert report.models["compressed"]["parameters"] == report.models["dense"]["parameters"]
