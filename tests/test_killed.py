"""Death by SIGKILL in the middle of a step: every kind of loader gives what it would have given, and the weights are the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.killed import LOADERS


@pytest.mark.long
def test_killed_twice_it_ends_with_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.killed", str(tmp_path)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in LOADERS:
        whole, killed = (torch.load(tmp_path / name / f"{place}.pt") for place in ("whole", "killed"))
        assert whole.keys() == killed.keys()
        assert all(torch.equal(whole[weight], killed[weight]) for weight in whole), name
    ones = [torch.load(tmp_path / name / "whole.pt") for name in ("as they are", "by workers", "accumulated")]
    assert all(torch.equal(ones[0][weight], ones[1][weight]) for weight in ones[0]), "workers change nothing"
    assert not all(torch.equal(ones[0][weight], ones[2][weight]) for weight in ones[0])
