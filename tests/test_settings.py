"""What a method does when nothing is said, and the limits of what can be said: numbers that recipes and docs rely on."""

from __future__ import annotations

from typing import Any

import pytest

from prunus import (
    OWL,
    RESSA,
    Distillation,
    ECoFLaP,
    IterativeGlobal,
    LoRA,
    Manual,
    MaskedFinetune,
    MaskedLoRA,
    PrunusError,
    Training,
    Uniform,
    UPop,
)  # fmt: skip
from prunus.repair.repair import DEFAULT_TRAINING
from prunus.tasks import Text
from prunus.tasks.noise import Noise

STEP = {"steps": 1, "learning_rate": 0.01}
ZEROTH = {"order": "zeroth"}
TEXT = {"evaluation": "text.txt"}


@pytest.mark.parametrize(
    ("method", "defaults"),
    [
        (Uniform(), {"sparsity": 0.5}),
        (ECoFLaP(), {"sparsity": 0.5, "max_sparsity": None, "per_tower": None, "granularity": "block", "aggregate": "sum", "order": "first",
                     "score": "gradient_norm", "draws": 1, "together": 1, "epsilon": 0.01, "seed": 0}),
        (OWL(), {"sparsity": 0.5, "outlier": 5.0, "spread": 0.08, "granularity": "block", "per_tower": None}),
        (IterativeGlobal(), {"sparsity": 0.5, "rounds": 3, "per_tower": False}),
        (Distillation(), {"weight": 0.1, "temperature": 1.0, "reduction": "mean", "features": 0.0, "top_k": None}),
        (MaskedFinetune(), {"distillation": None}),
        (LoRA(), {"distillation": None, "rank": {"vision": 4, "language": 8, "connector": 2}, "alpha": 16.0}),
        (Training(**STEP), {**STEP, "batch_size": 32, "gradient_accumulation": 1, "optimizer": "adamw", "tower_learning_rates": {}, "schedule": "constant",
                            "warmup_steps": 0, "weight_decay": 0.05, "max_grad_norm": 1.0, "bf16": True, "save_every": 100,
                            "evaluate_every": None, "workers": 0, "report_to": ()}),
        (DEFAULT_TRAINING, {"steps": 500, "batch_size": 8, "gradient_accumulation": 1, "optimizer": "adamw", "learning_rate": 1e-4, "tower_learning_rates": {},
                            "schedule": "constant", "warmup_steps": 20, "weight_decay": 0.0, "max_grad_norm": 1.0, "bf16": True,
                            "save_every": 100, "evaluate_every": None, "workers": 0, "report_to": ()}),
        (UPop(ratio=0.5), {"ratio": 0.5, "schedule": "cosine", "interval": None, "normalize": "sum", "cost": "parameters", "align": 1,
                           "min_channels": 1, "hold": 0.0, "unit_ratios": {}, "max_parameters": None, "max_macs": None,
                           "max_bytes": None, "max_milliseconds": None, "storage": {"dtype": None, "cache_tokens": 0, "cache_batch": 1}, "gate": None, "include": ("*",), "exclude": ()}),
        (Noise(), {"config": None, "items": 64, "length": 16, "seed": 0}),
        (Text(evaluation="a"), {"tokenizer": None, "training": None, "length": 512, "stride": None, "bf16": False}),
    ],
    ids=lambda part: type(part).__name__,
)  # fmt: skip
def test_defaults(method: Any, defaults: dict[str, Any]) -> None:
    assert method.model_dump(exclude={"method", "name", "evaluation"}) == defaults


def test_methods_say_what_they_need() -> None:
    needs = {m.method: (m.needs_batches, m.by_batch) for m in (Uniform(), ECoFLaP(), OWL(), IterativeGlobal())}
    assert needs == {
        "uniform": (False, False), "ecoflap": (True, True), "owl": (True, False), "iterative_global": (True, True),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "field", "lowest", "highest", "below", "above"),
    [
        (Uniform, "sparsity", 0, 0.999, -0.001, 1),
        (ECoFLaP, "max_sparsity", 0.5, 0.999, 0.499, 1),
        (ECoFLaP, "draws", 1, 10_000, 0, 10_001),
        (ECoFLaP, "together", 1, 10_000, 0, 10_001),
        (ECoFLaP, "epsilon", 1e-9, 1e3, 0, 1001),
        (ECoFLaP, "seed", 0, 2**32 - 1, -1, 2**32),
        (OWL, "outlier", 1.001, 1e6, 1, None),
        (OWL, "spread", 0.001, 0.499, 0, 0.5),
        (IterativeGlobal, "rounds", 1, 10_000, 0, 10_001),
        (Distillation, "weight", 0, 0.999, -0.001, 1),
        (Distillation, "temperature", 1e-3, 1e3, 9e-4, 1001),
        (Distillation, "features", 0, 1e6, -0.001, 1e6 + 1),
        (LoRA, "alpha", 1e-9, 1e6, 0, 1e6 + 1),
        (LoRA, "rank", 1, 4096, 0, 4097),
        (Training, "learning_rate", 1e-9, 10, 0, 10.1),
        (Training, "warmup_steps", 0, 100_000_000, -1, 100_000_001),
        (Training, "weight_decay", 0, 100, -0.01, 100.1),  # times the learning rate it is all of a weight
        (Training, "max_grad_norm", 0, 1e9, -0.01, None),
        (UPop, "ratio", 1e-9, 0.999, 0, 1),
        (UPop, "hold", 0, 0.999, -0.001, 1),
        (Noise, "items", 2, 1_000_000, 1, 1_000_001),
        (Noise, "length", 4, 1_000_000, 3, 1_000_001),
        (Text, "length", 2, 10_000_000, 1, 10_000_001),
        (Text, "stride", 1, 512, 0, 513),
    ],
    ids=str,
)
def test_limits(kind: Any, field: str, lowest: Any, highest: Any, below: Any, above: Any) -> None:
    others = {ECoFLaP: ZEROTH, Training: STEP, UPop: {"ratio": 0.5}, Text: TEXT}.get(kind, {})
    for value in (lowest, highest):
        assert getattr(kind(**{**others, field: value}), field) == value
    for value in (below, above):
        if value is not None:
            with pytest.raises(PrunusError, match=field):
                kind(**{**others, field: value})


def test_a_decay_that_is_more_than_all_of_a_weight_is_refused_for_the_fastest_tower() -> None:
    with pytest.raises(PrunusError, match="weight_decay"):
        Training(steps=1, learning_rate=0.01, weight_decay=11, tower_learning_rates={"vision": 0.1})
    Training(steps=1, learning_rate=1e-3, weight_decay=1000)
    with pytest.raises(PrunusError, match="less than or equal to 1000"):
        Training(steps=1, learning_rate=1e-4, weight_decay=1001)


def test_settings_that_contradict_each_other_are_refused() -> None:
    ECoFLaP(draws=1, together=1, epsilon=0.01, seed=0)  # what they are anyway
    for field, value in (("draws", 2), ("together", 2), ("epsilon", 0.1), ("seed", 1)):
        with pytest.raises(PrunusError, match=field):
            ECoFLaP(**{field: value})
    ECoFLaP(sparsity={"vision": 0.2, "text": 0.6}, max_sparsity=0.6)
    with pytest.raises(PrunusError, match="max_sparsity"):
        ECoFLaP(sparsity={"vision": 0.2, "text": 0.6}, max_sparsity=0.5)
    for more in ({"per_tower": True}, {"sparsity": {"vision": 0.5}}):
        assert ECoFLaP(**more).granularity == "block"
        with pytest.raises(PrunusError, match="granularity"):
            ECoFLaP(granularity="tower", **more)
    Manual(sparsity={"vision": 0.5})
    Distillation(top_k=4)
    for other in ({"features": 1.0}, {"reduction": "published"}):
        Distillation(**other)
        with pytest.raises(PrunusError, match="top_k"):
            Distillation(top_k=4, **other)
    for floors in ({"align": 8}, {"min_channels": 2}):
        UPop(ratio=0.5, **floors)
        with pytest.raises(PrunusError, match="cost"):
            UPop(ratio=0.5, cost="reference", **floors)
    UPop(ratio=0.5, cost="reference", align=1, min_channels=1)
    assert MaskedLoRA(rank={"vision": 3}).rank == {"vision": 3}
    assert RESSA().distillation == Distillation()
