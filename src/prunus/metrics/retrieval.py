"""Recall at 1, 5 and 10 of retrieval, both ways, as it is measured on COCO and Flickr30k: a query counts if any of its right
candidates is among the first k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prunus.metrics.ranks import best_ranks

RECALLS = (1, 5, 10)
"""Among how many candidates a right one counts."""


def recall_rows(of_images: Tensor, of_texts: Tensor, image_of_text: Sequence[int]) -> Tensor:
    """What every image and its texts add to the sums, (images, 8): one, its hits at 1, 5 and 10 as a query for texts; the number of its
    texts, their hits as queries for images.

    Args:
        of_images: scores of every text for every image, (images, texts).
        of_texts: scores of every image for every text, (texts, images).
        image_of_text: the image that each text belongs to; every image has at least one.
    """
    owner = torch.tensor(image_of_text)
    texts: list[list[int]] = [[] for _ in range(len(of_images))]
    for text, image in enumerate(image_of_text):
        texts[image].append(text)
    of_image = torch.tensor(best_ranks(of_images, texts))
    of_text = torch.tensor(best_ranks(of_texts, [[image] for image in image_of_text]))
    rows = torch.zeros(len(texts), 2, 1 + len(RECALLS), dtype=torch.double)
    rows[:, 0] = torch.stack([torch.ones_like(of_image), *(of_image < k for k in RECALLS)], 1).double()
    hits = torch.stack([torch.ones_like(of_text), *(of_text < k for k in RECALLS)], 1).double()
    rows[:, 1] = rows[:, 1].index_add(0, owner, hits)
    return rows.flatten(1)


def recall_figures(sums: Tensor) -> Mapping[str, Tensor]:
    """Of sums (…, 8): `text_r1`, `text_r5`, `text_r10` (images as queries for texts), `image_r1`, `image_r5`, `image_r10` (texts as
    queries for images), and their mean, `mean_recall`.
    """
    found = {}
    for name, part in (("text", sums[..., :4]), ("image", sums[..., 4:])):
        for place, k in enumerate(RECALLS, start=1):
            found[f"{name}_r{k}"] = part[..., place] / part[..., 0]
    return {"mean_recall": torch.stack(list(found.values())).mean(0), **found}
