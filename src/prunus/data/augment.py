"""Augmentation: training pictures in other versions of themselves, with PIL alone.

Which version of an item is seen follows from the seed, the epoch and the item, so a resumed training sees what it would have seen,
with any number of workers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field
from torch.utils.data import Dataset

from prunus.data import pixel_operations as pixels
from prunus.data.images import IGNORED
from prunus.data.pixel_operations import Size
from prunus.errors import PrunusError
from prunus.typed import Count, Seed, Share, Typed, named

Pair = tuple[Image.Image, Image.Image | None]
"""A picture, and its mask, if it has one."""


class Augmentation(Typed):
    """Base of the augmentations. One of your own needs a name and `version`."""

    augmentation: str
    """The name by which recipes find it."""
    repeats: Count = 1
    """Versions of an image in one training item, which train in one batch (repeated augmentation, Hoffer et al. 2020)."""
    seed: Seed = 0
    """Of all random numbers."""

    @abstractmethod
    def version(self, image: Image.Image, mask: Image.Image | None, size: Size, draw: Random) -> Pair:
        """A version of a picture, and of its mask.

        Args:
            image: RGB.
            mask: of class indices, as large as the picture.
            size: of the version.
            draw: what all random numbers are taken from.
        """


class Blip(Augmentation):
    """That of BLIP and UPop: a random resized crop, half of the time mirrored, then two random operations of ten (RandAugment,
    Cubuk et al. 2020), each of them half of the time."""

    augmentation: Literal["blip"] = "blip"
    smallest_crop: Share = 0.5
    """Share of the picture that a crop has at least."""
    mirror: float = Field(default=0.5, ge=0, le=1)
    """How often a picture is mirrored; 0 where left and right are named."""
    operations: int = Field(default=2, ge=0, le=10)
    """Random operations on a picture."""
    magnitude: float = Field(default=5, ge=0, le=10)
    """How much they do."""

    def version(self, image: Image.Image, mask: Image.Image | None, size: Size, draw: Random) -> Pair:
        image, mask = resized_crop((image, mask), (self.smallest_crop, 1.0), size, draw)
        image, mask = mirrored((image, mask), self.mirror, draw)
        for _ in range(self.operations):
            operation = draw.choice(list(BLIP))
            if draw.random() < 0.5:
                image = BLIP[operation](image, self.magnitude / 10, draw)
        return image, mask


class DeiT(Augmentation):
    """That of DeiT: a random resized crop, half of the time mirrored, two random operations of fifteen (timm's
    `rand-m9-mstd0.5-inc1`), a quarter of the time erased in a box."""

    augmentation: Literal["deit"] = "deit"
    repeats: Count = 3
    """Versions of an image in one training item, which train in one batch (repeated augmentation, Hoffer et al. 2020)."""
    smallest_crop: Share = 0.08
    """Share of the picture that a crop has at least."""
    operations: int = Field(default=2, ge=0, le=10)
    """Random operations on a picture."""
    magnitude: float = Field(default=9, ge=0, le=10)
    """How much they do, on average."""
    deviation: float = Field(default=0.5, ge=0, le=10)
    """Of the magnitude, from operation to operation."""
    erased: float = Field(default=0.25, ge=0, le=1)
    """How often a box is filled with noise."""

    def version(self, image: Image.Image, mask: Image.Image | None, size: Size, draw: Random) -> Pair:
        image, mask = resized_crop((image, mask), (self.smallest_crop, 1.0), size, draw)
        image, mask = mirrored((image, mask), 0.5, draw)
        for _ in range(self.operations):
            operation = draw.choice(list(TIMM))
            if draw.random() < 0.5:
                amount = min(max(draw.gauss(self.magnitude, self.deviation), 0.0), 10.0) / 10
                image = TIMM[operation](image, amount, draw)
        return pixels.erase(image, draw) if draw.random() < self.erased else image, mask


class SegmenterPipeline(Augmentation):
    """That of Segmenter: another scale, a crop of which no class fills more than its share, half of the time mirrored, other light and
    colours, padded to size."""

    augmentation: Literal["segmenter"] = "segmenter"
    scales: tuple[float, float] = (0.5, 2.0)
    """Bounds of the scale, of a picture whose shorter side is as long as the crop."""
    largest_class: float = Field(default=0.75, gt=0, le=1)
    """Share of a crop's pixels that one class may have, if ten draws find such a crop."""

    def version(self, image: Image.Image, mask: Image.Image | None, size: Size, draw: Random) -> Pair:
        short = min(size)
        limit = min(4 * short / max(image.size), short / min(image.size))
        scale = draw.uniform(*self.scales) * limit
        width, height = (max(1, int(side * scale + 0.5)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        mask = None if mask is None else mask.resize((width, height), Image.Resampling.NEAREST)
        box = (0, 0, 0, 0)
        for _ in range(pixels.TRIES):
            left, top = (
                draw.randint(0, max(whole - part, 0)) for whole, part in zip(image.size, size[::-1], strict=True)
            )
            box = (left, top, min(left + size[1], width), min(top + size[0], height))
            if mask is None or not self._filled_by_one(np.asarray(mask.crop(box))):
                break
        image, mask = mirrored((image.crop(box), None if mask is None else mask.crop(box)), 0.5, draw)
        return padded((other_light(image, draw), mask), size)

    def _filled_by_one(self, mask: np.ndarray[Any, Any]) -> bool:
        counts = np.bincount(mask[mask != IGNORED].ravel())
        return bool(np.count_nonzero(counts) < 2 or counts.max() / counts.sum() >= self.largest_class)


def resized_crop(pair: Pair, scale: tuple[float, float], size: Size, draw: Random) -> Pair:
    """A random part of a picture, resized: bicubic, the mask to its nearest."""
    image, mask = pair
    box = pixels.resized_crop_box((image.height, image.width), scale, (3 / 4, 4 / 3), draw)
    to = size[::-1]
    image = image.crop(box).resize(to, Image.Resampling.BICUBIC)
    return image, None if mask is None else mask.crop(box).resize(to, Image.Resampling.NEAREST)


def mirrored(pair: Pair, often: float, draw: Random) -> Pair:
    """Left and right exchanged, with this probability."""
    if draw.random() >= often:
        return pair
    flip = Image.Transpose.FLIP_LEFT_RIGHT
    return pair[0].transpose(flip), None if pair[1] is None else pair[1].transpose(flip)


def padded(pair: Pair, size: Size) -> Pair:
    """Grey, and pixels that count for nothing, to the right and below."""
    image, mask = pair
    whole = Image.new("RGB", size[::-1], pixels.GREY)
    whole.paste(image)
    if mask is None:
        return whole, None
    there = Image.new("I", size[::-1], IGNORED)
    there.paste(mask)
    return whole, there


def other_light(image: Image.Image, draw: Random) -> Image.Image:
    """The photometric distortion of SSD: brightness, contrast, saturation and hue, each of them half of the time."""
    if draw.random() < 0.5:
        image = pixels.scale_values(image, 1, draw.uniform(-32, 32))
    steps = [(pixels.saturate, 0.5, 1.5), (pixels.shift_hue, -0.1, 0.1)]
    steps.insert(draw.choice((0, 2)), (pixels.scale_values, 0.5, 1.5))
    for step, low, high in steps:
        if draw.random() < 0.5:
            image = step(image, draw.uniform(low, high))
    return image


Operation = Callable[[Image.Image, float, Random], Image.Image]
"""Of a picture and a magnitude of zero to one."""


def _signed(operation: Callable[[Image.Image, float], Image.Image], most: float, rest: float = 0.0) -> Operation:
    """By up to `most` from `rest`, either way."""
    return lambda image, amount, draw: operation(image, rest + draw.choice((-1, 1)) * amount * most)


def _plain(operation: Callable[[Image.Image], Image.Image]) -> Operation:
    return lambda image, amount, draw: operation(image)


BLIP: Mapping[str, Operation] = {
    "identity": _plain(lambda image: image),
    "autocontrast": _plain(pixels.autocontrast),
    "brightness": lambda image, amount, draw: pixels.brightness(image, 0.1 + 1.8 * amount),
    "sharpness": lambda image, amount, draw: pixels.sharpness(image, 0.1 + 1.8 * amount),
    "equalize": _plain(pixels.equalize),
    "shear_x": _signed(pixels.shear_x, 0.3),
    "shear_y": _signed(pixels.shear_y, 0.3),
    "translate_x": _signed(pixels.translate_x, 10),
    "translate_y": _signed(pixels.translate_y, 10),
    "rotate": _signed(pixels.rotate, 30),
}
"""What BLIP's authors draw from."""
TIMM: Mapping[str, Operation] = {
    "autocontrast": _plain(pixels.autocontrast),
    "equalize": _plain(pixels.equalize),
    "invert": _plain(pixels.invert),
    "rotate": _signed(pixels.rotate, 30),
    "posterize": lambda image, amount, draw: pixels.posterize(image, 4 - int(4 * amount)),
    "solarize": lambda image, amount, draw: pixels.solarize(image, 256 - min(256, int(256 * amount))),
    "solarize_add": lambda image, amount, draw: pixels.solarize_add(image, min(128, int(110 * amount))),
    "colour": _signed(pixels.colour, 0.9, 1),
    "contrast": _signed(pixels.contrast, 0.9, 1),
    "brightness": _signed(pixels.brightness, 0.9, 1),
    "sharpness": _signed(pixels.sharpness, 0.9, 1),
    "shear_x": _signed(pixels.shear_x, 0.3),
    "shear_y": _signed(pixels.shear_y, 0.3),
    "translate_x": lambda image, amount, draw: _signed(pixels.translate_x, 0.45 * image.width)(image, amount, draw),
    "translate_y": lambda image, amount, draw: _signed(pixels.translate_y, 0.45 * image.height)(image, amount, draw),
}
"""What timm draws from, in the order in which it has them; every one does more at a larger magnitude."""


class Augmented(Dataset[Any]):
    """Rows with `image` or `images` (and `mask`) as PIL images, in versions of the wanted size.

    An item is a row, with `sized` true and the seed of what is random about it, `drawn`; or the list of its versions where the augmentation repeats.

    Args:
        rows: whatever has a length and gives mappings by index.
        augmentation: what makes versions.
        size: of the versions.
    """

    def __init__(self, rows: Any, augmentation: Augmentation, size: Size) -> None:
        if min(size) < 1:
            raise PrunusError("size", size, "take a height and a width in pixels, one or more")
        self.rows, self.augmentation, self.size, self.epoch = rows, augmentation, size, 0

    def set_epoch(self, epoch: int) -> None:
        """What the training's loader says before an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        row, how = self.rows[index], self.augmentation
        seed = f"{how.seed}/{self.epoch}/{index}"
        draw = Random(seed)
        versions = [self._version({**row, "sized": True, "drawn": seed}, draw) for _ in range(how.repeats)]
        return versions[0] if how.repeats == 1 else versions

    def _version(self, row: Mapping[str, Any], draw: Random) -> dict[str, Any]:
        if row.get("images"):  # each a picture of its own
            images: Sequence[Image.Image] = row["images"]
            return {**row, "images": [self.augmentation.version(one, None, self.size, draw)[0] for one in images]}
        if row.get("image") is None:
            return dict(row)
        image, mask = self.augmentation.version(row["image"], row.get("mask"), self.size, draw)
        return {**row} | {"image": image} | ({} if mask is None else {"mask": mask})


if TYPE_CHECKING:
    AnyAugmentation = Augmentation
else:
    AnyAugmentation = named(Augmentation, "augmentation")
    """Any augmentation, by its name in a recipe."""
