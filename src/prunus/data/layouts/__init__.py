"""Layouts of data sets, one file each."""

from prunus.data.layouts.ade20k import ADE20K
from prunus.data.layouts.cc3m import CC3M
from prunus.data.layouts.coco_karpathy import CocoKarpathy
from prunus.data.layouts.easy_vqa import EasyVQAData
from prunus.data.layouts.flickr30k import Flickr30k
from prunus.data.layouts.gqa import GQA
from prunus.data.layouts.hub import Hub
from prunus.data.layouts.imagefolder import ImageFolder
from prunus.data.layouts.imagenet import ImageNet
from prunus.data.layouts.nlvr import NLVR
from prunus.data.layouts.nlvr2 import NLVR2
from prunus.data.layouts.nocaps import NoCaps
from prunus.data.layouts.okvqa import OKVQA
from prunus.data.layouts.published import Published
from prunus.data.layouts.table import Table
from prunus.data.layouts.text import TextFiles
from prunus.data.layouts.vqav2 import VQAv2

__all__ = [
    "ADE20K", "CC3M", "GQA", "NLVR", "NLVR2", "OKVQA", "CocoKarpathy", "EasyVQAData", "Flickr30k", "Hub", "ImageFolder", "ImageNet", "NoCaps",
    "Published", "Table", "TextFiles", "VQAv2",
]  # fmt: skip
