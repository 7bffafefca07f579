"""What several processes do together, against what one does alone: `python -m tests.in_processes [CHECK…]`.

One start for many checks, since starting takes longer than any of them. Every check is a function here; its name is printed by each
process that has been through it.
"""

from __future__ import annotations

import copy
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from accelerate import dispatch_model
from benchmarks.rank_memory import Sizes
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from torch.nn.parallel import DistributedDataParallel

from prunus import (
    OWL,
    RESSA,
    AtEnd,
    Distillation,
    DSnoT,
    ECoFLaP,
    Everyone,
    IterativeGlobal,
    IterativeMagnitude,
    Lesson,
    LoRA,
    Magnitude,
    MaskedFinetune,
    MaskedLoRA,
    Plan,
    PrunusError,
    Search,
    SearchMethod,
    SparseGPT,
    Structured,
    Taylor,
    Training,
    Unified,
    UPop,
    WalkOptions,
    Wanda,
    WeightMagnitude,
    add_adapters,
    allocate,
    anatomy,
    extract,
    extract_to,
    hold_zeros,
    prune,
    prune_folder,
    repair,
)
from prunus.losses import own_prediction
from prunus.parallel import barrier, has_shards, is_first, is_sharded, local, processes, whole
from prunus.recipe import parse_recipe
from prunus.repair import Repair
from prunus.run import run
from prunus.structured.gates import Gates
from prunus.structured.scores import gate_gradient, gates_with_gradients
from prunus.unstructured import Walk
from tests import in_processes_failing  # noqa: F401  its checks are carried out, too
from tests.checks import CHECKS, FOLDERS, MESH, QUIET, alone, check, sharded, shared_folder, words
from tests.families import IMAGE, VOCABULARY, build
from tests.forked import in_two
from tests.test_equivalence import outputs
from tests.test_recipe import VIT
from tests.test_repair import pruned
from tests.test_walk import Branches


def zeros(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter == 0 for name, parameter in model.named_parameters()}


def same_on_all(model: nn.Module) -> None:
    for parameter in model.parameters():
        theirs = parameter.detach().clone()
        dist.broadcast(theirs, 0)
        assert torch.equal(theirs, parameter)


SIDEWAYS = WalkOptions(progress=False, sequential=False)
PRUNINGS = (
    *((name, method, QUIET) for name in ("llama", "clip") for method in (Wanda(sparsity=0.5), SparseGPT(sparsity=0.5), DSnoT(sparsity=0.5))),
    ("llama", Wanda(sparsity=0.5), SIDEWAYS), ("llama", Magnitude(sparsity=0.5), SIDEWAYS), ("mixtral", Wanda(sparsity=0.5), QUIET),
)  # fmt: skip


@check
def prunes_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same zeros, and kept weights that differ by rounding: of texts, of towers, of experts, and where all blocks see the dense model."""
    for name, method, options in PRUNINGS:
        one, many = build(name, 3).model, build(name, 3).model
        batches = [build(name, seed).inputs for seed in (3, 4, 5)] if name == "clip" else words(5)
        expected = alone(partial(prune, one, method, batches, options=options), monkeypatch)
        found = prune(many, method, batches, options=options)
        assert found == expected
        for key, there in zeros(one).items():
            assert torch.equal(zeros(many)[key], there), (name, method.method, key)
        for mine, theirs in zip(many.parameters(), one.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
        same_on_all(many)


@check
def prunes_from_disk_as_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process writes, all read; every bit is that of a pruning in memory."""
    case = build("llama", 3)
    with shared_folder() as folder:
        if is_first():
            case.model.save_pretrained(folder / "dense")
        barrier()
        prune_folder(folder / "dense", folder / "small", SparseGPT(sparsity=0.5), words(3), options=QUIET)
        prune(case.model, SparseGPT(sparsity=0.5), words(3), options=QUIET)
        loaded = type(case.model).from_pretrained(folder / "small")
        for mine, theirs in zip(case.model.parameters(), loaded.parameters(), strict=True):
            assert torch.equal(mine, theirs)


@check
def allocates_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    case = build("llama", 3)
    for method in (ECoFLaP(), ECoFLaP(order="zeroth", score="squared"), OWL(), IterativeGlobal(rounds=2)):
        expected = alone(partial(allocate, case.model, method, words(3), progress=False), monkeypatch)
        found = allocate(case.model, method, words(3), progress=False)
        assert {n: m.pruned for n, m in found.matrices.items()} == {n: m.pruned for n, m in expected.matrices.items()}


@check
def walks_where_weights_are_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that `device_map` has spread over memory and disk, what is in memory is pruned, and all of it measured by passes alone."""
    case = build("llama", 3)
    block = "model.layers.0"
    of_block = [f"{block}.{name}" for name in ("mlp", "input_layernorm", "post_attention_layernorm")]
    elsewhere = ["lm_head", "model.embed_tokens", "model.norm", "model.rotary_emb"]
    places = {**dict.fromkeys([*of_block, *elsewhere], "cpu"), f"{block}.self_attn": "disk"}
    one = build("llama", 3).model
    expected = alone(partial(allocate, one, ECoFLaP(order="zeroth"), words(3), progress=False), monkeypatch)
    alone(partial(prune, one, SparseGPT(sparsity=0.5), words(3), include=("*.mlp.*",), options=QUIET), monkeypatch)
    with tempfile.TemporaryDirectory() as folder:
        many = dispatch_model(case.model, places, main_device="cpu", offload_dir=folder)
        found = allocate(many, ECoFLaP(order="zeroth"), words(3), progress=False)
        assert {n: m.pruned for n, m in found.matrices.items()} == {n: m.pruned for n, m in expected.matrices.items()}
        with pytest.raises(PrunusError, match="prune_folder"):
            prune(many, SparseGPT(sparsity=0.5), words(3), options=QUIET)
        prune(many, SparseGPT(sparsity=0.5), words(3), include=("*.mlp.*",), options=QUIET)
    for name, there in zeros(one.model.layers[0].mlp).items():
        assert torch.equal(zeros(many.model.layers[0].mlp)[name], there), name


@check
def stops_at_the_same_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where batches of different kinds, or none, are in one process."""
    x, rank = torch.randn(1, 2), dist.get_rank()
    batches = [{"text": x}, {"text": x, "image": x}, {"image": x}]
    for given, expected in (
        (batches, ([("vision", [2]), ("text", [0])], [("vision", [1]), ("text", [1])])),
        (batches[1:2], ([("vision", [0]), ("text", [0])], [("vision", []), ("text", [])])),
    ):
        with Walk(Branches(), given, ["text", "vision"], spread=True) as walk:
            assert [(stop.block, [visit.batch for visit in stop.visits]) for stop in walk] == expected[rank]


SEARCHES: tuple[SearchMethod, ...] = (
    UPop(ratio=0.4), Structured(ratio=0.4, importance=Taylor(), scope=Everyone(), closing=AtEnd()), IterativeMagnitude(ratio=0.4),
    Unified(ratio=0.4, gate_learning_rate=0.05, l1_mlp=0.0),
)  # fmt: skip
WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "ddp": DistributedDataParallel,
    "fsdp2": sharded,
}


def searched(model: nn.Module, method: SearchMethod, rows: slice, around: Callable[[nn.Module], nn.Module]) -> Search:
    """A search of four steps, on some of the items of each."""
    wrapped = around(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=1e-2)
    search = Search(wrapped, method, 4, optimizer=optimizer)
    for batch in words(4, 4):
        ids = batch["input_ids"][rows]
        wrapped(input_ids=ids, labels=ids).loss.backward()
        search.step()
        optimizer.step()
        optimizer.zero_grad()
    return search


@check
def searches_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under DDP and FSDP2: the same plan, the same scores up to rounding; and what is extracted from shards is what is extracted of all."""
    for method, (name, around) in product(SEARCHES, WRAPPERS.items()):
        one, many = build("llama", 3).model, build("llama", 3).model
        expected = alone(lambda m=method, o=one: searched(o, m, slice(None), lambda x: x), monkeypatch)
        rank = dist.get_rank()
        found = searched(many, method, slice(2 * rank, 2 * rank + 2), around)
        for kind, units in expected.method_state.items():
            for unit, tensor in units.items():
                torch.testing.assert_close(found.method_state[kind][unit], tensor, rtol=1e-3, atol=1e-6)
        assert found.plan() == expected.plan(), (name, method.method)
        if name == "fsdp2":
            extracts_as_one(many, one, found.plan())


@check
def reads_shards_of_every_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of gates, and folded gates, where rows are shared out: of linear layers, `Conv1D`, fused experts, and norms over channels."""
    for name in ("gpt2", "mixtral", "gpt_oss", "blip_vqa", "vit"):
        one, many = build(name, 5), build(name, 5)
        expected = alone(partial(slopes_of, one.model, one.inputs), monkeypatch)
        found = slopes_of(fully_shard(many.model, mesh=MESH[0]), many.inputs)
        assert found.keys() == expected.keys()
        for unit, slope in expected.items():
            torch.testing.assert_close(found[unit], slope, rtol=1e-3, atol=1e-5, msg=f"{name}: {unit}")
        for mine, theirs in zip(many.model.parameters(), one.model.parameters(), strict=True):
            torch.testing.assert_close(whole(mine.detach()), theirs.detach())


def slopes_of(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """∂L/∂ζ of every unit and its magnitudes, at gates of one half that become part of the weights afterwards."""
    units = anatomy(model).units
    gates = Gates(model, units)
    gates.set({unit.name: torch.full((unit.channels,), 0.5) for unit in units})
    loss: Any = sum(tensor.float().square().mean() for tensor in outputs(model(**inputs)))
    loss.backward()
    held = gates_with_gradients(model, units, gates.values) if has_shards(model) else gates.values
    found = {unit.name: gate_gradient(model, unit, held[unit.name]) for unit in units}
    norms = {f"{unit.name}: norm": WeightMagnitude().evidence(model, unit, gates.values[unit.name]) for unit in units}
    gates.settle({unit.name: torch.ones(unit.channels, dtype=torch.bool) for unit in units})
    gates.remove()
    return norms | {name: slope for name, slope in found.items() if slope is not None}


def extracts_as_one(many: nn.Module, one: nn.Module, plan: Plan) -> None:
    with pytest.raises(PrunusError, match="sharded"):
        extract(many, plan)
    with shared_folder() as folder:
        with pytest.raises(PrunusError, match="nothing can be made"):
            extract_to(many, plan, Path(__file__) / "small")
        extract_to(many, plan, folder / "small")
        with pytest.raises(PrunusError, match="there already"):
            extract_to(many, plan, folder / "small")
        loaded = type(one).from_pretrained(folder / "small")
        small = extract(one, plan)
        for (name, mine), (_, theirs) in zip(loaded.named_parameters(), small.named_parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5, msg=name)
        assert loaded.config.to_dict().keys() == small.config.to_dict().keys()


class Sent:
    """Counts the bytes that processes add up and hand round."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        self.summed = self.handed = 0
        add, hand = dist.all_reduce, dist.broadcast

        def counted_add(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.summed += tensor.nbytes
            return add(tensor, *args, **kwargs)

        def counted_hand(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.handed += tensor.nbytes
            return hand(tensor, *args, **kwargs)

        patched.setattr(dist, "all_reduce", counted_add)
        patched.setattr(dist, "broadcast", counted_hand)


@check
def sends_what_is_calculated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the formulas of `benchmarks.rank_memory`; each of the four statistics of a block also has two counts."""
    sizes = Sizes.of(build("llama", 3).model)
    for method, numbers in ((Wanda(), sizes.columns), (SparseGPT(), sizes.gram)):
        with monkeypatch.context() as patched:
            sent = Sent(patched)
            prune(build("llama", 3).model, method, words(2), options=QUIET)
        assert sent.summed == sizes.count * (4 * numbers + 4 * 16)
        assert sent.handed == sizes.count * 4 * sizes.matrices
    model = sharded(build("llama", 3).model)
    search = Search(model, UPop(ratio=0.4), 4)
    model(input_ids=words(1)[0]["input_ids"], labels=words(1)[0]["labels"]).loss.backward()
    with monkeypatch.context() as patched:
        sent = Sent(patched)
        search.step()
    assert sent.summed == 4 * sizes.channels


PAIRS = 4


def pairs(rows: slice, tokens: int) -> dict[str, Tensor]:
    """Some of four texts with images; the first and the third text are of one image."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(PAIRS, 7, dtype=torch.long)
    mask[:2, 5:] = 0  # the first process's texts are shorter
    given = {
        "input_ids": torch.randint(10, VOCABULARY, (PAIRS, 7), generator=generator)[:, :tokens],
        "attention_mask": mask[:, :tokens],
        "pixel_values": torch.randn(PAIRS, 3, IMAGE, IMAGE, generator=generator),
        "labels": torch.tensor([3, 5, 3, 6]),
    }
    return {name: tensor[rows] for name, tensor in given.items()}


def matched(given: dict[str, Tensor]) -> tuple[Any, Tensor]:
    """A retrieval model after a training step, and its matching loss; negatives are the most similar, not drawn."""
    model: Any = build("blip_retrieval", 3).model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.draw = lambda weights: weights.argmax(1)
    loss = model(**given).itm_loss
    loss.backward()
    return model, loss.detach()


@check
def looks_for_negatives_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among the pairs of all processes: the matching loss, the gradients and the queue of one with all of the batch."""
    one, expected = alone(partial(matched, pairs(slice(None), 7)), monkeypatch)
    rank = dist.get_rank()
    model, loss = matched(pairs(slice(2 * rank, 2 * rank + 2), 7 if rank else 5))
    dist.all_reduce(loss)
    torch.testing.assert_close(loss / 2, expected)
    for (name, parameter), twin in zip(model.named_parameters(), one.parameters(), strict=True):
        assert (parameter.grad is None) == (twin.grad is None), name
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            torch.testing.assert_close(parameter.grad / 2, twin.grad, rtol=1e-4, atol=1e-6)
    assert model.queue.ids.tolist() == one.queue.ids.tolist()


@check
def refuses_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one process cannot do all refuse, and none waits; weights are as they were."""
    case = build("llama", 3)
    before = [parameter.clone() for parameter in case.model.parameters()]
    poisoned = words(4)
    poisoned[1]["input_ids"][0, 0] = VOCABULARY + 7  # the second process is given it
    with pytest.raises(PrunusError, match="batch 1"):
        prune(case.model, Wanda(), poisoned, options=QUIET)
    with pytest.raises(PrunusError, match="all of the batches"):
        prune(case.model, Wanda(), words(3 + dist.get_rank()), options=QUIET)
    assert all(torch.equal(a, b) for a, b in zip(before, case.model.parameters(), strict=True))


REPAIRS = (MaskedFinetune(), MaskedLoRA(rank=2), RESSA(rank=2), RESSA(rank=2, distillation=Distillation(top_k=5)))


def repaired(method: Repair, batch_size: int) -> nn.Module:
    """A model after three steps of a repair under the Trainer."""
    dense, model, _ = pruned("llama", seed=4)
    ids = torch.randint(10, VOCABULARY, (16, 7), generator=torch.Generator().manual_seed(0))
    training = Training(
        steps=3, batch_size=batch_size, gradient_accumulation=2, learning_rate=1e-2, weight_decay=0.1, bf16=False
    )
    repair(
        model, method, [{"input_ids": row, "labels": row} for row in ids], training,
        dense if method.distillation is not None else None,
    )  # fmt: skip
    return model


RECIPE = {
    "model": {"random": VIT},
    "task": {"name": "noise", "items": 16, "length": 8},
    "steps": [
        {"step": "search", "method": {"ratio": 0.25, "interval": 1}},
        {
            "step": "prune", "method": {"method": "wanda"}, "allocate": {"method": "ecoflap"},
            "allocation_data": {"samples": 8, "batch_size": 2}, "calibration": {"samples": 8, "batch_size": 2},
        },
        {"step": "repair", "method": {"method": "masked_finetune"}},
        {"step": "narrow", "method": {"ratio": 0.2, "compensation": "none"}, "calibration": {"samples": 8, "batch_size": 2}},
    ],
}  # fmt: skip


def carried_out(folder: Path, batch_size: int) -> Path:
    """The folder of a recipe's last model; nothing is evaluated."""
    os.environ["PRUNUS_CACHE"] = str(folder.parent / "cache")
    train = {"steps": 4, "batch_size": batch_size, "learning_rate": 1e-3, "save_every": 2, "bf16": False}
    steps = [step if step["step"] in ("narrow", "prune") else {**step, "train": train} for step in RECIPE["steps"]]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("prunus.run.compare", lambda *_: None)
        patched.setattr("prunus.run.write_report", lambda *_: None)
        run(parse_recipe(yaml.safe_dump({**RECIPE, "steps": steps, "output": str(folder)}), "recipe"))
    return folder


def take_distribution_away() -> None:
    """Leaves this process with a torch that is as if it had been built without `torch.distributed`."""
    dist.is_available = dist.is_initialized = lambda: (
        False
    )  # the second is called by transformers, which asked for the first when it was imported
    for name in (
        "get_world_size",
        "get_rank",
        "init_process_group",
        "all_reduce",
        "broadcast",
        "all_gather_object",
        "barrier",
    ):
        delattr(dist, name)


def alone_first(folder: Path) -> None:
    """What is trained by one process, with the global batch, for those checks that compare with it."""
    take_distribution_away()
    if sys.argv[1:] and not {"repairs_as_one", "runs_a_recipe_as_one", "goes_on_with_as_many_only"} & set(sys.argv):
        return
    for number, method in enumerate(REPAIRS):
        save_file(repaired(method, 4).state_dict(), folder / f"{number}.safetensors")
    carried_out(folder / "one", 4)


def close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """The same zeros, and other numbers up to rounding."""
    assert found.keys() == expected.keys()
    for name, theirs in expected.items():
        assert torch.equal(found[name] == 0, theirs == 0), name
        torch.testing.assert_close(found[name], theirs, rtol=1e-3, atol=1e-4, msg=name)


@check
def repairs_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, method in enumerate(REPAIRS):
        model = repaired(method, 2)
        close(model.state_dict(), load_file(FOLDERS[0] / f"{number}.safetensors"))
        same_on_all(model)


def trained_by_hand(model: nn.Module, teacher: nn.Module, rows: slice) -> nn.Module:
    """Three steps of AdamW on some of the items of each, from a teacher, every zero held."""
    lesson = Lesson(Distillation(weight=0.5), own_prediction, teacher)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    with hold_zeros(model):
        for ids in torch.randint(10, VOCABULARY, (3, 4, 7), generator=torch.Generator().manual_seed(0)):
            lesson(model, {"input_ids": ids[rows], "labels": ids[rows]}).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


@check
def holds_zeros_of_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked fine-tuning and distillation by hand, under FSDP2; each process holds half of what training needs."""
    dense, one, _ = pruned("llama", seed=4)
    many, whole_bytes = copy.deepcopy(one), sum(p.nbytes for p in one.parameters())
    expected = alone(partial(trained_by_hand, one, dense, slice(None)), monkeypatch)
    rank = dist.get_rank()
    found = trained_by_hand(sharded(many), dense, slice(2 * rank, 2 * rank + 2))
    close({name: whole(p.detach()) for name, p in found.named_parameters()}, dict(expected.named_parameters()))
    assert sum(local(p).nbytes for p in found.parameters()) < 0.55 * whole_bytes


def adapted_by_hand(model: nn.Module, method: LoRA, teacher: nn.Module, rows: slice) -> nn.Module:
    """Three steps of AdamW, of two backward passes each, on adapters and from a teacher; the model is looked at before and after."""
    lesson = Lesson(Distillation(weight=0.5), own_prediction, teacher)
    all_ids = torch.randint(10, VOCABULARY, (3, 2, 4, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(input_ids=all_ids[0, 0])
    with add_adapters(model, method) as adapters:
        optimizer = torch.optim.AdamW(adapters.parameters(), lr=1e-2, weight_decay=0.1)
        for step in all_ids:
            for ids in step:
                lesson(model, {"input_ids": ids[rows], "labels": ids[rows]}).backward()
            nn.utils.clip_grad_norm_(adapters.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            model(input_ids=all_ids[0, 0])
    return model


@check
def adapts_shards_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters and distillation by hand, under FSDP2 by layers and as one unit; of one matrix, the second process has no zeros."""
    rank = dist.get_rank()
    for method, around in (
        (MaskedLoRA(rank=2), sharded), (LoRA(rank=2), sharded), (RESSA(rank=2), partial(fully_shard, mesh=MESH[0])),
    ):  # fmt: skip
        dense, one, _ = pruned("llama", seed=4)
        lower = one.model.layers[0].self_attn.q_proj.weight.data.chunk(2)[1]
        lower.copy_(dense.model.layers[0].self_attn.q_proj.weight.data.chunk(2)[1])
        many, before = copy.deepcopy(one), copy.deepcopy(one)
        expected = alone(partial(adapted_by_hand, one, method, dense, slice(None)), monkeypatch)
        found = adapted_by_hand(around(many), method, sharded(dense), slice(2 * rank, 2 * rank + 2))
        close({name: whole(p.detach()) for name, p in found.named_parameters()}, dict(expected.named_parameters()))
        assert all(torch.equal(zeros(one)[name], there) for name, there in zeros(before).items())
        assert not torch.allclose(
            one.model.layers[1].mlp.up_proj.weight, before.model.layers[1].mlp.up_proj.weight, atol=1e-3
        )
        assert all(is_sharded(p) and p.requires_grad for p in found.parameters())


def sideways(parameter: nn.Parameter) -> Shard | None:
    """By columns, where they can be shared out evenly."""
    return Shard(1) if parameter.ndim == 2 and parameter.shape[1] % 2 == 0 else None


@check
def refuses_adapters_together(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model, _ = pruned("llama", seed=4)
    with pytest.raises(PrunusError, match="fully_shard first"):
        add_adapters(model, MaskedLoRA())
    with pytest.raises(PrunusError, match="by rows"):
        add_adapters(
            fully_shard(copy.deepcopy(model), mesh=MESH[0], shard_placement_fn=sideways),
            MaskedLoRA(),
        )
    with pytest.raises(PrunusError, match="MaskedLoRA"):
        add_adapters(sharded(copy.deepcopy(model)), MaskedFinetune())  # type: ignore[arg-type]
    model.lm_head.weight.requires_grad_(False)
    model = sharded(model)
    with pytest.raises(RuntimeError, match="the user"), add_adapters(model, MaskedLoRA(rank=2)):
        raise RuntimeError("the user")
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["lm_head.weight"]


@check
def runs_a_recipe_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    one, many = FOLDERS[0] / "one", carried_out(FOLDERS[0] / "many", 2)
    barrier()
    assert (one / "1-search" / "plan.json").read_text() == (many / "1-search" / "plan.json").read_text()
    last = "3-repair/model/model.safetensors"
    close(load_file(many / last), load_file(one / last))
    assert (many / "4-narrow" / "model").exists()


@check
def goes_on_with_as_many_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes do not go on with a training that one has begun, whose steps saw other items."""
    one = FOLDERS[0] / "one"
    barrier()
    if is_first():
        shutil.rmtree(one / "3-repair" / "model")
    barrier()
    with pytest.raises(PrunusError, match="1 processes"):
        carried_out(one, 4)


def main(folder: Path) -> None:
    assert processes() == 2
    FOLDERS.append(folder)
    MESH.append(init_device_mesh("cpu", (2,)))
    monkeypatch = pytest.MonkeyPatch()
    for function in CHECKS:
        if function.__name__ in (sys.argv[1:] or function.__name__):
            function(monkeypatch)
            print(f"{function.__name__}: passed", flush=True)


if __name__ == "__main__":
    in_two(main, alone_first)
