"""The walk over every family: replay is exact, arguments are each block's own, padding is seen."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from prunus import Magnitude, PrunusError, SparseGPT, WalkOptions, Wanda, matrices, prune
from prunus.anatomy import Matrix, by_block
from prunus.unstructured.order import Order
from prunus.unstructured.recorder import Recorder, gather
from prunus.unstructured.spill import Spill
from prunus.unstructured.statistics import Gram, SquaredNorm
from prunus.unstructured.walk import Stop, Visit, Walk, _named
from tests.families import FAMILIES, build


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors(item)]
    return []


def block_outputs(
    model: nn.Module, batches: list[dict[str, Tensor]], blocks: list[str]
) -> dict[str, list[list[Tensor]]]:
    """What every block returns in plain forward passes."""
    seen: dict[str, list[list[Tensor]]] = {path: [] for path in blocks}
    hooks = [
        model.get_submodule(path).register_forward_hook(
            lambda _module, _args, output, path=path: seen[path].append([t.clone() for t in tensors(output)])
        )
        for path in blocks
    ]
    with torch.no_grad():
        for batch in batches:
            seeded(model, batch)
    for hook in hooks:
        hook.remove()
    return seen


def seeded(model: nn.Module, batch: dict[str, Tensor]) -> object:
    """ViLT draws its patches at random."""
    torch.manual_seed(0)
    return model(**batch)


def blocks_of(model: nn.Module) -> list[str]:
    return list(dict.fromkeys(matrix.block for matrix in matrices(model)))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("activations", ["keep", "disk"])
def test_replay_is_exact(name: str, activations: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus.unstructured.spill.SMALL", 1)
    cases = [build(name, 7), build(name, 7)]
    model, batches = cases[0].model, [cases[0].inputs, cases[1].inputs]
    for value in batches[1].values():
        if value.is_floating_point():
            value.mul_(0.5)
    blocks = blocks_of(model)
    expected = block_outputs(model, batches, blocks)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    walked: dict[str, list[list[Tensor]]] = {path: [] for path in blocks}
    reached = [path for path in blocks if expected[path]]
    with Walk(model, batches, reached, seeded, spill=Spill(model, activations)) as walk:  # type: ignore[arg-type]
        for stop in walk:
            for visit in stop.visits:
                walked[stop.block].append([t.clone() for t in tensors(stop.run(visit))])
                stop.rest(visit)
    for path in reached:
        calls = len(expected[path]) // len(batches)
        firsts = [expected[path][index * calls] for index in range(len(batches))]
        for a, b in zip(firsts, walked[path], strict=True):
            assert len(a) == len(b) > 0
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True)), path
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    plan = prune(
        model, Wanda(sparsity=0.0), batches, include=[f"{p}.*" for p in reached], options=WalkOptions(progress=False)
    )
    assert plan.sparsity == 0
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


TEXT = [
    "blip_vqa",
    "blip_caption",
    "blip_itm",
    "clip",
    "bert",
    "t5",
    "llama",
    "qwen2",
    "llava",
    "blip2_opt",
    "blip2_t5",
    "qwen2_vl",
]


class Columns:
    """Statistics of every prunable layer, over some batches, with nothing pruned."""

    def __init__(self, model: nn.Module, batches: list[dict[str, Tensor]], names: list[str]):
        targets = {matrix.name: matrix for matrix in matrices(model) if matrix.name in names}
        blocks = list(dict.fromkeys(matrix.block for matrix in targets.values()))
        self.squares: dict[str, Tensor] = {}
        self.tokens: dict[str, int] = {}
        with Walk(model, batches, blocks, seeded) as walk:
            for stop in walk:
                inside = [matrix for matrix in targets.values() if matrix.block == stop.block]
                recorder = Recorder(model, inside, [SquaredNorm])
                for visit in stop.visits:
                    with recorder.listening(visit):
                        stop.run(visit)
                for name, statistics in recorder.statistics.items():
                    self.squares[name] = statistics[SquaredNorm].total
                    self.tokens[name] = statistics.tokens


@pytest.mark.parametrize("name", TEXT)
def test_padding_does_not_count(name: str) -> None:
    """As many tokens count as the mask says, and what stands at the others changes no statistic."""
    case = build(name, 7)
    used = used_layers(case.model, case.inputs)
    whole = Columns(case.model, [case.inputs], used)
    changed = dict(case.inputs)
    changed["input_ids"] = torch.where(changed["attention_mask"] == 0, 9, changed["input_ids"])
    other = Columns(case.model, [changed], used)
    for layer, tokens in whole.tokens.items():
        assert other.tokens[layer] == tokens
        if name == "blip_vqa" and layer.startswith("text_decoder."):
            continue  # the model's own answer decoder looks at padding, so its states do change
        torch.testing.assert_close(other.squares[layer], whole.squares[layer], rtol=1e-4, atol=1e-5)
    assert int(case.inputs["attention_mask"].sum()) in whole.tokens.values()


@pytest.mark.parametrize("name", ["xlm", "xlnet", "rwkv"])
def test_padding_does_not_count_in_blocks_that_are_given_no_mask_by_that_name(name: str) -> None:
    torch.manual_seed(0)
    models: dict[str, Any] = {
        "xlm": (transformers.XLMModel, {"emb_dim": 16, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 32}),
        "xlnet": (transformers.XLNetModel, {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 24}),
        "rwkv": (transformers.RwkvModel, {"hidden_size": 16, "num_hidden_layers": 2}),
    }
    cls, sizes = models[name]
    model = cls(cls.config_class(vocab_size=50, **sizes)).eval()
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, -3:] = 0
    batch = {"input_ids": torch.randint(3, 50, (2, 7)), "attention_mask": mask}
    blocks = by_block(matrices(model))
    with Walk(model, [batch], list(blocks)) as walk:
        tokens = {
            name: known.tokens
            for stop in walk
            for name, known in gather(model, blocks[stop.block], [SquaredNorm], stop).items()
        }
    assert tokens
    assert set(tokens.values()) == {11}


def used_layers(model: nn.Module, batch: dict[str, Tensor]) -> list[str]:
    seen: dict[str, None] = {}
    hooks = [
        model.get_submodule(m.name).register_forward_pre_hook(lambda *_, name=m.name: seen.update({name: None}))
        for m in matrices(model)
    ]
    with torch.no_grad():
        seeded(model, batch)
    for hook in hooks:
        hook.remove()
    return list(seen)


def test_layers_with_one_input_share_its_statistics() -> None:
    case = build("llama", 7)
    names = [m.name for m in matrices(case.model) if m.name.startswith("model.layers.0.")]
    targets = [m for m in matrices(case.model) if m.name in names]
    recorder = Recorder(case.model, targets, [SquaredNorm])
    with Walk(case.model, [case.inputs], ["model.layers.0"]) as walk:
        for stop in walk:
            for visit in stop.visits:
                with recorder.listening(visit):
                    stop.run(visit)
    found = {name.removeprefix("model.layers.0."): id(statistics) for name, statistics in recorder.statistics.items()}
    assert found["self_attn.q_proj"] == found["self_attn.k_proj"] == found["self_attn.v_proj"]
    assert found["mlp.gate_proj"] == found["mlp.up_proj"]
    assert len(set(found.values())) == 4


class SometimesTogether(nn.Module):
    """A block whose second layer is given what the first is, but in one call only, as in T5Gemma 2's merged attention."""

    def __init__(self, apart: str):
        super().__init__()
        self.first, self.second, self.apart = nn.Linear(4, 4), nn.Linear(4, 4), apart

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) + self.second(x)
        if self.apart in ("both", "second"):
            y = y + self.second(x * 2)
        if self.apart in ("both", "first"):
            y = y + self.first(x * 3)
        return y


@pytest.mark.parametrize("apart", ["both", "second", "first"])
def test_layers_with_one_input_in_some_calls_only_have_their_own_statistics(apart: str) -> None:
    block = SometimesTogether(apart)
    x = torch.randn(2, 3, 4)
    targets = [
        Matrix(name=n, parameter=f"{n}.weight", block="", tower="", rows=4, columns=4) for n in ("first", "second")
    ]
    stop = Stop("", [Visit(0, "", {}, (x,)), Visit(1, "", {}, (-x,))], block.forward, Spill(block, "keep"))
    with torch.no_grad():
        known = gather(block, targets, (SquaredNorm, Gram), stop)
    once = (x * x).sum((0, 1)) * 2
    squares = {name: known[name][SquaredNorm].total for name in known}
    torch.testing.assert_close(squares["first"], once * (1 + 9 * (apart != "second")))
    torch.testing.assert_close(squares["second"], once * (1 + 4 * (apart != "first")))
    assert known["first"].tokens == 12 * (1 + (apart != "second"))


def test_a_weight_on_the_left_of_its_product_is_heard() -> None:
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 4}
    torch.manual_seed(0)
    model = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes)).eval()
    batches = [{"input_ids": torch.randint(3, 50, (2, 7))}]
    record = prune(model, Wanda(sparsity=0.5), batches, options=WalkOptions(progress=False))
    assert record.matrices["backbone.layers.0.mixer.dt_proj"].sparsity == 0.5
    assert record.sparsity == 0.5


def test_a_model_that_fills_a_cache_whatever_its_config_says_is_walked() -> None:
    sizes = {"vocab_size": 50, "emb_dim": 16, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 32}
    torch.manual_seed(0)
    model = transformers.XLMModel(transformers.XLMConfig(**sizes)).eval()
    batch = {"input_ids": torch.randint(3, 50, (2, 7))}
    with torch.no_grad():
        dense = model(**batch).last_hidden_state
        pruned = copy.deepcopy(model)
        prune(pruned, SparseGPT(sparsity=0.0), [batch], options=WalkOptions(progress=False))
        torch.testing.assert_close(pruned(**batch).last_hidden_state, dense)
        record = prune(model, SparseGPT(sparsity=0.5), [batch] * 2, options=WalkOptions(progress=False))
    assert record.sparsity == 0.5


def test_later_blocks_see_the_pruned_earlier_ones_unless_told_otherwise() -> None:
    def pruned(sequential: bool) -> dict[str, Tensor]:
        case = next(
            case for case in (build("llama", seed) for seed in range(99)) if case.model.config.num_hidden_layers > 1
        )
        prune(
            case.model, Wanda(sparsity=0.7), [case.inputs], options=WalkOptions(progress=False, sequential=sequential)
        )
        return case.model.state_dict()

    one, other = pruned(True), pruned(False)
    differs = {
        key.split(".")[2] for key in one if ".layers." in key and not torch.equal(one[key] == 0, other[key] == 0)
    }
    assert "0" not in {
        key.split(".")[2] for key in one if "layers.0.self_attn.q_proj" in key and not torch.equal(one[key], other[key])
    }
    assert differs


def test_dense_statistics_need_no_second_pass() -> None:
    case = build("vit", 7)
    calls: list[str] = []
    for path in blocks_of(case.model):
        case.model.get_submodule(path).register_forward_pre_hook(lambda *_: None)
        first = next(m.name for m in matrices(case.model) if m.block == path)
        case.model.get_submodule(first).register_forward_pre_hook(lambda *_, path=path: calls.append(path))
    prune(case.model, Wanda(), [case.inputs], options=WalkOptions(progress=False, sequential=False))
    assert sorted(calls) == sorted(blocks_of(case.model))


def test_towers_have_their_own_sparsity_and_the_connector_stays() -> None:
    case = build("blip2_opt", 7)
    used = used_layers(case.model, case.inputs)
    method = Wanda(sparsity={"vision": 0.25, "language": 0.5})
    plan = prune(case.model, method, [case.inputs], options=WalkOptions(progress=False))
    assert set(plan.towers) == {"vision", "language"}
    assert plan.towers["vision"] <= 0.25 < plan.towers["language"] <= 0.5
    assert all(name in used for name in plan.matrices)
    with pytest.raises(PrunusError, match="no such tower"):
        prune(case.model, Wanda(sparsity={"audio": 0.5}), [case.inputs])


def test_errors_name_the_module_and_the_batch() -> None:
    case = build("vit", 7)
    with pytest.raises(PrunusError, match="at least one calibration batch"):
        prune(case.model, Wanda(), [])
    broken = {"pixel_values": case.inputs["pixel_values"] * torch.nan}
    with pytest.raises(PrunusError, match=r"batch 1: pixel_values.*not finite"):
        prune(case.model, Wanda(), [case.inputs, broken], options=WalkOptions(progress=False))
    huge = {"pixel_values": torch.full_like(case.inputs["pixel_values"], 3e38)}
    with pytest.raises(PrunusError, match=r"q_proj.*\n?.*calibration batch 1"):
        prune(case.model, Wanda(), [case.inputs, huge], options=WalkOptions(progress=False))
    with pytest.raises(PrunusError, match="matches no matrix"):
        prune(case.model, Wanda(), [case.inputs], include=["decoder.*"])
    llava = build("llava", 7)
    text = {key: llava.inputs[key] for key in ("input_ids", "attention_mask")}
    text["input_ids"] = text["input_ids"].clamp_min(10)
    with pytest.raises(PrunusError, match="no calibration batch reached this block"):
        prune(llava.model, Magnitude(), [text], options=WalkOptions(progress=False))
    with torch.device("meta"):
        bare = type(case.model)(case.model.config)
    with pytest.raises(PrunusError, match="prune_folder"):
        prune(bare, Magnitude(), [case.inputs])


def test_training_mode_caches_and_forwards_are_put_back() -> None:
    case = build("llama", 7)
    case.model.train()
    prune(case.model, Wanda(), [case.inputs], options=WalkOptions(progress=False))
    assert case.model.training
    assert case.model.config.use_cache
    assert all("forward" not in module.__dict__ for module in case.model.modules())


def test_batches_with_inputs_of_the_same_names_are_of_one_kind() -> None:
    order = Order()
    batches = [{"a": 1}, {"a": 2, "b": None}, {"a": 3, "b": 4}, [1], [2], [1, 2], (1,), torch.zeros(3), torch.zeros(4)]
    examples = [0, 0, 2, 3, 3, 5, 6, 7, 7]
    for number, batch in enumerate(batches):
        order.note(number, batch)
    assert [order.example(number) is batches[first] for number, first in enumerate(examples)] == [True] * 9
    assert not order.watches("block.0"), "nobody watches"
    state = torch.random.get_rng_state()
    with order.watching(1):
        torch.randn(3)
        assert [order.watches(path) for path in ("block.1", "block.0", "block.1")] == [True] * 3
    assert torch.equal(state, torch.random.get_rng_state())
    assert not order.watches("block.2")
    assert [order.knows(number) for number in range(9)] == [True, True] + [False] * 7
    passes = {
        (block, later): order.comes_to(0, block, later)
        for block in ("block.0", "block.1", "block.2")
        for later in ("block.0", "block.1", "block.2")
    }
    assert [pair for pair, comes in passes.items() if comes] == [("block.1", "block.0")]


@pytest.mark.parametrize("place", ["keep", "cpu", "disk"])
def test_what_is_spilled_comes_back(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus.unstructured.spill.SMALL", 40)
    model = nn.Linear(10, 1, bias=False)
    large, edge, small, shared = torch.arange(20.0), torch.arange(10.0), torch.arange(9.0), torch.arange(30.0)
    held = [large, edge, small, shared, model.weight]
    before = [tensor.clone() for tensor in held]
    spill = Spill(model, place)
    spill.keep_shared({"table": shared, "own": large}, [shared, edge])
    arguments = {"states": [large[:5], (edge,)], "small": small, "table": shared, "weight": model.weight, "bare": 3}
    spill.put_away(arguments, torch.zeros(3, device="meta"))
    sizes = [tensor.untyped_storage().nbytes() for tensor in held]
    assert sizes == ([0, 0, 36, 120, 40] if place == "disk" else [80, 40, 36, 120, 40])
    spill.put_away(arguments)  # once is enough
    spill.bring_back(arguments)
    assert all(torch.equal(one, other) for one, other in zip(held, before, strict=True))
    spill.put_away(arguments)
    folder = None if spill._folder is None else Path(spill._folder.name)
    assert (folder is not None and any(folder.iterdir())) == (place == "disk")
    del edge, arguments, held
    spill.close()
    assert torch.equal(large, before[0])
    assert folder is None or not folder.exists()


def test_outputs_are_kept_where_what_was_computed_first_goes_on() -> None:
    for keep, expected in ((True, [11]), (False, [11, 11])):
        calls: list[int] = []

        def forward(x: int, calls: list[int] = calls) -> list[int]:
            calls.append(x + 10)
            return calls

        visit = Visit(0, "block", {"x": 1}, (1,), {})
        stop = Stop("block", [visit], forward, Spill(nn.Identity(), "keep"), keep)
        assert stop.run(visit) is calls
        assert stop.last_output(visit) is calls
        assert calls == expected
        assert (visit.args, visit.kwargs, visit.arguments) == ((), {}, {})


def test_arguments_are_those_by_the_names_of_the_block_s_forward() -> None:
    def forward(x: int, y: int = 2, **extra: int) -> None: ...

    assert _named(forward, (1,), {"z": 3}) == {"x": 1, "z": 3}
    assert _named(forward, (1, 5), {}) == {"x": 1, "y": 5}
    assert _named(lambda x: x, (1,), {"other": 2}) == {"other": 2}


class Tabled(nn.Module):
    """Its blocks are given a table that all batches share."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.table = nn.ModuleList([nn.Bilinear(4, 4, 4), nn.Bilinear(4, 4, 4)]), [torch.ones(1, 4)]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x + 1, self.table[0].expand(len(x), 4))
        return x


def test_what_waits_is_away_and_what_is_shared_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus.unstructured.spill.SMALL", 1)
    model, batches = Tabled(), [{"x": torch.randn(3, 4)} for _ in range(3)]
    expected = [model.layers[0](batch["x"] + 1, torch.ones(3, 4)) for batch in batches]
    with Walk(model, batches, ["layers.0", "layers.1"], spill=Spill(model, "disk")) as walk:
        for stop in walk:
            assert [visit.args[0].untyped_storage().nbytes() for visit in stop.visits] == [0, 0, 0]
            for visit, output in zip(stop.visits, expected, strict=True):
                assert visit.args[1].untyped_storage().nbytes() == 16
                assert stop.block == "layers.1" or torch.equal(stop.run(visit), output)
                stop.rest(visit)
                assert visit.args[0].untyped_storage().nbytes() == 0


class Branches(nn.Module):
    """A batch has texts, images or both; the images' layer is declared last and comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.vision = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, text: Tensor | None = None, image: Tensor | None = None) -> Tensor | None:
        seen = None if image is None else self.vision(image)
        return seen if text is None else self.text(text if seen is None else text + seen)


def test_a_block_waits_for_every_batch_that_is_still_to_come() -> None:
    x = torch.randn(1, 2)
    batches = [{"text": x}, {"text": x, "image": x}, {"image": x}]
    with Walk(Branches(), batches, ["text", "vision"]) as walk:
        met = [(stop.block, [visit.batch for visit in stop.visits]) for stop in walk]
    assert met == [("vision", [1, 2]), ("text", [0, 1])]
