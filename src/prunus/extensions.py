"""Code of others: modules that define methods, models, tasks, sources or steps of their own."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from prunus.errors import PrunusError

GROUP = "prunus.extensions"
"""The entry point by which an installed package names a module that defines some."""
OWN = "prunus.models"
"""Where models of ours register themselves that transformers lacks."""
PREFIX = "prunus_extension_"
"""How modules are called that were imported by path, lest they hide another one."""


_loaded: dict[str, None] = {}


def loaded_extensions() -> tuple[str, ...]:
    """The modules and files that have been imported as extensions, for another process to do the same."""
    return tuple(_loaded)


def load_extension(name: str | Path) -> ModuleType:
    """Imports a module by its name, or by the path of its file. What it defines can be named in recipes from then on.

    Raises:
        PrunusError: there is no such module, or its code fails.
    """
    name = str(name)
    try:
        module = _load_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    except PrunusError:
        raise
    except (Exception, SystemExit) as error:  # a stranger's module may raise anything
        raise PrunusError("import", name, f"it cannot be imported ({type(error).__name__}: {error})") from None
    _loaded[str(Path(name).resolve()) if _has_no_name(module.__name__) else module.__name__] = None
    return module


def _has_no_name(module: str) -> bool:
    """Whether a module can be imported by its file alone."""
    return module == "__main__" or module.startswith(PREFIX)


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise PrunusError(
            "import", str(path), "there is no such file; give a module's name, or the path of its .py file"
        )
    place = str(path.resolve())
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == place:
            return module
    name = PREFIX + path.stem
    spec = importlib.util.spec_from_file_location(name, place)
    if name in sys.modules or spec is None or spec.loader is None:
        raise PrunusError("import", str(path), "another file of that name has been imported; rename one")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def load_own() -> None:
    """Imports our own models, which register themselves with the Auto classes of transformers."""
    importlib.import_module(OWN)


@functools.cache
def load_installed() -> None:
    """Imports our own models, and what installed packages offer under the entry point `prunus.extensions`, once."""
    load_own()
    for point in entry_points(group=GROUP):
        load_extension(point.value)


def place_of(thing: Any) -> str | None:
    """What a new process imports to know a class or function: the name of its module, or its file; None for one of ours.

    Raises:
        PrunusError: it was defined where no other process can find it, such as in a notebook or in a function.
    """
    if thing.__module__.partition(".")[0] == "prunus":
        return None
    if "<locals>" in thing.__qualname__:
        raise PrunusError("import", thing.__qualname__, "it was defined in a function; put it beside the functions")
    if not _has_no_name(thing.__module__):
        return str(thing.__module__)
    module = sys.modules[thing.__module__]
    file, spec = getattr(module, "__file__", None), getattr(module, "__spec__", None)
    if file is None:
        raise PrunusError(
            "import",
            thing.__qualname__,
            "it was defined interactively; put it into a module, for other processes to import",
        )
    if thing.__module__ == "__main__" and spec is not None:  # of python -m
        return str(spec.name)
    return str(Path(file).resolve())
