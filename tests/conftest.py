"""Every test, and every process that a test starts, computes with one thread: the models are tiny, threads that wait for one
another only cost time, and the same sums in another order would be other bits. For the same reason no test sees a GPU,
unless `CUDA_VISIBLE_DEVICES` names one; what GPUs compute is compared by `python -m benchmarks.accelerator`. Nor does one wait for a hub.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

torch.set_num_threads(1)


POINT = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c636000000002000148afa4710000000049454e44ae426082"
)
"""A PNG file of one pixel."""
LONGEST = (
    "test_mutation.py", "test_studies.py", "test_run.py", "test_published_recipes.py", "test_matrices.py", "test_evaluation.py",
    "test_as_published.py", "test_warm.py", "test_processes.py", "test_streaming.py", "test_export.py", "test_killed.py",
    "test_tutorials.py",
)  # fmt: skip
"""Files whose long tests take longest."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where only long tests run, files without one need not be imported."""
    is_left = (
        config.option.markexpr == "long"
        and collection_path.suffix == ".py"
        and "mark.long" not in collection_path.read_text(encoding="utf-8")
    )
    return True if is_left else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """For processes that take file after file: those that take longest come first, then those with the most tests, so that all processes end
    together.
    """
    if not hasattr(config, "workerinput"):
        return
    tests = Counter(item.path for item in items)
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (places.get(item.path.name, len(places)), -tests[item.path]))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    _forget_what_stays()


@pytest.fixture(scope="session", autouse=True)
def _new_processes_have_imported(request: pytest.FixtureRequest) -> Iterator[None]:
    """Long tests start many. Those that are about starting one take `unwarmed`."""
    if any(item.get_closest_marker("long") for item in request.session.items):
        from prunus.evaluation import keeping_warm
        from prunus.studies.carrying_out import IMPORTED

        with keeping_warm(IMPORTED):
            yield
    else:
        yield


@pytest.fixture
def unwarmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """New processes import everything themselves."""
    monkeypatch.delenv("PRUNUS_WARM", raising=False)


@pytest.fixture
def quick_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs report is measured in this process, and drawn as single points; other tests start processes and look at pictures."""
    from prunus.evaluation import evaluate_here

    monkeypatch.setattr("prunus.report.measured.evaluate_elsewhere", evaluate_here)
    monkeypatch.setattr("prunus.report.plots.png", lambda figure: POINT)


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that no other test has: for files that say `pytestmark = pytest.mark.usefixtures("own_cache")`."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PRUNUS_CACHE", str(folder))
    return folder


@pytest.fixture
def bf16_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wanted in bf16 runs in it on this CPU, too, whatever it has instructions for."""
    monkeypatch.setattr("prunus.batches.has_bf16", lambda device: True)


@pytest.fixture(autouse=True, scope="module")
def _what_the_file_before_imported_stays() -> None:
    _forget_what_stays()


def _forget_what_stays() -> None:
    """Modules stay for good: the garbage collector, which every training calls, need not look through them again and again."""
    gc.collect()
    gc.freeze()
