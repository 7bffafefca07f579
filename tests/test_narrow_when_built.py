"""A narrowed model narrows itself wherever it is built, says what was done to it, and refuses what cannot be narrowed."""

from __future__ import annotations

import copy
import io
import json
import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as tf
from torch import nn

from prunus import Magnitude, Plan, PrunusError, Search, UPop, anatomy, extract, load_model, plan_of, prune, sparsity_of
from prunus.anatomy.forwards import NarrowRotation
from prunus.checkpoint.described import CARD, COPY, MARK
from prunus.plan.record import records_of
from tests.families import build
from tests.test_equivalence import outputs, random_plan


def narrowed(name: str, seed: int = 2):
    case = build(name, seed)
    return extract(case.model, random_plan(case.model, seed)), case


def same(first: nn.Module, second: nn.Module, case) -> bool:
    with torch.no_grad():
        pairs = zip(outputs(first(**case.inputs)), outputs(second(**case.inputs)), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["llama", "blip_vqa", "t5", "clip", "bart_like"])
def test_a_class_built_from_the_config_is_narrow_and_takes_the_weights(name: str) -> None:
    small, case = narrowed_bart() if name == "bart_like" else narrowed(name)
    built = type(small)(copy.deepcopy(small.config)).eval()
    assert plan_of(built) == plan_of(small)
    built.load_state_dict(small.state_dict())
    assert same(built, small, case)
    with torch.device("meta"):
        bare = type(small)(copy.deepcopy(small.config))
    assert {k: v.shape for k, v in bare.state_dict().items()} == {k: v.shape for k, v in small.state_dict().items()}


def narrowed_bart(is_copied: bool = False):
    """Encoder and decoder share one config, or one has a copy of it, and have units of the same names, with other channels kept."""
    torch.manual_seed(0)
    config = tf.OPTConfig(
        vocab_size=50, hidden_size=16, ffn_dim=20, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64,
        word_embed_proj_dim=16, pad_token_id=1,
    )  # fmt: skip

    class Two(tf.PreTrainedModel):
        config_class = tf.OPTConfig

        def __init__(self, config):
            super().__init__(config)
            self.first = tf.models.opt.modeling_opt.OPTDecoder(config)
            self.second = tf.models.opt.modeling_opt.OPTDecoder(copy.deepcopy(config) if is_copied else config)
            self.post_init()

        def forward(self, input_ids):
            return self.first(input_ids).last_hidden_state, self.second(input_ids).last_hidden_state

    model = Two(config).eval()
    case = build("opt", 0)
    case.inputs = {"input_ids": torch.randint(10, 50, (2, 5))}
    return extract(model, random_plan(model, 5)), case


def test_parts_that_share_a_config_keep_their_own_plans(tmp_path) -> None:
    small, case = narrowed_bart()
    plan = plan_of(small)
    assert {name.split(".")[0] for name in plan.units} == {"first", "second"}
    small.second.save_pretrained(tmp_path / "second")
    alone = type(small.second).from_pretrained(tmp_path / "second").eval()
    assert all(
        torch.equal(a, b) for a, b in zip(alone.state_dict().values(), small.second.state_dict().values(), strict=True)
    )
    assert set(records_of(small.config)) == {""}, "saving a part leaves the shared config as it was"
    small.save_pretrained(tmp_path / "whole")
    assert same(type(small).from_pretrained(tmp_path / "whole").eval(), small, case)


def test_a_part_whose_config_is_a_copy_of_anothers_keeps_its_own_plan(tmp_path) -> None:
    small, case = narrowed_bart(is_copied=True)
    small.save_pretrained(tmp_path)
    loaded = type(small).from_pretrained(tmp_path).eval()
    assert plan_of(loaded) == plan_of(small)
    assert same(loaded, small, case)


def test_plans_of_parts_and_of_parts_of_parts_compose() -> None:
    case = build("clip", 1)
    model = case.model
    first = extract(model, random_plan(model, 1))
    second = random_plan(first.vision_model, 2)
    inner = extract(first.vision_model, second, inplace=True)
    assert inner is first.vision_model
    assert plan_of(inner).units == second.after(plan_of(extract(model, random_plan(model, 1)).vision_model)).units
    built = type(first)(copy.deepcopy(first.config))
    assert plan_of(built) == plan_of(first)
    assert plan_of(first).ratio == pytest.approx(1 - kept_cost(first) / dense_cost(first))


def kept_cost(model) -> int:
    return sum(unit.channels * unit.channel_cost for unit in anatomy(model))


def dense_cost(model) -> int:
    units = plan_of(model).units
    return sum(units[unit.name].channels * unit.channel_cost for unit in anatomy(model))


def test_method_and_ratio_survive_saving_and_another_class(tmp_path) -> None:
    case = build("llama", 1)
    search = Search(case.model, UPop(ratio=0.5), total_steps=1)
    case.model(**case.inputs, labels=case.inputs["input_ids"]).loss.backward()
    search.step()
    plan = search.plan()
    small = extract(case.model, plan)
    assert plan_of(small) == plan
    small.save_pretrained(tmp_path)
    assert plan_of(type(small).from_pretrained(tmp_path)) == plan
    base = plan_of(tf.AutoModel.from_pretrained(tmp_path))
    assert (base.ratio, base.method, base.model) == (plan.ratio, plan.method, "LlamaModel")


def test_an_encoder_alone_keeps_what_the_config_says_of_the_decoder(tmp_path) -> None:
    small, _ = narrowed("t5")
    small.save_pretrained(tmp_path / "whole")
    tf.T5EncoderModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "encoder")
    again, said = tf.T5ForConditionalGeneration.from_pretrained(tmp_path / "encoder", output_loading_info=True)
    assert not said["unexpected_keys"]
    assert {n: v.shape for n, v in again.state_dict().items()} == {n: v.shape for n, v in small.state_dict().items()}


def test_a_dense_model_that_shares_its_config_claims_no_plan(tmp_path) -> None:
    case = build("vit", 1)
    other = type(case.model)(case.model.config).eval()
    extract(case.model, random_plan(case.model, 1), inplace=True)
    assert plan_of(other) is None
    other.save_pretrained(tmp_path)
    assert plan_of(type(other).from_pretrained(tmp_path)) is None
    assert plan_of(type(other)(case.model.config)) is not None


@pytest.mark.parametrize("name", ["blip_vqa", "llama", "qwen2_vl"])
def test_pickles_copies_and_replicas_compute_with_their_own_weights(name: str) -> None:
    small, case = narrowed(name)
    buffer = io.BytesIO()
    torch.save(small, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    copied = copy.deepcopy(small)
    assert same(loaded, small, case)
    assert same(copied, small, case)
    assert plan_of(loaded) == plan_of(copied) == plan_of(small)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(0.5)
    assert not same(copied, small, case)


def test_a_replica_of_a_narrow_attention_uses_its_own_layers() -> None:
    small, _ = narrowed("blip_caption")
    attention = next(m for m in small.modules() if type(m).__name__ == "BlipAttention")
    replica = attention._replicate_for_data_parallel()
    replica.qkv = copy.deepcopy(attention.qkv)
    with torch.no_grad():
        replica.qkv.weight.zero_()
        x = torch.randn(1, 3, attention.projection.out_features)
        assert not torch.equal(replica(x)[0], attention(x)[0])
    assert pickle.loads(pickle.dumps(attention)).qkv.weight.shape == attention.qkv.weight.shape


def answer(model, inputs, queue) -> None:
    with torch.no_grad():
        queue.put(float(model(**inputs).logits.abs().sum()))


@pytest.mark.long
def test_a_spawned_process_is_handed_the_model() -> None:
    small, case = narrowed("llama")
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    process = spawn.Process(target=answer, args=(small, case.inputs, queue))
    process.start()
    with torch.no_grad():
        assert queue.get(timeout=120) == pytest.approx(float(small(**case.inputs).logits.abs().sum()), rel=1e-6)
    process.join()


def test_the_rotary_index_is_neither_weight_nor_buffer_and_follows_the_tables() -> None:
    small, case = narrowed("llama")
    assert not [name for name, _ in small.named_buffers() if "rotary_index" in name]
    hooks = [h for m in small.modules() for h in m._forward_pre_hooks.values() if isinstance(h, NarrowRotation)]
    assert hooks
    assert all(hook.index.device.type == "cpu" for hook in hooks)
    with torch.inference_mode():
        small(**case.inputs)
    small(**case.inputs).logits.sum().backward()
    small.to("meta")(input_ids=case.inputs["input_ids"].to("meta"))
    assert all(hook.index.device.type == "cpu" for hook in hooks)


def test_a_narrowed_decoder_compiles_and_exports_as_one_graph() -> None:
    small, case = narrowed("llama")
    compiled = torch.compile(small, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(**case.inputs, use_cache=False).logits, small(**case.inputs, use_cache=False).logits
        )


def test_wrappers_are_taken_off_or_refused_by_name() -> None:
    case = build("vit", 1)
    plan = random_plan(case.model, 1)
    expected = extract(case.model, plan)
    compiled = torch.compile(case.model, backend="eager")
    for wrapped in (compiled, nn.DataParallel(case.model)):
        small = extract(wrapped, plan)
        assert type(small) is type(case.model)
        assert same(small, expected, case)
        with pytest.raises(PrunusError, match="inplace"):
            extract(wrapped, plan, inplace=True)
    case.model.compile(backend="eager")
    assert same(extract(case.model, plan), expected, case)


def test_weights_that_are_not_here_are_refused_by_name() -> None:
    case = build("llama", 1)
    plan = random_plan(case.model, 1)
    with torch.device("meta"):
        bare = type(case.model)(case.model.config)
    with pytest.raises(PrunusError, match="not in memory"):
        extract(bare, plan)
    packed = copy.deepcopy(case.model)
    layer = packed.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    before = {name: value.clone() for name, value in packed.state_dict().items()}
    with pytest.raises(PrunusError, match="quantised") as refused:
        extract(packed, plan, inplace=True)
    assert "up_proj" in str(refused.value.value)
    assert all(torch.equal(value.float(), before[name].float()) for name, value in packed.state_dict().items())


def test_torchao_tensors_are_refused_by_name() -> None:
    torchao = pytest.importorskip("torchao.quantization")
    case = build("llama", 1)
    plan = random_plan(case.model, 1)
    torchao.quantize_(case.model, torchao.Int8WeightOnlyConfig())
    with pytest.raises(PrunusError, match="quantised"):
        extract(case.model, plan)


@pytest.mark.long
def test_a_quantised_narrow_folder_is_saved_and_loaded_again(tmp_path) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    small, case = narrowed("llama")
    small.save_pretrained(tmp_path / "narrow")
    config = tf.TorchAoConfig(torchao.Int8WeightOnlyConfig())
    packed = type(small).from_pretrained(tmp_path / "narrow", quantization_config=config).eval()
    assert plan_of(packed) == plan_of(small)
    packed.save_pretrained(tmp_path / "packed")
    assert same(type(small).from_pretrained(tmp_path / "packed").eval(), packed, case)


def test_a_plan_that_was_applied_already_changes_nothing() -> None:
    case = build("llama", 1)
    plan = random_plan(case.model, 1)
    small = extract(case.model, plan)
    fresh = tf.AutoModelForCausalLM.from_config(copy.deepcopy(small.config)).eval()
    again = extract(fresh, plan)
    again.load_state_dict(small.state_dict())
    assert same(again, small, case)
    assert plan_of(again) == plan
    with pytest.raises(PrunusError, match="channels"):
        extract(small, random_plan(case.model, 3))


def test_a_config_with_other_sizes_than_the_record_is_refused() -> None:
    small, _ = narrowed("llama")
    config = copy.deepcopy(small.config)
    config.intermediate_size += 8
    with pytest.raises(PrunusError, match="leave the sizes as they were saved"):
        type(small)(config)


def test_zeros_are_counted_again_and_a_broken_pattern_is_dropped() -> None:
    case = build("llama", 0)
    model = case.model
    names = [
        name
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and m.in_features % 4 == 0 and "layers" in name
    ]
    prune(model, Magnitude(pattern="2:4"), [case.inputs], include=names)
    rows_only = {u.name: u for u in anatomy(model) if u.kind == "mlp"}
    masks = {}
    for unit in rows_only.values():
        masks[unit.name] = torch.arange(unit.channels) % 3 > 0
    small = extract(model, Plan.from_masks(anatomy(model), masks))
    record = sparsity_of(small)
    for name, entry in record.matrices.items():
        weight = small.get_submodule(name).weight
        assert (entry.rows, entry.columns) == tuple(weight.shape)
        assert entry.pruned == int((weight == 0).sum())
    down = [name for name in record.matrices if name.endswith("down_proj")]
    assert (record.pattern == "2:4") == (not down)


def old_folder(small, folder: Path) -> Plan:
    """As version 0.1 wrote it: the whole plan in the quantiser's slot of the outermost config."""
    plan = plan_of(small)
    small.save_pretrained(folder)
    for name in (COPY, CARD, "prunus-checksums.json"):
        (folder / name).unlink()
    config = json.loads((folder / "config.json").read_text())
    for entry in [config, *(value for value in config.values() if isinstance(value, dict))]:
        entry.pop("prunus", None)
    config["quantization_config"] = {"quant_method": "prunus", "plan": plan.model_dump(mode="json")}
    (folder / "config.json").write_text(json.dumps(config))
    return plan


@pytest.mark.parametrize("name", ["llama", "blip_vqa", "clip", "vit"])
def test_folders_of_version_0_1_load(name: str, tmp_path) -> None:
    small, case = narrowed(name)
    plan = old_folder(small, tmp_path)
    again = type(small).from_pretrained(tmp_path).eval()
    assert plan_of(again) == plan
    assert same(again, small, case)
    assert getattr(again.config, "quantization_config", None) is None
    assert plan_of(load_model(tmp_path)) == plan
    again.save_pretrained(tmp_path / "new")
    assert "quantization_config" not in json.loads((tmp_path / "new" / "config.json").read_text())
    assert same(type(small).from_pretrained(tmp_path / "new").eval(), small, case)


def test_a_folder_of_version_0_1_names_its_class_to_others(tmp_path) -> None:
    small, _ = narrowed("llama")
    old_folder(small, tmp_path)
    with pytest.raises(PrunusError, match="saved it as LlamaForCausalLM"):
        tf.LlamaModel.from_pretrained(tmp_path)


class Net(nn.Module):
    """The user's own module around a transformers model."""

    def __init__(self, backbone) -> None:
        super().__init__()
        self.stem, self.backbone = nn.Conv2d(3, 3, 3, padding=1), backbone

    def forward(self, pixel_values):
        return self.backbone(self.stem(pixel_values))


def test_a_model_inside_of_a_module_keeps_its_part_of_the_plan(tmp_path) -> None:
    case = build("dinov2", 1)
    net = Net(case.model).eval()
    plan = random_plan(net, 1)
    small = extract(net, plan)
    assert plan_of(small) == plan
    small.backbone.save_pretrained(tmp_path)
    again = type(case.model).from_pretrained(tmp_path).eval()
    assert same(again, small.backbone, case)
    assert pickle.loads(pickle.dumps(small.backbone.config)).to_dict() == small.backbone.config.to_dict()


def test_a_folder_explains_itself(tmp_path) -> None:
    small, _ = narrowed("clip")
    small.config._name_or_path = "openai/clip-vit-base-patch32"
    small.save_pretrained(tmp_path)
    text = (tmp_path / CARD).read_text()
    assert text.startswith("---\n")
    for part in (
        "library_name: transformers",
        "- prunus",
        "base_model: openai/clip",
        "import prunus",
        f"{small.num_parameters():,}",
    ):
        assert part in text
    assert "import prunus" in (tmp_path / "config.json").read_text()
    (tmp_path / CARD).write_text("mine")
    small.save_pretrained(tmp_path)
    assert (tmp_path / CARD).read_text() == "mine"
    build("clip", 0).model.save_pretrained(tmp_path)
    assert not (tmp_path / COPY).exists()
    assert (tmp_path / CARD).read_text() == "mine"


def test_a_model_without_a_record_is_saved_as_ever(tmp_path) -> None:
    case = build("vit", 0)
    case.model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    prune(case.model, Magnitude(sparsity=0.5), [case.inputs])
    case.model.save_pretrained(tmp_path)
    text = (tmp_path / CARD).read_text()
    assert MARK in text
    assert "zeros in place" in text
    assert "import prunus" not in text


def test_what_is_saved_over_another_model_is_what_loads(tmp_path) -> None:
    case = build("llama", 5)
    small = extract(case.model, random_plan(case.model, 5))
    for model, size in ((case.model, "1GB"), (small, "10KB"), (small, "1GB"), (small, "10KB")):
        model.save_pretrained(tmp_path, max_shard_size=size)
        loaded = load_model(tmp_path)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    case.model.save_pretrained(tmp_path / "over")
    small.save_pretrained(tmp_path / "over")
    case.model.save_pretrained(tmp_path / "over")
    assert not [path.name for path in (tmp_path / "over").iterdir() if "prunus" in path.name or path.suffix == ".md"]


def test_a_plan_that_the_config_lost_is_taken_from_the_copy(tmp_path) -> None:
    small, case = narrowed("clip")
    small.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for entry in [config, *(value for value in config.values() if isinstance(value, dict))]:
        entry.pop("prunus", None)
    path.write_text(json.dumps(config))
    again = load_model(tmp_path).eval()
    assert plan_of(again) == plan_of(small)
    assert same(again, small, case)
    (tmp_path / COPY).write_text("{")
    with pytest.raises(PrunusError, match=COPY):
        load_model(tmp_path)


@pytest.mark.long
def test_without_prunus_nothing_is_lost_and_the_folder_says_what_to_import(tmp_path) -> None:
    small, _ = narrowed("vit")
    small.save_pretrained(tmp_path / "model")
    code = "import sys, transformers as t; m = t.ViTForImageClassification.from_pretrained(sys.argv[1]{}){}"
    call = [sys.executable, "-c"]
    plain = subprocess.run(
        [*call, code.format("", ""), tmp_path / "model"], capture_output=True, text=True, check=False
    )
    assert plain.returncode != 0
    advised = code.format(", ignore_mismatched_sizes=True", "; m.save_pretrained(sys.argv[1])")
    subprocess.run([*call, advised, tmp_path / "model"], capture_output=True, check=True)
    with pytest.raises(PrunusError, match="changed"):
        load_model(tmp_path / "model")
    assert json.loads((tmp_path / "model" / COPY).read_text())["configs"][""]["prunus"]["units"]


def test_importing_twice_wraps_once() -> None:
    from prunus.checkpoint import described
    from prunus.checkpoint import narrowed as module

    before = (tf.PreTrainedModel.post_init, tf.PreTrainedModel.save_pretrained)
    module.teach_transformers()
    described.teach_saving()
    assert (tf.PreTrainedModel.post_init, tf.PreTrainedModel.save_pretrained) == before
