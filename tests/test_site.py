"""The documentation's site: its navigation names every page, and every link leads somewhere, in a repository browser and in the site."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import prunus

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


class Config(yaml.SafeLoader):
    """Reads mkdocs.yml where mkdocs is not installed: names of Python objects are left alone."""


Config.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda *_: None)


def named(nav: Any) -> list[str]:
    """The files of a navigation, at any depth."""
    if isinstance(nav, str):
        return [nav]
    inside = nav.values() if isinstance(nav, dict) else nav
    return [file for one in inside for file in named(one)]


NAV = named(yaml.load((ROOT / "mkdocs.yml").read_text(), Config)["nav"])


def site() -> Any:
    spec = importlib.util.spec_from_file_location("docs_site", DOCS / "_site.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_navigation_names_every_page_and_no_other() -> None:
    pages = [file for file in NAV if not file.startswith("reference/")]
    assert sorted(pages) == [page.relative_to(DOCS).as_posix() for page in PAGES]


def test_the_reference_has_every_room() -> None:
    rooms = {file.parent.name for file in Path(prunus.__path__[0]).glob("*/__init__.py")} - {"cli"}
    reference = {Path(file).stem for file in NAV if file.startswith("reference/")}
    assert rooms <= reference
    assert all(name == "prunus" or importlib.util.find_spec(f"prunus.{name}") for name in reference)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    for target in site().targets(page):
        assert target.is_file(), f"{page.name} links to {target}"
        assert target.is_relative_to(ROOT)


def test_links_are_rewritten_to_where_things_lie_in_the_site() -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="works/upop.md"))
    moved = site().on_page_markdown(
        "[a](../published.md#compressed) [b](../../README.md) [c](../../recipes/published/upop/vqa.yaml) [d](https://a.b/c)",
        page,
    )
    links = re.findall(r"\((.*?)\)", moved)
    assert links[:2] == ["../published.md#compressed", "../repository/README.md"]
    assert links[2].startswith("../repository/")
    assert links[2].endswith("recipes/published/upop/vqa.yaml.md")
    assert links[3] == "https://a.b/c"


@pytest.mark.long
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings_handlers.python")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    for page, said in (
        ("reference/structured", 'id="prunus.structured.UPop.ratio"'),
        ("reference/prunus", 'id="prunus.prune"'),
        ("tutorials/llava", "tiny-llava"),
        ("repository", "make demo"),  # the README
    ):
        assert said in (tmp_path / "site" / page / "index.html").read_text()
