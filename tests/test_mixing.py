"""Pictures of a batch mixed with each other: shares of pixels are shares of targets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from prunus import PrunusError
from prunus.checkpoint import load_model
from prunus.data import mixed
from prunus.tasks import Classification, Retrieval
from tests.lookers import captioned, coloured, saved

SHADES = torch.arange(5.0)[:, None, None, None].expand(5, 3, 12, 10)
TARGETS = torch.eye(5)


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_a_target_is_what_is_seen(mixup: float, cutmix: float) -> None:
    """Picture i has the shade i, so its mean shade is what its target says; a blended one has one shade, a cut one two."""
    kinds: Counter[bool] = Counter()
    for seed in range(200):
        pixels, targets = mixed(SHADES, TARGETS, mixup, cutmix, Random(seed))
        torch.testing.assert_close(pixels.mean((1, 2, 3)), targets @ torch.arange(5.0))
        torch.testing.assert_close(targets.sum(1), torch.ones(5))
        torch.testing.assert_close(targets[0, 0], targets[1, 1])
        assert torch.equal(pixels[2], SHADES[2])
        kinds[len(pixels[0].unique()) > 1] += 1
        if kinds[True] and not mixup:
            assert set(pixels[0].unique().tolist()) <= {0.0, 4.0}
    assert (kinds[False] > 60) == bool(mixup)
    assert (kinds[True] > 60) == bool(cutmix)


def test_a_picture_s_share_is_beta_distributed() -> None:
    shares = [float(mixed(SHADES, TARGETS, 0.8, 0.0, Random(str(seed)))[1][0, 0]) for seed in range(2000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.02)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.01)


def test_training_pictures_are_mixed_and_no_others(tmp_path: Path) -> None:
    data: Any = {"layout": "imagefolder", "folder": str(coloured(tmp_path / "data"))}
    more: Any = {"augment": {"augmentation": "blip"}, "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1}
    dense = saved("vit", tmp_path / "model")
    task = Classification(train=data, **more)
    task.check_model(dense)
    task, model = task.for_model(dense), load_model(dense).eval()
    items: Any = task.train_data()
    batch, again = (task.collate([items[0], items[13], items[22]]) for _ in range(2))
    assert torch.equal(batch["pixel_values"], again["pixel_values"])
    assert batch["labels"].shape == (3, 4)
    with torch.no_grad():
        logits = model(pixel_values=batch["pixel_values"]).logits
        found = task.predict(model, batch)
    smooth = 0.9 * batch["labels"] + 0.1 / 4
    torch.testing.assert_close(found.loss, -(smooth * F.log_softmax(logits, 1)).sum(1).mean())
    assert found.counted.shape == (3,)
    assert task.calibration(2, 2)[0]["labels"].shape == (2,)


def test_what_cannot_be_mixed_is_refused(tmp_path: Path) -> None:
    data: Any = {"layout": "imagefolder", "folder": str(coloured(tmp_path / "data"))}
    with pytest.raises(ValueError, match="set augment, too"):
        Classification(train=data, mixup=0.8)
    with pytest.raises(PrunusError, match="only classifiers learn from mixed ones"):
        Classification(train=data, mixup=0.8, augment={"augmentation": "blip"}).check_model(
            saved("clip", tmp_path / "clip")
        )  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["clip_retrieval", "blip_retrieval"])
def test_what_momentum_copies_say_counts_more_and_more(name: str, tmp_path: Path) -> None:
    dense = saved(name, tmp_path / "model")
    file: Any = str(captioned(tmp_path / "data"))
    task = Retrieval(train=file, soft_target_steps=4)
    task.check_model(dense)
    task, model = task.for_model(dense), load_model(dense).eval()
    items: Any = task.train_data()
    batch = task.collate([items[0], items[5]])
    for step, share in ((0, 0.0), (1, 0.25), (4, 1.0), (9, 1.0)):
        task.before_step(model, step, 10)
        with torch.no_grad():
            expected = model(**batch, soft_target_weight=0.4 * share).loss
            torch.testing.assert_close(task.loss(model, dict(batch)), expected)
    with pytest.raises(PrunusError, match="no momentum copies"):
        Retrieval(soft_target_steps=4).check_model(saved("clip", tmp_path / "clip"))
