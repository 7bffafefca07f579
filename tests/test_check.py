"""`prunus check`: what is wrong with a recipe's data that a look at the heads of pictures does not show; and pictures of both splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from pyarrow import Table, parquet

from prunus import PrunusError
from prunus.cli import app
from prunus.evaluation import read_task
from tests.lookers import captioned, saved

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_picture_that_ends_too_early_is_named_and_nothing_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = captioned(tmp_path / "data")
    recipe = {
        "model": {"path": str(saved("clip", tmp_path / "model"))},
        "task": {"name": "retrieval", "train": str(rows), "evaluation": str(rows)},
        "steps": [{"step": "prune", "method": {"method": "magnitude", "sparsity": 0.5}, "calibration": {"samples": 8}}],
        "output": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    app(["check", str(tmp_path / "recipe.yaml")], standalone_mode=False)
    said = capsys.readouterr().out
    assert "note: 16 of the pictures of task.evaluation are in task.train, too" in said
    assert "nothing is wrong" in said
    Image.linear_gradient("L").save(tmp_path / "data" / "3.png")
    whole = (tmp_path / "data" / "3.png").read_bytes()
    (tmp_path / "data" / "3.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PrunusError, match=r"task = '2 pictures': .*on_broken: skip"):
        app(["check", str(tmp_path / "recipe.yaml")], standalone_mode=False)
    said = capsys.readouterr().out
    for field in ("train", "evaluation"):
        assert f"task.{field}: {rows}:4: image = '{tmp_path}/data/3.png': it cannot be read" in said
    assert not (tmp_path / "run").exists()


def test_pictures_of_both_splits_are_told_by_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = captioned(tmp_path / "data")
    names = [json.loads(line)["image"] for line in rows.read_text().splitlines()]
    held = [(rows.parent / name).read_bytes() for name in names[:3]] * 2
    held.append(held[0].replace(held[0][-20:-12], bytes(8)))  # as many bytes, and other ones
    table = [{"image": {"bytes": data, "path": f"{at}.png"}, "captions": ["a"]} for at, data in enumerate(held)]
    parquet.write_table(Table.from_pylist(table), tmp_path / "test.parquet")

    def remarks(evaluation: Path) -> list[str]:
        task: dict[str, Any] = {"name": "retrieval", "train": str(rows), "evaluation": str(evaluation)}
        return read_task(json.dumps(task)).remarks()

    assert [remark.partition(" ")[0] for remark in remarks(tmp_path / "test.parquet")] == ["3"]
    with monkeypatch.context() as patched:
        patched.setattr("prunus.data.overlap._pictures", None)  # what was found is kept
        assert [remark.partition(" ")[0] for remark in remarks(tmp_path / "test.parquet")] == ["3"]
    parquet.write_table(Table.from_pylist(table[-1:]), tmp_path / "other.parquet")
    assert remarks(tmp_path / "other.parquet") == []
