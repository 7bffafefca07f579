"""Exports against the models they are of: `python -m benchmarks.export [onnx openvino torch]` prints the table of the docs.

Eight families on tiny random weights, each dense, narrowed and with half of its weights zero.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from tests.families import build
from tests.test_equivalence import random_plan

from prunus import Magnitude, PrunusError, extract, prune
from prunus.export import export

FAMILIES = ("vit", "clip", "siglip", "bert", "blip_vqa", "blip_caption", "llama", "llava")


def variants(name: str) -> dict[str, Any]:
    """Family and what was done to it → model and batches."""
    found = {}
    for done in ("dense", "narrowed", "zeros"):
        case = build(name, 0)
        model: Any = case.model
        if done == "narrowed":
            model = extract(model, random_plan(model, 0))
        if done == "zeros":
            prune(model, Magnitude(sparsity=0.5), [case.inputs])
        inputs = {key: value for key, value in case.inputs.items() if key not in ("labels", "decoder_input_ids")}
        orders = torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([1, 0, 1])
        found[done] = model, [{key: value[order] for key, value in inputs.items()} for order in orders]
    return found


def main() -> None:
    transformers.logging.set_verbosity_error()
    print(
        "| family | to | model | graphs | sizes | largest difference | seconds |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    for to in sys.argv[1:] or ("onnx",):
        for name in FAMILIES:
            for done, (model, batches) in variants(name).items():
                start = time.perf_counter()
                with tempfile.TemporaryDirectory() as folder:
                    try:
                        made = export(model, Path(folder, "out"), to, batches)
                    except PrunusError as error:
                        print(f"| {name} | {to} | {done} | refused: {error} | | | |", flush=True)
                        continue
                graphs = ", ".join(graph.name for graph in made.graphs)
                sizes = ", ".join(dict.fromkeys(graph.sizes for graph in made.graphs))
                worst = max(graph.difference for graph in made.graphs)
                seconds = time.perf_counter() - start
                print(f"| {name} | {to} | {done} | {graphs} | {sizes} | {worst:.1e} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
