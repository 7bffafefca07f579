"""Augmentation: shapes, masks that stay with their pictures, the same versions again, and OpenCV's geometry, in which BLIP's was written."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter

from prunus import PrunusError
from prunus.data import IGNORED, AnyAugmentation, Augmentation, Augmented, augment, pixel_operations
from prunus.data.augment import BLIP, TIMM, Blip, DeiT, SegmenterPipeline, other_light, padded

ALL = [Blip(), DeiT(), SegmenterPipeline()]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth one."""
    phase = np.random.default_rng(seed).uniform(0, 6, 6)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 7 + phase[2 * c]) + np.cos(y / 5 + phase[2 * c + 1]) for c in range(3)]
    return Image.fromarray(np.uint8(np.clip(128 + 60 * np.stack(waves, -1), 0, 255)))


def classes(width: int, height: int) -> Image.Image:
    """Four squares of the classes 0 to 3."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.uint8((x >= width / 2) + 2 * (y >= height / 2)))


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 1000), st.sampled_from([0.08, 0.5, 1.0]))
def test_a_crop_has_the_share_and_the_shape_that_was_asked_for(
    width: int, height: int, seed: int, least: float
) -> None:
    left, top, right, bottom = pixel_operations.resized_crop_box(
        (height, width), (least, 1), (3 / 4, 4 / 3), Random(seed)
    )
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    if 3 / 4 <= width / height <= 4 / 3 and min(width, height) > 50:
        w, h = right - left, bottom - top
        assert 0.97 * least * width * height <= w * h
        assert 0.95 * 3 / 4 <= w / h <= 1.05 * 4 / 3


@pytest.mark.parametrize("how", ALL, ids=lambda how: how.augmentation)
@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 1000))
def test_versions_have_the_size_and_their_masks_no_other_classes(
    how: Augmentation, width: int, height: int, seed: int
) -> None:
    image, mask = how.version(picture(width, height), classes(width, height), (24, 36), Random(seed))
    assert mask is not None
    assert (image.size, mask.size, image.mode) == ((36, 24), (36, 24), "RGB")
    assert set(np.unique(np.asarray(mask))) <= {0, 1, 2, 3, IGNORED}
    image, none = how.version(picture(width, height), None, (24, 36), Random(seed))
    assert none is None


def test_a_mask_stays_with_its_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the picture is its mask, it is so afterwards, but for edges, which the picture has smooth and the mask sharp."""
    monkeypatch.setattr(augment, "other_light", lambda image, draw: image)
    mask = classes(80, 60)
    image = Image.merge("RGB", [mask.point(lambda value: 60 * value)] * 3)
    seen = set()
    for seed in range(40):
        found, there = SegmenterPipeline().version(image, mask, (48, 48), Random(seed))
        assert there is not None
        counted = np.asarray(there) != IGNORED
        expected = np.asarray(there)[counted] * 60
        assert np.mean(np.abs(np.asarray(found)[counted][:, 0].astype(int) - expected) < 8) > 0.9
        assert np.all(np.asarray(found)[~counted] == 128)
        seen |= set(np.unique(np.asarray(there)))
        assert np.bincount(np.asarray(there)[counted]).max() / counted.sum() < 0.99
    assert seen == {0, 1, 2, 3, IGNORED}


def test_no_class_fills_a_crop_where_another_crop_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "other_light", lambda image, draw: image)

    def fullest(how: SegmenterPipeline) -> float:
        masks = [how.version(picture(96, 96), classes(96, 96), (40, 40), Random(seed))[1] for seed in range(60)]
        counts = [np.bincount(np.asarray(mask)[np.asarray(mask) != IGNORED].ravel()) for mask in masks]
        return float(np.mean([count.max() / count.sum() >= 0.75 for count in counts]))

    assert fullest(SegmenterPipeline(scales=(2, 2))) < fullest(SegmenterPipeline(scales=(2, 2), largest_class=1)) / 2


@pytest.mark.parametrize("how", ALL, ids=lambda how: how.augmentation)
def test_the_same_versions_again_and_others_in_another_epoch(how: Augmentation) -> None:
    rows = [{"image": picture(40, 30, seed), "label": seed} for seed in range(3)]
    data, again = Augmented(rows, how, (16, 16)), Augmented(rows, how, (16, 16))

    def pixels(data: Augmented, index: int) -> list[bytes]:
        item = data[index]
        return [one["image"].tobytes() for one in (item if isinstance(item, list) else [item])]

    assert len(data) == 3
    first = pixels(data, 1)
    assert len(set(first)) == len(first) == how.repeats
    assert first == pixels(data, 1) == pixels(again, 1)
    data.set_epoch(1)
    assert not set(pixels(data, 1)) & set(first)
    assert rows[1]["image"].size == (40, 30)


def test_every_image_of_several_gets_a_version_of_its_own() -> None:
    row = {"images": [picture(30, 30)] * 2, "text": "a"}
    found = Augmented([row], Blip(), (12, 12))[0]
    assert found["text"] == "a"
    assert found["images"][0].tobytes() != found["images"][1].tobytes()


@pytest.mark.parametrize(
    ("ours", "matrix"),
    [
        (lambda image: pixel_operations.shear_x(image, 0.15), [[1, 0.15, 0], [0, 1, 0]]),
        (lambda image: pixel_operations.shear_y(image, -0.15), [[1, 0, 0], [-0.15, 1, 0]]),
        (lambda image: pixel_operations.translate_x(image, 5), [[1, 0, 5], [0, 1, 0]]),
        (lambda image: pixel_operations.translate_y(image, -5), [[1, 0, 0], [0, 1, -5]]),
        (lambda image: pixel_operations.rotate(image, 15), None),
    ],
)
def test_geometry_is_opencv_s(ours: Callable[[Image.Image], Image.Image], matrix: list[list[float]] | None) -> None:
    cv2: Any = pytest.importorskip("cv2", reason="compares with OpenCV")
    image = picture(60, 44)
    given = np.float32(matrix) if matrix else cv2.getRotationMatrix2D((30, 22), 15, 1)
    expected = cv2.warpAffine(np.asarray(image), given, (60, 44), borderValue=(128, 128, 128))
    found = np.asarray(ours(image))
    inside = cv2.erode(cv2.warpAffine(np.ones((44, 60), np.uint8), given, (60, 44)), np.ones((5, 5)), borderValue=0) > 0
    assert inside.sum() > 800
    assert np.abs(found.astype(int) - expected)[inside].max() <= 4
    outside = cv2.warpAffine(np.full((44, 60), 255, np.uint8), given, (60, 44)) == 0
    assert outside.any()
    assert np.all(found[outside] == 128)


def test_blip_s_brightness_and_sharpness_do_nothing_at_its_magnitude() -> None:
    image = picture(30, 20)
    for name in ("brightness", "sharpness", "identity"):
        assert BLIP[name](image, 0.5, Random(0)).tobytes() == image.tobytes(), name
    assert BLIP["brightness"](image, 0.1, Random(0)).tobytes() != image.tobytes()


@pytest.mark.parametrize("name", TIMM)
def test_timm_s_operations_do_nothing_at_zero_and_much_at_ten(name: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(20, 230, (20, 30, 3), np.uint8))
    changed = np.mean(np.abs(np.asarray(TIMM[name](image, 1.0, Random(0))).astype(int) - np.asarray(image)))
    assert changed > 1, name
    if name not in ("autocontrast", "equalize", "invert", "posterize"):
        assert TIMM[name](image, 0.0, Random(0)).tobytes() == image.tobytes(), name


def test_single_operations_by_hand() -> None:
    image = Image.fromarray(np.uint8([[[0, 100, 200]]]))
    assert np.asarray(pixel_operations.posterize(image, 2)).tolist() == [[[0, 64, 192]]]
    assert np.asarray(pixel_operations.posterize(image, 0)).tolist() == [[[0, 0, 0]]]
    assert np.asarray(pixel_operations.solarize_add(image, 110)).tolist() == [[[110, 210, 200]]]
    assert np.asarray(pixel_operations.scale_values(image, 1.5, 10)).tolist() == [[[10, 160, 255]]]
    red = Image.new("RGB", (1, 1), (200, 0, 0))
    green = np.asarray(pixel_operations.shift_hue(red, 1 / 3))[0, 0]
    assert green[1] > 190
    assert max(green[0], green[2]) < 20
    assert np.asarray(pixel_operations.saturate(red, 0.0)).tolist() == [[[200, 200, 200]]]


def test_an_erased_box_is_noise_and_the_rest_is_as_it_was() -> None:
    image = Image.new("RGB", (40, 40), (10, 20, 30))
    changed = np.any(np.asarray(pixel_operations.erase(image, Random(3))) != np.asarray(image), -1)
    ys, xs = np.nonzero(changed)
    box = (ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1)
    assert 0.015 < box / 1600 < 0.4
    assert changed.sum() / box > 0.95


def test_light_changes_values_and_not_places() -> None:
    image = picture(40, 30)
    versions = [np.asarray(other_light(image, Random(seed))).astype(float) for seed in range(20)]
    assert len({version.tobytes() for version in versions}) > 15
    correlations = [
        np.corrcoef(version.mean(-1).ravel(), np.asarray(image).mean(-1).ravel())[0, 1] for version in versions
    ]
    assert min(correlations) > 0.8


def test_padding_is_grey_and_counts_for_nothing() -> None:
    image, mask = padded((Image.new("RGB", (3, 2)), Image.new("L", (3, 2), 1)), (4, 5))
    assert mask is not None
    assert np.asarray(mask).tolist() == [[1, 1, 1, IGNORED, IGNORED]] * 2 + [[IGNORED] * 5] * 2
    assert math.isclose(float(np.asarray(image).mean()), 128 * 14 / 20)


def test_augmentations_are_found_by_their_names() -> None:
    adapter: TypeAdapter[Augmentation] = TypeAdapter(AnyAugmentation)
    assert adapter.validate_python({"augmentation": "deit"}) == DeiT()
    assert (DeiT().repeats, Blip().repeats) == (3, 1)
    with pytest.raises(ValueError, match="did you mean blip"):
        adapter.validate_python({"augmentation": "blib"})
    with pytest.raises(PrunusError, match="size"):
        Augmented([], Blip(), (0, 4))


def test_rows_without_a_picture_stay_as_they_are() -> None:
    row = {"image": None, "images": [], "text": "words alone"}
    assert Augmented([row], Blip(), (4, 4))[0] == {**row, "sized": True, "drawn": "0/0/0"}
