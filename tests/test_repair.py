"""Repair: zeros stay, merging changes nothing, gradients are right, the teacher stands still, runs resume."""

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import TrainerCallback

from prunus import (
    RESSA,
    Distillation,
    DSnoT,
    LoRA,
    Magnitude,
    MaskedFinetune,
    MaskedLoRA,
    PrunusError,
    Search,
    SparseGPT,
    Training,
    UPop,
    WalkOptions,
    Wanda,
    extract,
    load_model,
    matrices,
    prune,
    repair,
    sparsity_of,
)  # fmt: skip
from prunus.losses import Prediction, next_tokens, own_prediction
from prunus.repair import Lesson
from prunus.repair.distillation import kl_divergence
from prunus.repair.lora import Adapters, _MaskedLinear, effective_weight
from prunus.repair.masks import BitMask, check_zeros, zeros_of
from prunus.training import finetune
from tests.families import build
from tests.test_equivalence import outputs

SHAPES = ["llama", "t5", "clip", "blip_vqa", "blip2_t5", "instructblip_t5"]
QUICK = Training(steps=3, batch_size=2, learning_rate=1e-2, weight_decay=0.1, bf16=False, save_every=1)
QUIET = WalkOptions(progress=False)


class Items(Dataset[Any]):
    """The same batch's rows, over and over."""

    def __init__(self, inputs: dict[str, Tensor], size: int = 8):
        self.inputs, self.size = inputs, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[index % len(value)] for key, value in self.inputs.items()}


def stack(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([item[key] for item in items]) for key in items[0]}


def predict(model: nn.Module, batch: dict[str, Tensor]) -> Prediction:
    """Every family's largest output as logits, and a loss from it."""
    logits = max(outputs(model(**batch)), key=lambda t: t.numel())
    logits = logits.float()
    return Prediction(logits.square().mean(), logits, torch.ones_like(logits[..., 0], dtype=torch.bool))


def pruned(name: str, method: Any = None, seed: int = 1) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    """(dense, pruned, inputs)"""
    case = build(name, seed)
    dense = copy.deepcopy(case.model)
    prune(case.model, method or Wanda(sparsity=0.5), [case.inputs], options=QUIET)
    return dense, case.model, case.inputs


def zero_positions(model: nn.Module) -> dict[str, Tensor]:
    return {m.name: model.get_submodule(m.name).weight == 0 for m in matrices(model) if m.tower != "connector"}


@pytest.mark.parametrize("shape", [(3, 5), (8, 8), (1, 1), (17, 24), (5, 64)])
def test_masks_survive_their_bits(shape: tuple[int, int]) -> None:
    kept = torch.rand(shape) < 0.5
    mask = BitMask(kept)
    assert torch.equal(mask.unpack(), kept)
    assert mask.bytes == -(-kept.numel() // 8)


@pytest.mark.parametrize(("rows", "chunk"), [(3, 64), (40, 64), (90, 512)])
def test_masked_gradients_are_those_of_the_naive_formula(
    rows: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys.modules["prunus.repair.lora"], "CHUNK", chunk
    )  # several strips, of 8, and of 72 and 18 rows
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 7, dtype=torch.float64, requires_grad=True), torch.randn(rows, 7, dtype=torch.float64)
    down = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
    up = torch.randn(rows, 2, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(rows, dtype=torch.float64, requires_grad=True)
    kept = torch.rand(rows, 7) < 0.5
    packed = BitMask(kept).packed

    def ours(*variables: Tensor) -> Tensor:
        a, d, u, b = variables
        return _MaskedLinear.apply(a, weight, d, u, b, packed, 0.5)

    assert torch.autograd.gradcheck(ours, (x, down, up, bias))
    naive = F.linear(x, (weight + 0.5 * up @ down) * kept, bias)
    torch.testing.assert_close(ours(x, down, up, bias), naive)
    for mine, expected in zip(
        torch.autograd.grad(ours(x, down, up, bias).square().sum(), (x, down, up, bias)),
        torch.autograd.grad(naive.square().sum(), (x, down, up, bias)),
        strict=True,
    ):
        torch.testing.assert_close(mine, expected)


def test_nothing_of_the_size_of_the_weight_is_kept_for_the_backward_pass() -> None:
    saved: list[int] = []
    x, weight = torch.randn(4, 64, requires_grad=True), torch.randn(256, 64)
    down, up = torch.randn(2, 64, requires_grad=True), torch.randn(256, 2, requires_grad=True)
    packed = BitMask(torch.rand(256, 64) < 0.5).packed
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        _MaskedLinear.apply(x, weight, down, up, None, packed, 1.0)
    known = {t.data_ptr() for t in (x, weight, down, up, packed)}
    assert set(saved) <= known


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "pruner",
    [Wanda(sparsity=0.5), SparseGPT(sparsity=0.6), DSnoT(sparsity=0.5), Magnitude(sparsity=0.7)],
    ids=lambda p: p.method,
)
def test_merging_is_exact_in_every_type(pruner: Any, dtype: torch.dtype) -> None:
    dense, model, inputs = pruned("llama", pruner)
    dense, model = dense.to(dtype), model.to(dtype)
    zeros = zero_positions(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    masks = zeros_of(model)
    Adapters(model, masks, 2, 4.0, teacher=dense).merge()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "B = 0 changes nothing"
    adapters = Adapters(model, masks, 2, 4.0, teacher=dense)
    for layer in adapters.layers.values():
        layer.linear.lora_B.data.normal_(0, 0.1)
    with torch.no_grad():
        adapted = model(**inputs).logits
        adapters.merge()
        merged = model(**inputs).logits
    check_zeros(model, masks)
    assert all(torch.equal(now, zeros[name]) for name, now in zero_positions(model).items())
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 1e-2}[dtype]
    torch.testing.assert_close(merged, adapted, rtol=tolerance, atol=tolerance)
    assert not torch.equal(merged, dense(**inputs).logits)


METHODS = [
    MaskedFinetune(),
    LoRA(rank=2),
    MaskedLoRA(rank=2),
    RESSA(rank=2),
    MaskedFinetune(distillation=Distillation(features=0.5)),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.method}{'-distilled' if m.distillation else ''}")
@pytest.mark.parametrize("name", SHAPES)
def test_every_repair_keeps_every_zero_and_trains(name: str, method: Any) -> None:
    dense, model, inputs = pruned(name)
    zeros, record = zero_positions(model), sparsity_of(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    required = [parameter.requires_grad for parameter in model.parameters()]
    repair(model, method, Items(inputs), QUICK, dense, predict, stack)
    assert model.state_dict().keys() == before.keys()
    assert [parameter.requires_grad for parameter in model.parameters()] == required
    assert all(torch.equal(now, zeros[key]) for key, now in zero_positions(model).items())
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed, "it has trained"
    if method.method != "masked_finetune":
        adapted = {f"{m.name}.weight" for m in matrices(model)}
        assert changed <= adapted, "only adapters train"
    assert record is not None
    after = sparsity_of(model)
    assert after is not None
    assert after.matrices == record.matrices
    assert after.method["repair"]["method"] == method.method


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_nm_patterns_survive(pattern: str) -> None:
    kept, of = map(int, pattern.split(":"))
    seed = next(s for s in range(99) if all(m.columns % 8 == 0 for m in matrices(build("vit", s).model)))
    dense, model, inputs = pruned("vit", Wanda(pattern=pattern), seed=seed)
    repair(model, RESSA(rank=2), Items(inputs), QUICK, dense, predict, stack)
    for m in matrices(model):
        groups = (model.get_submodule(m.name).weight != 0).reshape(-1, of).sum(1)
        assert bool((groups == kept).all())


@pytest.mark.parametrize("name", SHAPES)
def test_the_teacher_is_the_dense_model_and_stands_still(name: str) -> None:
    dense, model, inputs = pruned(name, SparseGPT(sparsity=0.5))
    with torch.no_grad():
        expected = predict(dense, inputs).logits
    adapters = Adapters(model, zeros_of(model), 2, 4.0, teacher=dense)
    for turn in range(2):
        with torch.no_grad(), adapters.off() as teacher:
            assert torch.equal(predict(teacher, inputs).logits, expected)
        assert turn or not torch.equal(predict(model, inputs).logits, expected)
        for layer in adapters.layers.values():
            layer.linear.lora_B.data.normal_(0, 0.1)


def test_towers_have_ranks_of_their_own_and_connectors_no_mask() -> None:
    _dense, model, _inputs = pruned("blip2_t5")
    adapters = Adapters(model, zeros_of(model), {"vision": 1, "language": 3, "connector": 2}, 4.0)
    towers = {m.name: m.tower for m in matrices(model)}
    for name, layer in adapters.layers.items():
        expected = {"vision": 1, "connector": 2}.get(towers[name], 3)
        assert layer.linear.lora_A.shape[0] == expected
        assert (layer.linear.lora_mask is None) == (towers[name] == "connector")
    assert "connector" in {towers[name] for name in adapters.layers}
    adapters.merge()
    only = Adapters(model, zeros_of(model), {"vision": 1}, 4.0)
    assert {towers[name] for name in only.layers} == {"vision"}
    only.merge()
    for ranks in ({"visoin": 1}, {"vision": 4, "text": 2}):
        with pytest.raises(PrunusError, match="no such tower") as caught:
            Adapters(model, zeros_of(model), ranks, 4.0)
        assert caught.value.field == "rank"
    masks = {name: mask for name, mask in zeros_of(model).items() if towers[name] != "vision"}
    with pytest.raises(PrunusError, match="nothing would train"):
        Adapters(model, masks, {"vision": 1}, 4.0)


def test_only_targets_count_and_the_published_reduction_is_a_variant() -> None:
    torch.manual_seed(0)
    logits, theirs = torch.randn(2, 5, 11), torch.randn(2, 5, 11)
    labels = torch.randint(0, 11, (2, 5))
    labels[0, 3:] = -100
    student = next_tokens(torch.zeros(()), logits, labels)
    taught = theirs[:, :-1]
    each = kl_divergence(logits[:, :-1], taught)
    counted = labels[:, 1:] != -100
    expected = (theirs[:, :-1].softmax(-1) * (theirs[:, :-1].log_softmax(-1) - logits[:, :-1].log_softmax(-1))).sum(-1)
    torch.testing.assert_close(each, expected)
    torch.testing.assert_close(Distillation().divergence(student, taught), each[counted].mean())
    torch.testing.assert_close(Distillation(reduction="published").divergence(student, taught), each.sum() / 2)
    assert float(Distillation().divergence(student, logits[:, :-1])) == pytest.approx(0, abs=1e-6)


def test_a_models_own_predictions_are_at_its_targets() -> None:
    case = build("llama", 2)
    found = own_prediction(case.model, case.inputs)
    ids, mask = case.inputs["input_ids"], case.inputs["attention_mask"]
    assert torch.equal(found.counted, mask[:, 1:] == 1)
    targets = ids[:, 1:][found.counted]
    loss = F.cross_entropy(found.logits[found.counted].float(), targets)
    torch.testing.assert_close(found.loss, loss)
    encoder_decoder = build("t5", 2)
    assert own_prediction(encoder_decoder.model, encoder_decoder.inputs).logits.shape[:2] == (2, 4)
    contrastive = build("clip", 2)
    assert own_prediction(contrastive.model, contrastive.inputs).logits.shape == (4, 2)


def test_distillation_serves_the_structured_road() -> None:
    case = build("vit", 2)
    dense = copy.deepcopy(case.model)
    search = Search(case.model, UPop(ratio=0.4), total_steps=1)
    predict(case.model, case.inputs).loss.backward()
    search.step()
    small = extract(case.model, search.plan())
    blocks = list(dict.fromkeys(m.block for m in matrices(small)))
    lesson = Lesson(Distillation(weight=0.9, features=1.0), predict, dense, blocks)
    expected = predict(dense, case.inputs).logits
    before = lesson(small, case.inputs).item()
    training = Training(steps=40, batch_size=2, learning_rate=1e-3, weight_decay=0.0, bf16=False)
    with tempfile.TemporaryDirectory() as folder:
        finetune(small, training, Path(folder), Items(case.inputs), stack, lesson)
    small.eval()
    assert lesson(small, case.inputs).item() < before
    assert torch.equal(predict(dense, case.inputs).logits, expected)


def test_stored_logits_teach_like_the_teacher_and_random_data_are_refused(tmp_path) -> None:
    dense, model, inputs = pruned("llama", seed=4)
    same = copy.deepcopy(model)
    data = Items({"input_ids": inputs["input_ids"]})
    width = dense.config.vocab_size
    training = QUICK.model_copy(update={"steps": 4})
    repair(model, RESSA(rank=2), data, training, dense, collate=stack)
    repair(
        same,
        RESSA(rank=2, distillation=Distillation(top_k=width)),
        data,
        training,
        dense,
        collate=stack,
        folder=tmp_path,
    )
    for m in matrices(model):
        torch.testing.assert_close(
            model.get_submodule(m.name).weight, same.get_submodule(m.name).weight, rtol=1e-3, atol=1e-5
        )
    assert list((tmp_path / "teacher").glob("*.safetensors"))

    class Random(Items):
        def __getitem__(self, index: int) -> dict[str, Tensor]:
            return {"input_ids": torch.randint(10, 40, (7,))}

    dense, model, inputs = pruned("llama", seed=4)
    with pytest.raises(PrunusError, match="randomness"):
        repair(model, RESSA(rank=2, distillation=Distillation(top_k=4)), Random({}), QUICK, dense, collate=stack)


class _StopError(Exception):
    pass


class _Stopping(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == self.step:
            raise _StopError


@pytest.mark.parametrize("method", [RESSA(rank=2), MaskedFinetune()], ids=lambda m: m.method)
def test_a_repair_that_was_stopped_goes_on_with_the_same_bits(tmp_path, method: Any) -> None:
    results = []
    for stop_at in (None, 2):
        dense, model, inputs = pruned("t5", SparseGPT(sparsity=0.5))
        folder = tmp_path / str(stop_at)
        if stop_at is not None:
            victim = copy.deepcopy(model)
            with pytest.raises(_StopError):
                repair(
                    victim, method, Items(inputs), QUICK, dense, predict, stack, folder, callbacks=[_Stopping(stop_at)]
                )
            assert victim.state_dict().keys() == model.state_dict().keys(), "no adapter is left behind"
            check_zeros(victim, zeros_of(model))
        repair(model, method, Items(inputs), QUICK, dense, predict, stack, folder)
        results.append(model.state_dict())
    whole, resumed = results
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_a_repaired_model_is_a_plain_checkpoint(tmp_path) -> None:
    dense, model, inputs = pruned("blip_vqa")
    repair(model, RESSA(rank=2), Items(inputs), QUICK, dense, predict, stack)
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path).eval()
    assert again.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        for left, right in zip(outputs(model.eval()(**inputs)), outputs(again(**inputs)), strict=True):
            assert torch.equal(left, right)


def test_a_lost_zero_is_refused_by_name() -> None:
    _, model, _ = pruned("vit")
    masks = zeros_of(model)
    name = next(iter(masks))
    model.get_submodule(name).weight.data.fill_(1.0)
    with pytest.raises(PrunusError, match="not zero any more") as caught:
        check_zeros(model, masks)
    assert caught.value.field == name


def test_small_types_keep_what_stays() -> None:
    weight = torch.full((2, 8), 1.0, dtype=torch.float16)
    packed = BitMask(torch.ones(2, 8, dtype=torch.bool)).packed
    made = effective_weight(weight, torch.ones(1, 8), torch.full((2, 1), -1.0), packed, 1.0)
    assert made.dtype == torch.float32
    assert bool((made == 0).all())
    _, model, _ = pruned("llama")
    model = model.half()
    masks = zeros_of(model)
    adapters = Adapters(model, masks, 1, 1.0)
    layer = next(iter(adapters.layers.values()))
    layer.linear.lora_A.data.zero_()
    layer.linear.lora_A.data[0] = -layer.linear.weight.data[0].float()
    layer.linear.lora_B.data[0, 0] = 1.0
    adapters.merge()
    assert bool(layer.linear.weight[0].ne(0).equal(masks[next(iter(masks))].unpack()[0]))


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: RESSA(rank=0), "rank"),
        (lambda: MaskedLoRA(alpha=0), "alpha"),
        (lambda: Distillation(weight=1.5), "weight"),
        (lambda: Distillation(top_k=4, features=1.0), "top_k"),
    ],
)
def test_wrong_settings_are_named(make: Any, field: str) -> None:
    with pytest.raises(PrunusError) as caught:
        make()
    assert caught.value.field.startswith(field)


def test_missing_teachers_and_zeros_are_named() -> None:
    dense, model, inputs = pruned("vit")
    with pytest.raises(PrunusError, match="teacher"):
        repair(model, RESSA(), Items(inputs), QUICK, None, predict, stack)
    with pytest.raises(PrunusError, match="prune it"):
        repair(dense, MaskedLoRA(), Items(inputs), QUICK, None, predict, stack)
    with pytest.raises(PrunusError, match="before it was pruned"):
        repair(model, RESSA(), Items(inputs), QUICK, build("vit", 9).model, predict, stack)


@pytest.mark.parametrize(
    "method", [RESSA(), MaskedLoRA(rank=2), LoRA(rank=2), MaskedFinetune()], ids=lambda m: m.method
)
def test_two_prunings_are_both_repaired(method: Any) -> None:
    case = build("clip", 3)
    dense = copy.deepcopy(case.model)
    prune(case.model, Wanda(sparsity=0.6), [case.inputs], include=["vision"], options=QUIET)
    prune(case.model, Magnitude(sparsity=0.3), [case.inputs], include=["text"], options=QUIET)
    before = zero_positions(case.model)
    repair(case.model, method, Items(case.inputs), QUICK, dense, predict, stack)
    after = zero_positions(case.model)
    assert all(torch.equal(zeros, after[name]) for name, zeros in before.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [RESSA(), LoRA(rank=2), MaskedFinetune()], ids=lambda m: m.method)
@pytest.mark.parametrize("name", ["llama", "blip2_t5"])
def test_half_precision_models_are_repaired_outside_of_autocast(name: str, method: Any, dtype: torch.dtype) -> None:
    dense, model, inputs = pruned(name)
    dense, model = dense.to(dtype), model.to(dtype)
    before = zero_positions(model)
    typed = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    training = QUICK.model_copy(update={"learning_rate": 1e-4})
    repair(model, method, Items(typed), training, dense, predict, stack)
    after = zero_positions(model)
    assert all(torch.equal(zeros, after[key]) for key, zeros in before.items())
    assert all(p.dtype == dtype for p in model.parameters())


def test_a_teacher_that_differs_elsewhere_stays_a_model_of_its_own() -> None:
    dense, model, inputs = pruned("llama")
    model.model.norm.weight.data.add_(1.0)  # as if something had been trained since
    with torch.no_grad():
        expected = predict(dense, inputs).logits
    seen: list[Tensor] = []

    def watching(asked: nn.Module, batch: dict[str, Tensor]) -> Prediction:
        prediction = predict(asked, batch)
        if not torch.is_grad_enabled():
            seen.append(prediction.logits)
        return prediction

    repair(model, RESSA(rank=2), Items(inputs, len(expected)), QUICK, dense, watching, stack)
    assert all(any(torch.allclose(row, known, atol=1e-5) for known in expected) for logits in seen for row in logits)


def test_layers_that_share_a_weight_share_its_adapter() -> None:
    dense, model, inputs = pruned("vit", seed=5)
    first, second = (
        layer.mlp.fc1 if hasattr(layer, "mlp") else layer.intermediate.dense for layer in _layers(model)[:2]
    )
    second.weight = first.weight
    kept = first.weight != 0
    adapters = Adapters(model, zeros_of(model), 2, 4.0, teacher=_tied(dense))
    for layer in adapters.layers.values():
        layer.linear.lora_B.data.normal_(0, 0.1)
    with torch.no_grad():
        expected = predict(model, inputs).logits
        adapters.merge()
        torch.testing.assert_close(predict(model, inputs).logits, expected)
    assert second.weight is first.weight
    assert torch.equal(first.weight != 0, kept)


def _layers(model: nn.Module) -> list[Any]:
    return list(next(module for module in model.modules() if isinstance(module, nn.ModuleList)))


def _tied(model: nn.Module) -> nn.Module:
    first, second = (
        layer.mlp.fc1 if hasattr(layer, "mlp") else layer.intermediate.dense for layer in _layers(model)[:2]
    )
    second.weight = first.weight
    return model


def test_a_folder_and_its_stored_logits_belong_to_one_repair(tmp_path) -> None:
    dense, model, inputs = pruned("llama", seed=4)
    data = Items({"input_ids": inputs["input_ids"]})
    stored = RESSA(rank=2, distillation=Distillation(top_k=4))
    repair(copy.deepcopy(model), stored, data, QUICK, dense, collate=stack, folder=tmp_path)
    for other, training, said in (
        (RESSA(rank=1), QUICK, "trains differs|method differs"),
        (stored, QUICK.model_copy(update={"learning_rate": 1e-3}), "training differs"),
    ):
        with pytest.raises(PrunusError, match=said):
            repair(copy.deepcopy(model), other, data, training, dense, collate=stack, folder=tmp_path)
    with pytest.raises(PrunusError, match="items 8, not 9"):
        repair(copy.deepcopy(model), stored, Items(data.inputs, 9), QUICK, dense, collate=stack, folder=tmp_path)


def test_accumulated_batches_weigh_as_one_batch(tmp_path) -> None:
    norms = []
    for number, (size, accumulation) in enumerate(((4, 1), (2, 2))):
        _, model, inputs = pruned("llama", seed=4)
        ids = inputs["input_ids"][:1]
        data = Items({"input_ids": ids, "labels": ids})
        training = QUICK.model_copy(update={"batch_size": size, "gradient_accumulation": accumulation, "steps": 5})
        log = repair(model, MaskedFinetune(), data, training, collate=stack, folder=tmp_path / str(number))
        norms.append(next(row["grad_norm"] for row in log if "grad_norm" in row))
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_learning_rates_of_towers_that_are_not_there_are_named() -> None:
    _, model, inputs = pruned("vit")
    training = QUICK.model_copy(update={"tower_learning_rates": {"visoin": 1e-3}})
    with pytest.raises(PrunusError, match="no such tower") as caught:
        repair(model, MaskedFinetune(), Items(inputs), training, None, predict, stack)
    assert caught.value.field == "tower_learning_rates"
