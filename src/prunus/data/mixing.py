"""Pictures of a batch mixed with each other, and their targets with them: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019), as DeiT
trains: a draw for the batch, whose pictures are mixed with those of the batch read backwards.
"""

from __future__ import annotations

from random import Random

from torch import Tensor

OFTEN = 0.5
"""How often a batch is cut, where it may be cut or blended."""


def mixed(pixels: Tensor, targets: Tensor, mixup: float, cutmix: float, draw: Random) -> tuple[Tensor, Tensor]:
    """Mixed pictures and targets.

    Args:
        pixels: (B, 3, H, W).
        targets: shares of the classes, (B, K), rows that sum to one.
        mixup: both parameters of the Beta distribution that a picture's share is drawn from, where pictures are blended; 0 is never.
        cutmix: likewise, where a box of another picture takes the place of its own.
        draw: what all random numbers are taken from.
    """
    cuts = cutmix > 0 and (mixup == 0 or draw.random() < OFTEN)
    own = draw.betavariate(*[cutmix if cuts else mixup] * 2)
    other = pixels.flip(0)
    if cuts:
        height, width = pixels.shape[-2:]
        tall, wide = (int(side * (1 - own) ** 0.5) for side in (height, width))
        middle = draw.randrange(height), draw.randrange(width)
        top, left = max(middle[0] - tall // 2, 0), max(middle[1] - wide // 2, 0)
        bottom, right = min(middle[0] + tall // 2, height), min(middle[1] + wide // 2, width)
        result = pixels.clone()
        result[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        own = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        result = own * pixels + (1 - own) * other
    return result, own * targets + (1 - own) * targets.flip(0)
