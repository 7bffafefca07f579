"""The tutorials: every file, command and line of Python of a page is carried out, from top to bottom, in an empty folder.

What cannot be had in a test is replaced in the page's text: names of the hub by folders of tiny random models, steps of trainings by two.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunus.cli import app
from prunus.evaluation import evaluate_here
from tests import lookers, speakers

PAGES = Path(__file__).parents[1] / "docs" / "tutorials"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
CAPTIONER = {"Salesforce/blip-image-captioning-base": lambda: speakers.save("blip_captions", Path("blip"))}
STAND_INS: dict[str, dict[str, Callable[[], Path]]] = {
    "your-own-pictures": CAPTIONER,
    "two-of-four": CAPTIONER,
    "upop-on-clip": {"openai/clip-vit-base-patch32": lambda: lookers.saved("clip", Path("clip"))},
    "llava": {},
}
"""What stands for what has to be downloaded."""
QUICK = {r"\{steps: \d+": "{steps: 2, bf16: false", r"(?m)^output:": "measure: {batch_size: 2, repeats: 1}\noutput:"}


def test_every_tutorial_is_carried_out() -> None:
    assert sorted(STAND_INS) == sorted(page.stem for page in PAGES.glob("*.md"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name != "llava" else ()) for name in STAND_INS]
)
def test_a_tutorial_does_what_it_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (PAGES / f"{name}.md").read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("prunus.report.measured.evaluate_elsewhere", evaluate_here)  # other tests start processes
    if "name: caption" in text:
        pytest.importorskip("pycocoevalcap.cider.cider")
    if "prunus export" in text:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    for asked, make in STAND_INS[name].items():
        assert asked in text
        text = text.replace(asked, str(make()))
    for written, quick in QUICK.items():
        text = re.sub(written, quick, text)
    names: dict[str, Any] = {"__name__": name}
    for language, block in BLOCK.findall(text):
        if language == "python":
            exec(compile(block, f"{name}.md", "exec"), names)
        elif language == "yaml":
            file = re.match(r"# (\S+\.yaml)\n", block)
            assert file, "a recipe says its file's name"
            Path(file[1]).write_text(block)
        elif language == "bash":
            for line in block.splitlines():
                program, *arguments = shlex.split(line)
                assert program == "prunus"
                app(arguments, standalone_mode=False)
        else:
            assert language == "json"  # a line of a file that the page makes
