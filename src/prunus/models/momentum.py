"""Contrastive learning against momentum copies: copies that follow a model, a queue of features, soft targets.

Li et al., "Align before Fuse", 2021. Used by BLIP and by the published retrieval code of CLIP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization

from prunus.parallel import everyones, process, processes, several

# B: pairs of a batch, Q: length of the queue, D: width of the features

NOBODY = -100
"""The id of an image that is none's: it equals no other, nor itself."""


class WithCopies:
    """A model with momentum copies of some of its modules, mixed into a class of transformers. Copies take no gradient."""

    prunus_mirrors: ClassVar[dict[str, str]]
    """Path of a copy → that of its original. The anatomy reads it, too."""
    get_submodule: Callable[[str], nn.Module]
    soft_target_share: float = 1.0
    """Of the config's `soft_target_weight`, what counts now: a training may raise it from zero."""
    config: Any

    def soft_weight(self, given: float | Tensor | None) -> float | Tensor:
        """Weight of the copies' similarities among the targets: what is given, or the share of the config's that counts now."""
        weight: float = self.config.soft_target_weight
        return self.soft_target_share * weight if given is None else given

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Moves the copies towards their originals: m ← momentum · m + (1 − momentum) · original.

        A layer that computes with another weight than the one it holds, as under an adapter, says which: `weight_in_effect()`.
        """
        for copy, original in self.prunus_mirrors.items():
            for name, behind in self.get_submodule(copy).named_parameters():
                path, _, kind = name.rpartition(".")
                layer = self.get_submodule(original).get_submodule(path)
                made = getattr(layer, "weight_in_effect", None) if kind == "weight" else None
                ahead = layer.get_parameter(kind) if made is None else made()
                behind.lerp_(ahead.to(behind.dtype), 1 - momentum)

    def copy_momentum(self) -> None:
        """Makes the copies equal to their originals."""
        self.follow(0.0)

    def train(self, mode: bool = True) -> Any:
        """Also takes from the copies the gradients that transformers gives to what it has loaded."""
        for copy in self.prunus_mirrors:
            self.get_submodule(copy).requires_grad_(False)
        return super().train(mode)  # type: ignore[misc]


class FeatureQueue(nn.Module):
    """The features of pairs that were seen last, and which image each belongs to.

    Args:
        width: of a feature, D.
        length: how many pairs are kept, Q.
    """

    images: Tensor
    """(D, Q), columns of length one."""
    texts: Tensor
    """(D, Q)."""
    ids: Tensor
    """Of the image of every pair, (1, Q), int64."""
    place: Tensor
    """Where the next pair goes, (1,), int64."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.register_buffer("images", torch.empty(width, length))
        self.register_buffer("texts", torch.empty(width, length))
        self.register_buffer("ids", torch.empty(1, length, dtype=torch.long))
        self.register_buffer("place", torch.empty(1, dtype=torch.long))
        self.begin()

    @torch.no_grad()
    def begin(self) -> None:
        """Fills what was not loaded with random features of nobody."""
        for features in (self.images, self.texts):
            initialization.copy_(features, F.normalize(torch.randn_like(features), dim=0))
        initialization.constant_(self.ids, NOBODY)
        initialization.zeros_(self.place)

    @torch.no_grad()
    def push(self, images: Tensor, texts: Tensor, ids: Tensor | None) -> None:
        """Puts a batch in the place of the oldest pairs, those of all processes.

        Args:
            images, texts: normalised, (B, D).
            ids: of the images, (B,); None where nobody knows them.
        """
        if ids is None:
            ids = torch.full((len(images),), NOBODY, device=images.device)
        length = self.images.shape[1]
        images, texts, ids = (everywhere(part)[-length:] for part in (images, texts, ids))
        places = (self.place + torch.arange(len(images), device=self.place.device)) % length
        self.images[:, places] = images.T.to(self.images.dtype)
        self.texts[:, places] = texts.T.to(self.texts.dtype)
        self.ids[0, places] = ids
        self.place.copy_((self.place + len(images)) % length)

    def matches(self, ids: Tensor | None, pairs: int) -> Tensor:
        """Which of the batch and the queue belong to the image of each pair of the batch, rows that sum to one, (B, B + Q)."""
        own = torch.eye(pairs, pairs + self.ids.shape[1], device=self.ids.device)
        if ids is None:
            return own
        same = (ids[:, None] == torch.cat([ids[None], self.ids], 1)) & (ids[:, None] != NOBODY)
        same = own.bool() | same
        return same / same.sum(1, keepdim=True)


def contrast(
    features: tuple[Tensor, Tensor],
    momentum_features: tuple[Tensor, Tensor],
    queue: FeatureQueue,
    scale: Tensor,
    soft: float | Tensor,
    ids: Tensor | None,
) -> Tensor:
    """The contrastive loss of images and texts against momentum features of the batch and the queue, a scalar. What the momentum
    copies think of the pairs is part of the targets.

    Args:
        features, momentum_features: of images and texts, normalised, (B, D) each.
        scale: of cosines, so that they become logits.
        soft: weight of the momentum copies' similarities among the targets.
        ids: of the images, (B,): pairs with one image are all positive. None: only its own text is.
    """
    matches = queue.matches(ids, len(features[0]))
    everyone = [
        torch.cat([of.T, kept.to(of.dtype)], 1)
        for of, kept in zip(momentum_features, (queue.images, queue.texts), strict=True)
    ]
    losses = []
    for own, behind, others in zip(features, momentum_features, reversed(everyone), strict=True):
        with torch.no_grad():
            targets = soft * (scale * behind @ others).softmax(1) + (1 - soft) * matches.to(own.dtype)
        losses.append(F.cross_entropy(scale * own @ others, targets))
    return (losses[0] + losses[1]) / 2


def everywhere(part: Tensor) -> Tensor:
    """The parts of all processes that train one model, in their order. Gradients reach the process that each came from."""
    if not several():
        return part
    gathered: Tensor = _Gathered.apply(part)  # type: ignore[no-untyped-call]
    return gathered


class _Gathered(torch.autograd.Function):
    """`all_gather`, with a gradient: the sum of all processes'."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        parts = [torch.empty_like(part) for _ in range(processes())]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(processes())[process()]


def padded_alike(ids: Tensor, mask: Tensor | None, padding: int) -> tuple[Tensor, Tensor | None]:
    """Texts (B, T) and their mask, as long as the longest of all processes."""
    lengths = everyones(ids.shape[1])
    more = max(lengths) - ids.shape[1]
    if len(lengths) > 1 and mask is None:
        mask = torch.ones_like(ids)
    if more == 0:
        return ids, mask
    return F.pad(ids, (0, more), value=padding), None if mask is None else F.pad(mask, (0, more))


def first_of_own(pairs: int) -> int:
    """Where the pairs of this process begin among those of all."""
    return pairs * process()
