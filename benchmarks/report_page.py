"""Pages of HTML in a real browser: `python -m benchmarks.report_page PAGE.html … [--out FOLDER]`.

Each page is opened in a headless Chromium at 1280 and 390 px, in light and in dark, and as it is printed. A page is right if

- nothing is wider than the window, and nothing spills out of its box, unless a box around it scrolls;
- every picture has an alternative text, and every table a caption and named rows and columns;
- text is at least 12 px tall, and at least 4.5 times as light as its ground, or as dark (WCAG 2.2, 1.4.3);
- headings nest, there is one of the first level, and names of elements are unique;
- it has no script, and asks for nothing but itself.

What is wrong is printed, and the exit status says whether anything was. Needs the extra `browser`, and a Chromium: --browser, one that is
called chromium or google-chrome, or Playwright's own.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from prunus import PrunusError
from prunus.storage import write_bytes

WIDTHS = {1280: 800, 390: 844}
"""Width of a window → height, in pixels: a laptop, a phone."""
PAPER = 718
"""Pixels across an A4 sheet between margins of 1 cm."""
TALLEST = 1800
"""Pixels of a saved picture; a page goes on below."""
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

CHECKS = """
() => {
  const wrong = [];
  const called = e => {
    const text = (e.getAttribute('aria-label') || e.textContent || '').trim().slice(0, 60);
    return `<${e.tagName.toLowerCase()}> ${JSON.stringify(text)}`;
  };
  const shown = e => e.checkVisibility() && e.getClientRects().length > 0;
  const scrolls = e => ['auto', 'scroll', 'hidden', 'clip'].includes(getComputedStyle(e).overflowX);
  const boxed = e => { for (let at = e.parentElement; at && at !== document.body; at = at.parentElement) if (scrolls(at)) return true; return false; };
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > window.innerWidth)
    wrong.push(`the page is ${document.documentElement.scrollWidth} px wide in a window of ${window.innerWidth}`);
  for (const e of document.body.querySelectorAll('*')) {
    if (!shown(e)) continue;
    const box = e.getBoundingClientRect();
    if (!boxed(e) && (box.right > width + 1 || box.left < -1)) wrong.push(`${called(e)} reaches from ${box.left} to ${box.right} of ${width} px`);
    const style = getComputedStyle(e);
    if (style.display !== 'inline' && !scrolls(e) && e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0 && !e.closest('svg'))
      wrong.push(`${called(e)} spills out of its box: ${e.scrollWidth} of ${e.clientWidth} px`);
    if (scrolls(e) && e.scrollWidth > e.clientWidth + 1 && e.tabIndex < 0) wrong.push(`${called(e)} scrolls, and cannot be reached by the keyboard`);
  }
  const named = e => (e.getAttribute('alt') || e.getAttribute('aria-label') || e.querySelector(':scope > title')?.textContent || '').trim();
  for (const e of document.querySelectorAll('img, svg, canvas, object, video')) {
    if (e.closest('[aria-hidden=true]')) continue;
    if (!named(e)) wrong.push(`${e.outerHTML.slice(0, 60)} has no alternative text`);
    if (e.tagName !== 'IMG' && e.getAttribute('role') !== 'img') wrong.push(`${called(e)} is not marked as a picture (role=img)`);
    if (e.tagName === 'IMG' && !(e.complete && e.naturalWidth)) wrong.push(`${called(e)} ${named(e)} is not drawn`);
  }
  for (const e of document.querySelectorAll('table')) {
    if (!e.caption?.textContent.trim()) wrong.push(`${called(e)} has no caption`);
    if ([...e.querySelectorAll('th')].some(cell => !cell.scope)) wrong.push(`${called(e)} has a heading without a scope`);
    if ([...e.tBodies].some(body => [...body.rows].some(row => !row.querySelector('th')))) wrong.push(`${called(e)} has a row without a name`);
  }
  let level = 0;
  for (const e of document.querySelectorAll('h1, h2, h3, h4, h5, h6')) {
    const own = Number(e.tagName[1]);
    if (own > level + 1) wrong.push(`${called(e)} comes after a heading of level ${level}`);
    level = own;
  }
  if (document.querySelectorAll('h1').length !== 1) wrong.push(`${document.querySelectorAll('h1').length} headings of the first level`);
  const names = [...document.querySelectorAll('[id]')].map(e => e.id);
  for (const name of new Set(names.filter((one, place) => names.indexOf(one) !== place))) wrong.push(`several elements are called ${name}`);
  if (!document.documentElement.lang) wrong.push('the page names no language');
  if (!document.title.trim()) wrong.push('the page has no title');
  if (!document.querySelector('meta[name=viewport]')) wrong.push('the page does not say that it fits a phone (meta viewport)');
  if (document.scripts.length) wrong.push('the page has a script');

  const parse = text => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = (top, below) => [0, 1, 2].map(k => top[k] * top[3] + below[k] * (1 - top[3])).concat(1);
  const ground = e => {
    const layers = [];
    for (let at = e; at; at = at.parentElement) layers.unshift(parse(getComputedStyle(at).backgroundColor));
    const dark = getComputedStyle(document.documentElement).colorScheme.includes('dark') && matchMedia('(prefers-color-scheme: dark)').matches;
    return layers.reduce((below, top) => over(top, below), dark ? [18, 18, 18, 1] : [255, 255, 255, 1]);
  };
  const light = color => {
    const [r, g, b] = color.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const looked = new Set();
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || looked.has(e) || !shown(e)) continue;
    looked.add(e);
    const style = getComputedStyle(e), below = ground(e);
    const [a, b] = [light(over(parse(style.color), below)), light(below)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) wrong.push(`${called(e)} has a contrast of ${contrast.toFixed(2)}`);
    if (!matchMedia('print').matches && parseFloat(style.fontSize) < 12) wrong.push(`${called(e)} is written in ${style.fontSize}`);
  }
  return wrong;
}
"""
"""Runs in the page; returns what is wrong."""


@contextmanager
def chromium(path: str | None = None) -> Iterator[Any]:
    """A headless browser.

    Args:
        path: of its program; None looks for one.

    Raises:
        PrunusError: there is no Playwright, or no browser.
    """
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise PrunusError("browser", "playwright", "it is not installed; run: pip install 'prunus[browser]'") from None
    program = path or next(filter(None, map(shutil.which, CHROMIUM)), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except Error as error:
            raise PrunusError(
                "browser", program, f"it does not start ({error.message.splitlines()[0]}); install chromium, or run: playwright install chromium"
            ) from None  # fmt: skip
        try:
            yield browser
        finally:
            browser.close()


def wrong_with(browser: Any, page: Path, folder: Path | None = None) -> list[str]:
    """What is wrong with a page, with the width and the scheme that it was looked at.

    Args:
        folder: where pictures of it are saved, NAME-WIDTH.png.
    """
    found: list[str] = []
    address = page.resolve().as_uri()
    looks = [(width, scheme, "screen") for width in WIDTHS for scheme in ("light", "dark")] + [
        (PAPER, "light", "print")
    ]
    for width, scheme, media in looks:
        context = browser.new_context(viewport={"width": width, "height": WIDTHS.get(width, 1000)}, color_scheme=scheme)
        opened = context.new_page()
        asked: list[str] = []
        opened.on("request", lambda request, asked=asked: asked.append(request.url))
        opened.on("pageerror", lambda error, asked=asked: asked.append(f"script: {error}"))
        opened.goto(address)
        opened.emulate_media(media=media, color_scheme=scheme)
        for detail in opened.query_selector_all("details:not([open]) > summary"):
            detail.click()
        told = opened.evaluate(CHECKS) + [
            f"it asks for {url[:100]}" for url in asked if url != address and not url.startswith("data:")
        ]
        found += [f"{page.name}, {width} px, {scheme}, {media}: {one}" for one in told]
        if folder is not None and (scheme, media) == ("light", "screen"):
            opened.reload()
            write_bytes(folder / f"{page.stem}-{width}.png", small_png(opened.screenshot(full_page=True)))
        context.close()
    return found


def small_png(picture: bytes) -> bytes:
    """The upper part of a picture, in 128 colours."""
    with Image.open(io.BytesIO(picture)) as opened:
        part = opened.convert("RGB").crop((0, 0, opened.width, min(opened.height, TALLEST)))
    buffer = io.BytesIO()
    part.quantize(128, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, help="folder for pictures of the pages")
    parser.add_argument("--browser", help="program of a Chromium")
    given = parser.parse_args()
    try:
        with chromium(given.browser) as browser:
            wrong = [one for page in given.pages for one in wrong_with(browser, page, given.out)]
    except PrunusError as error:
        raise SystemExit(str(error)) from None
    print("\n".join(wrong) or f"{len(given.pages)} pages are right at {' and '.join(map(str, WIDTHS))} px and on paper")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
