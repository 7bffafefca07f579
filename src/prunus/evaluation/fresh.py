"""Calls in a process of their own: memory counts from nothing, and what is loaded comes from files alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prunus.errors import PrunusError
from prunus.extensions import loaded_extensions, place_of

importing = False
"""Whether this process was started below and is importing what it was told to."""


def in_fresh_process(
    function: Callable[..., Any],
    *arguments: Any,
    imports: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Any:
    """What a function returns when a new process calls it.

    That process finds modules where this one does, and imports the extensions that this one has. What it prints goes to
    standard error.

    Args:
        function: one of a module or a script's file, which returns what JSON can hold.
        arguments: what JSON can hold.
        imports: modules and files to import before the call, as `load_extension` takes them.
        environment: variables of that process beside those of this one.

    Raises:
        PrunusError: the function's own; the function was defined interactively; or the process died.
    """
    if importing:
        raise PrunusError("new process", function.__qualname__, "it would be started by every new process again")
    request = {
        "imports": [*loaded_extensions(), *imports],
        "module": place_of(function) or function.__module__,
        "function": function.__qualname__,
        "arguments": arguments,
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", "prunus.evaluation"],
        input=json.dumps(request),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={
            **_without_launcher(),
            **(environment or {}),
            "PYTHONPATH": os.pathsep.join(place or os.getcwd() for place in sys.path),
        },
    )
    if done.returncode:
        raise PrunusError("new process", function.__qualname__, f"it ended with status {done.returncode}; see above")
    answer = json.loads(done.stdout)
    if "refused" in answer:
        raise PrunusError(*answer["refused"])
    return answer["returned"]


LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun and its like tell a process about the others."""


def _without_launcher() -> dict[str, str]:
    """The environment of a process that is alone."""
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    return {name: value for name, value in kept.items() if not name.startswith(("TORCHELASTIC_", "ROLE_"))}
