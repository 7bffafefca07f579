"""A sample of the model types of transformers, another one every day: whatever is reached is exact, and the rest is named."""

from __future__ import annotations

import os
import random
from datetime import UTC, datetime

import pytest
from benchmarks.family_sweep import TYPES, is_exact, swept

SEED = int(os.environ.get("PRUNUS_SAMPLE", datetime.now(UTC).toordinal()))
"""Of the sample; the day, unless it is said."""
SAMPLE = random.Random(SEED).sample(TYPES, 6)


@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_family_is_exact_or_named(model_type: str) -> None:
    row = swept(model_type)
    if row.error.startswith("not built"):
        pytest.skip(row.error[:200])
    assert is_exact(row), (SEED, row)
    assert row.structured >= 0.999 or row.dense, (SEED, row)


@pytest.mark.parametrize(
    "model_type", ["gemma3", "cohere2", "glm4v_text", "olmo2", "qwen3_vl_text", "swin", "wav2vec2"]
)
def test_conventions_reach_whole_families(model_type: str) -> None:
    """Norms from one, neighbours that turn, multimodal and partial rotation, norms over all heads, windows, sounds."""
    row = swept(model_type)
    assert is_exact(row), row
    assert row.attention > 0.97, row
