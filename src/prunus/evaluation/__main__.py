"""The process that `in_fresh_process` starts: told on standard input what to call, it answers on standard output."""

from __future__ import annotations

import json
import os
import sys
from operator import attrgetter

from prunus.errors import PrunusError
from prunus.extensions import load_extension


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # where everything else goes that is printed
    request = json.load(sys.stdin)
    try:
        for name in request["imports"]:
            load_extension(name)
        function = attrgetter(request["function"])(load_extension(request["module"]))
        answer = {"returned": function(*request["arguments"])}
    except PrunusError as error:
        answer = {"refused": [error.field, error.value, error.remedy]}
    answers.write(json.dumps(answer, default=str))


if __name__ == "__main__":
    main()
