"""Round trips: save → new process → stock class → the same bits; damage named by file."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from prunus import Plan, PrunusError, extract, plan_of
from prunus.plan.record import records_of
from tests.families import FAMILIES, WITH_EXPERTS, build
from tests.test_equivalence import outputs, random_plan

RELOAD = """
import sys, torch, transformers
from safetensors.torch import load_file, save_file
{first}
folder, cls = sys.argv[1:]
model = getattr(transformers, cls).from_pretrained(folder).eval()
inputs = torch.load(folder + "/../inputs.pt")
from tests.test_equivalence import outputs
with torch.no_grad():
    results = outputs(model(**inputs))
save_file({{str(i): t.clone() for i, t in enumerate(results)}}, folder + "/../results.safetensors")
"""


def narrowed(name: str, seed: int = 2):
    case = build(name, seed)
    return extract(case.model, random_plan(case.model, seed)), case


@pytest.mark.parametrize("name", [*FAMILIES, *WITH_EXPERTS])
def test_a_saved_model_reloads_bit_for_bit_with_its_stock_class(name: str, tmp_path) -> None:
    small, case = narrowed(name)
    small.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".safetensors"}
    again, report = type(small).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert plan_of(again) == plan_of(small)
    state = again.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in small.state_dict().items())
    with torch.no_grad():
        for first, second in zip(outputs(small(**case.inputs)), outputs(again.eval()(**case.inputs)), strict=True):
            assert torch.equal(first, second)


@pytest.mark.long
@pytest.mark.parametrize("name", ["blip_vqa", "llama", "qwen2_5_vl"])
def test_a_new_process_gets_the_same_bits(name: str, tmp_path) -> None:
    small, case = narrowed(name)
    small.save_pretrained(tmp_path / "model")
    torch.save(case.inputs, tmp_path / "inputs.pt")
    command = [
        sys.executable,
        "-c",
        RELOAD.format(first="import prunus"),
        str(tmp_path / "model"),
        type(small).__name__,
    ]
    subprocess.run(command, check=True, capture_output=True)
    results = load_file(tmp_path / "results.safetensors")
    with torch.no_grad():
        for index, tensor in enumerate(outputs(small(**case.inputs))):
            assert torch.equal(results[str(index)], tensor)


def test_auto_classes_load_it_too(tmp_path) -> None:
    small, _ = narrowed("llama")
    small.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is type(small)
    assert again.num_parameters() == small.num_parameters()


def test_sharded_saving_works(tmp_path) -> None:
    small, _ = narrowed("blip_vqa")
    small.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    state = type(small).from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in small.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_reloaded_model_is_an_ordinary_one(dtype: torch.dtype, tmp_path) -> None:
    small, case = narrowed("llama")
    small.save_pretrained(tmp_path / "first")
    again = type(small).from_pretrained(tmp_path / "first", dtype=dtype)
    assert again.to(dtype).dtype == dtype
    again.float().train()
    again(**case.inputs, labels=case.inputs["input_ids"]).loss.backward()
    again.save_pretrained(tmp_path / "second")
    third = type(small).from_pretrained(tmp_path / "second")
    assert plan_of(third) == plan_of(small)


def test_a_damaged_weight_file_is_named(tmp_path) -> None:
    small, _ = narrowed("vit")
    small.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PrunusError, match=r"model\.safetensors"):
        type(small).from_pretrained(tmp_path)


def test_a_tensor_of_another_shape_is_refused(tmp_path) -> None:
    small, _ = narrowed("vit")
    small.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = next(key for key in tensors if key.endswith(("fc1.weight", "intermediate.dense.weight")))
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(PrunusError, match=r"model\.safetensors'?: shape mismatch"):
        type(small).from_pretrained(tmp_path)


def test_a_damaged_plan_in_the_config_is_named(tmp_path) -> None:
    small, _ = narrowed("vit")
    small.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    unit = next(iter(config["prunus"]["units"]))
    config["prunus"]["units"][unit]["kept"] = "9999"
    path.write_text(json.dumps(config))
    with pytest.raises(PrunusError, match=r"config\.json"):
        type(small).from_pretrained(tmp_path)


def test_a_plan_for_another_model_is_refused_with_the_first_mismatch() -> None:
    vit, bert = build("vit", 0).model, build("bert", 0).model
    with pytest.raises(PrunusError, match="no such unit"):
        extract(bert, random_plan(vit, 0))
    wider = random_plan(vit, 0)
    name, unit = next(iter(wider.units.items()))
    other = Plan(model=wider.model, ratio=0, units={name: unit.model_copy(update={"channels": unit.channels + 8})})
    with pytest.raises(PrunusError, match="channels"):
        extract(vit, other)


def test_the_dense_model_is_left_alone() -> None:
    case = build("clip", 0)
    before = {key: tensor.clone() for key, tensor in case.model.state_dict().items()}
    extract(case.model, random_plan(case.model, 0))
    assert all(torch.equal(tensor, before[key]) for key, tensor in case.model.state_dict().items())
    assert plan_of(case.model) is None
    assert not records_of(case.model.config)
