"""What a published checkpoint is: its names, as data, and the model of transformers or of ours that they fill.

A family is a subclass of `Published` in a file of its own. It is known once its file is imported, ours or anybody's.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil

from prunus.errors import PrunusError

Shapes = Mapping[str, tuple[int, ...]]
"""Published name → shape."""
Split = Callable[[Tensor], Sequence[Tensor]]
"""One published tensor → the tensors of ours that it holds. Also works on the meta device."""


def whole(tensor: Tensor) -> tuple[Tensor, ...]:
    """Itself."""
    return (tensor,)


def thirds(tensor: Tensor) -> tuple[Tensor, ...]:
    """Fused queries, keys and values, (3 × heads × width, …), as three."""
    return tensor.chunk(3)


def transposed(tensor: Tensor) -> tuple[Tensor, ...]:
    """A matrix that is published as (inputs, outputs)."""
    return (tensor.T,)


def with_key_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with one bias for fused queries, keys and values where those of queries and values were published and keys have none."""
    whole = dict(tensors)
    for name, queries in tensors.items():
        stem = name.removesuffix("q_bias")
        if stem != name and f"{stem}v_bias" in tensors:
            values = whole.pop(f"{stem}v_bias")
            whole[f"{stem}qkv.bias"] = torch.cat([whole.pop(name), torch.zeros_like(queries), values])
    return whole


@dataclass(frozen=True)
class Rule:
    """Which tensors of ours a published name fills."""

    published: str
    """Regular expression for the whole name."""
    ours: tuple[str, ...]
    """Our names, with the groups of the expression as \\1, \\2, …"""
    split: Split = whole
    """Makes as many tensors as there are names."""


QUEUES = (
    Rule("image_queue", ("queue.images",)), Rule("text_queue", ("queue.texts",)), Rule("idx_queue", ("queue.ids",)),
    Rule("ptr_queue", ("queue.place",)),
)  # fmt: skip
"""Those of ALBEF's code, which BLIP and UPop's CLIP share."""


class Published(ABC):
    """A family of published checkpoints."""

    name: ClassVar[str]
    """What `--as` calls it."""
    rules: ClassVar[tuple[Rule, ...]]
    """For every published name the first rule that matches counts."""
    left_out: ClassVar[Mapping[str, str]] = {}
    """Regular expression for published names that fill nothing → the reason."""
    positions: ClassVar[Mapping[str, int]] = {}
    """Regular expression for the names of learned positions of image patches, (1, tokens, width) or (tokens, width) → how many
    of the tokens stand before the patches."""
    interpolation: ClassVar[str] = "bicubic"
    """How those positions are resized."""
    patches: ClassVar[str] = ""
    """Published name of the convolution over patches, (width, 3, patch, patch)."""
    head_width: ClassVar[int] = 64
    """Width of an attention head, which no shape tells."""
    scale_follows_width: ClassVar[str] = r"(?!)"
    """Regular expression for our names of attentions whose scores the published code divides by the square root of their current
    width, also where they have been narrowed."""

    normalisation: ClassVar[tuple[Sequence[float], Sequence[float]]] = (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    """Mean and deviation by which pixels are normalised, a colour each."""
    margin: ClassVar[float] = 1.0
    """How much larger than the model's size an image is made before its middle is cut out."""

    @abstractmethod
    def fits(self, shapes: Shapes) -> bool:
        """Whether a file is of this family, told from its names."""

    @abstractmethod
    def build(self, shapes: Shapes, head_width: int) -> PreTrainedModel:
        """The model for these shapes, on the current device, with sizes read off those that narrowing leaves alone."""

    def image_processor(self, size: int) -> Any:
        """What turns images into pixels as the published code does when it evaluates.

        Args:
            size: side of the images that the model takes, in pixels.
        """
        larger, side = ({"height": pixels, "width": pixels} for pixels in (int(size * self.margin), size))
        mean, deviation = self.normalisation
        if self.margin == 1:
            return BlipImageProcessorPil(size=side, image_mean=mean, image_std=deviation)
        return DeiTImageProcessorPil(size=larger, crop_size=side, image_mean=mean, image_std=deviation)

    def prepare(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Changes that no rule can say, such as several published tensors that make one of ours. By default none."""
        return tensors

    def renamed(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """(our name → tensor, published names that no rule knows or that would fill what another one has filled).

        Raises:
            PrunusError: a tensor cannot be split as its rule says.
        """
        ours: dict[str, Tensor] = {}
        unknown = []
        for name, tensor in tensors.items():
            if any(re.fullmatch(pattern, name) for pattern in self.left_out):
                continue
            found = next(((rule, m) for rule in self.rules if (m := re.fullmatch(rule.published, name))), None)
            names = [found[1].expand(template) for template in found[0].ours] if found else []
            if found is None or not ours.keys().isdisjoint(names):
                unknown.append(name)
                continue
            parts = found[0].split(tensor)
            if len(parts) != len(names):
                raise PrunusError("file", name, f"its shape {tuple(tensor.shape)} is none of {len(names)} in one")
            ours.update(zip(names, parts, strict=True))
        return ours, unknown

    def resized(self, tensors: dict[str, Tensor], image_size: int) -> dict[str, Tensor]:
        """The tensors, with positions interpolated for images of this side in pixels.

        Raises:
            PrunusError: the family has no such positions, or the side is no multiple of the patch size.
        """
        patch = tensors[self.patches].shape[-1] if self.patches in tensors else 0
        if not self.positions or not patch:
            raise PrunusError("image_size", image_size, f"{self.name} has no positions of patches; leave it out")
        if image_size < patch or image_size % patch:
            raise PrunusError("image_size", image_size, f"take a multiple of the patch size {patch}")
        changed = dict(tensors)
        for name, tensor in tensors.items():
            leading = next((n for pattern, n in self.positions.items() if re.fullmatch(pattern, name)), None)
            if leading is not None:
                changed[name] = interpolated(tensor, leading, image_size // patch, self.interpolation)
        return changed


def interpolated(positions: Tensor, leading: int, side: int, mode: str = "bicubic") -> Tensor:
    """Learned positions for another number of patches; those of leading tokens stay.

    Args:
        positions: (1, tokens, width) or (tokens, width), of a square of patches.
        leading: tokens before the patches.
        side: patches along a side of the new image.
        mode: of `torch.nn.functional.interpolate`.
    """
    table = positions.reshape(-1, positions.shape[-1])
    first, grid = table[:leading], table[leading:]
    before = square_side(len(grid))
    if before == side:
        return positions
    grid = grid.T.reshape(1, -1, before, before)
    grid = F.interpolate(grid.float(), size=(side, side), mode=mode, align_corners=False).to(positions.dtype)
    table = torch.cat((first, grid.flatten(2)[0].T))
    return table if positions.ndim == 2 else table[None]


def square_side(patches: int) -> int:
    """Patches along a side of a square image."""
    return math.isqrt(patches)


def heads(width: int, head_width: int) -> int:
    """How many attention heads a model of this width has.

    Raises:
        PrunusError: they do not make up the width.
    """
    if width % head_width:
        raise PrunusError(
            "head_width",
            head_width,
            f"heads of that width do not make up the model's {width}; say which do (--head-width)",
        )
    return width // head_width


def layers(shapes: Iterable[str], prefix: str) -> int:
    """How many layers there are, `prefix` being what stands before a layer's number."""
    return len({m[1] for name in shapes if (m := re.match(re.escape(prefix) + r"(\d+)\.", name))})


def mlp_width(shapes: Shapes, biases: str, width: int) -> int:
    """Hidden width of the dense MLPs, whose first biases are called so (a regular expression). Where layers differ, the model was
    narrowed, and its MLPs were four times as wide as the model."""
    found = {shape[0] for name, shape in shapes.items() if re.fullmatch(biases, name)}
    return max(found) if len(found) == 1 else max({4 * width, *found})


def families() -> dict[str, Published]:
    """Name → family, of all that have been imported."""
    found: dict[str, Published] = {}
    waiting = [Published]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            waiting.append(kind)
            if "name" in vars(kind):
                found[kind.name] = kind()
    return dict(sorted(found.items()))


def recognised(shapes: Shapes, file: str) -> Published:
    """The one family that a file is of.

    Raises:
        PrunusError: it is of none, or of several.
    """
    known = families()
    fitting = [family for family in known.values() if family.fits(shapes)]
    if len(fitting) == 1:
        return fitting[0]
    told = ", ".join(family.name for family in fitting)
    some = ", ".join(list(shapes)[:3])
    said = f"its names fit {told}" if fitting else f"its names ({some}, …) are of no family that is known"
    raise PrunusError("file", file, f"{said}; say which with as_, --as on the command line: {', '.join(known)}")


def named_family(name: str) -> Published:
    """A family by its name.

    Raises:
        PrunusError: there is none of this name.
    """
    known = families()
    if name not in known:
        raise PrunusError("as_", name, f"there is no such family; take one of {', '.join(known)}")
    return known[name]
