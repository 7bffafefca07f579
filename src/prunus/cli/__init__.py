"""The command line."""

from __future__ import annotations

import io
import sys

from rich.console import Console
from rich.markup import escape

from prunus.cli.commands import app
from prunus.errors import PrunusError, shown
from prunus.parallel import leave

__all__ = ["app", "main"]


def main() -> None:
    """Entry point: a refused request is one line on standard error and status 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # what its encoding lacks is written as on standard error
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except SystemExit as ended:
        leave(ended.code if isinstance(ended.code, int) else int(ended.code is not None))
        raise
    except PrunusError as error:
        refusal = error
    except OSError as error:
        refusal = PrunusError(str(error.filename or "system"), error.strerror, "look at the disk and at its rights")
    else:
        return
    said = f"[bold red]error[/] {escape(refusal.field)} = {escape(shown(refusal.value))}: {escape(refusal.remedy)}"
    Console(stderr=True).print(
        said.encode(errors="backslashreplace").decode().replace("\n", " "), highlight=False, soft_wrap=True
    )
    leave(2)
    sys.exit(2)
