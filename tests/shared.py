"""Fixtures made with the published code: those in `tests/golden`, and larger ones that lie beside the project in CI."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent / "golden"
FOLDER = Path(__file__).resolve().parents[2] / "shared"
BESIDE = FOLDER / "golden"


def golden(name: str) -> Path:
    """A fixture made with the published code. A test that needs one which is not here skips, and says so."""
    for folder in (HERE, BESIDE):
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"{name} is not here: the large fixtures made with the published code lie outside of the project")
