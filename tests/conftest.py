"""Every test, and every process that a test starts, computes with one thread: the models are tiny, threads that wait for one
another only cost time, and the same sums in another order would be other bits. For the same reason no test sees a GPU,
unless `CUDA_VISIBLE_DEVICES` names one; what GPUs compute is compared by `python -m benchmarks.accelerator`.
"""

from __future__ import annotations

import gc
import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest
import torch

torch.set_num_threads(1)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What was imported stays for good, so the garbage collector need not look through it again and again."""
    gc.collect()
    gc.freeze()
