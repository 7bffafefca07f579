"""Every formula of the repairs against a number worked out by hand, or a plain implementation of its own."""

from __future__ import annotations

import math
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from prunus import RESSA, Distillation, LoRA, MaskedFinetune, MaskedLoRA, PrunusError, Training, Wanda, prune, repair
from prunus.losses import Prediction, next_tokens, own_loss, own_prediction
from prunus.repair import Lesson, hold_zeros
from prunus.repair.distillation import _difference, top_k_divergence
from prunus.repair.lora import Adapters
from prunus.repair.masks import BitMask, check_zeros, in_fp32
from prunus.repair.teacher_cache import TeacherCache
from prunus.training.trainer import check_finite, last_complete
from prunus.unstructured import WalkOptions
from tests.fake_devices import devices, on
from tests.families import build
from tests.holder import Holder

OURS = [[[0.0, 1.0], [2.0, 0.0], [0.5, 0.5]], [[3.0, 0.0], [0.0, 0.0], [1.0, 4.0]]]
THEIRS = [[[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]], [[0.0, 0.0], [0.0, 3.0], [1.0, 1.0]]]
COUNTED = [[True, False, True], [True, False, False]]


def divergences(temperature: float) -> np.ndarray:
    """KL(teacher ‖ student) of the softened distributions at every position, (2, 3), in plain numpy."""

    def shares(logits: list[Any]) -> np.ndarray:
        raised = np.exp(np.array(logits) / temperature)
        return raised / raised.sum(-1, keepdims=True)  # type: ignore[no-any-return]

    p, q = shares(THEIRS), shares(OURS)
    return (p * np.log(p / q)).sum(-1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_divergence_is_the_mean_over_targets_times_the_square_of_the_temperature(temperature: float) -> None:
    student = Prediction(torch.zeros(()), torch.tensor(OURS), torch.tensor(COUNTED))
    found = Distillation(temperature=temperature).divergence(student, torch.tensor(THEIRS))
    expected = divergences(temperature)[np.array(COUNTED)].mean() * temperature**2
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_published_reduction_sums_all_positions_and_divides_by_the_sequences(temperature: float) -> None:
    student = Prediction(torch.zeros(()), torch.tensor(OURS), torch.tensor(COUNTED))
    method = Distillation(temperature=temperature, reduction="published")
    found = float(method.divergence(student, torch.tensor(THEIRS)))
    assert found == pytest.approx(divergences(temperature).sum() / 2, rel=1e-5)
    log = nn.functional.log_softmax(torch.tensor(OURS) / temperature, -1)
    published = nn.KLDivLoss(reduction="batchmean")(log, (torch.tensor(THEIRS) / temperature).softmax(-1))
    assert found == pytest.approx(float(published), rel=1e-5)


def test_few_targets_and_none() -> None:
    """One position is its own mean; a batch without any teaches nothing."""
    one, none = torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool)
    one[1, 2] = True
    for counted, expected in ((one, divergences(1.0)[1, 2]), (none, 0.0)):
        student = Prediction(torch.zeros(()), torch.tensor(OURS), counted)
        assert float(Distillation().divergence(student, torch.tensor(THEIRS))) == pytest.approx(expected, rel=1e-5)


def test_the_largest_logits_are_compared_among_themselves() -> None:
    """Of the teacher's (3, 0, 1, 2) the places 0 and 3; the student has 1 and 5 there."""
    student = torch.tensor([[1.0, 9.0, 9.0, 5.0]], dtype=torch.float64)
    found = top_k_divergence(student, torch.tensor([[3.0, 2.0]]), torch.tensor([[0, 3]]), 2.0)
    p, q = 1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(2.0))
    expected = 4 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    assert found.tolist() == pytest.approx([expected], rel=1e-5)


class Table(nn.Module):
    """Logits of two positions by the item's number; a third position is no target."""

    def __init__(self, shift: float):
        super().__init__()
        self.logits = nn.Parameter(torch.arange(24.0).view(2, 3, 4).sin() * 3 + shift * torch.arange(4.0))

    def predict(self, model: Any, batch: dict[str, Tensor]) -> Prediction:
        assert batch.keys() == {"number"}
        logits = model.logits[batch["number"]]
        return Prediction(logits.sum() * 0 + 2.0, logits, torch.tensor([True, False, True]).expand(len(logits), 3))


def cache_of(folder: Path, numbers: list[int], top_k: int = 2) -> TeacherCache:
    def collate(items: list[int]) -> dict[str, Tensor]:
        return {"number": torch.tensor(items)}

    method = Distillation(top_k=top_k, weight=0.25, temperature=2.0)
    return TeacherCache(folder, method, Table(0).predict, numbers, collate)  # type: ignore[arg-type]


def test_stored_logits_teach_what_the_teacher_s_largest_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["prunus.repair.teacher_cache"], "ITEMS_PER_FILE", 2)
    teacher, student = Table(0.0), Table(1.0)
    cache = cache_of(tmp_path, [1, 0, 1])
    cache.fill(partial(nullcontext, teacher))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000000.safetensors", "00000002.safetensors"]
    items = [cache.data[index] for index in (2, 1)]
    assert items == [(2, 1), (1, 0)]
    batch = cache.collate(items)
    logits = {index: table.logits.detach().double().numpy() for index, table in enumerate((student, teacher))}
    found, divergence = float(cache.loss(student, batch).detach()), []
    for number in (1, 0):
        for position in (0, 2):
            theirs, ours = logits[1][number, position], logits[0][number, position]
            top = np.argsort(theirs)[-2:]
            p, q = (np.exp(x[top] / 2) / np.exp(x[top] / 2).sum() for x in (theirs, ours))
            divergence.append(4 * (p * np.log(p / q)).sum())
    assert found == pytest.approx(0.75 * 2 + 0.25 * np.mean(divergence), rel=1e-4)
    stamps = [path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())]
    again = cache_of(tmp_path, [1, 0, 1])
    again.fill(partial(nullcontext, teacher), torch.device("cpu"))
    assert float(again.loss(student, again.collate(items)).detach()) == found
    assert stamps == [path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())], "asked once"


def test_stored_logits_of_other_things_are_refused(tmp_path: Path) -> None:
    teacher = partial(nullcontext, Table(0.0))
    cache = cache_of(tmp_path, [1, 0])
    cache.fill(teacher)
    for other, by, reason in (
        (cache_of(tmp_path, [1, 0]), Table(0.5), "with teacher"),
        (cache_of(tmp_path, [1, 0, 1]), Table(0.0), "with items 2, not 3"),
        (cache_of(tmp_path, [1, 0], top_k=3), Table(0.0), "with k 2, not 3"),
    ):
        with pytest.raises(PrunusError, match=reason):
            other.fill(partial(nullcontext, by))
    with pytest.raises(PrunusError, match="randomness"):
        cache.collate([(0, 0)])
    batch = cache.collate([(0, 1), (1, 0)])
    with pytest.raises(PrunusError, match="depend on each other"):
        cache.loss(Table(0.0), {**batch, "number": batch["number"][:1]})
    cache_of(tmp_path / "all", [1, 0], top_k=4).fill(teacher)
    with pytest.raises(PrunusError, match="only 4 logits"):
        cache_of(tmp_path / "more", [1, 0], top_k=5).fill(teacher)
    (tmp_path / "00000000.safetensors").write_bytes(b"nothing")
    with pytest.raises(PrunusError, match="damaged"):
        cache_of(tmp_path, [1, 0]).fill(teacher)


def test_the_parts_of_the_loss_have_their_weights() -> None:
    task, divergence, features = (torch.tensor(x) for x in (2.0, 4.0, 3.0))
    assert float(Distillation(weight=0.25).loss(task, divergence)) == 0.75 * 2 + 0.25 * 4
    assert float(Distillation(weight=0.25, features=0.5).loss(task, divergence, features)) == 0.75 * 2 + 0.25 * 4 + 1.5
    default = Distillation()
    assert (default.weight, default.temperature, default.reduction, default.features) == (0.1, 1.0, "mean", 0.0)
    assert RESSA().distillation == default
    assert MaskedLoRA().distillation is None


class Scales(nn.Module):
    """Two blocks that multiply by a number."""

    def __init__(self, first: float, second: float):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
        for block, value in zip(self.blocks, (first, second), strict=True):
            block.weight.data.copy_(value * torch.eye(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[1](self.blocks[0](x))  # type: ignore[no-any-return]


def test_features_are_compared_relative_to_the_teacher_block_by_block() -> None:
    """Student 2 and 3, teacher 1 and 4: blocks return 2x and 6x against x and 4x, so (1/1 + 4/16) / 2."""

    def predict(model: nn.Module, x: Tensor) -> Prediction:
        logits = model(x)
        return Prediction(torch.tensor(0.0), logits * 0, torch.ones(len(x), dtype=torch.bool))

    method = Distillation(features=0.5)
    lesson = Lesson(method, predict, Scales(1, 4), ["blocks.0", "blocks.1"])
    assert float(lesson(Scales(2, 3), torch.tensor([[1.0, -3.0]]))) == pytest.approx(0.5 * (1 + 0.25) / 2)
    assert Lesson(Distillation(), predict, Scales(1, 4), ["blocks.0"]).blocks == ()


def test_blocks_on_several_devices_are_compared_where_they_are() -> None:
    one, two = torch.tensor([2.0, 2.0]), torch.tensor([6.0, 0.0])
    with devices():
        ours = [on(one, "meta:0"), on(two, "meta:1")]
        found = _difference(ours, [torch.tensor([1.0, 1.0]), on(torch.tensor([4.0, 0.0]), "meta:0")])
    assert float(found.here) == pytest.approx((1 + 0.25) / 2)  # type: ignore[attr-defined]


def test_a_step_of_distillation_is_what_the_definition_says() -> None:
    """Through `repair`: the loss of the first step is (1 − λ)·task + λ·KL, counted in numpy."""
    dense = build("llama", 5).model
    case = build("llama", 5)
    prune(case.model, Wanda(sparsity=0.5), [case.inputs], options=WalkOptions(progress=False))
    batch = {k: v[:1] for k, v in case.inputs.items()}
    with torch.no_grad():
        ours, theirs = (model(**batch).logits[0, :-1].double().numpy() for model in (case.model, dense))
    counted = batch["attention_mask"][0, 1:].bool().numpy()
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (theirs, ours))
    task = -np.log(q[np.arange(len(q)), batch["input_ids"][0, 1:].numpy()])[counted].mean()
    kl = (p * np.log(p / q)).sum(-1)[counted].mean()
    items = [{k: v[0] for k, v in batch.items()}]
    training = Training(steps=1, batch_size=1, learning_rate=1e-4, bf16=False)
    log = repair(case.model, RESSA(distillation=Distillation(weight=0.3)), items, training, teacher=dense)
    assert log[-1]["train_loss"] == pytest.approx(0.7 * task + 0.3 * kl, rel=1e-4)


# adapters


@pytest.mark.parametrize("masked", [True, False])
def test_adapters_are_scaled_by_alpha_over_rank(masked: bool) -> None:
    """Rank 2 and alpha 6: W + 3·B A, under the mask or beside it."""
    torch.manual_seed(0)
    model = Holder((3, 4))
    kept = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 1]]).bool()
    model.hold(0, torch.randn(3, 4) * kept)
    weight = model.fc1().detach().clone()
    adapters = Adapters(model, {"layers.0.mlp.fc1": BitMask(kept)}, 2, 6.0, masked)
    linear: Any = adapters.layers["layers.0.mlp.fc1"].linear
    linear.lora_B.data.normal_()
    down, up = linear.lora_A.detach(), linear.lora_B.detach()
    assert down.shape == (2, 4)
    assert float(down.abs().max()) <= 1 / math.sqrt(4)  # Kaiming uniform with slope √5: bound 1/√inputs
    x = torch.randn(5, 4)
    low = 3 * up @ down
    expected = x @ ((weight + low) * kept).T if masked else x @ (weight + low).T
    torch.testing.assert_close(linear(x), expected)
    adapters.merge()
    torch.testing.assert_close(model.fc1().detach(), (weight + low) * kept)


@pytest.mark.parametrize("changed", [False, True])
def test_plain_adapters_beside_a_teacher_s_weights(changed: bool) -> None:
    """W holds the teacher's weights; the student computes with what was kept of them, or with what the pruner made of it."""
    torch.manual_seed(0)
    kept = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 1]]).bool()
    dense, model = Holder((3, 4)), Holder((3, 4))
    model.load_state_dict(dense.state_dict())
    pruned = dense.fc1().detach() * kept * (1.5 if changed else 1.0)
    model.hold(0, pruned)
    adapters = Adapters(model, {"layers.0.mlp.fc1": BitMask(kept)}, 2, 6.0, masked=False, teacher=dense)
    linear: Any = adapters.layers["layers.0.mlp.fc1"].linear
    linear.lora_B.data.normal_()
    low = 3 * linear.lora_B.detach() @ linear.lora_A.detach()
    x = torch.randn(5, 4)
    torch.testing.assert_close(linear(x), x @ (pruned + low).T)
    with adapters.off():
        torch.testing.assert_close(linear(x), x @ dense.fc1().T)
    torch.testing.assert_close(linear(x), x @ (pruned + low).T)
    assert {name.rpartition(".")[2] for name in model.state_dict()} == {"weight", "bias", "lora_A", "lora_B"}
    assert [name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad] == ["lora_A", "lora_B"]
    adapters.merge()
    torch.testing.assert_close(model.fc1().detach(), (pruned + low) * kept)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_adapters_begin_at_random_by_seed_and_name() -> None:
    model = Holder((3, 4), (5, 4))
    names = [f"layers.{block}.mlp.fc1" for block in range(2)]
    masks = {name: BitMask(torch.rand(model.fc1(block).shape) < 0.5) for block, name in enumerate(names)}
    for seed in (0, 3):
        adapters = Adapters(model, masks, 2, 1.0, seed=seed)
        for name in names:
            linear: Any = adapters.layers[name].linear
            generator = torch.Generator().manual_seed(seed + crc32(name.encode()))
            torch.testing.assert_close(
                linear.lora_A.detach(), (2 * torch.rand(2, 4, generator=generator) - 1) / 2, rtol=0, atol=1e-6
            )
            assert not linear.lora_B.any()
        adapters.remove()


def test_16_bit_weights_are_fp32_while_they_train_and_stay_apart_from_zero() -> None:
    kept = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 1]]).bool()
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        model = Holder((3, 4))
        model.hold(0, torch.ones(3, 4) * kept)
        model.to(dtype)
        with in_fp32(model, {"layers.0.mlp.fc1": BitMask(kept)}):
            assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
            model.fc1().data[0, 0] = 1e-45 if dtype != torch.float32 else 0.0
        limits = torch.finfo(dtype)
        expected = torch.ones(3, 4) * kept
        expected[0, 0] = limits.smallest_normal * limits.eps if dtype != torch.float32 else 0.0
        assert torch.equal(model.fc1().detach(), expected.to(dtype)), dtype


def test_zeros_that_are_lost_and_weights_that_became_zero_are_counted() -> None:
    kept = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 1]]).bool()
    model, masks = Holder((3, 4)), {"layers.0.mlp.fc1": BitMask(kept)}
    model.hold(0, torch.ones(3, 4) * kept)
    check_zeros(model, masks)
    for place, value, message in (((0, 1), 2.0, "1 weights.*not zero any more"), ((0, 0), 0.0, "1 weights.*are zero")):
        model.hold(0, torch.ones(3, 4) * kept)
        model.fc1().data[place] = value
        with pytest.raises(PrunusError, match=message):
            check_zeros(model, masks)


def test_held_zeros_are_counted_and_come_back_after_every_step() -> None:
    model = Holder((3, 4))
    kept = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 1]]).bool()
    model.hold(0, torch.ones(3, 4) * kept)
    with hold_zeros(model) as held:
        assert held.zeros == 4
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.layers[0].mlp.fc1(torch.ones(1, 4)).sum().backward()  # type: ignore[union-attr,operator]
        assert torch.equal(model.fc1().grad, kept.float())  # type: ignore[arg-type]
        model.fc1().grad.fill_(1.0)  # type: ignore[union-attr]
        optimizer.step()
        torch.testing.assert_close(model.fc1().detach(), 0.9 * kept)
        model.fc1().data.fill_(1.0)
    assert torch.equal(model.fc1().detach(), kept.float())
    optimizer.step()
    assert bool((model.fc1()[~kept] != 0).all())


def test_ranks_by_tower_are_the_published_ones() -> None:
    assert LoRA().rank == {"vision": 4, "language": 8, "connector": 2}
    assert LoRA().alpha == 16.0
    case = build("instructblip_t5", 1)
    prune(case.model, Wanda(), [case.inputs], options=WalkOptions(progress=False))
    from prunus.repair.masks import zeros_of

    masks = zeros_of(case.model)
    adapters = Adapters(case.model, masks, LoRA().rank, LoRA().alpha)
    found = {name: len(layer.linear.lora_A) for name, layer in adapters.layers.items()}  # type: ignore[arg-type]
    for name, rank in found.items():
        assert rank == (4 if name.startswith(("vision", "model.vision")) else 2 if "qformer" in name else 8), name
    assert set(found.values()) == {2, 4, 8}
    assert all(layer.scale == 16 / found[name] for name, layer in adapters.layers.items())


@pytest.mark.parametrize("method", [MaskedFinetune(), MaskedLoRA(rank=2), LoRA(rank=2)], ids=lambda m: m.method)
def test_repair_lowers_the_loss_it_says_it_lowers(method: Any) -> None:
    case = build("llama", 5)
    prune(case.model, Wanda(sparsity=0.6), [case.inputs], options=WalkOptions(progress=False))
    items = [{k: v[row] for k, v in case.inputs.items()} for row in range(2)]
    before = float(own_loss(case.model, case.inputs).detach())
    repair(case.model, method, items, Training(steps=10, batch_size=2, learning_rate=5e-3, bf16=False, warmup_steps=0))
    assert float(own_loss(case.model, case.inputs)) < before - 0.05


def test_distillation_brings_the_student_nearer_to_its_teacher() -> None:
    """λ = .99 learns from little but the teacher."""

    def distance(model: Any) -> float:
        with torch.no_grad():
            p, q = (m(**case.inputs).logits.log_softmax(-1) for m in (dense, model))
        return float((p.exp() * (p - q)).sum(-1).mean())

    dense, case = build("llama", 5).model, build("llama", 5)
    prune(case.model, Wanda(sparsity=0.6), [case.inputs], options=WalkOptions(progress=False))
    items = [{k: v[row] for k, v in case.inputs.items()} for row in range(2)]
    before = distance(case.model)
    training = Training(steps=10, batch_size=2, learning_rate=5e-3, bf16=False, warmup_steps=0)
    repair(case.model, RESSA(rank=4, distillation=Distillation(weight=0.99)), items, training, teacher=dense)
    assert distance(case.model) < 0.8 * before


# what a model says


def test_a_decoder_predicts_the_next_label() -> None:
    logits = torch.arange(12.0).view(1, 4, 3)
    found = next_tokens(torch.tensor(5.0), logits, torch.tensor([[7, 8, -100, 9]]))
    assert torch.equal(found.logits, logits[:, :3])
    assert found.counted.tolist() == [[True, False, True]]
    assert float(found.loss) == 5


def test_losses_of_causal_decoders_skip_padding_and_labels_win() -> None:
    case = build("llama", 5)
    with torch.no_grad():
        logits = case.model(**case.inputs).logits.double()
    ids, mask = case.inputs["input_ids"], case.inputs["attention_mask"].bool()
    picked = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0][mask[:, 1:]]
    assert float(own_loss(case.model, case.inputs)) == pytest.approx(-float(picked.mean()), rel=1e-5)
    labels = torch.full_like(ids, -100)
    labels[0, 3] = 11
    one = float(own_loss(case.model, {**case.inputs, "labels": labels}))
    assert one == pytest.approx(-float(logits[0, 2].log_softmax(-1)[11]), rel=1e-5)
    found = own_prediction(case.model, {**case.inputs, "labels": labels})
    assert found.counted.nonzero().tolist() == [[0, 2]]


def test_predictions_of_pairs_are_of_both_directions() -> None:
    case = build("clip", 5)
    found = own_prediction(case.model, case.inputs)
    with torch.no_grad():
        out = case.model(**case.inputs)
    torch.testing.assert_close(found.logits.detach(), torch.cat([out.logits_per_image, out.logits_per_image.T]))
    assert found.counted.tolist() == [True] * 4
    logits = out.logits_per_image.double()
    expected = -(logits.log_softmax(1).diagonal().mean() + logits.log_softmax(0).diagonal().mean()) / 2
    assert float(found.loss.detach()) == pytest.approx(float(expected), rel=1e-5)


def test_predictions_that_do_not_fit_are_refused() -> None:
    class Odd(nn.Module):
        config = SimpleNamespace(is_encoder_decoder=True)

        def forward(self, labels: Tensor) -> Any:
            return SimpleNamespace(loss=torch.zeros(()), logits=torch.zeros(2, 5, 3))

    with pytest.raises(PrunusError, match="predict"):
        own_prediction(Odd(), {"labels": torch.zeros(2, 4, dtype=torch.long)})


# memory and training


def test_the_trainer_is_told_what_training_says(tmp_path: Path) -> None:
    class Told(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            told.update(args.to_dict())

    told: dict[str, Any] = {}
    evaluated: list[int] = []

    def evaluate(model: Any) -> dict[str, float]:
        evaluated.append(1)
        return {"metric": 0.5}

    case = build("llama", 5)
    prune(case.model, Wanda(), [case.inputs], options=WalkOptions(progress=False))
    items = [{k: v[row] for k, v in case.inputs.items()} for row in range(2)]
    training = Training(
        steps=4, batch_size=1, gradient_accumulation=2, learning_rate=1e-3, schedule="linear", warmup_steps=1,
        weight_decay=0.5, max_grad_norm=2.0, bf16=False, save_every=3, evaluate_every=2,
    )  # fmt: skip
    log = repair(
        case.model, MaskedLoRA(rank=1), items, training, evaluate=evaluate, callbacks=[Told()], seed=7, folder=tmp_path
    )
    assert len(evaluated) == 2
    assert [row["step"] for row in log if row.get("eval_metric") == 0.5] == [2, 4]
    expected = {
        "max_steps": 4, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "warmup_steps": 1,
        "weight_decay": 0.5, "max_grad_norm": 2.0, "bf16": False, "seed": 7, "save_steps": 3, "save_total_limit": 2, "eval_steps": 2,
        "logging_steps": 5, "remove_unused_columns": False, "dataloader_num_workers": 0, "dataloader_pin_memory": False,
        "ddp_broadcast_buffers": False, "use_cpu": True,
    }  # fmt: skip
    assert {name: told[name] for name in expected} == expected
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}
    assert all((path / "complete").exists() for path in tmp_path.glob("checkpoint-*"))
    for more in ({"evaluate_every": None}, {"evaluate_every": 2}):
        told.clear()
        quiet = training.model_copy(update=more)
        repair(case.model, MaskedLoRA(rank=1), items, quiet, evaluate=None if more["evaluate_every"] else evaluate, callbacks=[Told()])  # fmt: skip
        assert told["eval_strategy"] == "no"
    assert len(evaluated) == 2


def test_an_error_of_the_caller_s_own_is_no_damaged_checkpoint() -> None:
    def fails(model: Any, batch: Any) -> Prediction:
        raise RuntimeError("its own")

    case = build("llama", 5)
    prune(case.model, Wanda(), [case.inputs], options=WalkOptions(progress=False))
    items = [{k: v[row] for k, v in case.inputs.items()} for row in range(2)]
    with pytest.raises(RuntimeError, match="its own"):
        repair(case.model, MaskedLoRA(rank=1), items, Training(steps=1, learning_rate=1e-3, bf16=False), predict=fails)


def test_the_newest_whole_checkpoint_is_gone_on_from_and_broken_ones_go(tmp_path: Path) -> None:
    assert last_complete(tmp_path) is None
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11", "checkpoint-new", "tmp-checkpoint-12"):
        (tmp_path / name).mkdir()
        if name != "checkpoint-11":
            (tmp_path / name / "complete").touch()
    assert last_complete(tmp_path) == tmp_path / "checkpoint-10"
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-9", "checkpoint-10"}


def test_weights_that_are_no_numbers_are_named_if_they_train() -> None:
    model = Holder((2, 3))
    check_finite(model, 1)
    model.fc1().data[1, 2] = torch.nan
    with pytest.raises(PrunusError, match="step 1"):
        check_finite(model, 1)
    model.fc1().requires_grad_(False)
    check_finite(model, 1)


def test_a_weight_is_held_twice_only_where_the_pruner_changed_what_it_kept() -> None:
    torch.manual_seed(0)
    kept = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 1]]).bool()
    dense = Holder((3, 4))
    for factor in (1.0, 1.5):
        model = Holder((3, 4))
        model.load_state_dict(dense.state_dict())
        model.hold(0, dense.fc1().detach() * kept * factor)
        adapters = Adapters(model, {"layers.0.mlp.fc1": BitMask(kept)}, 1, 1.0, teacher=dense)
        assert adapters.holds_teacher
        layer: Any = adapters.layers["layers.0.mlp.fc1"].linear
        assert (layer.pruned_weight is None) == (factor == 1)
        assert torch.equal(layer.weight, dense.fc1())
        x = torch.randn(2, 4)
        torch.testing.assert_close(layer(x), x @ (dense.fc1() * kept * factor).T)
        with adapters.off():
            torch.testing.assert_close(layer(x), x @ dense.fc1().T)


def test_features_of_blocks_that_return_several_things_are_the_first() -> None:
    class Pair(nn.Module):
        def __init__(self, value: float):
            super().__init__()
            self.value = nn.Parameter(torch.tensor(value))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.value * x, x * 0 + 7

    class Model(nn.Module):
        def __init__(self, value: float):
            super().__init__()
            self.block = Pair(value)

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x)[0]  # type: ignore[no-any-return]

    def predict(model: nn.Module, x: Tensor) -> Prediction:
        return Prediction(torch.tensor(0.0), model(x) * 0, torch.ones(len(x), dtype=torch.bool))

    lesson = Lesson(Distillation(features=1.0), predict, Model(1.0), ["block"])
    assert float(lesson(Model(3.0), torch.tensor([[1.0, -2.0]]))) == pytest.approx(4.0)


def test_towers_learn_at_their_own_rates() -> None:
    case = build("clip", 5)
    prune(case.model, Wanda(), [case.inputs], options=WalkOptions(progress=False))
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    items = [{k: v[row] for k, v in case.inputs.items()} for row in range(2)]
    training = Training(
        steps=1, batch_size=2, learning_rate=1e-2, bf16=False, warmup_steps=0, tower_learning_rates={"vision": 0.0}
    )
    repair(case.model, MaskedFinetune(), items, training)
    moved = {
        name.split(".")[0] for name, value in case.model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert "text_model" in moved
    assert "vision_model" not in moved
