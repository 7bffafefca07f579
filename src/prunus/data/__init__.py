"""A user's data, as rows of fixed columns; images as models see them; and versions of them for training."""

from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator

from prunus.data.augment import AnyAugmentation, Augmentation, Augmented
from prunus.data.columns import COLUMNS, IMAGE_PLACE, WHERE
from prunus.data.easy_vqa import COLORS, IMAGE_MEAN, IMAGE_STD, SHAPES, NamedImages, Questions, balanced, questions_of
from prunus.data.identity import file_state
from prunus.data.images import IGNORED, UNLABELLED, BrokenImage, open_image, open_mask
from prunus.data.layouts import (
    ADE20K,
    CC3M,
    GQA,
    NLVR,
    NLVR2,
    OKVQA,
    CocoKarpathy,
    EasyVQAData,
    Flickr30k,
    Hub,
    ImageFolder,
    ImageNet,
    NoCaps,
    Published,
    Table,
    TextFiles,
    VQAv2,
)  # fmt: skip
from prunus.data.mixing import mixed
from prunus.data.overlap import shared_pictures
from prunus.data.source import Data, Found, in_full
from prunus.data.store import Needs
from prunus.typed import named

if TYPE_CHECKING:
    AnyData = Data
else:
    AnyData = Annotated[named(Data, "layout"), BeforeValidator(in_full)]
    """Any layout, by its name in a recipe; a text alone names the file of a table."""

__all__ = [
    "ADE20K", "CC3M", "COLORS", "COLUMNS", "GQA", "IGNORED", "IMAGE_MEAN", "IMAGE_PLACE", "IMAGE_STD", "NLVR", "NLVR2", "OKVQA", "SHAPES",
    "UNLABELLED", "WHERE", "AnyAugmentation", "AnyData", "Augmentation", "Augmented", "BrokenImage", "CocoKarpathy", "Data", "EasyVQAData", "Flickr30k",
    "Found", "Hub", "ImageFolder", "ImageNet", "NamedImages", "Needs", "NoCaps", "Published", "Questions", "Table", "TextFiles", "VQAv2", "balanced",
    "file_state", "mixed", "open_image", "open_mask", "questions_of", "shared_pictures",
]  # fmt: skip
