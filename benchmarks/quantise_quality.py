"""What bits cost after pruning: `python -m benchmarks.quantise_quality DATA [--model FOLDER] [--limit WINDOWS] [--work FOLDER] [--json FILE]`.

DATA holds `wikitext2-valid.txt`, for calibration, and `wikitext2-test.txt`. SmolLM2-135M, or the language model in FOLDER: dense, narrowed (a fifth of
the channels, refitted) and 2:4 (Wanda), each in fp32, int8 and int4: perplexity, bytes of the weights, zeros, and seconds for the evaluation.
A small run that says that it works: `--model FOLDER --samples 4 --length 64 --limit 2` with any small language model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from prunus import Calibrated, Wanda, load_model, narrow, prune
from prunus.cost import human, stored_bytes
from prunus.evaluation import evaluate_here
from prunus.models import smollm2
from prunus.quantise import Quantisation, Quantised, quantise_folder
from prunus.storage import cache_folder, write_text
from prunus.tasks import Text

SAMPLES, LENGTH = 128, 512
BITS = ("fp32", "int8", "int4")


def variants(dense: Path, work: Path, batches: list[dict[str, Any]]) -> dict[str, Path]:
    """The folders that are quantised; those that are there are taken."""
    folders = {"dense": dense, "narrowed": work / "narrowed", "2:4": work / "2to4"}
    if not folders["narrowed"].exists():
        small, _ = narrow(load_model(dense), Calibrated(ratio=0.2, align=32), batches, inplace=True)
        small.save_pretrained(folders["narrowed"])
    if not folders["2:4"].exists():
        model = load_model(dense)
        prune(model, Wanda(pattern="2:4"), batches)
        model.save_pretrained(folders["2:4"])
    return folders


def measured(folder: Path, place: Path, bits: str, task: Text, limit: int) -> dict[str, Any]:
    """One row: the model of `folder` in so many bits, in `place` unless it is in fp32."""
    said: dict[str, Any] = {}
    if bits != "fp32":
        found = Quantised.of(place) if place.exists() else quantise_folder(folder, place, Quantisation(to=bits))
        said = {"zeros": found.zeros, "lost": found.lost, "gained": found.gained, "pattern": found.pattern}
        folder = place
    with torch.no_grad():
        evaluated = evaluate_here(folder, task, 1, limit)
    size = stored_bytes(load_model(folder))
    return {"perplexity": evaluated.metrics["perplexity"], "bytes": size, "seconds": evaluated.seconds, **said}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, default=None, help="folder of a language model instead of SmolLM2-135M")
    parser.add_argument("--limit", type=int, default=64, help="windows of the test text")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="windows for calibration")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens of a window")
    parser.add_argument("--work", type=Path, default=None, help="where models are kept")
    parser.add_argument("--json", type=Path, default=None, help="write the rows here, after each")
    given = parser.parse_args(arguments)
    transformers.logging.disable_progress_bar()
    work = given.work or Path(tempfile.mkdtemp())
    dense = given.model or smollm2(cache_folder() / "smollm2-135m")
    texts = {"training": given.data / "wikitext2-valid.txt", "evaluation": given.data / "wikitext2-test.txt"}
    task = Text(**{name: str(file) for name, file in texts.items()}, length=given.length).for_model(dense)
    batches = [{"input_ids": batch["input_ids"]} for batch in task.calibration(given.samples, 4)]
    rows: dict[str, Any] = {}
    print(
        "| model | weights | perplexity | bytes | zeros kept | zeros gained | seconds |\n| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        flush=True,
    )
    for name, folder in variants(dense, work, batches).items():
        for bits in BITS:
            label = "dense" if name == "dense" else folder.name
            row = rows[f"{name}/{bits}"] = measured(folder, work / f"{label}-{bits}", bits, task, given.limit)
            kept = f"{row['zeros'][0] - row['lost']:,} of {row['zeros'][0]:,}" if "zeros" in row else "–"
            gained = f"{row['gained']:,}" if "gained" in row else "–"
            print(
                f"| {name} | {bits} | {row['perplexity']:.2f} | {human(row['bytes'], 'B')} | {kept} | {gained} | {row['seconds']:.0f} |",
                flush=True,
            )
            if given.json:
                write_text(given.json, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
