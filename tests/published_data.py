"""Data sets of a few made-up rows in the layouts in which their authors publish them, every split that the published recipes name."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROWS = 8
COLOURS = ((220, 30, 30), (30, 200, 40), (40, 60, 220), (240, 240, 240))
NAMES = ("red", "green", "blue", "white")


def picture(path: Path, at: int) -> None:
    """A picture of one colour, as JPEG or PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20 + at, 24), COLOURS[at % 4]).save(
        path, "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG"
    )


def written(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in data) if path.stem in ("train", "test1") else json.dumps(data)
    path.write_text(lines)


def vqa(root: Path, prefix: str = "v2_") -> None:
    for year in ("train2014", "val2014"):
        asked, answered = [], []
        for at in range(ROWS):
            picture(root / year / f"COCO_{year}_{at:012d}.jpg", at)
            asked.append({"image_id": at, "question": "Which colour is it?", "question_id": at})
            answered.append(
                {
                    "question_id": at,
                    "image_id": at,
                    "answers": [{"answer": NAMES[at % 4], "answer_id": n} for n in range(10)],
                }
            )
        written(root / f"{prefix}OpenEnded_mscoco_{year}_questions.json", {"questions": asked})
        written(root / f"{prefix}mscoco_{year}_annotations.json", {"annotations": answered})


def okvqa(root: Path) -> None:
    vqa(root, "")


def gqa(root: Path) -> None:
    asked = {}
    for at in range(ROWS):
        picture(root / f"images/n{at}.jpg", at)
        asked[str(at)] = {"question": "Which colour is it?", "imageId": f"n{at}", "answer": NAMES[at % 4]}
    for split in ("train", "testdev"):
        written(root / f"questions1.2/{split}_balanced_questions.json", asked)


def nocaps(root: Path) -> None:
    images = [{"id": at, "file_name": f"{at}.jpg", "domain": "in-domain"} for at in range(ROWS)]
    for at in range(ROWS):
        picture(root / f"images/{at}.jpg", at)
    said = [{"image_id": at % ROWS, "id": at, "caption": f"all is {NAMES[at % 4]}"} for at in range(10 * ROWS)]
    written(root / "nocaps_val_4500_captions.json", {"images": images, "annotations": said})


def karpathy(name: str, folder: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        images = []
        for at in range(3 * ROWS):
            picture(root / folder / f"{at}.jpg", at)
            said = [{"raw": f"A {NAMES[at % 4]} square."}, {"raw": f"All is {NAMES[at % 4]}."}]
            images.append(
                {
                    "filename": f"{at}.jpg",
                    "filepath": folder,
                    "split": ("train", "val", "test")[at % 3],
                    "sentences": said,
                }
            )
        written(root / f"dataset_{name}.json", {"images": images})

    return make


def nlvr2(root: Path) -> None:
    for split in ("train", "test1"):
        rows = []
        for at in range(ROWS):
            rows.append(
                {
                    "identifier": f"{split}-{at}-0-0",
                    "sentence": "Both are red.",
                    "label": ("True", "False")[at % 2],
                    "directory": 1,
                }
            )
            for side in (0, 1):
                inside = f"images/{split}/1" if split == "train" else f"images/{split}"
                picture(root / inside / f"{split}-{at}-0-img{side}.png", at * side)
        written(root / f"{split}.json", rows)


def imagenet(root: Path) -> None:
    for at in range(ROWS):
        for split in ("train", "val"):
            picture(root / split / f"n0{at % 4}" / f"{split}_{at}.JPEG", at)


def classes(root: Path) -> None:
    for at in range(ROWS):
        for split in ("train", "test"):
            picture(root / split / NAMES[at % 4] / f"{at}.png", at)


def ade20k(root: Path) -> None:
    inside = root / "ADEChallengeData2016"
    for split in ("training", "validation"):
        for at in range(ROWS):
            picture(inside / f"images/{split}/{at}.jpg", at)
            mask = inside / f"annotations/{split}/{at}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((24, 20 + at), at % 4 + 1, dtype=np.uint8)).save(mask)


def cc3m(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "00000.tar", "w") as tar:
        for at in range(4 * ROWS):
            file = io.BytesIO()
            Image.new("RGB", (20, 24), COLOURS[at % 4]).save(file, "JPEG")
            for ending, content in (("jpg", file.getvalue()), ("txt", f"all is {NAMES[at % 4]}".encode())):
                entry = tarfile.TarInfo(f"{at:09d}.{ending}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def cifar10(root: Path) -> None:
    import datasets

    for split in ("train", "test"):
        rows = {
            "img": [Image.new("RGB", (32, 32), COLOURS[at % 4]) for at in range(ROWS)],
            "label": [at % 4 for at in range(ROWS)],
        }
        features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
        path = root / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "vqav2": vqa, "okvqa": okvqa, "gqa": gqa, "nocaps": nocaps, "coco_karpathy": karpathy("coco", "val2014"),
    "flickr30k": karpathy("flickr30k", "flickr30k-images"), "nlvr2": nlvr2, "imagenet": imagenet, "imagefolder": classes, "ade20k": ade20k,
    "cc3m": cc3m, "hub": cifar10,
}  # fmt: skip
"""Layout → what writes it into a folder."""
