"""The process that `in_fresh_process` starts: told on standard input what to call, it answers on standard output. With arguments it is the one
that is kept warm, of which such processes are forks.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from operator import attrgetter
from types import ModuleType

from prunus.errors import PrunusError
from prunus.evaluation import fresh, warm
from prunus.extensions import load_extension


def main() -> None:
    if sys.argv[1:] and not warm.serve(sys.argv[1], sys.argv[2:]):
        return
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # where everything else goes that is printed
    request = json.loads(sys.stdin.buffer.readline())
    warm.take_place(request)
    threading.Thread(target=_end_with_caller, daemon=True).start()
    try:
        for name in request["imports"]:
            _load(name)
        function = attrgetter(request["function"])(_load(request["module"]))
        said = {"returned": function(*request["arguments"])}
    except PrunusError as error:
        said = {"refused": [error.field, error.value, error.remedy]}
    answers.write(json.dumps(said, default=str))
    answers.close()


def _end_with_caller() -> None:
    """Ends this process once whoever started it is gone, and with that the other end of standard input: nobody waits for the answer, and what
    it works on may be begun anew.
    """
    while os.read(0, 1):
        pass
    os._exit(1)


def _load(name: str) -> ModuleType:
    fresh.importing = True
    try:
        return load_extension(name)
    except PrunusError as error:
        raise PrunusError(
            "import", name, f"a new process could not import it ({error}). What a script does must stand under: if __name__ == '__main__'"
        ) from None  # fmt: skip
    finally:
        fresh.importing = False


if __name__ == "__main__":
    main()
