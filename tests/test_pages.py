"""Pages are read by anybody: pictures in words, tables with names, boxes that scroll, nothing fetched; whatever the names and figures are."""

from __future__ import annotations

import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from benchmarks.report_page import chromium, wrong_with
from PIL import Image

from prunus import PrunusError
from prunus.metric import Metric
from prunus.report import Report, Sample, Sides, write_report
from prunus.report.samples import collected
from prunus.studies.findings import Order
from prunus.studies.outcome import Outcome, Results
from prunus.studies.page import write_page
from prunus.tasks import Exhibit
from prunus.tasks.exhibit import small_jpeg

TAGS = "<script>alert(1)</script><img src=http://example.org/x.png></table></body>"
LONG = "vision_model_encoder_layers_" * 9
FORMULA = "_cost in $ and \\frac{ $"
EMPTY = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}
BLOCKS = {"div", "p", "table", "ul", "pre", "figure", "section", "h1", "h2", "h3", "details", "dl"}


def column(score: float, size: int) -> dict[str, object]:
    return {
        "metrics": {FORMULA: score, TAGS: math.nan, "plain": score},
        "parameters": {LONG: size, TAGS: size, "total": 2 * size}, "multiply_accumulates": {LONG: size, TAGS: size, "total": 2 * size},
        "bytes": 4 * size, "latency": {"median": 0.02, "low": 0.01, "high": 0.03, "runs": 5}, "peak_memory": 100 * size,
    }  # fmt: skip


def samples(models: list[str]) -> list[Sample]:
    picture = small_jpeg(Image.new("RGB", (900, 300), "teal"))
    told = [("no", "yes", TAGS, [picture]), (LONG, TAGS, "", [picture, picture]), ("", "", LONG, [])]
    return collected({model: [Exhibit(*one) for one in told] for model in models})


def a_report(folder: Path) -> Path:
    course = {
        "step": FORMULA,
        "log": [{"step": 1, "loss": math.nan}, {"step": 2, "loss": math.inf, f"eval_{FORMULA}": 0.5}],
        "said": TAGS,
    }
    made = Report(
        headline=FORMULA, metrics={FORMULA: Metric()}, ratio=0.5, sparsity=0.25,
        models={"dense": column(0.75, 1000), "compressed": column(math.nan, 500)},
        retained={f"{LONG}.mlp": [0.5] * 300, FORMULA: [0.125], TAGS: []}, passed_over={LONG: {TAGS: 0.5, LONG: 0.25}, "none": {}},
        samples=samples(["dense", "compressed"]), loading=f"# {TAGS}\n" + LONG, courses=[course, {"step": LONG, "log": []}], folders={},
        versions={"torch": TAGS}, recipe={"task": {"name": TAGS}, "measure": {"batch_size": 2}, "deep": {LONG: [LONG * 2]}},
    )  # fmt: skip
    write_report(made, folder)
    assert Report.load(folder).samples == made.samples
    return folder / "report.html"


def a_comparison(folder: Path) -> Path:
    names = ["_a", "$b$", TAGS, LONG, *map(str, range(8))]
    models = {name: column(0.1 * place, 100 * (place + 1)) for place, name in enumerate(names)}
    Sides(
        headline=FORMULA, metrics={}, folders=dict.fromkeys(names, LONG), models=models, batch_size=2, samples=tuple(samples(names))
    ).save(folder)  # fmt: skip
    return folder / "comparison.html"


def a_study(folder: Path) -> Path:
    figures = {FORMULA: 0.5, "parameters": 10.0, "macs": 100.0, "bytes": 4.0, "latency": 0.01, "peak_memory": 1.0}
    outcomes = [
        Outcome(
            part="part", labels={"method": method, "ratio": ratio}, seed=0, headline=FORMULA, metric=Metric(), dense=figures,
            compressed=figures, ratio=0.5, sparsity=0.0, retained={},
        )
        for method in (FORMULA, TAGS, LONG) for ratio in ("2x", "4x", LONG)
    ]  # fmt: skip
    results = Results(
        title=TAGS, note=LONG, command="", machine={LONG: TAGS}, planned=12, failed={LONG: TAGS}, outcomes=outcomes
    )
    return write_page(results, [Order(claim=TAGS, axis="method", labels=(TAGS, LONG))], folder)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    made = {"report": a_report, "comparison": a_comparison, "study": a_study}
    return {name: make(folder / name) for name, make in made.items()}


class Page(HTMLParser):
    """What is wrong with a page, as far as its text says."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.wrong: list[str] = []
        self.seen: list[str] = []
        self.feed(text)
        self.close()
        self.wrong += [f"<{tag}> stays open" for tag, _ in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given, inside = dict(attrs), [name for name, _ in self.open]
        self.seen.append(tag)
        if tag in BLOCKS and "p" in inside:
            self.wrong.append(f"<{tag}> in a paragraph")
        if tag in ("script", "link", "iframe", "object", "form"):
            self.wrong.append(f"<{tag}>")
        self.wrong += [f"{name}={given[name]}" for name in ("href", "action", "srcset") if name in given]
        if "src" in given and not (given["src"] or "").startswith("data:image/"):
            self.wrong.append(f"src={given['src']}")
        if tag == "img" and not given.get("alt"):
            self.wrong.append("a picture without words")
        if tag == "th" and given.get("scope") not in ("row", "col"):
            self.wrong.append("<th> of nothing")
        if tag == "table" and not (
            self.open and self.open[-1][1].get("class") == "wide" and self.open[-1][1].get("aria-label")
        ):
            self.wrong.append("a table in no box that scrolls")
        if tag not in EMPTY:
            self.open.append((tag, given))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1][0] != tag:
            self.wrong.append(f"</{tag}> closes nothing")
        else:
            self.open.pop()


@pytest.mark.parametrize("name", ["report", "comparison", "study"])
def test_a_page_says_all_in_words_and_fetches_nothing(name: str, pages: dict[str, Path]) -> None:
    text = pages[name].read_text()
    page = Page(text)
    assert not page.wrong
    assert page.seen.count("h1") == 1
    assert page.seen.count("img") >= 1
    assert page.seen.count("table") == page.seen.count("caption") >= 2
    assert "alert(1)" in text
    assert "url(" not in text
    assert "@import" not in text
    assert 'name="viewport"' in text


def test_a_checker_that_finds_nothing_is_no_checker() -> None:
    wrong = Page("<p><div></p><img src='http://a.b/c.png'><table><tr><th>x</table><script></script>").wrong
    assert len(wrong) > 7


def test_a_report_shows_what_a_person_asks(pages: dict[str, Path]) -> None:
    text = pages["report"].read_text()
    for heading in ("Samples", "What stays", "Passed over", "Quality against cost", "Course", "Load it", "Recipe"):
        assert f"<h2>{heading}</h2>" in text
    assert "0.02 s (0.01 to 0.03)" in text
    assert "dense says" in text
    assert "on average vision" in text


def test_samples_are_shown_however_long_they_are_and_whichever_way_they_run(tmp_path: Path) -> None:
    hebrew, endless = "שלום עולם! (123)", "字" * 50_000
    told = [Exhibit(endless, hebrew, "", [small_jpeg(Image.new("RGB", (2, 900)))])]
    Sides(
        headline="plain", metrics={}, folders={}, models={"one": column(0.5, 100)}, samples=tuple(collected({"one": told}))
    ).save(tmp_path)  # fmt: skip
    page, data = ((tmp_path / f"comparison.{kind}").read_text(encoding="utf-8") for kind in ("html", "json"))
    assert f'<dd dir="auto">{hebrew}</dd>' in page
    assert f'alt="picture of sample 1: {hebrew}"' in page
    assert 1000 < page.count("字") < 5000
    assert json.loads(data)["samples"][0]["said"]["one"] == endless
    style = re.search(r"\.pictures img \{([^}]*)\}", page)
    assert style is not None
    assert re.search(r"(?<!min-)height: \d+rem", style[1])  # of a picture of 2 × 900 pixels, too


def test_sections_that_have_nothing_to_say_are_left_out(tmp_path: Path) -> None:
    made = Report(
        headline="plain", metrics={}, ratio=0.0, models={"dense": column(1.0, 10), "compressed": column(1.0, 10)}, retained={}, courses=[],
        folders={}, versions={}, recipe={"task": {"name": "own"}, "measure": {"batch_size": 1}},
    )  # fmt: skip
    write_report(made, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert not Page(text).wrong
    assert not any(
        f"<h2>{heading}" in text for heading in ("Samples", "What stays", "Passed over", "Course", "Load it")
    )


def test_a_missing_browser_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    with pytest.raises(PrunusError, match="prunus\\[browser\\]"), chromium():
        pass


@pytest.mark.long
def test_pages_are_right_in_a_browser(pages: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("playwright", reason="needs a browser: pip install 'prunus[browser]', and a Chromium")
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<title>x</title><body style='color:#999'><img src=none.png><table><tr><td style='min-width:3000px'>x</table><h3>y</h3>"
    )
    try:
        with chromium() as browser:
            assert [one for page in pages.values() for one in wrong_with(browser, page)] == []
            found = "\n".join(wrong_with(browser, bad, tmp_path))
    except PrunusError as refused:
        pytest.skip(str(refused))
    for said in (
        "px wide in a window of 1280",
        "alternative text",
        "contrast of 2.",
        "no caption",
        "level 0",
        "names no language",
        "it asks for file:",
    ):
        assert said in found
    assert (tmp_path / "bad-390.png").stat().st_size < 300_000
