"""Anatomy: costs that are true, shared and copied modules, and everything it does not know."""

from __future__ import annotations

import ast
import copy
import json
import time
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
import transformers
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from benchmarks.anatomy_speed import CONFIGS
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune
from transformers import (
    BlipConfig,
    BlipForQuestionAnswering,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    Phi3Config,
    Phi3ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaMLP

import prunus
from prunus import (
    Magnitude,
    Plan,
    PrunusError,
    Search,
    Uniform,
    UPop,
    WalkOptions,
    Wanda,
    allocate,
    anatomy,
    extract,
    load_model,
    matrices,
    mirrored,
    plan_of,
    prune,
    prune_folder,
)
from prunus.anatomy import CATALOG, Attention, Matrix, MisfitError, Mlp, choose, describe, locate, select, survey
from prunus.checkpoint import bare_model
from prunus.plan import UnitPlan
from tests.families import FAMILIES, IMAGE, PATCH, WITH_COPIES, WITH_EXPERTS, build, one_half
from tests.strangers import own_architecture
from tests.test_equivalence import masked, random_plan


@pytest.mark.parametrize("name", [*one_half([*FAMILIES, *WITH_EXPERTS], 0), *WITH_COPIES])
def test_a_channel_costs_what_leaves_with_it(name: str) -> None:
    model = build(name, 7).model
    parts = anatomy(model)
    for unit in (parts.units[0], parts.units[-1]):
        if unit.channels < 2:
            continue
        kept = tuple(range(1, unit.channels))
        plan = Plan(model=parts.model, ratio=0, units={unit.name: UnitPlan(channels=unit.channels, kept=kept)})
        small = extract(model, plan)
        removed = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in small.parameters())
        assert removed == unit.channel_cost * (1 + len(unit.mirrors))


def test_blip_base_costs_what_the_method_says() -> None:
    with torch.device("meta"):
        parts = anatomy(BlipForQuestionAnswering(BlipConfig(vision_config={"image_size": 480})))
    assert set(parts.towers) == {"vision", "text", "decoder"}
    assert {component: len(units) for component, units in parts.components.items()} == {
        "vision.attention": 12, "vision.mlp": 12, "text.attention": 12, "text.cross_attention": 12, "text.mlp": 12,
        "decoder.attention": 12, "decoder.cross_attention": 12, "decoder.mlp": 12,
    }  # fmt: skip
    attention, mlp = parts.components["vision.attention"][0], parts.components["vision.mlp"][0]
    assert (attention.channels, mlp.channels) == (64, 3072)
    assert attention.channel_cost == 12 * (3 * (768 + 1) + 768)
    assert mlp.channel_cost == 768 + 1 + 768


class Pair(nn.Module):
    """A vision tower that is run twice, and its momentum copy."""

    def __init__(self) -> None:
        super().__init__()
        config = CLIPVisionConfig(
            hidden_size=12, num_attention_heads=2, num_hidden_layers=2, intermediate_size=20, image_size=IMAGE,
            patch_size=PATCH,
        )  # fmt: skip
        self.vision_model = CLIPVisionModel(config)
        self.same = self.vision_model
        self.vision_model_m = copy.deepcopy(self.vision_model).requires_grad_(False)
        self.tied = copy.deepcopy(self.vision_model)
        for name, module in self.tied.named_modules():
            for key in list(module._parameters):
                module._parameters[key] = self.vision_model.get_submodule(name)._parameters[key]

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        towers = (self.vision_model, self.same, self.tied, self.vision_model_m)
        return [tower(pixels).last_hidden_state for tower in towers]


def test_shared_modules_count_once_and_copies_follow_their_originals() -> None:
    model = Pair().eval()
    parts = anatomy(model, mirrors={"vision_model_m": "vision_model"})
    assert len(parts) == 4
    assert all(unit.twins and unit.mirrors for unit in parts)
    pixels = torch.randn(2, 3, IMAGE, IMAGE)
    search = Search(model, UPop(ratio=0.5), total_steps=1, mirrors={"vision_model_m": "vision_model"})
    sum(t.square().mean() for t in model(pixels)[:3]).backward()
    search.step()
    wide = model(pixels)
    small = extract(model, search.plan())
    narrow = small(pixels)
    for first, second in zip(wide[:3], narrow[:3], strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)
    copies = dict(small.vision_model_m.named_parameters())
    assert all(p.shape == copies[name].shape for name, p in small.vision_model.named_parameters())
    tied = dict(small.tied.named_parameters())
    assert all(p is tied[name] for name, p in small.vision_model.named_parameters())


def test_a_mirror_that_is_none_is_refused() -> None:
    model = Pair()
    with pytest.raises(PrunusError, match="no module at this path"):
        anatomy(model, mirrors={"absent": "vision_model"})
    with pytest.raises(PrunusError, match="same parameters"):
        anatomy(model, mirrors={"vision_model_m": "vision_model.encoder"})


def test_only_the_copies_of_a_nested_mirror_are_copies() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.model.odd = Pair(), nn.ModuleList([StrangeAttention()])

    parts = anatomy(Holder(), mirrors={"model.vision_model_m": "model.vision_model"})
    assert any(part.path.startswith("model.odd") for part in parts.unmapped)


class OddMlp(nn.Module):
    """Looks like an MLP of known names."""

    def __init__(self, act: Any, norm: bool) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)
        self.activation_fn = act
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.activation_fn(self.fc1(x))
        return self.fc2(F.layer_norm(hidden, (16,)) if self.norm else hidden)


class StrangeAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)


def test_unknown_modules_are_proved_or_named_and_left_dense() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList(
        [OddMlp(F.gelu, norm=False), OddMlp(F.gelu, norm=True), OddMlp(torch.sigmoid, norm=False), StrangeAttention()]
    )
    parts = anatomy(model)
    assert [unit.name for unit in parts] == ["layers.0"]
    named = {part.path: part.reason for part in parts.unmapped}
    assert set(named) == {"layers.1", "layers.2", "layers.3"}
    assert "does not map 0 to 0" in named["layers.2"]
    assert "layers.3" in str(parts)


def widths(model: nn.Module) -> dict[str, int]:
    return {unit.name: unit.channels for unit in anatomy(model)}


def test_a_trial_meets_neither_gates_nor_other_hooks_nor_the_callers_settings() -> None:
    model = build("qwen3", 0).model
    found = widths(model)
    search = Search(model, UPop(ratio=0.5), total_steps=1)
    search.gates.set({unit.name: torch.zeros(unit.channels) for unit in search.units})

    def heard(*_: Any) -> None:
        raise AssertionError("a trial ran through a hook of the model")

    for module in model.modules():
        module.register_forward_pre_hook(heard)
        module.register_forward_hook(heard)
    modes = {name: module.training for name, module in model.train().named_modules()}
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
            assert widths(model) == found
    finally:
        torch.set_default_dtype(torch.float32)
    assert modes == {name: module.training for name, module in model.named_modules()}


def test_forwards_that_were_replaced_are_tried_as_they_are() -> None:
    model = build("qwen3", 0).model
    found = widths(model)
    first, *_ = (module for module in model.modules() if type(module).__name__ == "Qwen3MLP")
    for module in first.modules():
        add_hook_to_module(module, AlignDevicesHook(execution_device="cpu", offload=True, weights_map={}))
    assert widths(model) == found

    patched = build("qwen3", 0).model
    for module in patched.modules():
        if type(module).__name__ == "Qwen3MLP":
            plain = type(module).forward
            module.forward = MethodType(lambda self, x, plain=plain: plain(self, x), module)
    assert widths(patched) == found
    for module in patched.modules():
        if type(module).__name__ == "Qwen3MLP":
            module.forward = MethodType(lambda self, x: len(self.up_proj.weight) + type(self).forward(self, x), module)
    assert not [name for name in widths(patched) if name.endswith("mlp")]
    assert all("trial run" in part.reason for part in anatomy(patched).unmapped if part.type == "Qwen3MLP")


class Written(OddMlp):
    """Its hidden width stands in the forward, so it cannot be narrowed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(x)).view(*x.shape[:-1], 16))


def test_what_cannot_be_narrowed_says_why() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([Written(F.gelu, norm=False), *(OddMlp(F.gelu, norm=False) for _ in range(4))])
    parametrizations.weight_norm(model.layers[1].fc1)
    torch_prune.l1_unstructured(model.layers[2].fc2, "weight", 0.5)
    weight = model.layers[3].fc1.weight
    model.layers[3].fc1.weight = nn.Parameter(weight.detach().to(torch.int8), requires_grad=False)
    model.layers[4].fc2.register_parameter("scale", nn.Parameter(torch.ones(1)))
    parts = anatomy(model)
    assert not parts.units
    reasons = {part.path: part.reason for part in parts.unmapped}
    expected = (
        "trial run of it failed",
        "remove_parametrizations",
        "prune.remove",
        "quantised",
        "besides those of an MLP",
    )
    for (path, reason), words in zip(sorted(reasons.items()), expected, strict=True):
        assert words in reason, path


def test_adapted_layers_are_called_by_their_name() -> None:
    peft = pytest.importorskip("peft")
    for name, kind in (("llama", "LlamaAttention"), ("qwen3", "Qwen3MLP")):
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"])
        parts = anatomy(peft.get_peft_model(build(name, 0).model, config))
        reasons = {part.reason for part in parts.unmapped if part.type == kind}
        assert len(reasons) == 1
        assert "lora.layer.Linear" in reasons.pop()


@pytest.mark.parametrize("name", CONFIGS)
def test_large_models_are_read_in_seconds(name: str, tmp_path: Path) -> None:
    """Of types that the catalog names, that are tried, and that stay dense: sizes must not matter, and only once per layer."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
    with torch.device("meta"):
        model = bare_model(str(tmp_path / "config.json"))
    start = time.process_time()
    survey(model, parts=anatomy(model))
    assert time.process_time() - start < 3


def test_the_catalog_alone_names_architectures() -> None:
    """In code, apart from words for people: what makes models and tasks, or writes files of others, must name some."""
    families = {key.split(".")[2] for key in CATALOG if key.startswith("transformers")}
    words = {name.partition(":")[2] for name in CATALOG} | families - {"clip", "opt"}
    root = Path(prunus.__file__).parent
    for file in root.rglob("*.py"):
        if (
            file.relative_to(root).parts[0] in ("models", "tasks", "data", "sources", "export")
            or file.name == "catalog.py"
        ):
            continue
        tree = ast.parse(file.read_text())
        said = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        called = {getattr(node, "id", getattr(node, "attr", "")) for node in ast.walk(tree)}
        assert not words & (said | called), file


def test_the_table_names_every_component() -> None:
    parts = anatomy(build("blip2_t5", 0).model)
    text = str(parts)
    assert all(component in text for component in parts.components)
    assert "embeddings" in text


@pytest.mark.parametrize("name", ["clip", "llava"])
def test_plans_survive_a_model_that_is_frozen_in_part(name: str) -> None:
    case = build(name, 0)
    tower = anatomy(case.model).units[0]
    for parameter in case.model.get_submodule(tower.path).parameters():
        parameter.requires_grad_(False)
    small = extract(case.model, random_plan(case.model, 0))
    assert not any(p.requires_grad for p in small.get_submodule(tower.path).parameters())


# layouts and the catalog


class TwoSources(nn.Module):
    """Two cross-attentions in one module, as a layer has them that looks at a pair of images (BLIP-NLVR)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.ModuleDict({name: nn.Linear(8, 8) for name in "qkv"}) for _ in range(2))
        self.first_out, self.second_out = nn.Linear(8, 8), nn.Linear(8, 8)
        self.first.width = self.second.width = 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = []
        for part, out in ((self.first, self.first_out), (self.second, self.second_out)):
            q, k, v = (part[name](x).unflatten(-1, (2, part.width)).transpose(1, 2) for name in "qkv")
            mixed = F.scaled_dot_product_attention(q, k, v, scale=0.5)
            outputs.append(out(mixed.transpose(1, 2).flatten(2)))
        return sum(outputs)


describe(
    TwoSources,
    *(
        Attention(
            *(f"{part}.{one}" for one in "qkv"),
            f"{part}_out",
            core=part,
            width="width",
            name=f"cross{n}",
            kind=f"cross{n}",
        )
        for n, part in enumerate(("first", "second"))
    ),
)


def test_a_module_may_hold_several_attentions() -> None:
    torch.manual_seed(0)
    model = nn.Module()
    model.text_decoder = nn.ModuleList([TwoSources(), TwoSources()])
    parts = anatomy(model)
    assert [unit.name for unit in parts] == [f"text_decoder.{n}.cross{i}" for n in (0, 1) for i in (0, 1)]
    assert list(parts.components) == ["decoder.cross0", "decoder.cross1"]
    assert all(unit.is_attention for unit in parts)
    plan = Plan.from_masks(parts, {"text_decoder.0.cross1": torch.tensor([True, False, True, True])})
    x = torch.randn(2, 3, 8)
    small = extract(model, plan)
    assert (small.text_decoder[0].first.width, small.text_decoder[0].second.width) == (4, 3)
    gates = masked(model, plan)
    torch.testing.assert_close(small.text_decoder[0](x), model.text_decoder[0](x))
    gates.remove()
    assert plan_of(small) is not None
    assert set(plan_of(small).units) == {"text_decoder.0.cross1"}


@pytest.mark.parametrize("order", [1, -1])
def test_named_layouts_are_units_wherever_the_one_without_a_name_stands(order: int) -> None:
    class Block(nn.Module):
        """An attention and an MLP whose layers lie side by side."""

        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
            self.fc1, self.fc2, self.act, self.head_dim = nn.Linear(8, 6), nn.Linear(6, 8), nn.ReLU(), 4

    layouts = (
        Attention("q", "k", "v", "absent"), Attention("q", "k", "v", "out"), Attention("k", "q", "v", "out"),
        Mlp("fc1", "fc2", activation="act", name="mlp"),
    )  # fmt: skip
    describe(Block, *layouts[::order])
    parts = anatomy(nn.ModuleList([Block()]))
    assert {unit.name: unit.is_attention for unit in parts} == {"0": True, "0.mlp": False}
    assert parts["0"].producers[0].linear == ("q" if order == 1 else "k"), (
        "of those without a name, the first that fits"
    )
    assert not parts.unmapped


def test_a_type_is_known_by_where_it_is_defined_and_by_what_it_inherits() -> None:
    class Inherits(LlamaMLP):
        """As its parent."""

    namesake = type("LlamaMLP", (nn.Module,), {})()
    namesake.gate_proj, namesake.up_proj, namesake.down_proj = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)
    model = nn.ModuleList([Inherits(LlamaConfig(hidden_size=4, intermediate_size=6, num_attention_heads=1)), namesake])
    assert [unit.name for unit in anatomy(model)] == ["0"]


@pytest.mark.parametrize(
    ("kind", "layouts", "field"),
    [
        ("LlamaMLP", (Mlp("a", "b"),), "module type"),
        (int, (Mlp("a", "b"),), "module type"),
        (nn.Linear, (), "layouts"),
        (nn.Linear, ("up", "down"), "layouts"),
        (nn.Linear, (Mlp,), "layouts"),
    ],
)
def test_entries_that_are_none_are_refused(kind: Any, layouts: tuple[Any, ...], field: str) -> None:
    with pytest.raises(PrunusError) as caught:
        describe(kind, *layouts)
    assert caught.value.field == field


def fused(width: int, queries: int, rows: int) -> nn.Module:
    module = nn.Module()
    module.qkv, module.out, module.head_dim = nn.Linear(4, rows), nn.Linear(queries, 4), width
    return module


@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2), (4, 1), (1, 1)])
def test_a_fused_attention_may_have_fewer_keys_than_queries(heads: int, shared: int) -> None:
    sites = Attention("qkv", "qkv", "qkv", "out").sites(fused(6, 6 * heads, 6 * (heads + 2 * shared)))
    assert (sites.channels, sites.producers[0].repeats, sites.consumer.repeats) == (6, heads + 2 * shared, heads)


@pytest.mark.parametrize("rows", [24, 24 + 6, 24 + 3 * 12, 20])
def test_rows_that_are_no_queries_keys_and_values_are_refused(rows: int) -> None:
    with pytest.raises(MisfitError, match="fused qkv"):
        Attention("qkv", "qkv", "qkv", "out").sites(fused(6, 24, rows))


def test_heads_that_are_rotated_in_part_have_channels_of_both_parts() -> None:
    config = Phi3Config(
        hidden_size=16, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=1, intermediate_size=8, vocab_size=9,
        pad_token_id=0, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    )  # fmt: skip
    parts = anatomy(Phi3ForCausalLM(config))
    assert [(unit.kind, unit.channels, unit.span) for unit in parts] == [("attention", 4, 2), ("mlp", 8, 1)]
    assert parts.units[0].order == (0, 1, 0, 1, 2, 3, 2, 3), "pairs by halves, of what turns and of what does not"
    assert not parts.unmapped


# where things lie


def test_locations_are_those_that_paths_and_modules_tell() -> None:
    model = build("blip_vqa", 0).model
    places = locate(model)
    assert set(places) == {path for path, _ in model.named_modules()}
    assert places["text_decoder.bert.encoder.layer.0.output.dense"] == ("decoder", "text_decoder.bert.encoder.layer.0")
    assert places["vision_model.embeddings"] == ("vision", "vision_model.embeddings")
    qformer = build("blip2_t5", 0).model
    places = locate(qformer)
    assert places["qformer.encoder.layer.0.attention"].tower == places["language_projection"].tower == "connector"
    assert places["language_model.encoder.block.0"].tower == "language"
    t5 = locate(build("t5", 0).model)
    assert (t5["encoder.block.0"].tower, t5["decoder.block.0"].tower) == ("text", "decoder")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("WhisperForConditionalGeneration", {"model.encoder.layers.0": "audio", "model.decoder.layers.0": "decoder"}),
        ("WhisperForCausalLM", {"model.decoder.layers.0": "language"}),
        ("Wav2Vec2Model", {"encoder.layers.0": "audio"}),
        ("Emu3VQVAE", {"decoder.up_block": "vision"}),
        ("VideoLlavaModel", {"image_tower": "vision", "video_tower": "vision"}),
        ("FlavaModel", {"image_model.encoder": "vision", "multimodal_model.encoder": "joint"}),
        ("CvtModel", {"encoder.stages.0": "vision"}),
        ("Qwen3VLVisionModel", {"blocks.0": "vision", "merger": "connector"}),
        ("Qwen2AudioForConditionalGeneration", {"model.audio_tower.layers.0": "audio"}),
    ],
)
def test_a_part_is_called_by_what_it_takes_in(model: str, expected: dict[str, str]) -> None:
    with torch.device("meta"):
        cls = getattr(transformers, model)
        places = locate(cls._from_config(cls.config_class()))
    for path, tower in expected.items():
        assert {place.tower for name, place in places.items() if name.endswith(path) or path + "." in name} == {
            tower
        }, path


# selectors

PARTS = [
    Matrix(
        name=name, parameter=parameter, block=name.rpartition(".")[0], tower=tower, rows=1, columns=1, component=f"{tower}.{kind}"
    )
    for name, parameter, tower, kind in (
        ("v.0.qkv", "v.0.qkv.weight", "vision", "attention"), ("v.0.fc", "v.0.fc.weight", "vision", "mlp"),
        ("t.0.fc", "t.0.fc.weight", "text", "mlp"), ("t.1.e[0]", "t.1.e", "text", "experts"), ("t.1.e[1]", "t.1.e", "text", "experts"),
        ("q.0.fc", "q.0.fc.weight", "connector", "mlp"),
    )
]  # fmt: skip


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ((), (), "v.0.qkv v.0.fc t.0.fc t.1.e[0] t.1.e[1]"),
        (("*",), (), "v.0.qkv v.0.fc t.0.fc t.1.e[0] t.1.e[1]"),
        (("*", "connector"), ("vision",), "t.0.fc t.1.e[0] t.1.e[1] q.0.fc"),
        (("*.mlp",), (), "v.0.fc t.0.fc q.0.fc"),
        (("language",), (), "t.0.fc t.1.e[0] t.1.e[1]"),
        (("language.mlp", "vision.attention"), (), "v.0.qkv t.0.fc"),
        (("t.1",), ("t.1.e[0]",), "t.1.e[1]"),
        (("t.1.e",), (), "t.1.e[0] t.1.e[1]"),
        (("*.e[1]",), (), "t.1.e[1]"),
        (("*.[01].e[[]0]",), (), "t.1.e[0]"),
        (("q.*",), (), "q.0.fc"),
        ((), ("*.experts", "v.?.fc"), "v.0.qkv t.0.fc"),
    ],
)
def test_one_language_selects_on_both_roads(include: tuple[str, ...], exclude: tuple[str, ...], expected: str) -> None:
    assert " ".join(part.name for part in select(PARTS, include, exclude)) == expected


@pytest.mark.parametrize(
    ("include", "exclude", "field"),
    [
        (("nothing",), (), "include"), ((), ("nothing",), "exclude"), ((), ("*",), "exclude"), ("*", (), "include"),
        ((3,), (), "include"), ((), None, "exclude"), (iter(["vision"]), (), "include"), (("",), (), "include"),
    ],
)  # fmt: skip
def test_selectors_that_select_nothing_are_refused_in_the_same_words(include: Any, exclude: Any, field: str) -> None:
    for choice in (lambda: select(PARTS, include, exclude), lambda: choose(PARTS, include, exclude)):
        with pytest.raises(PrunusError) as caught:
            choice()
        assert caught.value.field == field


def test_a_connector_is_left_alone_on_both_roads_unless_it_is_asked_for() -> None:
    model = build("blip2_t5", 0).model
    parts = anatomy(model)
    units = {unit.tower for unit in parts.select()}
    assert {matrix.tower for matrix in choose(matrices(model))} == units == set(parts.towers) - {"connector"}
    assert {unit.tower for unit in parts.select(("connector",))} == {"connector"}
    components = set(parts.components)
    assert {m.component for m in matrices(model)} <= components | {f"{tower}.other" for tower in parts.towers}


# momentum copies


def with_copy() -> nn.Module:
    model = build("clip", 0).model
    model.vision_model_m = copy.deepcopy(model.vision_model).requires_grad_(False)
    return mirrored(model, {"vision_model_m": "vision_model"})


def test_a_model_says_once_which_of_its_modules_are_copies(tmp_path: Path) -> None:
    case, model = build("clip", 0), with_copy()
    with pytest.raises(PrunusError, match="no module at this path"):
        mirrored(build("vit", 0).model, {"vision_model_m": "vision_model"})
    assert all(unit.mirrors for unit in anatomy(model).towers["vision"])
    assert not any(unit.mirrors for unit in anatomy(model, {}))
    assert not any(matrix.name.startswith("vision_model_m") for matrix in matrices(model))
    assert all(matrix.name in allocate(model, Uniform(sparsity=0.5)).matrices for matrix in matrices(model))
    before = copy.deepcopy(model.vision_model_m.state_dict())
    prune(model, Magnitude(sparsity=0.5), [case.inputs], options=WalkOptions(progress=False))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.vision_model_m.state_dict().items())
    model = with_copy()
    search = Search(model, UPop(ratio=0.5), total_steps=1)
    model(**case.inputs, return_loss=True).loss.backward()
    search.step()
    small = extract(model, search.plan())
    shapes = {name: p.shape for name, p in small.vision_model_m.named_parameters()}
    assert {name: p.shape for name, p in small.vision_model.named_parameters()} == shapes
    assert anatomy(small).mirrors == {"vision_model_m": "vision_model"}
    model.config.save_pretrained(tmp_path)
    bare = type(model)(type(model.config).from_pretrained(tmp_path))
    assert not anatomy(bare).mirrors, "a class without the copy has none"
    bare.vision_model_m = copy.deepcopy(bare.vision_model)
    assert anatomy(bare).mirrors == {"vision_model_m": "vision_model"}


# an architecture of one's own


def test_an_entry_from_outside_makes_an_architecture_known(tmp_path: Path) -> None:
    """One file, with a builder and two entries: it is searched, narrowed, saved, loaded and pruned from disk."""
    torch.manual_seed(0)
    model = own_architecture.OrchardForImageClassification(own_architecture.OrchardConfig(num_labels=3))
    inputs = {"pixel_values": torch.randn(4, 3, 8, 8), "labels": torch.tensor([0, 1, 2, 0])}
    assert {unit.component: unit.channels for unit in anatomy(model)} == {"vision.attention": 8, "vision.mlp": 48}
    search = Search(model, UPop(ratio=0.5), total_steps=1)
    model(**inputs).loss.backward()
    search.step()
    small = extract(model, search.plan())
    torch.testing.assert_close(small(**inputs).logits, model(**inputs).logits)
    small.save_pretrained(tmp_path / "small")
    loaded = load_model(tmp_path / "small")
    assert torch.equal(loaded(**inputs).logits, small(**inputs).logits)
    options = WalkOptions(progress=False)
    found = prune_folder(tmp_path / "small", tmp_path / "sparse", Wanda(sparsity=0.5), [inputs], options=options)
    assert found.sparsity == pytest.approx(0.5, abs=0.05)
    prune(loaded, Wanda(sparsity=0.5), [inputs], options=options)
    for name, tensor in load_model(tmp_path / "sparse").state_dict().items():
        torch.testing.assert_close(tensor, loaded.state_dict()[name], msg=name)


@pytest.mark.parametrize("name", ["vit", "blip_caption", "llama"])
def test_parameters_that_others_put_into_layers_do_no_harm(name: str) -> None:
    """Adapters lie there while a model is repaired, and checkpoints are described meanwhile."""
    model = build(name, 0).model
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.extra = torch.nn.Parameter(torch.zeros(2, module.in_features))
    anatomy(model)


@pytest.mark.parametrize("name", one_half(FAMILIES, 1))
def test_verdicts_do_not_depend_on_the_type_in_which_models_are_built(name: str) -> None:
    """Loading in bf16 builds a model under that default, and narrows it where trials are run again."""
    case = build(name, 2)
    expected = [(unit.name, unit.channels) for unit in anatomy(case.model).units]
    config = case.model.config
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = [(unit.name, unit.channels) for unit in anatomy(type(case.model)(config)).units]
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(before)
    assert found == expected
