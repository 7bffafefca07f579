"""Every test, and every process that a test starts, computes with one thread: the models are tiny, threads that wait for one
another only cost time, and the same sums in another order would be other bits. For the same reason no test sees a GPU,
unless `CUDA_VISIBLE_DEVICES` names one; what GPUs compute is compared by `python -m benchmarks.accelerator`.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest
import torch

torch.set_num_threads(1)


LONGEST = "test_mutation.py"
"""One test of it takes longer than any other."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """For processes that take file after file: those with the most tests come first, so that all processes end together."""
    if not hasattr(config, "workerinput"):
        return
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.name != LONGEST, -tests[item.path]))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    _forget_what_stays()


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
