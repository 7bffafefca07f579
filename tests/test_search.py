"""Search: gate gradients, schedules, course, state, and the Trainer."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

from prunus import Progressive, PrunusError, Search, SearchCallback, UPop, anatomy, extract
from prunus.anatomy import Unit, linears
from prunus.structured.closing.schedules import SCHEDULES
from prunus.structured.gates import Gates
from prunus.structured.scores import gate_gradient, standardise
from tests.families import FAMILIES, IMAGE, PATCH, WITH_EXPERTS, Case, build, one_half
from tests.test_equivalence import TOLERANCE, deviation, outputs


def loss_of(case: Any) -> torch.Tensor:
    return sum(tensor.float().square().mean() for tensor in outputs(case.model(**case.inputs)))  # type: ignore[return-value]


def gate_by_hand(model: nn.Module, unit: Unit, zeta: torch.Tensor) -> None:
    """Multiplies what the producers of a unit put out in plain torch: of experts, where their kernels apply gate and activation."""
    for path in (unit.path, *unit.twins):
        for site, layer in linears(model, unit, path)[:-1]:
            if layer.is_fused:
                of_rows = unit.spread(zeta, site.repeats // len(layer.weight), site.order)
                own = layer.owner._apply_gate
                layer.owner._apply_gate = lambda out, z=of_rows, own=own: own(out * z)
            else:
                of_features = unit.spread(zeta, site.repeats, site.order)
                layer.owner.register_forward_hook(lambda _, __, out, z=of_features: out * z)


@pytest.mark.parametrize("name", one_half([*FAMILIES, *WITH_EXPERTS], 0))
def test_weight_gradients_give_the_gate_gradient(name: str) -> None:
    """The identity, against autograd on real gates, at fractional gates."""
    case = build(name, 5)
    units = anatomy(case.model).units
    gates = Gates(case.model, units)
    values = {unit.name: torch.rand(unit.channels) * 0.8 + 0.2 for unit in units}
    gates.set(values)
    loss_of(case).backward()
    ours = {unit.name: gate_gradient(case.model, unit, values[unit.name]) for unit in units}
    gates.remove()

    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    for unit in units:
        gate_by_hand(case.model, unit, leaves[unit.name])
    case.model.zero_grad()
    loss_of(case).backward()
    for unit in units:
        expected = leaves[unit.name].grad
        if expected is None:
            assert ours[unit.name] is None
            continue
        torch.testing.assert_close(ours[unit.name], expected, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("name", [*FAMILIES, *WITH_EXPERTS])
def test_search_plan_and_extract_as_in_the_readme(name: str) -> None:
    case = build(name, 6)
    search = Search(case.model, UPop(ratio=0.3, interval=1), total_steps=2)
    optimizer = torch.optim.AdamW(case.model.parameters(), lr=1e-3)
    for _ in range(2):
        loss_of(case).backward()
        search.step()
        optimizer.step()
        optimizer.zero_grad()
    plan = search.plan()
    assert sum(unit.channels for unit in search.units) > sum(len(unit.kept) for unit in plan.units.values())
    with torch.no_grad():
        wide = outputs(case.model(**case.inputs))
        narrow = outputs(extract(case.model, plan)(**case.inputs))
        search.close()
        whole = outputs(case.model(**case.inputs))
    assert deviation(wide, narrow) <= TOLERANCE
    assert deviation(whole, narrow) > 10 * TOLERANCE


def test_a_search_adds_nothing_to_the_model() -> None:
    case = build("vit", 0)
    keys = set(case.model.state_dict())
    search = Search(case.model, UPop(ratio=0.5), total_steps=3)
    assert set(case.model.state_dict()) == keys
    search.close()
    assert not any(module._forward_hooks for module in case.model.modules())


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_schedules_rise_to_exactly_one(schedule: Any, steps: int) -> None:
    values = [Progressive(schedule=schedule, interval=1).share(t, steps, 0.6) for t in range(steps)]
    assert values == sorted(values)  # type: ignore[type-var]
    assert values[-1] == 1.0
    assert min(values) >= 0  # type: ignore[type-var, operator]


def train(case: Any, method: UPop, steps: int, search: Search | None = None) -> Search:
    search = search or Search(case.model, method, steps)
    optimizer = torch.optim.AdamW(case.model.parameters(), lr=1e-3)
    for _ in range(steps):
        loss_of(case).backward()
        search.step()
        optimizer.step()
        optimizer.zero_grad()
    return search


def wide_vit() -> Case:
    """Wide enough that multiples of eight leave a choice."""
    config = ViTConfig(
        hidden_size=64, num_attention_heads=2, num_hidden_layers=2, intermediate_size=60, image_size=IMAGE,
        patch_size=PATCH, num_labels=5,
    )  # fmt: skip
    return Case(ViTForImageClassification(config).eval(), {"pixel_values": torch.randn(2, 3, IMAGE, IMAGE)})


@pytest.mark.parametrize("align", [1, 8])
@pytest.mark.parametrize("normalize", ["sum", "step"])
@pytest.mark.parametrize("cost", ["parameters", "channels"])
def test_a_search_ends_at_its_budget_with_binary_gates(align: Any, normalize: Any, cost: Any) -> None:
    case = build("blip_vqa", 0) if align == 1 else wide_vit()
    ratio = 0.4
    method = UPop(ratio=ratio, align=align, normalize=normalize, cost=cost, interval=2, hold=0.25)
    search = train(case, method, 12)
    costs = method.unit_costs(search.units)
    total = sum(costs[unit.name] * unit.channels for unit in search.units)
    assert abs(search.ratio - ratio) <= align * max(costs.values()) / total
    assert all(set(gate.unique().tolist()) <= {0.0, 1.0} for gate in search.gates.values.values())
    assert search.course[-1][0] == 9, "the hold phase begins at three quarters"
    with torch.no_grad():
        wide = outputs(case.model(**case.inputs))
        small = extract(case.model, search.plan())
        for first, second in zip(wide, outputs(small(**case.inputs)), strict=True):
            torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)


def test_the_standard_score_is_per_kind() -> None:
    case = build("blip_vqa", 0)
    units = anatomy(case.model).units
    scores = {unit.name: torch.randn(unit.channels) * (100 if unit.is_attention else 1) + 7 for unit in units}
    standard = standardise(scores, units)
    for attention in (True, False):
        pooled = torch.cat([standard[unit.name] for unit in units if unit.is_attention == attention])
        assert pooled.mean().abs() < 1e-5
        assert abs(float(pooled.std()) - 1) < 1e-5


def test_include_and_exclude_name_towers_components_and_units() -> None:
    model = build("blip_vqa", 0).model
    search = Search(model, UPop(ratio=0.3, include=("vision", "decoder.mlp"), exclude=("*layers.0*",)), 1)
    assert all(unit.tower == "vision" or unit.component == "decoder.mlp" for unit in search.units)
    assert not any("layers.0" in unit.name for unit in search.units)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ratio": 1.5}, "ratio = 1.5"),
        ({"ratio": 0.5, "alignment": 8}, "did you mean align"),
        ({"ratio": 0.5, "schedule": "cosin"}, "schedule = 'cosin'"),
        ({}, "ratio"),
    ],
)
def test_a_wrong_method_names_field_value_and_remedy(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PrunusError, match=message):
        UPop(**fields)


def test_requests_that_cannot_work_fail_before_training() -> None:
    model = build("vit", 0).model
    with pytest.raises(PrunusError, match="matches no unit"):
        Search(model, UPop(ratio=0.5, include=("language",)), 10)
    with pytest.raises(PrunusError, match="at most"):
        Search(model, UPop(ratio=0.99, min_channels=10), 10)
    with pytest.raises(PrunusError, match="nothing to prune"):
        Search(nn.Sequential(nn.Linear(3, 3)), UPop(ratio=0.5), 10)
    for wrong in (("vit", UPop(ratio=0.5), 10), (model, {"ratio": 0.5}, 10), (model, UPop(ratio=0.5), 0.5)):
        with pytest.raises(PrunusError, match="give"):
            Search(*wrong)  # type: ignore[arg-type]
    search = Search(model, UPop(ratio=0.5), 10)
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(PrunusError, match="grad_scale"):
            search.step(scale)


def test_saved_state_continues_bit_for_bit(tmp_path) -> None:
    def fresh() -> Any:
        return build("bert", 3)

    method = UPop(ratio=0.5, interval=1)
    whole = train(fresh(), method, 6)
    case = fresh()
    search = Search(case.model, method, 6)
    optimizer = torch.optim.AdamW(case.model.parameters(), lr=1e-3)
    for step in range(6):
        if step == 3:
            search.save(tmp_path / "state.safetensors")
            search.close()
            search = Search(case.model, method, 6)
            search.load(tmp_path / "state.safetensors")
        loss_of(case).backward()
        search.step()
        optimizer.step()
        optimizer.zero_grad()
    assert search.plan() == whole.plan()
    assert search.course == whole.course
    with pytest.raises(PrunusError, match="another search"):
        Search(fresh().model, UPop(ratio=0.4), 6).load(tmp_path / "state.safetensors")
    with pytest.raises(PrunusError, match="another model"):
        Search(build("bert", 4).model, method, 6).load(tmp_path / "state.safetensors")
    data, broken = (tmp_path / "state.safetensors").read_bytes(), tmp_path / "broken.safetensors"
    for damaged in (b"no", data[: len(data) // 2], b"", data[:8] + b"x" + data[9:]):
        broken.write_bytes(damaged)
        with pytest.raises(PrunusError, match=r"broken\.safetensors"):
            Search(fresh().model, method, 6).load(broken)
    with pytest.raises(PrunusError, match=r"absent\.safetensors"):
        search.load(tmp_path / "absent.safetensors")


class _Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Token rows; 13 of them, so that accumulation meets a remainder."""

    def __init__(self) -> None:
        self.ids = torch.randint(10, 50, (13, 7), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def _trainer(folder: Any, method: UPop, **arguments: Any) -> tuple[Trainer, SearchCallback]:
    model = build("llama", 4).model
    callback = SearchCallback(method)
    settings = {
        "output_dir": str(folder), "max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 1e-2,
        "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no", "use_cpu": True,
    } | arguments  # fmt: skip
    data = _Rows()
    return Trainer(model, TrainingArguments(**settings), None, data, data, callbacks=[callback]), callback


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_callback_searches_under_the_trainer(tmp_path, bf16: bool, accumulation: int) -> None:
    method = UPop(ratio=0.4, interval=2)
    trainer, callback = _trainer(tmp_path, method, bf16=bf16, gradient_accumulation_steps=accumulation)
    trainer.train()
    assert callback.search is not None
    assert callback.search.steps_done == 6
    plan = callback.plan()
    costs = method.unit_costs(callback.search.units)
    total = sum(costs[unit.name] * unit.channels for unit in callback.search.units)
    assert abs(plan.ratio - 0.4) <= max(costs.values()) / total
    extract(trainer.model, plan)


def test_scores_are_read_before_clipping_and_clipping_still_happens(tmp_path) -> None:
    method = UPop(ratio=0.4)
    scores, norms = {}, {}
    for clip in (0.0, 1e-4):
        trainer, callback = _trainer(tmp_path, method, max_steps=1, max_grad_norm=clip)

        def record(optimizer: Any, *_: Any, clip: float = clip) -> None:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            norms[clip] = float(torch.stack([g.norm() for g in gradients]).norm())

        trainer.create_optimizer()
        trainer.optimizer.register_step_pre_hook(record)
        trainer.train()
        scores[clip] = callback.search.method_state["score"]  # type: ignore[union-attr]
        assert trainer.args.max_grad_norm == clip
    assert norms[1e-4] == pytest.approx(1e-4, rel=1e-2)
    assert norms[0.0] > 0.1
    for name, score in scores[0.0].items():
        torch.testing.assert_close(score, scores[1e-4][name])


def test_the_trainer_resumes_a_search_bit_for_bit(tmp_path) -> None:
    method = UPop(ratio=0.4, interval=1)
    whole, first = _trainer(tmp_path / "whole", method)
    whole.train()
    broken, _ = _trainer(tmp_path / "broken", method, save_strategy="steps", save_steps=3)
    broken.train()
    again, second = _trainer(tmp_path / "broken", method)
    again.train(resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-3"))
    assert first.plan() == second.plan()
    state = again.model.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in whole.model.state_dict().items())


def test_a_resumed_search_goes_on_from_its_own_checkpoint_wherever_that_lies(tmp_path) -> None:
    method = UPop(ratio=0.4, interval=1)
    saving = {"save_strategy": "steps", "save_steps": 3}
    whole, first = _trainer(tmp_path / "whole", method, **saving)
    whole.train()
    other, _ = _trainer(tmp_path / "other", method, learning_rate=0.05, **saving)
    other.train()
    (tmp_path / "whole" / "checkpoint-3").rename(tmp_path / "moved")
    for folder in ("new", "other"):
        again, second = _trainer(tmp_path / folder, method)
        again.train(resume_from_checkpoint=str(tmp_path / "moved"))
        assert second.plan() == first.plan()
        assert second.search.course == first.search.course  # type: ignore[union-attr]

    plain = Trainer(build("llama", 4).model, other.args, train_dataset=_Rows())
    plain.args.output_dir = str(tmp_path / "plain")
    plain.train()
    again, _ = _trainer(tmp_path / "plain", method)
    with pytest.raises(PrunusError, match="holds no state of a search"):
        again.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-3"))


def test_a_finished_script_that_runs_again_ends_with_the_same(tmp_path) -> None:
    method = UPop(ratio=0.4, interval=1)
    once, first = _trainer(tmp_path, method, save_strategy="steps", save_steps=3)
    once.train()
    folders = sorted(path.name for path in tmp_path.iterdir())
    for _ in range(2):
        again, second = _trainer(tmp_path, method, save_strategy="steps", save_steps=3)
        again.train(resume_from_checkpoint=True)
        assert second.plan() == first.plan()
        assert again.state.global_step == 6
        state = again.model.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in once.model.state_dict().items())
        assert sorted(path.name for path in tmp_path.iterdir()) == folders


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}, "retrain the extracted"),
        ({"torch_compile": True}, "compiled code"),
    ],
)
def test_trainer_settings_that_would_spoil_a_plan_are_refused_when_the_trainer_is_made(
    tmp_path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(PrunusError, match=words):
        _trainer(tmp_path, UPop(ratio=0.4), **settings)


def test_replicas_in_one_process_are_refused() -> None:
    plain = {"load_best_model_at_end": False, "torch_compile": False, "deepspeed": None, "fsdp": []}
    callback = SearchCallback(UPop(ratio=0.5))
    for devices in (0, 1):
        callback.on_init_end(SimpleNamespace(**plain, n_gpu=devices), None, None)
    for more, field in (
        ({"n_gpu": 2}, "n_gpu"),
        ({"n_gpu": 1, "deepspeed": "x"}, "deepspeed"),
        ({"n_gpu": 1, "fsdp": ["x"]}, "fsdp"),
    ):
        with pytest.raises(PrunusError, match=field):
            callback.on_init_end(SimpleNamespace(**{**plain, **more}), None, None)


def test_a_callback_that_the_trainer_would_replace_says_so(tmp_path) -> None:
    method = UPop(ratio=0.4, interval=1)
    _trainer(tmp_path, method, save_strategy="steps", save_steps=3)[0].train()
    again, _ = _trainer(tmp_path, method, restore_callback_states_from_checkpoint=True)
    with pytest.raises(PrunusError, match="restore_callback_states_from_checkpoint"):
        again.train(resume_from_checkpoint=True)


def test_saving_a_model_that_is_being_searched_is_no_secret(tmp_path) -> None:
    case = build("vit", 0)
    search = Search(case.model, UPop(ratio=0.5), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        case.model.save_pretrained(tmp_path / "open")  # every gate is one
    steps(search, case, 1)
    with pytest.warns(UserWarning, match="saved without the gates"):
        case.model.save_pretrained(tmp_path / "masked")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extract(case.model, search.plan()).save_pretrained(tmp_path / "small")
        search.close()
        case.model.save_pretrained(tmp_path / "closed")

    trainer, _ = _trainer(tmp_path / "run", UPop(ratio=0.4, interval=1), save_strategy="steps", save_steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer.train()  # a checkpoint of the Trainer carries the gates
    with pytest.warns(UserWarning, match="saved without the gates"):
        trainer.save_model(str(tmp_path / "final"))


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_an_optimiser_over_weights_that_extraction_replaced_is_refused(optimizer: Any) -> None:
    case = build("vit", 0)
    search, old = Search(case.model, UPop(ratio=0.5), 1), optimizer(case.model.parameters(), lr=1e-3)
    steps(search, case, 1)
    old.step()
    extract(case.model, search.plan())  # a copy: the optimiser goes on with the original
    old.step()
    small = extract(case.model, search.plan(), inplace=True)
    loss_of(Case(small, case.inputs)).backward()
    with pytest.raises(PrunusError, match="make a new one"):
        old.step()
    optimizer(small.parameters(), lr=1e-3).step()


def test_clipping_comes_back_after_an_interruption(tmp_path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

    trainer, callback = _trainer(tmp_path, UPop(ratio=0.4), max_grad_norm=0.5)
    stop = Stop()
    trainer.add_callback(stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(stop)
    trainer.train()
    assert callback._max_grad_norm == trainer.args.max_grad_norm == 0.5


def steps(search: Search, case: Any, count: int) -> None:
    for _ in range(count):
        loss_of(case).backward()
        search.step()


def test_gradients_that_are_not_finite_or_never_come_are_named() -> None:
    case = build("vit", 2)
    search = Search(case.model, UPop(ratio=0.5), 4)
    loss_of(case).backward()
    unit = search.units[1]
    linear = case.model.get_submodule(unit.linear_paths[0])
    linear.weight.grad[0, 0] = math.nan
    with pytest.raises(PrunusError, match="not finite") as caught:
        search.step()
    assert caught.value.value == unit.name
    case.model.zero_grad()
    with pytest.raises(PrunusError, match="after backward"):
        search.step()


@pytest.mark.parametrize("parameter", ["weight", "bias"])
def test_units_that_are_frozen_in_part_are_refused_by_name(parameter: str) -> None:
    """The gradient of a gate is the sum over all that it multiplies; without one of them it is another number."""
    case = build("vit", 2)
    search = Search(case.model, UPop(ratio=0.5), 4)
    unit = search.units[0]
    frozen = f"{unit.path}.{unit.producers[-1].linear}.{parameter}"
    steps(search, case, 1)
    case.model.get_parameter(frozen).requires_grad_(False)
    with pytest.raises(PrunusError, match="frozen") as caught:
        steps(search, case, 4)
    assert caught.value.value == unit.name
    search.close()
    with pytest.raises(PrunusError, match=f"{frozen} is frozen") as caught:
        Search(case.model, UPop(ratio=0.5), 4)
    assert caught.value.value == unit.name
    Search(case.model, UPop(ratio=0.5, exclude=(unit.name,)), 4)


def test_models_that_cannot_be_watched_are_refused_before_the_first_step() -> None:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(build("llama", 0).model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(PrunusError, match="only its adapters train"):
        Search(adapted, UPop(ratio=0.5), 2).step()
    every = peft.get_peft_model(build("llama", 0).model, peft.LoraConfig(r=2, target_modules="all-linear"))
    compiled = build("vit", 0).model
    compiled.compile()
    with torch.device("meta"):
        absent = ViTForImageClassification(ViTConfig(num_hidden_layers=1))
    searched = build("vit", 0).model
    open_search = Search(searched, UPop(ratio=0.5), 1)
    for model, words in (
        (every, "lora.layer.Linear"), (compiled, "compile"), (torch.compile(build("vit", 0).model), "compile"),
        (nn.DataParallel(build("vit", 0).model), "torchrun"), (absent, "not in memory"), (searched, "another search"),
    ):  # fmt: skip
        with pytest.raises(PrunusError, match=words):
            Search(model, UPop(ratio=0.5), 1)
    open_search.close()
    Search(searched, UPop(ratio=0.5), 1)


def test_weights_sharded_in_part_are_refused_and_replicas_of_processes_are_looked_through(tmp_path) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        case = build("llama", 0)
        search = Search(nn.parallel.DistributedDataParallel(case.model), UPop(ratio=0.5, interval=1), 1)
        assert search.model is case.model
        steps(search, case, 1)
        extract(case.model, search.plan())
        sharded = build("llama", 0).model
        fully_shard(sharded.model.layers[0], mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(PrunusError, match="sharded"):
            Search(sharded, UPop(ratio=0.5), 1)
    finally:
        dist.destroy_process_group()


def test_a_loss_scaler_changes_nothing() -> None:
    scores = {}
    for kind in ("plain", "scaled", "unscaled"):
        case = build("vit", 2)
        search = Search(case.model, UPop(ratio=0.5, interval=1), 3)
        optimizer = torch.optim.SGD(case.model.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1, enabled=kind != "plain")
        for _ in range(3):
            scaler.scale(loss_of(case)).backward()
            if kind == "unscaled":
                scaler.unscale_(optimizer)
            search.step(scaler=scaler)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        scores[kind] = search.method_state["score"]
    for kind in ("scaled", "unscaled"):
        for name, score in scores["plain"].items():
            torch.testing.assert_close(scores[kind][name], score, rtol=1e-3, atol=1e-5)


def test_under_the_trainers_loss_scaler_gradients_are_read_and_clipped_at_their_size(tmp_path) -> None:
    """What the Trainer does with fp16, which it offers on GPUs alone: accelerate's optimiser carries the scaler."""
    scores, norms = {}, {}
    for scale in (1.0, 2.0**10):
        case = build("vit", 2)
        callback = SearchCallback(UPop(ratio=0.5))
        arguments = TrainingArguments(str(tmp_path), max_grad_norm=1e-3, use_cpu=True, report_to="none")
        Accelerator(cpu=True)
        state = SimpleNamespace(max_steps=1, global_step=0)
        callback.on_train_begin(arguments, state, None, case.model)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale > 1)
        plain = torch.optim.SGD(case.model.parameters(), lr=1e-3)
        optimizer = AcceleratedOptimizer(plain, device_placement=False, scaler=scaler if scale > 1 else None)
        scaler.scale(loss_of(case)).backward()
        callback.on_pre_optimizer_step(arguments, state, None, case.model, optimizer=optimizer)
        norms[scale] = float(torch.stack([p.grad.norm() for p in case.model.parameters() if p.grad is not None]).norm())
        optimizer.step()
        assert not optimizer.step_was_skipped
        scores[scale] = callback.search.method_state["score"]  # type: ignore[union-attr]
    assert norms == {1.0: pytest.approx(1e-3, rel=1e-2), 2.0**10: pytest.approx(1e-3, rel=1e-2)}
    for name, score in scores[1.0].items():
        torch.testing.assert_close(scores[2.0**10][name], score)


def test_a_step_that_the_loss_scaler_skips_counts_and_adds_nothing() -> None:
    case = build("vit", 2)
    search, scaler = Search(case.model, UPop(ratio=0.5, interval=1), 3), torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(case)).backward()
    search.step(scaler=scaler)
    before = {name: score.clone() for name, score in search.method_state["score"].items()}
    case.model.get_submodule(search.units[1].linear_paths[0]).weight.grad[0, 0] = math.inf
    search.step(scaler=scaler)
    assert search.steps_done == 2
    assert all(torch.equal(score, before[name]) for name, score in search.method_state["score"].items())


def test_gradients_that_are_never_finite_give_no_plan() -> None:
    case = build("vit", 2)
    search, scaler = Search(case.model, UPop(ratio=0.5, interval=1), 2), torch.amp.GradScaler("cpu")
    (loss_of(case) * math.nan).backward()
    search.step(scaler=scaler)
    assert not search.course
    with pytest.raises(PrunusError, match="every step"):
        search.step(scaler=scaler)
    with pytest.raises(PrunusError, match="the ratio is not reached"):
        search.plan()


def test_the_published_cut_refuses_what_it_ignores() -> None:
    for fields in ({"align": 8}, {"min_channels": 2}):
        with pytest.raises(PrunusError, match="knows neither"):
            UPop(ratio=0.5, cost="reference", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gated_layer_computes_the_same_whether_its_outputs_or_its_weights_are_multiplied(dtype: torch.dtype) -> None:
    """The weights are where a layer has more outputs than twice its weights; only for the time of the call."""
    found = {}
    for tokens in (25, 400):
        case = build("vit", 0)
        model = case.model.to(dtype)
        unit = anatomy(model).units[-1]
        layer: Any = model.get_submodule(f"{unit.path}.fc1")
        gates = Gates(model, [unit])
        gates.set({unit.name: torch.linspace(-0.5, 1, unit.channels)})
        torch.manual_seed(1)
        inputs = torch.randn(400, layer.in_features, dtype=dtype)
        rows = [layer(part) for part in inputs.split(tokens)]
        slope = torch.randn(400, layer.out_features, dtype=dtype)
        torch.cat(rows).backward(slope)
        found[tokens] = [torch.cat(rows).detach(), layer.weight.grad, layer.bias.grad]
        assert isinstance(layer.weight, nn.Parameter)
        gates.remove()
        assert not layer._forward_hooks
        assert not layer._forward_pre_hooks
    near = {"rtol": 2e-5, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.2}
    for few, many in zip(*found.values(), strict=True):
        torch.testing.assert_close(few, many, **near)


def test_a_layer_that_fails_keeps_its_own_weights() -> None:
    model = build("vit", 0).model
    unit = anatomy(model).units[-1]
    layer: Any = model.get_submodule(f"{unit.path}.fc1")
    gates = Gates(model, [unit])
    gates.set({unit.name: torch.full((unit.channels,), 0.5)})
    with pytest.raises(RuntimeError):
        layer(torch.randn(900, layer.in_features + 1))
    assert isinstance(layer.weight, nn.Parameter)
    assert "weight" not in vars(layer)
