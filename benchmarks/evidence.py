"""The page docs/evidence.md, drawn from the committed results of the studies: `python -m benchmarks.evidence`.

    prunus bench structured --data FOLDER --output runs/structured
    python -m benchmarks.evidence runs/structured/results.json --of structured

takes results over into docs/evidence and draws the page anew. A test holds the page against the results.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from prunus.storage import write_bytes, write_text
from prunus.studies import Results, Study, cells_of, load_study, markdown_page, pictures_of, study_file

DOCS = Path(__file__).resolve().parents[1] / "docs"
STUDIES = ("structured", "unstructured")
HEAD = """# Evidence: what the papers found, asked again

Drawn by `python -m benchmarks.evidence` from the JSON in `docs/evidence`: do not edit. How studies work: [studies](studies.md).
The data are small public sets (Flickr8k-1k, Imagenette at 160 pixels, CamVid, NLVR, easy-VQA, WikiText-2) that do not come with prunus.
"""


def page() -> str:
    """The page, from the results that are committed."""
    parts = [HEAD]
    for name in STUDIES:
        file = DOCS / "evidence" / f"{name}.json"
        study = load_study(study_file(name), data="DATA")
        results = Results.load(file) if file.exists() else nothing(name, study)
        pictures = [f"evidence/{name}-{picture}" for picture in pictures_of(results.outcomes)]
        parts.append(markdown_page(results, study.findings, pictures))
    return "\n".join(parts)


def nothing(name: str, study: Study) -> Results:
    """What a study that was not run yet has to say."""
    command = f"prunus bench {name} --data DATA"
    return Results(
        title=study.title, note=study.note, command=command, machine={}, planned=len(cells_of(study)), failed={}, outcomes=[],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", help="results.json of a study, to be taken over")
    parser.add_argument("--of", choices=STUDIES, help="which study")
    arguments = parser.parse_args()
    if arguments.results is not None:
        results = Results.load(arguments.results)
        write_text(DOCS / "evidence" / f"{arguments.of}.json", results.model_dump_json(indent=1) + "\n")
        for name, picture in pictures_of(results.outcomes).items():
            write_bytes(DOCS / "evidence" / f"{arguments.of}-{name}", picture)
    write_text(DOCS / "evidence.md", page())


if __name__ == "__main__":
    main()
