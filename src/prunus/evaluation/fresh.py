"""Calls in a process of their own: memory counts from nothing, and what is loaded comes from files alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from prunus.errors import PrunusError
from prunus.evaluation.warm import ask, with_paths
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

    That process finds modules where this one does, imports the extensions that this one has, and ends when this one does, in whatever
    way. What it prints goes to standard error.

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
    told = {**_without_launcher(), **(environment or {})}
    said, status = ask(request, told) or _started(request, told)
    if status or not said:
        raise PrunusError("new process", function.__qualname__, _ended(status))
    answer = json.loads(said)
    if "refused" in answer:
        raise PrunusError(*answer["refused"])
    return answer["returned"]


def _started(request: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[str, int]:
    """What a process says that is started for it, and how it ended."""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "prunus.evaluation"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env=with_paths(environment),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # it has died; its status says how
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        said = process.stdout.read()  # meanwhile `stdin` stays open, so that it closes when this process ends
        status = process.wait()
        with suppress(BrokenPipeError):
            process.stdin.close()
    return said, status


LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun and its like tell a process about the others."""


def _without_launcher() -> dict[str, str]:
    """The environment of a process that is alone."""
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    return {name: value for name, value in kept.items() if not name.startswith(("TORCHELASTIC_", "ROLE_"))}


def _ended(status: int) -> str:
    """What a process died of, by its status."""
    if status >= 0:
        return f"it ended with status {status}{'' if status else ' and no answer'}; see above"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    return f"{name} ended it" + ("; perhaps the memory was full" if name == "SIGKILL" else "; see above")
