"""Images of users, whatever they are: opened as a model is to see them, or refused by their name."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from prunus.errors import PrunusError

LARGEST = 89_478_485
"""Pixels of an image, 9,459 × 9,459: what Pillow takes without a warning. A small file can claim to have any number."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""What is read. Others, such as EPS, would be handed to other programs."""
OF_16_BITS = ("PNG", "PPM")
"""Formats whose whole numbers (mode I) have 16 bits."""
IGNORED = -1
"""Class of the pixels of a mask that are not counted."""
UNLABELLED = 255
"""What masks of 8 bits give pixels that nobody has labelled."""
LARGEST_CLASS = 65535


class BrokenImage(PrunusError):  # noqa: N818
    """An image that cannot be read; the error names its file, or the file and row that it is in."""


def open_image(value: Any, where: str = "") -> Image.Image:
    """An image in RGB, turned as its EXIF entry says.

    Args:
        value: of a column `image`: a mapping with `bytes` or `path`; also bytes, a path, or an image that is open.
        where: file and row that it comes from.

    Raises:
        BrokenImage: there is no such file, it is damaged or no image, or it is too large.
    """
    with _opened(value, where) as image:
        _refuse_unseen(image)
        turned = ImageOps.exif_transpose(image)
        if turned.mode in ("P", "PA") and "transparency" in turned.info:
            turned = turned.convert("RGBA")
        if turned.mode.startswith("I"):  # 16 bits of grey, which would all be white
            turned = Image.fromarray((np.asarray(turned).clip(0, 65535) // 256).astype(np.uint8))
        return turned if turned.mode == "RGB" else turned.convert("RGB")


def open_mask(value: Any, where: str = "", first_class: int = 0) -> Image.Image:
    """Classes of the pixels, as an image of whole numbers (mode I); `IGNORED` where 8 bits hold `UNLABELLED`.

    Args:
        value: as of `open_image`.
        where: file and row that it comes from.
        first_class: what the image gives the first class. That becomes 0; what lies below becomes `IGNORED`.

    Raises:
        BrokenImage: as of `open_image`; or the image has colours or fractions and no numbers of classes.
    """
    with _opened(value, where) as image:
        if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
            raise ValueError(f"a mask holds one number a pixel, and this has {len(image.getbands())} channels")
        given = np.array(ImageOps.exif_transpose(image))
        classes = given.astype(np.int32) - first_class
        if classes.max() > LARGEST_CLASS:
            raise ValueError(f"classes have numbers up to {LARGEST_CLASS:,}, and it holds {classes.max():,}")
    classes[(classes < 0) | ((given == UNLABELLED) if given.dtype == np.uint8 else False)] = IGNORED
    return Image.fromarray(classes)


def classes_in(mask: Image.Image) -> list[int]:
    """The classes that occur in a mask of `open_mask`."""
    found = np.flatnonzero(np.bincount(np.asarray(mask).ravel() - IGNORED)) + IGNORED
    return [int(one) for one in found if one != IGNORED]


def look_at(value: Any, where: str = "", whole: bool = False) -> tuple[int, int]:
    """(width, height) of an image, of which only the head is read; or the `whole`, at an eighth of the size where that is quicker.

    Raises:
        BrokenImage: as of `open_image`.
    """
    with _opened(value, where) as image:
        size = image.size
        _refuse_unseen(image)
        if whole:
            image.draft(None, (1, 1))
            image.load()
    return size


def _refuse_unseen(image: Image.Image) -> None:
    """Refuses pixels of which nothing says how light they are."""
    if image.mode == "F":
        raise ValueError("its pixels are fractions; save it with 8 bits a channel")
    if image.mode.startswith("I"):
        if not _has_known_white(image):
            raise ValueError(
                "its pixels are whole numbers of which nothing says which is white; save it with 8 bits a channel"
            )
    elif not _has_colours(image.mode):
        raise ValueError(f"its colours are {image.mode}; save it as RGB")


def _has_known_white(image: Image.Image) -> bool:
    """Whether white is 65,535, of whole numbers. In a TIFF they may also have 12 or 32 bits, or a sign, or count from white to black."""
    if image.mode == "I":
        return image.format in OF_16_BITS
    tags = getattr(image, "tag_v2", None)
    return tags is None or (
        tags.get(ExifTags.Base.BitsPerSample),
        tags.get(ExifTags.Base.PhotometricInterpretation),
    ) == ((16,), 1)


@cache
def _has_colours(mode: str) -> bool:
    """Whether Pillow makes RGB of such an image."""
    try:
        Image.new(mode, (1, 1)).convert("RGB")
    except ValueError:
        return False
    return True


class Shown(NamedTuple):
    """How a picture is seen."""

    size: tuple[int, int]
    """Width and height."""
    stored: tuple[int, int]
    """Those of the pixels in the file."""
    turned: bool
    """Whether its EXIF entry turns or mirrors it."""


def shown(value: Any, where: str = "") -> Shown:
    """How a picture is seen, by its EXIF entry.

    Raises:
        BrokenImage: as of `open_image`.
    """
    with _opened(value, where) as image:
        turn = image.getexif().get(ExifTags.Base.Orientation, 1)
        return Shown(image.size[::-1] if turn in (5, 6, 7, 8) else image.size, image.size, turn in range(2, 9))


def endings() -> frozenset[str]:
    """Those of files that may be images, such as .jpg."""
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in FORMATS)


@cache
def _formats() -> list[str]:
    """Those of `FORMATS` that Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


@contextmanager
def _opened(value: Any, where: str) -> Iterator[Image.Image]:
    """An image whose head has been read. What goes wrong inside of the block is the image's fault, too."""
    file, name = value, value if isinstance(value, str) else type(value).__name__
    if isinstance(value, Mapping):
        file = value.get("path") if value.get("bytes") is None else value["bytes"]
        name = value.get("path") or name
    if isinstance(file, bytes | bytearray):
        name = f"{len(file):,} bytes" if not isinstance(name, str) or name in ("bytes", "bytearray", "dict") else name
        file = io.BytesIO(file)
    field = where or "image"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a damaged EXIF entry, which takes nothing from the picture
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if isinstance(file, Image.Image):
                yield file
                return
            if not isinstance(file, str | os.PathLike | io.BytesIO):
                raise ValueError("it is no image; give a path or bytes")
            if not isinstance(file, io.BytesIO) and os.path.exists(file) and not os.path.isfile(file):
                raise ValueError("it is a folder or a device, and no file")
            with Image.open(file, formats=_formats()) as image:
                width, height = image.size
                if width * height > LARGEST:
                    raise Image.DecompressionBombError
                if width * height < 2:
                    raise ValueError("it is a single pixel, as placeholders of lost images are")
                yield image
    except (MemoryError, BrokenImage):
        raise
    except FileNotFoundError:
        raise BrokenImage(field, name, "there is no such file") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BrokenImage(
            field, name, f"it has more than {LARGEST:,} pixels, which would fill the memory; make it smaller"
        ) from None
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise BrokenImage(field, name, f"it is damaged, or no image of a known format ({known})") from None
    except Exception as error:  # decoders raise anything
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise BrokenImage(field, name, f"it cannot be read ({said[0][:200]})") from None
