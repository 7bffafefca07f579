"""Pruning from disk against pruning in memory, over the model types of transformers.

`python -m benchmarks.disk_sweep OUT.json [DTYPE [TYPE ...]]` adds what it finds to OUT.json, type by type, and goes on there when
it is started again; the table is printed at the end. Every type has its own time limit. DTYPE is that of weights and inputs.
"""

from __future__ import annotations

import copy
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.tiny_models import Tiny, UnbuildableError, build, model_types
from prunus import PrunusError, WalkOptions, Wanda, load_model, matrices, prune, prune_folder

LIMIT = 30
QUIET = WalkOptions(progress=False)
SHARD = "40KB"


def compare(tiny: Tiny, folder: Path, dtype: torch.dtype = torch.float32) -> str:
    """What comes of pruning the model both ways: `same`, or what is different or fails."""
    tiny.model.to(dtype).save_pretrained(folder / "dense", max_shard_size=SHARD)
    try:
        # copied, since convolutions may round otherwise on weights that lie in a mapped file as they come
        memory = copy.deepcopy(load_model(folder / "dense").eval())
    except PrunusError as error:
        return f"not loaded: {error}"
    include = reached(memory, tiny.inputs)
    if not include:
        return "nothing to prune"
    try:
        expected = prune(memory, Wanda(), [tiny.inputs] * 2, include=include, call=seeded, options=QUIET)
    except PrunusError as error:
        return f"not in memory: {error}"
    out = folder / "out"
    try:
        found = prune_folder(
            folder / "dense", out, Wanda(), [tiny.inputs] * 2, include=include, call=seeded, options=QUIET
        )
    except Exception as error:
        return f"not from disk: {type(error).__name__}: {error}"
    if found != expected:
        return "other record"
    disk = load_model(out).state_dict()
    wrong = [name for name, value in memory.state_dict().items() if not torch.equal(disk[name], value)]
    return f"other bits: {wrong[0]} and {len(wrong) - 1} more" if wrong else "same"


def reached(model: torch.nn.Module, inputs: dict[str, Any]) -> list[str]:
    """Matrices in blocks that the inputs run, and that are used there."""
    seen: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: seen.add(name) and None)
        for name, module in model.named_modules()
    ]
    with torch.no_grad():
        seeded(model, inputs)
    for hook in hooks:
        hook.remove()
    return [m.name for m in matrices(model) if m.parameter.rpartition(".")[0] in seen and m.block in seen]


def seeded(model: torch.nn.Module, inputs: dict[str, Any]) -> object:
    torch.manual_seed(0)
    return model(**_cast(inputs, next(p.dtype for p in model.parameters() if p.is_floating_point())))


def _cast(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {k: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in inputs.items()}


def tried(model_type: str, dtype: torch.dtype) -> str:
    """`compare` in a temporary folder, within the time limit; whatever goes wrong is said."""

    def late(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return compare(build(model_type), Path(folder), dtype)
    except UnbuildableError as error:
        return f"not built: {error}"
    except TimeoutError:
        return f"not built: takes longer than {LIMIT} s"
    except Exception as error:
        return f"failed: {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)


def main(where: str, dtype: str = "float32", *types: str) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    file, start = Path(where), time.perf_counter()
    found: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    for model_type in types or model_types():
        if model_type not in found or types:
            found[model_type] = tried(model_type, getattr(torch, dtype))
            file.write_text(json.dumps(found, indent=1))
    print("| model type | disk against memory |\n| --- | --- |")
    for model_type, result in found.items():
        if not result.startswith(("same", "not built", "not loaded", "nothing")):
            print(f"| {model_type} | {' '.join(result.split())[:300]} |")
    counted = Counter(result.split(":")[0] for result in found.values())
    print(f"\n{dict(counted)} of {len(found)} types, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
