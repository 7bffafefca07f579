"""What a GPU computes against what the CPU computes, and what it costs there: `python -m benchmarks.accelerator`.

Prints three tables: every family of the tests (masked against extracted, a reload, the same masks and plans as on the CPU),
half precision (zeros after a repair under fp16 and bf16), and times and memory of a LLaMA of random weights, with the 2:4
kernels. Exits with 1 if anything is not right. `--device cpu` runs the same without a GPU, `--quick` a few families.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tests.families import FAMILIES, build
from tests.test_equivalence import deviation, masked, outputs, random_plan

import prunus
from prunus.batches import for_model

QUIET = prunus.WalkOptions(progress=False)
PRUNERS: tuple[prunus.Pruner, ...] = (
    prunus.Magnitude(sparsity=0.5),
    prunus.Wanda(sparsity=0.5),
    prunus.SparseGPT(sparsity=0.5),
    prunus.DSnoT(sparsity=0.5),
)
AGREEMENT = 0.995
"""Share of positions that must be pruned on both; sums in another order decide near ties differently."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--hidden", type=int, default=2048, help="width of the LLaMA that is timed")
    asked = parser.parse_args()
    tf.logging.set_verbosity_error()
    tf.logging.disable_progress_bar()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.device(asked.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, transformers {tf.__version__}\n")
    families = list(FAMILIES)[::6] if asked.quick else list(FAMILIES)
    wrong = [*_families(families, device), *_half_precision(device), *_costs(asked.hidden, device)]
    print(*wrong, sep="\n")
    sys.exit(bool(wrong))


def _families(families: list[str], device: torch.device) -> list[str]:
    print(
        "| family | masked − extracted | GPU − CPU | reload | Wanda | SparseGPT | DSnoT | from disk | search plan | first order |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    wrong: list[str] = []
    for name in families:
        cells = []
        for check in (_equivalence, _pruners, _disk, _search, _allocation):
            try:
                cells += check(name, device)
            except Exception as error:  # a failed cell is a row of the table, not the end of it
                cells.append(f"WRONG {check.__name__}: {type(error).__name__}: {str(error)[:150]}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        wrong += [f"{name}: {cell}" for cell in cells if cell.startswith("WRONG")]
    return wrong


def _verdict(right: bool, text: str) -> str:
    return text if right else f"WRONG {text}"


@torch.no_grad()
def _equivalence(name: str, device: torch.device) -> list[str]:
    case = build(name, 1)
    plan = random_plan(case.model, 1)
    on_cpu = outputs(prunus.extract(case.model, plan)(**case.inputs))
    model = case.model.to(device)
    inputs = for_model(case.inputs, model)
    small = prunus.extract(model, plan)
    narrow = outputs(small(**inputs))
    with tempfile.TemporaryDirectory() as folder:
        small.save_pretrained(folder)
        again = type(small).from_pretrained(folder, device_map={"": device}).eval()
    masked(model, plan)
    apart = deviation(outputs(model(**inputs)), narrow)
    across = deviation([tensor.cpu() for tensor in narrow], on_cpu)
    same = all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in small.state_dict().items())
    return [
        _verdict(apart <= 1e-5, f"{apart:.0e}"),
        _verdict(across <= 1e-4, f"{across:.0e}"),
        _verdict(same, "same bits" if same else "differs"),
    ]


def _zeros(model: Any) -> dict[str, torch.Tensor]:
    return {matrix.name: matrix.view(model).cpu() == 0 for matrix in prunus.matrices(model)}


def _agreement(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    same = sum(int((first[name] & second[name]).sum()) for name in first)
    return same / max(sum(int(mask.sum()) for mask in first.values()), 1)


def _pruners(name: str, device: torch.device) -> list[str]:
    cells = []
    for method in PRUNERS[1:]:
        masks = []
        for place in ("cpu", device):
            case = build(name, 1)
            prunus.prune(case.model.to(place), method, [case.inputs], options=QUIET)
            masks.append(_zeros(case.model))
        share = _agreement(*masks)
        cells.append(_verdict(share >= AGREEMENT, f"{share:.3%}"))
    return cells


def _disk(name: str, device: torch.device) -> list[str]:
    case = build(name, 1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        case.model.save_pretrained(folder / "dense")
        prunus.prune_folder(folder / "dense", folder / "out", PRUNERS[1], [case.inputs], options=QUIET, device=device)
        from_disk = _zeros(type(case.model).from_pretrained(folder / "out"))
    memory = case.model.to(device)
    prunus.prune(memory, PRUNERS[1], [case.inputs], options=QUIET)
    share = _agreement(_zeros(memory), from_disk)
    return [_verdict(share == 1, f"{share:.3%}")]


def _search(name: str, device: torch.device) -> list[str]:
    kept = []
    for place in ("cpu", device):
        case = build(name, 1)
        model = case.model.to(place)
        inputs = for_model(case.inputs, model)
        search = prunus.Search(model, prunus.UPop(ratio=0.5), total_steps=2)
        for _ in range(2):
            sum(tensor.float().square().mean() for tensor in outputs(model(**inputs))).backward()  # type: ignore[union-attr]
            search.step()
            model.zero_grad()
        kept.append({unit: set(plan.kept) for unit, plan in search.plan().units.items()})
    same = sum(len(kept[0][unit] & kept[1][unit]) for unit in kept[0]) / max(sum(map(len, kept[0].values())), 1)
    return [_verdict(same >= 0.99, f"{same:.2%}")]


def _allocation(name: str, device: torch.device) -> list[str]:
    def loss(model: Any, batch: Any) -> torch.Tensor:
        found = outputs(model(**for_model(batch, model)))
        return sum(tensor.float().square().mean() for tensor in found)  # type: ignore[return-value]

    plans = []
    for place in ("cpu", device):
        case, method = build(name, 1), prunus.ECoFLaP(sparsity=0.5, max_sparsity=0.6)
        plans.append(prunus.allocate(case.model.to(place), method, [case.inputs], loss=loss, progress=False))
    apart = max(abs(a.sparsity - plans[1].matrices[n].sparsity) for n, a in plans[0].matrices.items())
    return [_verdict(apart <= 0.02, f"± {apart:.4f}")]


def _half_precision(device: torch.device) -> list[str]:
    print("\n| repair | type | zeros before and after | loss |\n| --- | --- | --- | --- |")
    wrong = []
    for kind in (torch.bfloat16, torch.float16) if device.type == "cuda" else (torch.bfloat16,):
        for method in (prunus.MaskedFinetune(), prunus.MaskedLoRA(rank=4), prunus.RESSA(rank=4)):
            torch.manual_seed(0)
            config = tf.LlamaConfig(
                hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, vocab_size=500
            )
            model = tf.LlamaForCausalLM(config).to(device, kind).eval()
            dense = copy.deepcopy(model)
            ids = torch.randint(3, 500, (64, 32))
            prunus.prune(model, prunus.Wanda(pattern="2:4"), [{"input_ids": ids}], options=QUIET)
            before = _zeros(model)
            training = prunus.Training(steps=10, batch_size=8, learning_rate=1e-3, bf16=kind == torch.bfloat16)
            rows = [{"input_ids": row} for row in ids]
            course = prunus.repair(model, method, rows, training, teacher=dense if method.distillation else None)
            same = all(torch.equal(mask, _zeros(model)[name]) for name, mask in before.items())
            losses = [row["loss"] for row in course if "loss" in row]
            cell = _verdict(same and losses[-1] < losses[0] * 1.05, f"{'equal' if same else 'differ'}")
            print(
                f"| {method.method} | {str(kind).removeprefix('torch.')} | {cell} | {losses[0]:.3f} → {losses[-1]:.3f} |",
                flush=True,
            )
            wrong += [f"{method.method} {kind}: {cell}"] if cell.startswith("WRONG") else []
    return wrong


def _costs(hidden: int, device: torch.device) -> list[str]:
    config = tf.LlamaConfig(
        hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=8, num_attention_heads=hidden // 64, vocab_size=32000,
    )  # fmt: skip
    kind = torch.bfloat16
    model = tf.LlamaForCausalLM(config).to(device, kind).eval()
    batches = [
        {"input_ids": torch.randint(0, 32000, (4, 512), generator=torch.Generator().manual_seed(seed)).to(device)}
        for seed in range(8)
    ]
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    print(f"\nLLaMA of {weights / 2e9:.2f} B random parameters, bf16, 32 × 512 tokens\n")
    print("| | seconds | bare passes | peak − weights, GB |\n| --- | --- | --- | --- |")

    def timed(run: Callable[[], object]) -> tuple[float, float]:
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - weights if device.type == "cuda" else 0
        return time.perf_counter() - start, peak / 1e9

    @torch.no_grad()
    def forward() -> None:
        for batch in batches:
            model(**batch, logits_to_keep=1)

    forward()
    bare, memory = timed(forward)
    print(f"| two bare passes | {2 * bare:.2f} | 2 | {memory:.2f} |")
    for method in (*PRUNERS, prunus.Wanda(pattern="2:4")):
        for options in (QUIET, QUIET.model_copy(update={"sequential": False})):
            seconds, memory = timed(lambda: prunus.prune(model, method, batches, options=options))  # noqa: B023
            how = "" if options.sequential else ", not sequential"
            print(
                f"| {method.method} {method.pattern}{how} | {seconds:.2f} | {seconds / bare:.1f} | {memory:.2f} |",
                flush=True,
            )
    if device.type != "cuda":
        return []
    with torch.no_grad():
        before = model(**batches[0], logits_to_keep=8).logits.float()
        dense, _ = timed(forward)
        outcome = prunus.accelerate_2to4(model, tokens=2048)
        forward()
        fast, _ = timed(forward)
        after = model(**batches[0], logits_to_keep=8).logits.float()
    apart = float((before - after).norm() / before.norm())
    speeds = sorted(outcome.swapped.values()) or [0.0]
    print(f"\n2:4 kernels: {len(outcome.swapped)} of {len(outcome.swapped) + len(outcome.left)} matrices swapped, single products {speeds[0]:.2f} to "
          f"{speeds[-1]:.2f} × as fast; whole passes {dense / fast:.2f} × as fast; outputs apart by {apart:.4f} of their norm")  # fmt: skip
    reasons = dict.fromkeys(outcome.left.values())
    print(*[f"left: {reason}" for reason in reasons], sep="\n")
    return [] if apart < 0.02 else [f"2:4 kernels: outputs differ by {apart:.4f}"]


if __name__ == "__main__":
    main()
