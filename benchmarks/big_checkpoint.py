"""Pruning or narrowing a checkpoint larger than memory: `python -m benchmarks.big_checkpoint`.

Writes a randomly initialised LLaMA-shaped checkpoint of 3 B parameters (6 GB in bf16) to a folder, and prunes it to 2:4
with Wanda in a process whose private memory is limited to 3 GB by the kernel (RLIMIT_DATA).

`--narrow` removes 30 % of its channels instead and fits what is left. `--blocks` and `--limit` say how many blocks it has and how many GB may be
used, for a smaller one in proportion; `--samples` and `--tokens` say what it is shown.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from prunus import Calibrated, Fluctuation, WalkOptions, Wanda, load_model, narrow_folder, prune_folder
from prunus.cost import peak_memory
from prunus.evaluation import in_fresh_process

VOCABULARY = 32000


def write(folder: Path, blocks: int) -> int:
    """One file per block, so that no more than one is ever in memory; returns the number of parameters."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=3072, intermediate_size=8192, num_hidden_layers=blocks, num_attention_heads=24,
        num_key_value_heads=8, tie_word_embeddings=False, architectures=["LlamaForCausalLM"], dtype="bfloat16",
    )  # fmt: skip
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in LlamaForCausalLM(config).named_parameters()}
    config.save_pretrained(folder)
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


def limited(source: str, output: str, given: dict[str, Any]) -> dict[str, float]:
    """In a process of its own: takes the limit on, prunes or narrows, and says what it took."""
    asked = argparse.Namespace(**given)
    resource.setrlimit(resource.RLIMIT_DATA, (int(asked.limit * 1e9), int(asked.limit * 1e9)))
    generator = torch.Generator().manual_seed(0)
    shape = (1, asked.tokens)
    batches = [{"input_ids": torch.randint(0, VOCABULARY, shape, generator=generator)} for _ in range(asked.samples)]
    options, start = WalkOptions(bf16=True), time.perf_counter()
    if asked.narrow:
        gone = narrow_folder(source, output, Calibrated(ratio=0.3, score=Fluctuation()), batches, options=options).ratio
    else:
        gone = prune_folder(source, output, Wanda(pattern="2:4"), batches, options=options).sparsity
    return {"seconds": time.perf_counter() - start, "peak": peak_memory(), "gone": gone}


def without_two_zeros(folder: Path) -> str:
    """How many groups of four weights have fewer than two zeros."""
    groups = wrong = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if "_proj" in name:
                    zeros = (tensors.get_tensor(name).view(-1, 4) == 0).sum(1)
                    groups, wrong = groups + len(zeros), wrong + int((zeros < 2).sum())
    return f"{wrong} of {groups:,} groups of 4 without 2 zeros"


def answers(folder: Path) -> str:
    """Whether the narrow model loads and computes numbers."""
    model = load_model(folder)
    with torch.no_grad():
        logits = model(torch.arange(8)[None]).logits
    return f"loads with {model.num_parameters() / 1e9:.2f} B, {'finite' if bool(logits.isfinite().all()) else 'NOT finite'} logits"


def main() -> None:
    asking = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asking.add_argument(
        "where", nargs="?", help="a folder for 13 GB of files; by default the system's for temporary ones"
    )
    asking.add_argument("--narrow", action="store_true")
    asking.add_argument("--blocks", type=int, default=28)
    asking.add_argument("--limit", type=float, default=3.0)
    asking.add_argument("--samples", type=int, default=8)
    asking.add_argument("--tokens", type=int, default=256)
    asked = asking.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="prunus-big-", dir=asked.where))
    try:
        parameters = write(folder / "dense", asked.blocks)
        size = sum(file.stat().st_size for file in (folder / "dense").glob("*.safetensors"))
        found = in_fresh_process(limited, str(folder / "dense"), str(folder / "out"), vars(asked))
        result = answers(folder / "out") if asked.narrow else without_two_zeros(folder / "out")
        print("| parameters | checkpoint | limit | peak resident | seconds | gone | result |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        print(
            f"| {parameters / 1e9:.2f} B | {size / 1e9:.2f} GB | {asked.limit:g} GB | {found['peak'] / 1e9:.2f} GB "
            f"| {found['seconds']:.0f} | {found['gone']:.1%} | {result} |"
        )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
