"""Exports against the models they are of: `python -m benchmarks.export [onnx openvino torch] [--only 'llama/*'] [--json FILE]` prints the table
of the docs.

Eight families on tiny random weights, each dense, narrowed and with half of its weights zero, and seven whose narrow models are ordinary ones (`plain`), as
stock classes load them. A cell that fails is said, and does not stop the others; what is done stands in FILE after every cell, and is not done again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import transformers
from tests.families import build
from tests.test_equivalence import random_plan
from tests.test_narrow_calibrated import gemma3

from prunus import Calibrated, Magnitude, WalkOptions, extract, narrow, prune
from prunus.export import FORMATS, export
from prunus.storage import write_text

FAMILIES = ("vit", "clip", "siglip", "bert", "blip_vqa", "blip_caption", "llama", "llava")
PLAIN = ("llama", "qwen2", "qwen3", "gemma3", "t5", "llava", "qwen2_5_vl")
DONE = ("dense", "narrowed", "zeros")
CELLS = [(name, done) for name in FAMILIES for done in DONE] + [(name, "plain") for name in PLAIN]
"""Families, and what was done to their models."""
COLUMNS = ("family", "to", "model", "graphs", "sizes", "largest difference", "seconds")


def variant(name: str, done: str) -> tuple[Any, list[dict[str, Any]]]:
    """A family's model after something was done to it, and batches."""
    case = gemma3() if name == "gemma3" else build(name, 0)
    model: Any = case.model
    if done == "narrowed":
        model = extract(model, random_plan(model, 0))
    if done == "zeros":
        prune(model, Magnitude(sparsity=0.5), [case.inputs])
    if done == "plain":
        model = stock(narrow(model, plain(name), [case.inputs], options=WalkOptions(progress=False))[0])
    return model, batches_of(case.inputs)


def plain(name: str) -> Calibrated:
    """What an ordinary config can say of a family: whole heads, or T5's head width."""
    return Calibrated(ratio=0.4, plain=True, attention="widths" if name == "t5" else "heads")


def stock(model: Any) -> Any:
    """Saved, and loaded with the class of transformers."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return getattr(transformers, type(model).__name__).from_pretrained(folder).eval()


def batches_of(inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """Two items in both orders, and three, without targets. Where the patches of all images are one list, there is one item, and another with
    another picture.
    """
    given = {key: value for key, value in inputs.items() if key not in ("labels", "decoder_input_ids")}
    items = [{key: value[place : place + 1] for key, value in given.items()} for place in (0, 1)]
    if "image_grid_thw" in given:
        items = [given, {**given, "pixel_values": given["pixel_values"].flip(0)}]
    orders = (0, 1), (1, 0), (1, 0, 1)
    return [{key: torch.cat([items[place][key] for place in order]) for key in given} for order in orders]


def cell(name: str, to: str, done: str) -> dict[str, Any]:
    """What became of one export: its graphs, or why there are none."""
    start = time.perf_counter()
    found: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            model, batches = variant(name, done)
            made = export(model, Path(folder, "out"), to, batches)
        found = {
            "graphs": [graph.name for graph in made.graphs],
            "sizes": list(dict.fromkeys(graph.sizes for graph in made.graphs)),
            "largest difference": max(graph.difference for graph in made.graphs),
        }
    except Exception as error:
        found = {"failed": f"{type(error).__name__}: {error}"}
    return {**found, "seconds": time.perf_counter() - start}


def row(name: str, to: str, done: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    if "failed" in found:
        texts = [" ".join(found["failed"].split()), "", "", ""]
    else:
        worst, seconds = found["largest difference"], found["seconds"]
        texts = [", ".join(found["graphs"]), ", ".join(found["sizes"]), f"{worst:.1e}", f"{seconds:.0f}"]
    return "| " + " | ".join((name, to, done, *texts)) + " |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns how many cells failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("to", nargs="*", help=f"formats, of {', '.join(FORMATS)}; by default onnx")
    parser.add_argument(
        "--only", action="append", help="family/model, a glob such as llama/* or */zeros; may be repeated"
    )
    parser.add_argument(
        "--json", type=Path, help="write the cells here; those that it holds and that did not fail are not done again"
    )
    given = parser.parse_args(arguments)
    if set(given.to) - set(FORMATS):
        parser.error(f"formats are {', '.join(FORMATS)}")
    transformers.logging.set_verbosity_error()
    wanted = given.only or ["*"]
    known = json.loads(given.json.read_text()) if given.json and given.json.exists() else {}
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS), flush=True)
    failed = 0
    for to in given.to or ["onnx"]:
        for name, done in CELLS:
            if not any(fnmatchcase(f"{name}/{done}", only) for only in wanted):
                continue
            key = f"{to}/{name}/{done}"
            if "failed" in known.get(key, {"failed": ""}):
                known[key] = cell(name, to, done)
                if given.json:
                    write_text(given.json, json.dumps(known, indent=1) + "\n")
            failed += "failed" in known[key]
            print(row(name, to, done, known[key]), flush=True)
    return failed


if __name__ == "__main__":
    raise SystemExit(min(main(), 1))
