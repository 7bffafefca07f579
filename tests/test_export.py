"""Exports: graphs that compute what the model does, fall back where they must, and are refused where they do not."""

from __future__ import annotations

import errno
import importlib
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import transformers as tf
from torch import nn
from typer.testing import CliRunner

from prunus import PrunusError, extract, load_model
from prunus.cli import app
from prunus.evaluation import in_fresh_process
from prunus.export import TOLERANCE, export, export_folder, real_batches
from prunus.export.checking import difference
from prunus.export.stages import Stage, stages
from prunus.quantise import Quantisation, quantise_folder
from tests import lookers, speakers
from tests.families import build
from tests.test_equivalence import random_plan

exporters = pytest.importorskip("transformers.exporters")
if not hasattr(exporters, "ExportedModel"):
    pytest.skip("this transformers cannot run what it exports", allow_module_level=True)
pytestmark = [
    pytest.mark.filterwarnings("ignore:`(treespec|isinstance).*deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*treespec.*:FutureWarning"),
]


def batches(inputs: dict[str, Any]) -> list[dict[str, Any]]:
    return [{name: value[list(rows)] for name, value in inputs.items()} for rows in ((0, 1), (1, 0), (1, 0, 1))]


class Doubling(nn.Module):
    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [2 * x]


def runner(answer: Any) -> Any:
    """What runs a graph, in the form of transformers' runners."""

    class Runner:
        metadata = SimpleNamespace(kwargs={"x": None})

        def __call__(self, x: torch.Tensor) -> Any:
            return [answer(x)]

    return Runner()


X = torch.tensor([[1.0, -4.0]])


@pytest.mark.parametrize(
    ("answer", "apart"),
    [
        (lambda x: 2 * x, 0.0),
        (lambda x: 2 * x + 0.08, 0.01),  # of ±8
        (lambda x: x.log(), math.inf),  # no number where the model has one
    ],
)
def test_differences_are_in_parts_of_the_largest_number(answer: Any, apart: float) -> None:
    assert difference(runner(answer), Stage(Doubling(), {"x": X}), "model") == pytest.approx(apart, rel=1e-5)


def test_small_numbers_are_compared_as_they_are() -> None:
    found = difference(runner(lambda x: 2 * x + 0.01), Stage(Doubling(), {"x": X / 100}), "model")
    assert found == pytest.approx(0.01, rel=1e-5)


MASK = torch.finfo(torch.float32).min


@pytest.mark.parametrize("mask", [-math.inf, MASK])
def test_masks_have_to_be_the_same_and_hide_nothing(mask: float) -> None:
    stage = Stage(Doubling(), {"x": torch.tensor([[1.0, mask / 2, -4.0]])})
    wrong = torch.tensor([[0.08, 0, 0.08]])
    assert difference(runner(lambda x: 2 * x), stage, "model") == 0
    assert difference(runner(lambda x: 2 * x + wrong), stage, "model") == pytest.approx(0.01, rel=1e-5)
    for other in (MASK / 4, 0.0, math.inf):
        assert difference(runner(lambda x, y=other: torch.where(x > MASK / 8, 2 * x, y)), stage, "model") == math.inf
    assert difference(runner(lambda x: torch.where(x > 0, 2 * x, mask)), stage, "model") > 1e30


@pytest.mark.parametrize(
    ("x", "said"),
    [([1.0, math.nan], "1 of 2"), ([math.inf, 3.0], "1 of 2"), ([-math.inf, -math.inf], "every number is a mask")],
)
def test_a_model_that_computes_no_numbers_is_no_reference(x: list[float], said: str) -> None:
    with pytest.raises(PrunusError, match=said):
        difference(runner(lambda x: 2 * x), Stage(Doubling(), {"x": torch.tensor([x])}), "model")


def test_outputs_of_other_shapes_are_refused() -> None:
    with pytest.raises(PrunusError, match="outputs have shapes"):
        difference(runner(lambda x: x[:, :1]), Stage(Doubling(), {"x": X}), "model")


def test_targets_are_left_out_and_decoders_begin_somewhere() -> None:
    case = build("t5", 0)
    batch = {**case.inputs, "labels": torch.tensor([[5, 6], [7, 8]])}
    batch.pop("decoder_input_ids", None)
    given = stages(case.model, batch, generation=False)["model"].inputs
    assert "labels" not in given
    assert given["decoder_input_ids"].tolist() == [[0, 5], [0, 7]]


@pytest.fixture
def narrow_vit() -> tuple[Any, dict[str, Any]]:
    case = build("vit", 0)
    return extract(case.model, random_plan(case.model, 0)), case.inputs


@pytest.mark.long
def test_a_narrowed_model_becomes_a_program_of_torch(narrow_vit: Any, tmp_path: Path) -> None:
    small, inputs = narrow_vit
    before = {name: value.clone() for name, value in small.state_dict().items()}
    done = export(small, tmp_path / "out", "torch", batches(inputs))
    (graph,) = done.graphs
    assert (graph.name, graph.sizes, graph.batches) == ("model", "any", 3)
    assert graph.difference <= 1e-6
    again = exporters.ExportedModel.from_pretrained(tmp_path / "out", device="cpu")
    with torch.no_grad():
        wanted = small(**inputs).logits
    assert torch.allclose(again(**inputs).logits, wanted, atol=1e-6)
    assert json.loads((tmp_path / "out/checked.json").read_text())["graphs"][0]["difference"] == graph.difference
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    with pytest.raises(PrunusError, match="there already"):
        export(small, tmp_path / "out", "torch", batches(inputs))


class Fake:
    """In the place of a format: what it exports computes what the model does, at the sizes it was traced with or at all."""

    name = "fake"
    running: ClassVar[dict[str, Any]] = {}

    def __init__(self, dynamic: bool = True, error: float = 0.0):
        self.dynamic, self.error, self.traced = dynamic, error, list[tuple[str, bool]]()

    def exporter(self, dynamic: bool) -> Any:
        return self, SimpleNamespace(dynamic=dynamic, export_format="fake", to_json_string=lambda: "{}")

    def export_program(self, module: Any, inputs: dict[str, Any], config: Any) -> tuple[Any, Any]:
        self.traced.append((type(module).__name__, config.dynamic))
        if config.dynamic and not self.dynamic:
            raise RuntimeError("a guard\nthat is long") from ValueError("sizes are data")
        return module, SimpleNamespace(kwargs=dict(inputs))

    def save(self, model: Any, folder: Path, kind: Any, components: Any) -> Any:
        (folder / "model.fake").write_text("graph")
        return {name: self.runner(component) for name, component in components.items()}

    def runner(self, component: Any) -> Any:
        def call(**inputs: Any) -> Any:
            output = component.program(**inputs)
            output.logits.add_(self.error)
            return output

        call.metadata = component.metadata  # type: ignore[attr-defined]
        return call


@pytest.fixture
def faking(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = importlib.import_module("prunus.export.export")

    def fake(**how: Any) -> Fake:
        made = Fake(**how)
        monkeypatch.setattr(module, "format_of", lambda name: made)
        monkeypatch.setattr(module, "_saved", made.save)
        return made

    return fake


def test_what_cannot_be_traced_for_all_sizes_is_traced_for_one(narrow_vit: Any, tmp_path: Path, faking: Any) -> None:
    fake = faking(dynamic=False)
    (graph,) = export(narrow_vit[0], tmp_path / "out", "fake", batches(narrow_vit[1])).graphs
    assert (graph.sizes, graph.batches) == ("as traced", 2)
    assert [dynamic for _, dynamic in fake.traced] == [True, False]


def test_what_computes_something_else_leaves_no_folder(narrow_vit: Any, tmp_path: Path, faking: Any) -> None:
    faking(error=100 * TOLERANCE)
    with pytest.raises(PrunusError, match="computes something else than the model: 1"):
        export(narrow_vit[0], tmp_path / "out", "fake", batches(narrow_vit[1]))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_no_reason_to_leave_generation_out(
    tmp_path: Path, faking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = faking()

    def full(*given: Any) -> Any:
        raise PrunusError("model", "fake", "it cannot be written") from OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(importlib.import_module("prunus.export.export"), "_saved", full)
    with pytest.raises(PrunusError, match="no room for it on the disk"):
        export(build("llama", 0).model, tmp_path / "out", "fake", [{"input_ids": torch.ones(2, 5, dtype=torch.long)}])
    assert len(fake.traced) == 2  # prefill and decode, and no forward pass
    assert not list(tmp_path.iterdir())


def test_a_disk_smaller_than_the_weights_is_refused_before_tracing(
    narrow_vit: Any, tmp_path: Path, faking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = faking()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(PrunusError, match="weights alone are"):
        export(narrow_vit[0], tmp_path / "out", "fake", batches(narrow_vit[1]))
    assert not fake.traced


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_exported_as_the_fp32_model_that_they_are(
    dtype: torch.dtype, narrow_vit: Any, tmp_path: Path, faking: Any
) -> None:
    faking()
    small, inputs = narrow_vit[0].to(dtype), narrow_vit[1]
    for name, given in (("same", inputs), ("halves", {**inputs, "pixel_values": inputs["pixel_values"].to(dtype)})):
        (graph,) = export(small, tmp_path / name, "fake", batches(given)).graphs
        assert graph.difference <= 1e-6


def test_sizes_that_were_not_tried_are_not_claimed(narrow_vit: Any, tmp_path: Path, faking: Any) -> None:
    faking()
    first, other, longer = batches(narrow_vit[1])
    (graph,) = export(narrow_vit[0], tmp_path / "same", "fake", [first, other]).graphs
    assert (graph.sizes, graph.batches) == ("as traced", 2)
    (graph,) = export(narrow_vit[0], tmp_path / "any", "fake", [first, longer]).graphs
    assert (graph.sizes, graph.batches) == ("any", 2)


def test_weights_that_are_not_in_memory_are_refused(narrow_vit: Any, tmp_path: Path) -> None:
    with pytest.raises(PrunusError, match="not in memory"):
        export(narrow_vit[0].to("meta"), tmp_path / "out", "torch", batches(narrow_vit[1]))


def test_a_model_that_computes_no_numbers_is_refused_before_it_is_traced(
    narrow_vit: Any, tmp_path: Path, faking: Any
) -> None:
    fake = faking()
    with torch.no_grad():
        narrow_vit[0].classifier.bias[0] = math.nan
    with pytest.raises(PrunusError, match="NaN or infinite"):
        export(narrow_vit[0], tmp_path / "out", "fake", batches(narrow_vit[1]))
    assert not fake.traced
    assert not list(tmp_path.iterdir())


def test_a_generate_that_cannot_be_taken_apart_is_said_in_the_exporters_words(tmp_path: Path, faking: Any) -> None:
    faking()
    case = build("blip_caption", 0)
    done = export(case.model, tmp_path / "out", "fake", batches(case.inputs))
    assert [graph.name for graph in done.graphs] == ["model"]
    assert "generate() bypasses the top-level forward()" in str(done.lacking)
    with pytest.raises(PrunusError, match="bypasses"):
        export(case.model, tmp_path / "other", "fake", batches(case.inputs), "generation")


@pytest.mark.parametrize(
    ("changed", "field", "remedy"),
    [
        ({"to": "tflite"}, "--to", "take one of onnx"),
        ({"batches": []}, "batches", "real inputs"),
        ({"graphs": "generation"}, "graphs", "does not generate"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_traced(
    changed: Any, field: str, remedy: str, narrow_vit: Any, tmp_path: Path
) -> None:
    with pytest.raises(PrunusError, match=remedy) as refused:
        export(
            narrow_vit[0], **{"folder": tmp_path / "out", "to": "torch", "batches": batches(narrow_vit[1]), **changed}
        )
    assert refused.value.field == field


def test_quantised_weights_are_refused(narrow_vit: Any, tmp_path: Path) -> None:
    small, inputs = narrow_vit
    layer = next(module for module in small.modules() if isinstance(module, nn.Linear))
    layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(PrunusError, match="quantised"):
        export(small, tmp_path / "out", "torch", batches(inputs))


@pytest.mark.parametrize("name", ["clip", "siglip", "vit", "segmenter"])
def test_inputs_are_made_by_the_models_own_processor(name: str, tmp_path: Path) -> None:
    model = load_model(lookers.saved(name, tmp_path / "model"))
    first, other, longer = real_batches(model, tmp_path / "model")
    assert len(first["pixel_values"]) == 2
    assert len(longer["pixel_values"]) == 3
    assert torch.equal(first["pixel_values"].flip(0), other["pixel_values"])
    assert not torch.equal(first["pixel_values"], other["pixel_values"])
    assert ("input_ids" in first) == (name in lookers.READ_WORDS)
    with torch.no_grad():
        model(**longer)


@pytest.mark.parametrize("name", ["llava", "blip_answers", "vilt"])
def test_speakers_are_asked_as_their_kind_is(name: str, tmp_path: Path) -> None:
    model = load_model(speakers.save(name, tmp_path / "model"))
    first, _, _ = real_batches(model, tmp_path / "model")
    given = stages(model, first, generation=False)["model"]
    assert given.outputs[0].isfinite().all()


def test_a_quantised_folder_is_refused_for_that(tmp_path: Path) -> None:
    pytest.importorskip("torchao.quantization")
    build("llama", 0).model.save_pretrained(tmp_path / "model")
    quantise_folder(tmp_path / "model", tmp_path / "packed", Quantisation())
    with pytest.raises(PrunusError, match="quantised"):
        export_folder(tmp_path / "packed", tmp_path / "out", "torch")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    build("llama", 0).model.save_pretrained(tmp_path / "model")
    with pytest.raises(PrunusError, match="tokenizer"):
        export_folder(tmp_path / "model", tmp_path / "out", "torch")
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_found(tmp_path: Path, faking: Any) -> None:
    faking(dynamic=False)
    folder = lookers.saved("vit", tmp_path / "model")
    told = CliRunner().invoke(app, ["export", str(folder), "--to", "torch"])
    assert told.exit_code == 0, told.output
    assert "0.0e+00 from the model on 2 batches, takes only the sizes that it was traced with" in told.output
    assert (tmp_path / "model-torch" / "model.fake").exists()  # beside the model


@pytest.mark.parametrize("option", [("--task", "easy_vqa"), ("--graphs", "forward")])
def test_options_that_a_gguf_cannot_heed_are_refused(option: tuple[str, str]) -> None:
    refused = CliRunner().invoke(app, ["export", "nothing", "--to", "gguf", *option]).exception
    assert isinstance(refused, PrunusError)
    assert refused.field == option[0]


@pytest.mark.long
def test_openvino_computes_in_fp32(narrow_vit: Any, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    export(narrow_vit[0], tmp_path / "out", "openvino", batches(narrow_vit[1]))
    run_with = json.loads((tmp_path / "out" / "checked.json").read_bytes())["run_with"]
    assert run_with["config"] == {"INFERENCE_PRECISION_HINT": "f32"}
    again = exporters.ExportedModel.from_pretrained(tmp_path / "out", **run_with)
    with torch.no_grad():
        wanted = narrow_vit[0](pixel_values=narrow_vit[1]["pixel_values"])[0]
    got = again(pixel_values=narrow_vit[1]["pixel_values"])
    torch.testing.assert_close(
        got[0] if isinstance(got, tuple) else next(iter(got.values())), wanted, rtol=0, atol=1e-4
    )


@pytest.mark.long
def test_a_narrowed_language_model_speaks_in_onnx(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = tf.LlamaConfig(**sizes, num_hidden_layers=1, vocab_size=50, max_position_embeddings=64, eos_token_id=None)
    model = tf.LlamaForCausalLM(config)
    small = extract(model, random_plan(model, 0)).eval()
    ids = torch.randint(3, 50, (2, 7))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    done = export(small, tmp_path / "out", "onnx", batches({"input_ids": ids, "attention_mask": mask}))
    assert [(graph.name, graph.sizes) for graph in done.graphs] == [("prefill", "any"), ("decode", "any")]
    assert max(graph.difference for graph in done.graphs) <= 1e-5


def found_of_many_sizes(folder: str) -> list[tuple[str, str, float]]:
    """Name, sizes and difference of the graphs of a model whose pictures may have any size."""
    model, inputs = (case := build("qwen2_5_vl", 0)).model, case.inputs
    given = {name: value for name, value in inputs.items() if name != "labels"}
    others = {**given, "pixel_values": given["pixel_values"].flip(0)}
    done = export(model, Path(folder) / "out", "torch", [given, others], graphs="generation")
    return [(graph.name, graph.sizes, graph.difference) for graph in done.graphs]


@pytest.mark.long
def test_the_first_export_of_a_process_finds_caches_and_what_follows_from_sizes_of_pictures(tmp_path: Path) -> None:
    found = in_fresh_process(found_of_many_sizes, str(tmp_path))
    assert [name for name, _, _ in found] == ["image_encoder", "language_model", "lm_head", "decode"]
    assert max(apart for _, _, apart in found) <= 1e-5
