"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from prunus.extensions import load_extension


def _import(names: list[str] | None) -> None:
    for name in names or ():
        load_extension(name)


ImportOption = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        callback=_import,
        help="A module, or a .py file, with methods, tasks, sources or steps. May be repeated.",
    ),
]
