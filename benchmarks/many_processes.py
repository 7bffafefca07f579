"""Two processes against one, a thread each: `python -m benchmarks.many_processes TABLE [DATA]`.

`walk DATA`: Wanda and SparseGPT at .5 on SmolLM2-135M, 128 windows of 512 tokens; seconds of the walk.
`search`: steps of a UPop search on a BLIP of base size under DDP, of a global batch of 16; seconds of a step.
`memory`: the same under FSDP2 on a LLaMA whose weights dominate; peak resident memory of a process over what it had before the model.
`kill`: see `benchmarks.killed`.

DATA is a folder with wikitext2-valid.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.blip_base import blip_base, inputs
from benchmarks.killed import THREADS, kill
from benchmarks.smollm2 import calibration, model_folder
from prunus import Search, SparseGPT, UPop, WalkOptions, Wanda, load_model, prune
from prunus.cost import peak_memory
from prunus.parallel import barrier, everyones, is_first, join_group, leave, local, process, processes

RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Lets glibc give freed memory back at once, so that a peak is what was in use."""
STEPS, ITEMS = 4, 16


def started(count: int, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """So many processes under torchrun, each with one thread."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(count), "--standalone"] if count > 1 else []
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", *arguments], env={**os.environ, **THREADS, **environment}, text=True, stdout=subprocess.PIPE
    )  # fmt: skip


def measured(count: int, table: str, *arguments: str) -> dict[str, float]:
    """What the first of so many processes says of a table."""
    environment = RETURNED if table == "memory" else {}
    work = started(count, "benchmarks.many_processes", table, *arguments, "--worker", **environment)
    said, _ = work.communicate()
    if work.returncode:
        raise SystemExit(f"{table} ended with status {work.returncode}")
    return dict(json.loads(said.strip().splitlines()[-1]))


def walk(data: str) -> dict[str, float]:
    batches, found = calibration(Path(data)), {}
    for method in (Wanda(sparsity=0.5), SparseGPT(sparsity=0.5)):
        model = load_model(model_folder())
        barrier()
        start = time.perf_counter()
        prune(model, method, batches, options=WalkOptions(bf16=True, progress=False))
        found[f"{method.method}, s"] = time.perf_counter() - start
    return found


def search() -> dict[str, float]:
    model: nn.Module = blip_base().train()
    wrapped = DistributedDataParallel(model, find_unused_parameters=True) if processes() > 1 else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    looking = Search(wrapped, UPop(ratio=0.5, interval=1), 100, optimizer=optimizer)
    batch = {name: value[process() :: processes()] for name, value in inputs(ITEMS).items()}
    seconds = []
    for _ in range(STEPS + 1):
        barrier()
        start = time.perf_counter()
        wrapped(**batch).loss.backward()
        looking.step()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return {"search step, s": statistics.median(seconds[1:])}


def memory() -> dict[str, float]:
    before = peak_memory()
    torch.manual_seed(0)
    shape = LlamaConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=24, num_attention_heads=12, vocab_size=2000
    )
    if processes() > 1:
        mesh = init_device_mesh("cpu", (processes(),))
        with torch.device("meta"):
            model = LlamaForCausalLM(shape)
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        model.to_empty(device="cpu")
        model.model.rotary_emb = type(model.model.rotary_emb)(shape)  # a table that no weight is
        with torch.no_grad():
            for parameter in model.parameters():
                local(parameter).normal_(std=0.02)
    else:
        model = LlamaForCausalLM(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    looking = Search(model, UPop(ratio=0.5, interval=1), 100, optimizer=optimizer)
    ids = torch.randint(2000, (1, 16))
    for _ in range(3):
        model(input_ids=ids, labels=ids).loss.backward()
        looking.step()
        optimizer.step()
        optimizer.zero_grad()
    held = sum(local(parameter).nbytes for parameter in model.parameters()) / 1e6
    return {"weights of a process, MB": held, "peak of a process, MB": max(everyones((peak_memory() - before) / 1e6))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=["walk", "search", "memory", "kill"])
    parser.add_argument("data", nargs="?", default="")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--worker", action="store_true")
    given = parser.parse_args()
    arguments: list[Any] = [given.data] if given.table == "walk" else []
    if given.table == "kill":
        kill(given.times)
    elif given.worker:
        join_group()
        found = {"walk": walk, "search": search, "memory": memory}[given.table](*arguments)
        if is_first():
            print(json.dumps(found), flush=True)
        if dist.is_initialized():
            barrier()
        leave()
    else:
        one, two = (measured(count, given.table, *arguments) for count in (1, 2))
        print("| | one process | two | one / two |\n| --- | --- | --- | --- |")
        for name, value in one.items():
            print(f"| {name} | {value:.1f} | {two[name]:.1f} | {value / two[name]:.2f} |")


if __name__ == "__main__":
    main()
