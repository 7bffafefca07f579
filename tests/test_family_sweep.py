"""A sample of the model types of transformers, another one every day: whatever is reached is exact, and the rest is named."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from benchmarks.family_sweep import FAMILIES, TYPES, Row, is_exact, page, swept

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


def test_families_that_many_people_use_reach_the_bar_or_say_why_not() -> None:
    assert {name for types in FAMILIES.values() for name in types} <= set(TYPES)
    exact = Row(structured=1.0, unstructured=1.0, extract="1.0e-07", generate="same", reload="same")
    found = {
        "qwen3": exact,
        "qwen3_5": replace(exact, structured=0.8, mixers=0.2, dense=["DeltaNet (20%): its heads keep a state"]),
        "swin": replace(exact, structured=0.9, dense=["PatchMerging (10%): no channels"]),
        "beit": replace(exact, extract="1.0e-02"),
        "gpt2": replace(exact, entries=["GPT2Attention"]),
    }
    table = page(found)
    assert "| Qwen3.5 | qwen3_5 | 100 | 100 | 1.0e-07 | same | same | reached |" in table
    assert "| Swin | swin | 90.0 | 100 | 1.0e-07 | same | same | PatchMerging (10%): no channels |" in table
    assert "| BEiT | beit | 100 | 100 | 1.0e-02 | same | same | not exact |" in table
    assert "| Whisper | whisper | 0 | 0 |  |  |  | not tried |" in table
    assert "1 of them reach 95 % without an entry of the catalog." in table
