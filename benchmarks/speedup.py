"""Measured speed-up of an extracted BLIP of base size against its multiply-accumulate ratio.

`python -m benchmarks.speedup` extracts at ratio 0.5 with and without `align`, from random scores, and times dense and
extracted in turn at batch 16 on the CPU, fp32 and bf16.
"""

from __future__ import annotations

import torch

from benchmarks.blip_base import blip_base, inputs
from prunus import Plan, UPop, anatomy, extract
from prunus.cost import latencies, multiply_accumulates

BATCH = 16


def plan(model: torch.nn.Module, align: int) -> Plan:
    """A plan from random scores that differ from layer to layer, as real ones do."""
    generator = torch.Generator().manual_seed(0)
    parts = anatomy(model)
    method = UPop(ratio=0.5, align=align)  # type: ignore[arg-type]
    scores = {
        unit.name: torch.randn(unit.channels, generator=generator) + 0.5 * torch.randn(1, generator=generator)
        for unit in parts
    }
    scope = method.parts().scope
    return Plan.from_masks(parts, scope.keep(scope.comparable(scores, parts.units), parts.units, method, method.goal))


@torch.no_grad()
def main() -> None:
    dense = blip_base().eval()
    batch = inputs(BATCH)
    del batch["labels"]
    models = {"dense": dense, **{f"align={align}": extract(dense, plan(dense, align)) for align in (1, 16, 32)}}
    total = {name: multiply_accumulates(m, lambda m=m: m(**batch))["total"] for name, m in models.items()}
    print(f"BLIP base, ratio 0.5, batch {BATCH}, 224², {torch.get_num_threads()} threads")
    print("| dtype | model | multiply-accumulates | ratio | seconds | speed-up | speed-up / ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for dtype in (torch.float32, torch.bfloat16):
        typed = {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch.items()}
        for model in models.values():
            model.to(dtype)
        times = latencies(
            {name: lambda m=m, typed=typed: m(**typed) for name, m in models.items()}, repeats=9, warmup=2
        )
        for name in models:
            ratio, speedup = total["dense"] / total[name], times["dense"].median / times[name].median
            label = str(dtype).removeprefix("torch.")
            print(
                f"| {label} | {name} | {total[name] / 1e9:.1f} G | {ratio:.3f} | {times[name].median:.3f} "
                f"| {speedup:.3f} | {speedup / ratio:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
