"""Damaged, hostile and absurd input, seeded: recipes, runs, checkpoints and plans.

Every case must end right or in one `PrunusError`: no other exception, nothing that takes more than 20 seconds, no model with
other weights than were saved, no pickle opened. `python -m benchmarks.fuzz` goes through all of them in some minutes;
`--only damage:17` replays one with its traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

COUNTS = {"recipes": 5000, "runs": 500, "damage": 2000}
LIMIT = 20.0
"""Seconds of computing a case may take; ten times as many by the clock, for machines with other things to do."""
MEMORY = 12 << 30
"""Bytes of address space of a process, of which torch's libraries take a part: what needs more fails instead of filling the machine."""


def cases(suite: str, place: Path) -> Any:
    """The module's three suites, each a function of a seed; imported here, so that the parent stays small."""
    from benchmarks import fuzz_cases

    return fuzz_cases.SUITES[suite](place)


def attempt(case: Any, seed: int) -> dict[str, str]:
    """Carries out one case: `right`, `refused`, or what must not happen."""
    from prunus import PrunusError

    try:
        said = case(random.Random(seed))
    except PrunusError as error:
        return {"outcome": "refused", "said": str(error)[:300]}
    except BaseException as error:
        return {
            "outcome": "traceback",
            "said": f"{type(error).__name__}: {error}"[:300],
            "trace": traceback.format_exc(),
        }
    return {"outcome": said or "right", "said": ""}


def work(place: Path) -> None:
    """A worker: reads cases from standard input, a line each, and answers on standard output, which nothing else writes to."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    loaded: dict[str, Any] = {}
    for line in sys.stdin:
        suite, seed = json.loads(line)
        if suite not in loaded:
            loaded[suite] = cases(suite, place)
            gc.freeze()  # the Trainer collects garbage, among all that has been imported
            answers.write("ready\n")
            answers.flush()
        answers.write(json.dumps(attempt(loaded[suite], seed)) + "\n")
        answers.flush()


class Worker:
    """A process that carries out cases, and is replaced when one takes too long or kills it."""

    def __init__(self, place: Path):
        self._place = place
        self._process: subprocess.Popen[str] | None = None
        self._warm: set[str] = set()

    def run(self, suite: str, seed: int) -> dict[str, str]:
        if self._process is None:
            command = [sys.executable, "-m", "benchmarks.fuzz", "--work", str(self._place)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
            self._warm = set()
        assert self._process.stdin
        self._process.stdin.write(json.dumps([suite, seed]) + "\n")
        self._process.stdin.flush()
        if suite not in self._warm:
            self._answer(300)
            self._warm.add(suite)
        answer = self._answer(LIMIT)
        if answer is None:
            died = self._process.poll()
            self.close()
            outcome = "hang" if died is None else "died"
            return {"outcome": outcome, "said": f"no answer in {LIMIT:.0f} s" if died is None else f"status {died}"}
        found: dict[str, str] = json.loads(answer)
        return found

    def _answer(self, seconds: float) -> str | None:
        assert self._process
        assert self._process.stdout
        process = psutil.Process(self._process.pid)
        computed, start = sum(process.cpu_times()[:2]), time.monotonic()
        while True:
            ready, _, _ = select.select([self._process.stdout], [], [], 1.0)
            if ready:
                return self._process.stdout.readline() or None
            if sum(process.cpu_times()[:2]) - computed > seconds or time.monotonic() - start > 10 * seconds:
                return None

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            with self._process:  # waits, and closes both pipes
                self._process = None


def fuzz(
    counts: dict[str, int], seed: int, place: Path, jobs: int = 1
) -> tuple[dict[str, Counter[str]], list[dict[str, Any]]]:
    """Carries out so many cases of every suite.

    Returns:
        Suite → outcome → count, and the cases that must not happen, each with its suite and seed.
    """
    waiting = [(suite, seed + number) for suite, count in counts.items() for number in range(count)][::-1]
    found: dict[str, Counter[str]] = {suite: Counter() for suite in counts}
    failures: list[dict[str, Any]] = []

    def go_through() -> None:
        worker = Worker(place)
        with contextlib.suppress(IndexError):
            while True:
                suite, case = waiting.pop()
                answer = worker.run(suite, case)
                found[suite][answer["outcome"]] += 1
                if len(waiting) % 100 == 0:
                    print(f"{len(waiting)} left", file=sys.stderr)
                if answer["outcome"] not in ("right", "refused"):
                    failures.append({"suite": suite, "seed": case, **answer})
        worker.close()

    threads = [threading.Thread(target=go_through) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, failures


@contextlib.contextmanager
def prepared(place: Path | None = None) -> Iterator[Path]:
    """A folder with the checkpoints, plans and texts that cases damage copies of."""
    from benchmarks import fuzz_cases

    folder = place or Path(tempfile.mkdtemp(prefix="prunus-fuzz-"))
    try:
        fuzz_cases.prepare(folder)
        yield folder
    finally:
        if place is None:
            shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", choices=[*COUNTS, "all"], default="all")
    parser.add_argument("--count", type=int, help="cases of each suite; by default the whole of it")
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the next has the next")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", help="SUITE:SEED, one case in this process, with its traceback")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures.jsonl"))
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work(asked.work)
        return
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    with prepared() as place:
        if asked.only:
            suite, _, seed = asked.only.partition(":")
            answer = attempt(cases(suite, place), int(seed))
            print(answer.pop("trace", ""))
            print(json.dumps(answer, indent=1))
            return
        suites = list(COUNTS) if asked.suite == "all" else [asked.suite]
        start = time.monotonic()
        found, failures = fuzz({suite: asked.count or COUNTS[suite] for suite in suites}, asked.seed, place, asked.jobs)
    for suite, outcomes in found.items():
        print(
            f"{suite:<10}{sum(outcomes.values()):>6}   "
            + ", ".join(f"{n} {what}" for what, n in sorted(outcomes.items()))
        )
    print(f"{time.monotonic() - start:.0f} s")
    if failures:
        asked.failures.write_text("".join(json.dumps(failure) + "\n" for failure in failures))
        for failure in failures[:20]:
            print(f"--only {failure['suite']}:{failure['seed']}   {failure['outcome']}: {failure['said']}")
        print(f"all {len(failures)} in {asked.failures}")
        sys.exit(1)


if __name__ == "__main__":
    main()
