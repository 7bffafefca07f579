"""Narrowing a folder: the same bits as in memory, from one block at a time; interrupted work goes on, killed or not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import prunus
from prunus import (
    Calibrated,
    ChannelMagnitude,
    Everyone,
    Fluctuation,
    Magnitude,
    PrunusError,
    WalkOptions,
    load_model,
    narrow_folder,
)
from prunus.calibrated.folder import _FolderState
from prunus.calibrated.folder_work import JOURNAL, FolderWork
from tests.families import build

QUIET = WalkOptions(progress=False)
FAMILIES = ("llama", "t5", "vit", "mixtral")
"""Of the families, those that differ in what their files hold: all others pass, too."""


def seeded(model: Any, batch: Any) -> Any:
    torch.manual_seed(0)
    return model(**batch)


def state(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for file in sorted(folder.glob("*.safetensors")) for key, value in load_file(file).items()}


def saved(name: str, folder: Path) -> tuple[Any, list[Any]]:
    case = build(name, 2)
    case.model.save_pretrained(folder / "dense", max_shard_size="20KB")
    return load_model(folder / "dense").eval(), [case.inputs, case.inputs]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_is_narrowed_like_a_model(name: str, tmp_path: Path) -> None:
    model, batches = saved(name, tmp_path)
    method = Calibrated(ratio=0.4, scope=Everyone())
    small, plan = prunus.narrow(model, method, batches, call=seeded, options=QUIET)
    small.save_pretrained(tmp_path / "expected", max_shard_size="20KB")
    streamed = narrow_folder(tmp_path / "dense", tmp_path / "out", method, batches, call=seeded, options=QUIET)
    assert streamed == plan
    expected, got = state(tmp_path / "expected"), state(tmp_path / "out")
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    configs = [json.loads((tmp_path / which / "config.json").read_text()) for which in ("expected", "out")]
    assert configs[0] == configs[1]
    again = load_model(tmp_path / "out").eval()
    with torch.no_grad():
        assert all(map(torch.equal, *(list(m.parameters()) for m in (again, small))))
    assert prunus.plan_of(again) == prunus.plan_of(load_model(tmp_path / "expected"))
    assert not (tmp_path / "out.partial").exists()
    assert not {file.name for file in (tmp_path / "out").iterdir()} & {
        JOURNAL,
        "prunus-fitted",
        "prunus-scores.safetensors",
    }


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {"score": ChannelMagnitude(), "compensation": "none"}),
        ("llama", {"plain": True}),
        ("vit", {"score": ChannelMagnitude(), "compensation": "bias"}),
        ("vit", {"score": Fluctuation(), "compensation": "bias"}),
    ],
)
def test_what_a_folder_holds_is_what_the_method_says(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model, batches = saved(name, tmp_path)
    method = Calibrated(ratio=0.4, **settings)
    small, _ = prunus.narrow(model, method, batches, options=QUIET)
    small.save_pretrained(tmp_path / "expected")
    narrow_folder(tmp_path / "dense", tmp_path / "out", method, batches, options=QUIET)
    expected, got = state(tmp_path / "expected"), state(tmp_path / "out")
    assert all(torch.equal(expected[key], got[key]) for key in expected | got)
    configs = [json.loads((tmp_path / which / "config.json").read_text()) for which in ("expected", "out")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize(
    ("where", "name", "sequential", "compensation"),
    [
        *((where, "llama", so, "refit") for where in ("note_scores", "note_fit", "lay_out") for so in (True, False)),
        *((where, "vit", True, "bias") for where in ("note_scores", "note_fit")),
    ],
)
def test_interrupted_work_goes_on_where_it_was(
    where: str, name: str, sequential: bool, compensation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunus.checkpoint import Shards

    _, batches = saved(name, tmp_path)
    options = WalkOptions(progress=False, sequential=sequential)
    method = Calibrated(ratio=0.4, compensation=compensation)
    narrow_folder(tmp_path / "dense", tmp_path / "whole", method, batches, options=options)
    holder: Any = Shards if where == "lay_out" else FolderWork
    original, calls = getattr(holder, where), 0

    def dying(self: Any, *given: Any) -> Any:
        nonlocal calls
        calls += 1
        result = original(self, *given)
        if calls == 1:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(holder, where, dying)
    with pytest.raises(KeyboardInterrupt):
        narrow_folder(tmp_path / "dense", tmp_path / "out", method, batches, options=options)
    assert (tmp_path / "out.partial" / JOURNAL).exists()
    with pytest.raises(PrunusError, match="other settings"):
        narrow_folder(tmp_path / "dense", tmp_path / "out", Calibrated(ratio=0.3), batches, options=options)
    before = calls
    narrow_folder(tmp_path / "dense", tmp_path / "out", method, batches, options=options)
    blocks = {"note_scores": 2, "note_fit": 2, "lay_out": 2}[where]
    assert calls - before <= blocks
    expected, got = state(tmp_path / "whole"), state(tmp_path / "out")
    assert all(torch.equal(expected[key], got[key]) for key in expected | got)


def test_one_block_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = saved("llama", tmp_path)
    largest = max(sum(p.numel() for p in block.parameters()) for block in model.model.layers)
    ends = sum(p.numel() for part in (model.model.embed_tokens, model.lm_head) for p in part.parameters())
    held: list[int] = []
    fill = _FolderState._fill

    def counting(self: Any, parameter: Any) -> None:
        fill(self, parameter)
        held.append(sum(one.numel() for one in self.on_use._full.values()))

    monkeypatch.setattr(_FolderState, "_fill", counting)
    narrow_folder(tmp_path / "dense", tmp_path / "out", Calibrated(ratio=0.4), batches, options=QUIET)
    assert 0 < max(held) <= largest + ends


def test_what_cannot_be_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    model, batches = saved("llama", tmp_path)
    source, out = tmp_path / "dense", tmp_path / "out"
    for method, said in (
        (Calibrated(max_macs=1000), "call of the whole model"),
        (Calibrated(max_parameters=1), "can be reached"),
        (Calibrated(ratio=0.3, compensation="bias"), "no bias"),
    ):
        with pytest.raises(PrunusError, match=said):
            narrow_folder(source, out, method, batches, options=QUIET)
    with pytest.raises(PrunusError, match="at least one"):
        narrow_folder(source, out, Calibrated(ratio=0.3), [], options=QUIET)
    broken = [{"input_ids": torch.full_like(batches[0]["input_ids"], 10**6)}]
    with pytest.raises(PrunusError, match="batch"):
        narrow_folder(source, out, Calibrated(ratio=0.3), broken, options=QUIET)
    prunus.prune(model, Magnitude(sparsity=0.5), batches, options=QUIET)
    model.save_pretrained(tmp_path / "sparse")
    with pytest.raises(PrunusError, match="narrow first"):
        narrow_folder(tmp_path / "sparse", out, Calibrated(ratio=0.3), batches, options=QUIET)
    assert not out.exists()
    assert not (tmp_path / "out.partial").exists()


KILLED = """
import sys, torch
from prunus import Calibrated, WalkOptions, narrow_folder
batches = torch.load(sys.argv[3])
narrow_folder(sys.argv[1], sys.argv[2], Calibrated(ratio=0.4), batches, options=WalkOptions(progress=False))
"""


@pytest.mark.long
def test_killed_work_goes_on(tmp_path: Path) -> None:
    _, batches = saved("llama", tmp_path)
    torch.save(batches, tmp_path / "batches.pt")
    narrow_folder(tmp_path / "dense", tmp_path / "whole", Calibrated(ratio=0.4), batches, options=QUIET)
    arguments = [
        sys.executable,
        "-c",
        KILLED,
        str(tmp_path / "dense"),
        str(tmp_path / "out"),
        str(tmp_path / "batches.pt"),
    ]
    process = subprocess.Popen(arguments, env={**os.environ})
    noted = tmp_path / "out.partial" / "prunus-scores.safetensors"
    while process.poll() is None and not noted.exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    narrow_folder(tmp_path / "dense", tmp_path / "out", Calibrated(ratio=0.4), batches, options=QUIET)
    expected, got = state(tmp_path / "whole"), state(tmp_path / "out")
    assert all(torch.equal(expected[key], got[key]) for key in expected | got)
