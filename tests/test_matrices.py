"""Which weights are matrices, what they are given, and that the record of zeros says what the weights say."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune
from typer.testing import CliRunner

from prunus import (
    DSnoT,
    Magnitude,
    PrunusError,
    SparseGPT,
    WalkOptions,
    Wanda,
    allocate,
    hold_zeros,
    matrices,
    prune,
    sparsity_of,
)
from prunus.allocation import OWL, ECoFLaP
from prunus.anatomy import survey, weight_of
from prunus.cli import app
from prunus.plan import MatrixPlan, SparsityPlan
from prunus.unstructured.padding import counted_positions
from prunus.unstructured.products import Products
from prunus.unstructured.record import named_here, zeros_in
from prunus.unstructured.recorder import Recorder
from prunus.unstructured.statistics import SquaredNorm
from prunus.unstructured.walk import Visit, Walk
from tests.fake_devices import Elsewhere
from tests.families import FAMILIES, build

QUIET = WalkOptions(progress=False)
SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8,
}  # fmt: skip
ROUTED = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
MODELS: dict[str, Callable[[], tf.PreTrainedModel]] = {
    "mixtral": lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**SIZES, num_local_experts=4)),
    "qwen3_moe": lambda: tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(**SIZES, **ROUTED)),
    "qwen2_moe": lambda: tf.Qwen2MoeForCausalLM(
        tf.Qwen2MoeConfig(**SIZES, **ROUTED, shared_expert_intermediate_size=20)
    ),
    "gpt_oss": lambda: tf.GptOssForCausalLM(
        tf.GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, layer_types=["full_attention"] * 2)
    ),
    "llama4": lambda: tf.Llama4ForCausalLM(tf.Llama4TextConfig(**SIZES, num_local_experts=4, intermediate_size_mlp=20)),
    "switch": lambda: tf.SwitchTransformersEncoderModel(
        tf.SwitchTransformersConfig(
            vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_heads=2, num_layers=2, num_sparse_encoder_layers=1, num_experts=4
        )
    ),
    "gpt2": lambda: tf.GPT2LMHeadModel(
        tf.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=16, bos_token_id=1, eos_token_id=2)
    ),
}  # fmt: skip
FUSED = ["mixtral", "qwen3_moe", "qwen2_moe", "gpt_oss"]


def made(name: str, seed: int = 0) -> tf.PreTrainedModel:
    """A model whose weights, also those that start at zero, are all random."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
        for path, parameter in model.named_parameters():
            if path.endswith("router.bias"):
                parameter.zero_()  # so that every expert has its tokens
    return model.eval()


def padded(left: bool = False) -> dict[str, Tensor]:
    ids, mask = torch.randint(3, 50, (3, 8)), torch.ones(3, 8, dtype=torch.long)
    mask[1, (slice(0, 3) if left else slice(5, 8))] = 0
    return {"input_ids": ids, "attention_mask": mask}


def recorded(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, int]]:
    """Squares of what every matrix was given, and how many tokens, with nothing pruned."""
    found: dict[str, tuple[Tensor, int]] = {}
    blocks = list(dict.fromkeys(m.block for m in matrices(model)))
    with Walk(model, [batch], blocks) as walk:
        for stop in walk:
            recorder = Recorder(model, [m for m in matrices(model) if m.block == stop.block], [SquaredNorm])
            for visit in stop.visits:
                with recorder.listening(visit):
                    stop.run(visit)
            for name, s in recorder.statistics.items():
                found[name] = (s[SquaredNorm].total, s.tokens)
    return found


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("name", FUSED)
def test_experts_are_given_exactly_the_tokens_routed_to_them(name: str, implementation: str) -> None:
    """Against what the routers say: Σ over tokens that are no padding and chose the expert, counted once each."""
    model, batch = made(name), padded()
    model.set_experts_implementation(implementation)
    calls: dict[str, tuple[Tensor, ...]] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, path=path: calls.update({path: args[:2]}))
        for path, module in model.named_modules()
        if path.endswith(".experts")
    ]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    counts = batch["attention_mask"].flatten().bool()
    found = recorded(model, batch)
    for path, (hidden, experts) in calls.items():
        for expert in range(4):
            mine = (experts == expert).any(1) & counts
            names = [f"{path}.{projection}[{expert}]" for projection in ("gate_up_proj", "down_proj")]
            if not mine.any():
                assert not found.keys() & set(names)
                continue
            assert [found[n][1] for n in names] == [int(mine.sum())] * 2
            torch.testing.assert_close(found[names[0]][0], hidden[mine].square().sum(0), rtol=1e-4, atol=1e-5)
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["llama4", "switch"])
def test_experts_without_a_common_interface_see_the_same(name: str) -> None:
    """One token in all is routed to one expert, and padding to none."""
    model, batch = made(name), padded()
    found = recorded(model, batch)
    real = int(batch["attention_mask"].sum())
    for block in dict.fromkeys(m.block for m in matrices(model)):
        first = [m.name for m in matrices(model) if m.block == block and m.is_expert and "down" not in m.name]
        first = [n for n in first if not n.endswith(".wo")]
        if first:
            assert sum(found[n][1] for n in first if n in found) == real
    changed = {**batch, "input_ids": torch.where(batch["attention_mask"] == 0, 9, batch["input_ids"])}
    for n, (squares, tokens) in recorded(model, changed).items():
        assert tokens == found[n][1]
        torch.testing.assert_close(squares, found[n][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("method", [Wanda(sparsity=0.5), SparseGPT(pattern="2:4")], ids=["wanda", "sparsegpt"])
def test_half_of_the_weights_in_the_blocks_is_zero(name: str, method: Any) -> None:
    model = made(name)
    before = copy.deepcopy(model.state_dict())
    record = prune(model, method, [{"input_ids": torch.randint(3, 50, (8, 8))}], options=QUIET)
    share = sum(part.weights for part in survey(model).left_dense) / survey(model).weights
    assert share < 0.1
    for n, matrix in record.matrices.items():
        weight = weight_of(model, n)
        assert weight.shape == (matrix.rows, matrix.columns)
        assert matrix.pruned == int((weight == 0).sum()) >= matrix.asked == weight.numel() // 2
        if method.nofm:
            assert int((weight.reshape(-1, 4) != 0).sum(1).max()) <= 2
    held = {m.parameter for m in matrices(model)}
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters() if n not in held)
    assert all(part.reason.startswith(("router", "no linear map")) for part in record.left_dense.values())
    assert record.coverage == pytest.approx(record.sparsity * (1 - share))


def test_an_expert_that_no_token_chose_is_left_dense_by_name() -> None:
    model = made("qwen3_moe")
    record = prune(model, SparseGPT(sparsity=0.5), [{"input_ids": torch.tensor([[5]])}], options=QUIET)
    unused = [n for n, part in record.left_dense.items() if part.reason.startswith("expert")]
    assert len(unused) == 8  # two of four experts, two projections, two blocks
    assert all(bool(weight_of(model, n).ne(0).all()) for n in unused)
    assert not set(unused) & set(record.matrices)


def test_reparametrised_layers_are_left_dense_by_name(caplog: pytest.LogCaptureFixture) -> None:
    case = build("llama", 3)
    torch_prune.l1_unstructured(case.model.model.layers[0].mlp.up_proj, "weight", amount=0.3)
    parametrizations.weight_norm(case.model.model.layers[0].mlp.down_proj)
    with caplog.at_level(logging.WARNING):
        record = prune(case.model, Wanda(sparsity=0.5), [case.inputs], options=QUIET)
    assert "reparametrised" in caplog.text
    left = " ".join(record.left_dense)
    assert "layers.0.mlp.up_proj" in left
    assert "layers.0.mlp.down_proj" in left
    assert not any(n.startswith(("model.layers.0.mlp.up", "model.layers.0.mlp.down")) for n in record.matrices)


def test_adapters_are_no_candidates() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(build("llama", 3).model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert not any("lora" in m.name for m in matrices(model))
    with pytest.raises(PrunusError, match="merge"):
        prune(model, Wanda(sparsity=0.5), [build("llama", 3).inputs], options=QUIET)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("seed", "method"),
    list(enumerate(
        [
            Magnitude(sparsity=0.3), Magnitude(pattern="2:4"), Wanda(sparsity=0.6), Wanda(pattern="1:2"),
            SparseGPT(sparsity=0.5), SparseGPT(pattern="2:4"), DSnoT(sparsity=0.5), DSnoT(pattern="1:2"),
        ]
    )),
)  # fmt: skip
def test_the_record_is_what_the_weights_are(seed: int, method: Any, dtype: torch.dtype) -> None:
    """Also where inputs are dead, weights were zero before, and numbers are so small that the type rounds them to zero."""
    name = ["gpt2", "mixtral", "llama4", "switch"][seed % 4]
    model = made(name, seed).to(dtype)
    with torch.no_grad():
        for matrix in matrices(model)[::2]:
            matrix.view(model)[::2, ::3] = 0
            matrix.view(model)[1::2, ::3] = 1e-7
        for module in model.modules():
            if isinstance(module, nn.LayerNorm) or "RMSNorm" in type(module).__name__:
                module.weight.data[:5] = 0  # dead inputs
                if getattr(module, "bias", None) is not None:
                    module.bias.data[:5] = 0
    record = prune(model, method, [padded()], options=QUIET)
    assert record.matrices.keys() | record.left_dense.keys() >= {m.name for m in matrices(model)}
    for n, matrix in record.matrices.items():
        assert matrix.pruned == int((weight_of(model, n) == 0).sum())
        assert matrix.pruned >= matrix.asked
    assert sparsity_of(model) == record


METHODS = [
    Magnitude(sparsity=0.3), SparseGPT(sparsity=0.5), Wanda(sparsity=0.6, group="matrix"), DSnoT(sparsity=0.5),
]  # fmt: skip
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def check_record(name: str, seed: int, method: Any, dtype: torch.dtype) -> None:
    """One pruning of a model with some zeros of its own: the record, counted again, and what is read off the weights."""
    case = build(name, seed)
    model = case.model.to(dtype)
    with torch.no_grad():
        for matrix in matrices(model)[::3]:
            matrix.view(model)[:, ::4] = 0
    within_four = method.pattern == "2:4"
    unfit = [m.name for m in matrices(model) if within_four and m.view(model).shape[1] % 4]
    if len(unfit) == len(list(matrices(model))):
        with pytest.raises(PrunusError, match="no multiple of 4"):
            prune(model, method, [case.inputs], options=QUIET)
        return
    record = prune(model, method, [case.inputs], exclude=unfit, options=QUIET)
    assert record.matrices
    for n, matrix in record.matrices.items():
        assert matrix.pruned == int((weight_of(model, n) == 0).sum())
    assert record.block_weights >= sum(m.weights for m in record.matrices.values())
    assert sparsity_of(model) == record


@pytest.mark.parametrize(("number", "name"), list(enumerate(FAMILIES)))
def test_the_record_is_what_the_weights_are_in_every_family(number: int, name: str) -> None:
    check_record(name, number, METHODS[number % len(METHODS)], DTYPES[number % 2])


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("pruner", [Magnitude, Wanda, SparseGPT, DSnoT])
@pytest.mark.parametrize("asked", [{"sparsity": 0.5}, {"pattern": "2:4"}], ids=["half", "2:4"])
def test_every_record_of_every_family_is_what_the_weights_are(pruner: Any, asked: Any, dtype: torch.dtype) -> None:
    """4 pruners and 2 ways of asking, in fp32 for every family; in the other types for one half of them each."""
    halves = {torch.bfloat16: 0, torch.float16: 1}
    for number, name in enumerate(FAMILIES):
        if number % 2 == halves.get(dtype, number % 2):
            check_record(name, number, pruner(**asked), dtype)


@pytest.mark.parametrize(
    "method",
    [
        Magnitude(sparsity=0.5),
        Wanda(pattern="2:4"),
        SparseGPT(sparsity=0.6),
        SparseGPT(pattern="2:4"),
        DSnoT(sparsity=0.5),
    ],
    ids=lambda m: f"{m.method}-{m.pattern}",
)
def test_zeros_of_an_earlier_pruning_stay(method: Any) -> None:
    batch = padded()
    model = made("mixtral")
    prune(model, Wanda(sparsity=0.55), [batch], options=QUIET)
    before = {m.name: weight_of(model, m.name) == 0 for m in matrices(model)}
    fresh = copy.deepcopy(model)
    record = prune(model, method, [batch], options=QUIET)
    assert all(bool((weight_of(model, n) == 0)[zeros].all()) for n, zeros in before.items())
    for n, matrix in record.matrices.items():  # they count as pruned: what is asked is not added to them
        if method.nofm is None:
            assert matrix.pruned <= max(matrix.asked, int(before[n].sum())) + matrix.rows
    if method.method == "sparsegpt" and method.nofm:
        prune(fresh, method, [batch], options=QUIET, keep_zeros=False)
        assert not all(bool((weight_of(fresh, n) == 0)[zeros].all()) for n, zeros in before.items())


class Shaking(torch.optim.Optimizer):
    """Moves every weight, whatever its gradient."""

    def __init__(self, parameters: Any):
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(torch.randn_like(parameter) * 0.01)


@pytest.mark.parametrize(
    "optimiser",
    [lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), Shaking],
    ids=["adamw", "sgd", "shaking"],
)
@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_held_zeros_stay_under_any_optimiser(name: str, optimiser: Any) -> None:
    model, batch = made(name), {"input_ids": torch.randint(3, 50, (4, 8))}
    stepping = optimiser(model.parameters())

    def step() -> None:
        stepping.zero_grad()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        stepping.step()

    step()  # momentum from before
    prune(model, Wanda(sparsity=0.5), [batch], options=QUIET)
    zeros = {m.name: weight_of(model, m.name) == 0 for m in matrices(model)}
    moving = weight_of(model, next(iter(zeros))).clone()
    with hold_zeros(model) as held:
        assert held.zeros == sum(int(z.sum()) for z in zeros.values())
        for _ in range(2):
            step()
            assert all(torch.equal(weight_of(model, n) == 0, z) for n, z in zeros.items())
    assert not torch.equal(weight_of(model, next(iter(zeros))), moving)
    step()
    assert not all(torch.equal(weight_of(model, n) == 0, z) for n, z in zeros.items())  # nothing is left behind


def test_what_is_recorded_but_not_so_is_said(caplog: pytest.LogCaptureFixture) -> None:
    case = build("llama", 3)
    other = type(case.model)(case.model.config)  # one config object, two models
    record = prune(case.model, Wanda(sparsity=0.5), [case.inputs], options=QUIET)
    assert sparsity_of(case.model) == record
    assert not caplog.records
    assert sparsity_of(other) is None
    assert "not what its weights say" in caplog.text
    name = next(iter(record.matrices))
    weight_of(case.model, name).fill_(1.0)
    found = sparsity_of(case.model)
    assert found is not None
    assert found.matrices[name].pruned == 0
    assert all(m == found.matrices[n] for n, m in record.matrices.items() if n != name)


class Layers(nn.Module):
    """Linear layers (2, 3) at the ends of these paths; paths with the same object share the layer."""

    def __init__(self, **layers: nn.Module):
        super().__init__()
        for path, layer in layers.items():
            *parents, name = path.split("_")
            inside: nn.Module = self
            for parent in parents:
                if not hasattr(inside, parent):
                    inside.add_module(parent, nn.Module())
                inside = getattr(inside, parent)
            inside.add_module(name, layer)


def test_a_record_s_names_are_looked_for_inside_and_around() -> None:
    def named(model: nn.Module, name: str, columns: int = 3) -> list[str]:
        matrix = MatrixPlan(rows=2, columns=columns, pruned=1, tower="")
        return list(named_here(model, SparsityPlan(model="M", matrices={name: matrix})).matrices)

    shared = nn.Linear(3, 2)
    model = Layers(a_b_c=nn.Linear(3, 2), a_d=shared, e_d=shared, f=nn.Linear(3, 2))
    assert named(model, "a.b.c") == ["a.b.c"]
    assert named(model, "outer.a.b.c") == ["a.b.c"], "without the path of what holds this model there"
    assert named(model, "one.two.three.f") == ["f"]
    assert named(model, "b.c") == ["a.b.c"], "below the path of what holds the other one here"
    assert named(model, "c") == ["a.b.c"]
    assert named(model, "e.d") == ["e.d"], "a layer that is shared goes by all its names"
    assert named(model, "d") == [], "there are two"
    assert named(model, "f", columns=4) == []
    assert named(model, "g") == []
    assert named(model, "a") == [], "no layer, and nothing that has a weight"
    experts = MODELS["mixtral"]()
    name = next(m.name for m in matrices(experts) if m.name.endswith("[1]"))
    rows, columns = weight_of(experts, name).shape
    one = SparsityPlan(model="M", matrices={name: MatrixPlan(rows=rows, columns=columns, pruned=1, tower="")})
    assert list(named_here(experts.model, one).matrices) == [name.removeprefix("model.")]
    missing = one.model_copy(update={"matrices": {name.replace("[1]", "[9]"): one.matrices[name]}})
    assert named_here(experts, missing).matrices == {}


def test_zeros_are_counted_where_that_is_possible() -> None:
    weight = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, -1.0]])
    assert zeros_in(weight, 9) == 3
    assert zeros_in(weight.half(), 9) == 3
    assert zeros_in(weight.to("meta"), 9) == 9
    assert zeros_in(weight.int(), 9) == 9
    assert zeros_in(Elsewhere(weight, torch.device("cpu")), 9) == 9, "a tensor of a kind of its own"


PRODUCTS: list[tuple[Callable[..., Any], list[str]]] = [
    (lambda x, w, s: F.linear(x, w), ["w"]),
    (lambda x, w, s: F.linear(input=x, weight=w), ["w"]),
    (lambda x, w, s: x @ s, ["s"]),
    (lambda x, w, s: torch.matmul(x, other=s), ["s"]),
    (lambda x, w, s: torch.mm(x, mat2=s), ["s"]),
    (lambda x, w, s: torch.mm(input=x, mat2=s), ["s"]),
    (lambda x, w, s: x.mm(s), ["s"]),
    (lambda x, w, s: x.matmul(s), ["s"]),
    (lambda x, w, s: torch.addmm(torch.zeros(2), x, s), ["s"]),
    (lambda x, w, s: torch.addmm(input=torch.zeros(2), mat1=x, mat2=s), ["s"]),
    (lambda x, w, s: torch.zeros(4, 2).addmm(x, s), ["s"]),
    (lambda x, w, s: x @ w.T, ["w"]),
    (lambda x, w, s: F.linear(x, nn.Parameter(w.clone())), []),
    (lambda x, w, s: F.linear(x, w[0]), []),
    (lambda x, w, s: x @ s[:, 0], []),
    (lambda x, w, s: torch.einsum, []),
    (lambda x, w, s: x + s.sum(), []),
    (lambda x, w, s: F.linear(x, Elsewhere(w.detach(), torch.device("cpu"))), []),
    (lambda x, w, s: x @ Elsewhere(s.detach(), torch.device("cpu")), []),
]
EXPERTS: list[tuple[Callable[..., Any], bool]] = [
    (torch.bmm, True),
    (lambda x, e: torch.bmm(x, mat2=e), True),
    (lambda x, e: x @ e, True),
    (lambda x, e: torch.baddbmm(torch.zeros(1, 1, 2), x, e), True),
    (lambda x, e: torch.baddbmm(torch.zeros(1, 1, 2), batch1=x, batch2=e), False),
    (lambda x, e: x[0] @ e, False),
    (lambda x, e: x[None] @ e[None], False),
    (lambda x, e: torch.bmm(x, e.clone()), False),
]


def matrix_of(name: str, weight: Tensor) -> Any:
    return SimpleNamespace(name=name, view=lambda _model: weight)


@pytest.mark.parametrize(("product", "expected"), PRODUCTS)
def test_products_are_heard_by_their_weight(product: Callable[..., Any], expected: list[str]) -> None:
    x, w, s = torch.randn(4, 3), nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.randn(3, 2))
    heard: list[tuple[str, Tensor, Tensor | None]] = []
    with Products(nn.Identity(), [matrix_of("w", w), matrix_of("s", s.T)], lambda *found: heard.append(found)):
        product(x, w, s)
    assert [name for name, *_ in heard] == expected
    assert all(given is x and gives is None for _, given, gives in heard)
    heard.clear()
    with Products(nn.Identity(), [matrix_of("w", w), matrix_of("s", s.T)], lambda *found: heard.append(found), True):
        product(x, w, s)
    for name, _, gives in heard:
        assert gives is not None
        torch.testing.assert_close(gives, x @ (w.T if name == "w" else s))


@pytest.mark.parametrize(("product", "expected"), EXPERTS)
def test_products_of_all_experts_at_once_are_heard_one_by_one(product: Callable[..., Any], expected: bool) -> None:
    x, e = torch.randn(3, 4, 5), nn.Parameter(torch.randn(3, 5, 2))
    heard: list[tuple[str, Tensor, Tensor | None]] = []
    targets = [matrix_of(str(i), e[i].T) for i in range(3)]
    with Products(nn.Identity(), targets, lambda *found: heard.append(found)):
        product(x, e)
    assert [name for name, *_ in heard] == (["0", "1", "2"] if expected else [])
    assert all(torch.equal(given, x[int(name)]) for name, given, _ in heard)
    heard.clear()
    with Products(nn.Identity(), targets, lambda *found: heard.append(found), True):
        product(x, e)
    for name, _, gives in heard:
        assert gives is not None
        torch.testing.assert_close(gives, x[int(name)] @ e[int(name)])


def test_names_are_those_of_the_model_that_is_asked() -> None:
    case = build("llama", 3)
    record = prune(case.model, Wanda(sparsity=0.5), [case.inputs], options=QUIET)
    inside, around = sparsity_of(case.model.model), nn.ModuleDict({"mine": case.model})
    around.config = case.model.config  # type: ignore[assignment]
    outside = sparsity_of(around)
    assert inside is not None
    assert outside is not None
    assert [f"model.{n}" for n in inside.matrices] == list(record.matrices)
    assert list(outside.matrices) == [f"mine.{n}" for n in record.matrices]


def test_allocation_shares_out_over_experts() -> None:
    model, batch = made("mixtral"), {"input_ids": torch.randint(3, 50, (4, 8))}
    plan = allocate(model, ECoFLaP(sparsity=0.5, granularity="layer"), [batch])
    assert plan.sparsity == pytest.approx(0.5, abs=1e-3)
    assert len({m.pruned for n, m in plan.matrices.items() if "down_proj[" in n}) > 1
    record = prune(model, Wanda(), [batch], plan=plan, options=QUIET)
    assert {n: m.asked for n, m in record.matrices.items()} == {n: m.pruned for n, m in plan.matrices.items()}


def visit(mask: Any) -> Visit:
    return Visit(0, "block", {"attention_mask": mask})


def test_masks_of_every_kind_say_the_same() -> None:
    """Two sequences of four tokens, the last one of the second is padding."""
    real = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    causal = torch.ones(4, 4, dtype=torch.bool).tril() & real.bool()[:, None, None, :]
    full = real.bool()[:, None, None, :] & real.bool()[:, None, :, None]
    low = torch.finfo(torch.float16).min
    x = torch.zeros(2, 4, 3)
    for mask in (
        real, real.bool(), real.float(), causal, ~causal, full, full.long(),
        torch.zeros(2, 1, 4, 4).masked_fill(~causal, -torch.inf), torch.zeros(2, 1, 4, 4).masked_fill(~causal, low),
        torch.zeros(2, 1, 1, 4).masked_fill(~real.bool()[:, None, None], -1e4),
        torch.zeros(2, 4).masked_fill(~real.bool(), -1e4),
    ):  # fmt: skip
        counted = counted_positions(visit(mask), x)
        assert counted is not None
        assert torch.equal(counted, real.flatten().bool())
    for mask in (
        None,
        torch.ones(2, 4),
        torch.zeros(2, 1, 4, 4),
        torch.ones(4, 4, dtype=torch.bool).tril()[None, None],
    ):
        assert counted_positions(visit(mask), x) is None
    with pytest.raises(PrunusError, match="sdpa"):
        counted_positions(visit(object()), x)


def test_inspect_counts_the_zeros_of_a_folder(tmp_path: Path) -> None:
    case = build("llama", 3)
    prune(case.model, Wanda(sparsity=0.5), [case.inputs], options=QUIET)
    case.model.save_pretrained(tmp_path / "pruned")
    told = CliRunner().invoke(app, ["inspect", str(tmp_path / "pruned")]).output
    assert "its weights have the zeros of the record" in told
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.add_(1e-3)  # as a training step does
    case.model.save_pretrained(tmp_path / "trained")
    told = CliRunner().invoke(app, ["inspect", str(tmp_path / "trained")]).output
    assert "NOT as recorded" in told
    assert "LlamaForCausalLM: 0.00% of" in told


def test_inspect_names_what_stays_dense(tmp_path: Path) -> None:
    made("qwen3_moe").save_pretrained(tmp_path)
    assert "2.04%   router: it decides where tokens go: model.layers.0.mlp.gate.weight and 1 more" in (
        CliRunner().invoke(app, ["inspect", str(tmp_path)]).output
    )


def test_an_expert_that_no_token_chose_has_no_outliers() -> None:
    plan = allocate(made("qwen3_moe"), OWL(sparsity=0.5), [{"input_ids": torch.tensor([[5]])}])
    assert plan.sparsity == pytest.approx(0.5, abs=1e-3)
