"""Material that lives beside the project in CI, and nowhere else: tests that need it skip without it."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "shared"


def golden(name: str) -> Path:
    """A fixture made with the published code."""
    path = FOLDER / "golden" / name
    if not path.exists():
        pytest.skip(f"{name} is not here: the fixtures made with the published code lie outside of the project")
    return path
