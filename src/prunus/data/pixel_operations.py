"""What augmentations do to a picture, one function each, on PIL images: geometry, light and colour, each with its amount as an argument.

Geometry follows OpenCV's conventions, in which BLIP's authors wrote theirs: amounts move what is seen to the right and down, pixels are
sampled bilinearly, and what comes from outside has the colour `fill`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

import numpy as np
from PIL import Image, ImageChops, ImageEnhance, ImageOps

Size = tuple[int, int]
"""Height and width in pixels."""
Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""

TRIES = 10
"""Crops that are drawn before the middle is taken."""
GREY: Colour = (128, 128, 128)


def resized_crop_box(size: Size, scale: tuple[float, float], aspect: tuple[float, float], draw: Random) -> Box:
    """A box of a random share of the area and a random aspect ratio, at a random place; the largest one in the middle if none of those
    fits (that of torchvision and timm).

    Args:
        size: of the picture.
        scale: bounds of the share.
        aspect: bounds of width over height.
    """
    height, width = size
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(TRIES):
        area, ratio = height * width * draw.uniform(*scale), math.exp(draw.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = draw.randint(0, width - w), draw.randint(0, height - h)
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < aspect[0]:
        h = max(1, round(width / aspect[0]))
    elif width / height > aspect[1]:
        w = max(1, round(height * aspect[1]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def affine(image: Image.Image, matrix: Sequence[float], fill: Colour) -> Image.Image:
    """Each pixel (x, y) is the one at (a x + b y + c, d x + e y + f), with (0, 0) in the middle of the first pixel."""
    a, b, c, d, e, f = matrix
    centred = (a, b, c + (1 - a - b) / 2, d, e, f + (1 - d - e) / 2)  # PIL's (0, 0) is the first pixel's corner
    return image.transform(
        image.size, Image.Transform.AFFINE, centred, resample=Image.Resampling.BILINEAR, fillcolor=fill
    )


def shear_x(image: Image.Image, factor: float, fill: Colour = GREY) -> Image.Image:
    """Rows move to the right by `factor` times their height from the top."""
    return affine(image, (1, -factor, 0, 0, 1, 0), fill)


def shear_y(image: Image.Image, factor: float, fill: Colour = GREY) -> Image.Image:
    """Columns move down by `factor` times their distance from the left."""
    return affine(image, (1, 0, 0, -factor, 1, 0), fill)


def translate_x(image: Image.Image, pixels: float, fill: Colour = GREY) -> Image.Image:
    """To the right."""
    return affine(image, (1, 0, -pixels, 0, 1, 0), fill)


def translate_y(image: Image.Image, pixels: float, fill: Colour = GREY) -> Image.Image:
    """Down."""
    return affine(image, (1, 0, 0, 0, 1, -pixels), fill)


def rotate(image: Image.Image, degrees: float, fill: Colour = GREY) -> Image.Image:
    """Counter-clockwise."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = image.width / 2, image.height / 2
    return affine(image, (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y), fill)


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """Times a factor."""
    return ImageEnhance.Brightness(image).enhance(factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """The distance from the mean grey, times a factor."""
    return ImageEnhance.Contrast(image).enhance(factor)


def colour(image: Image.Image, factor: float) -> Image.Image:
    """The distance from the same picture in grey, times a factor."""
    return ImageEnhance.Color(image).enhance(factor)


def sharpness(image: Image.Image, factor: float) -> Image.Image:
    """The distance from a blurred picture, times a factor."""
    return ImageEnhance.Sharpness(image).enhance(factor)


def posterize(image: Image.Image, bits: float) -> Image.Image:
    """The first bits of every value, rounded down; none is black."""
    return ImageOps.posterize(image, int(bits)) if int(bits) else image.point(lambda value: 0)


def solarize(image: Image.Image, threshold: float) -> Image.Image:
    """Values from a threshold on are turned round."""
    return ImageOps.solarize(image, int(threshold))


def solarize_add(image: Image.Image, amount: float) -> Image.Image:
    """Values below 128 grow by an amount."""
    return image.point(lambda value: min(255, value + int(amount)) if value < 128 else value)


def shift_hue(image: Image.Image, share: float) -> Image.Image:
    """Hues go on by a share of the circle."""
    hue, saturation, value = image.convert("HSV").split()
    turned = hue.point(lambda at: round(at + 256 * share) % 256)
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def saturate(image: Image.Image, factor: float) -> Image.Image:
    """Saturations times a factor, at the same hue and value."""
    hue, saturation, value = image.convert("HSV").split()
    grown = saturation.point(lambda at: min(255, round(at * factor)))
    return Image.merge("HSV", (hue, grown, value)).convert("RGB")


def scale_values(image: Image.Image, factor: float, offset: float = 0.0) -> Image.Image:
    """Every value times a factor, plus an offset, within 0 to 255."""
    return image.point(lambda value: max(0, min(255, int(value * factor + offset))))


def erase(image: Image.Image, draw: Random, area: tuple[float, float] = (0.02, 1 / 3)) -> Image.Image:
    """Puts noise into a random box (random erasing, Zhong et al. 2020).

    Args:
        area: bounds of the box's share of the picture.
    """
    height, width = image.height, image.width
    for _ in range(TRIES):
        target = draw.uniform(*area) * height * width
        ratio = math.exp(draw.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < h < height and 0 < w < width:
            noise = np.random.default_rng(draw.getrandbits(32)).normal(114, 58, (h, w, 3)).clip(0, 255)
            erased = image.copy()
            erased.paste(
                Image.fromarray(noise.astype(np.uint8)), (draw.randint(0, width - w), draw.randint(0, height - h))
            )
            return erased
    return image


invert = ImageChops.invert
equalize = ImageOps.equalize


def autocontrast(image: Image.Image) -> Image.Image:
    """Every channel stretched to all values."""
    return ImageOps.autocontrast(image)
