"""What mkdocs adds to the pages of this folder: the API reference, and the files of the repository that pages link to.

Pages link as a repository browser wants it, also to what lies outside of this folder (`../recipes/…`). Such files become pages below
`repository/`, and the links of all pages are rewritten to where things lie in the site.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
"""A link to a file, apart from its anchor; addresses with a scheme have a colon."""
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.DOTALL | re.MULTILINE)


def targets(page: Path) -> list[Path]:
    """The files that a page links to, as a repository browser finds them; code is no text."""
    return [(page.parent / match[2]).resolve() for match in LINK.finditer(CODE.sub("", page.read_text()))]


def place(file: Path) -> str:
    """Where a file of the repository lies in the site, by its source."""
    if file.is_relative_to(DOCS):
        return file.relative_to(DOCS).as_posix()
    path = f"repository/{file.relative_to(ROOT).as_posix()}"
    return path if file.suffix == ".md" else f"{path}.md"


def outside() -> set[Path]:
    """All files outside of this folder that its pages link to, and that those link to in turn."""
    found: set[Path] = set()
    left = sorted(DOCS.rglob("*.md"))
    while left:
        page = left.pop()
        new = {file for file in targets(page) if file.is_file() and not file.is_relative_to(DOCS)} - found
        found |= new
        left += [file for file in new if file.suffix == ".md"]
    return found


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File, InclusionLevel

    for file in sorted(outside()):
        text = file.read_text()
        if file.suffix != ".md":
            text = f"# `{file.relative_to(ROOT).as_posix()}`\n\n````{file.suffix[1:]}\n{text}````\n"
        made = File.generated(config, place(file), content=text, inclusion=InclusionLevel.NOT_IN_NAV)
        files.append(made)
    for name in re.findall(r"reference/(\w+)\.md", str(config.nav)):
        full = name if name == "prunus" else f"prunus.{name}"
        text = f"# `{full}`\n\n::: {full}\n"
        if name != "prunus":  # which names what the rooms explain
            text += "    options: {inherited_members: true}\n"
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    here = page.file.src_uri
    if here.startswith("reference/"):
        return markdown
    file = ROOT / here.removeprefix("repository/") if here.startswith("repository/") else DOCS / here

    def moved(match: re.Match[str]) -> str:
        target = (file.parent / match[2]).resolve()
        if not target.is_file():
            return match[0]
        return match[1] + Path(os.path.relpath(place(target), Path(here).parent)).as_posix() + match[3]

    return LINK.sub(moved, markdown)
