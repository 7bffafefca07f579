"""Pruning a checkpoint larger than memory: `python -m benchmarks.big_checkpoint`.

Writes a randomly initialised LLaMA-shaped checkpoint of 3 B parameters (6 GB in bf16) to a folder, and prunes it to 2:4
with Wanda in a process whose private memory is limited to 3 GB by the kernel (RLIMIT_DATA).
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from prunus import WalkOptions, Wanda, prune_folder
from prunus.cost import peak_memory
from prunus.evaluation import in_fresh_process

LIMIT = 3 * 10**9
CONFIG = LlamaConfig(
    vocab_size=32000, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24,
    num_key_value_heads=8, tie_word_embeddings=False, architectures=["LlamaForCausalLM"], dtype="bfloat16",
)  # fmt: skip
SAMPLES, TOKENS = 8, 256


def write(folder: Path) -> int:
    """One file per block, so that no more than one is ever in memory; returns the number of parameters."""
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in LlamaForCausalLM(CONFIG).named_parameters()}
    CONFIG.save_pretrained(folder)
    files: dict[str, list[str]] = {}
    for name in shapes:
        files.setdefault(".".join(name.split(".")[:3]) if ".layers." in name else "rest", []).append(name)
    index = {}
    for part, names in files.items():
        file = f"model-{part}.safetensors"
        tensors = {
            name: (torch.randn(shapes[name]) * 0.02 if len(shapes[name]) > 1 else torch.ones(shapes[name])).bfloat16()
            for name in names
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def limited(source: str, output: str) -> dict[str, float]:
    """In a process of its own: takes the limit on, prunes, and says what it took."""
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    generator = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(0, 32000, (1, TOKENS), generator=generator)} for _ in range(SAMPLES)]
    start = time.perf_counter()
    plan = prune_folder(source, output, Wanda(pattern="2:4"), batches, options=WalkOptions(bf16=True))
    return {"seconds": time.perf_counter() - start, "peak": peak_memory(), "sparsity": plan.sparsity}


def main(where: str | None = None) -> None:
    folder = Path(tempfile.mkdtemp(prefix="prunus-big-", dir=where))
    try:
        parameters = write(folder / "dense")
        size = sum(file.stat().st_size for file in (folder / "dense").glob("*.safetensors"))
        found = in_fresh_process(limited, str(folder / "dense"), str(folder / "out"))
        groups = wrong = 0
        for file in (folder / "out").glob("*.safetensors"):
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    if "_proj" in name:
                        zeros = (tensors.get_tensor(name).view(-1, 4) == 0).sum(1)
                        groups, wrong = groups + len(zeros), wrong + int((zeros < 2).sum())
        print("| parameters | checkpoint | limit | peak resident | seconds | sparsity | groups of 4 without 2 zeros |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        print(
            f"| {parameters / 1e9:.2f} B | {size / 1e9:.2f} GB | {LIMIT / 1e9:.0f} GB | {found['peak'] / 1e9:.2f} GB "
            f"| {found['seconds']:.0f} | {found['sparsity']:.1%} | {wrong} of {groups:,} |"
        )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
