"""What bits cost after pruning, on SmolLM2-135M: `python -m benchmarks.quantise_quality DATA [--limit WINDOWS] [--work FOLDER]`.

DATA holds `wikitext2-valid.txt`, for calibration, and `wikitext2-test.txt`. Dense, narrowed (a fifth of the channels, refitted) and 2:4 (Wanda),
each in fp32, int8 and int4: perplexity, bytes of the weights, zeros, and seconds for the evaluation.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from prunus import Calibrated, Wanda, load_model, narrow, prune
from prunus.cost import human, stored_bytes
from prunus.evaluation import evaluate_here
from prunus.models import smollm2
from prunus.quantise import Quantisation, quantise_folder
from prunus.storage import cache_folder
from prunus.tasks import Text

SAMPLES, LENGTH = 128, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--limit", type=int, default=64, help="windows of the test text")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="windows for calibration")
    parser.add_argument("--work", type=Path, default=None, help="where models are kept")
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp())
    dense = smollm2(cache_folder() / "smollm2-135m")
    texts = {"training": given.data / "wikitext2-valid.txt", "evaluation": given.data / "wikitext2-test.txt"}
    task = Text(**texts, length=LENGTH).for_model(dense)
    folders = {"dense": dense, "narrowed": work / "narrowed", "2:4": work / "2to4"}
    batches = [{"input_ids": batch["input_ids"]} for batch in task.calibration(given.samples, 4)]
    if not folders["narrowed"].exists():
        small, _ = narrow(load_model(dense), Calibrated(ratio=0.2, align=32), batches, inplace=True)
        small.save_pretrained(folders["narrowed"])
    if not folders["2:4"].exists():
        model = load_model(dense)
        prune(model, Wanda(pattern="2:4"), batches)
        model.save_pretrained(folders["2:4"])
    print(
        "| model | weights | perplexity | bytes | zeros kept | seconds |\n| --- | --- | ---: | ---: | ---: | ---: |",
        flush=True,
    )
    for name, folder in folders.items():
        for bits in ("fp32", "int8", "int4"):
            kept, place = "–", folder
            if bits != "fp32":
                place = work / f"{folder.name}-{bits}"
                if not place.exists():
                    found = quantise_folder(folder, place, Quantisation(to=bits))
                    kept = f"{found.zeros[0] - found.lost:,} of {found.zeros[0]:,}"
            with torch.no_grad():
                measured = evaluate_here(place, task, 1, given.limit)
            size = human(stored_bytes(load_model(place)), "B")
            print(
                f"| {name} | {bits} | {measured.metrics['perplexity']:.2f} | {size} | {kept} | {measured.seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
