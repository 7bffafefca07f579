"""Models that say the class of every pixel: Segmenter, SegFormer and whatever else has logits of labels, pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL.Image import Image, Resampling
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.batches import for_model
from prunus.calibration import Batch
from prunus.data import IGNORED, UNLABELLED
from prunus.errors import PrunusError
from prunus.losses import Prediction
from prunus.models import in_windows
from prunus.tasks.kinds.classifier import Looker
from prunus.tasks.kinds.kind import architecture
from prunus.tasks.kinds.parts import pixels


class Segmenting(Looker):
    """A picture → logits of classes for every pixel."""

    takes: ClassVar = "models with logits of classes for every pixel (…ForSemanticSegmentation), not for ones that say masks one by one"

    @classmethod
    def fits(cls, config: Any) -> bool:
        return "ForSemanticSegmentation" in architecture(config)

    def check_class(self, field: str, number: int) -> None:
        """Refuses a class of a mask that the model does not know.

        Raises:
            PrunusError: see above.
        """
        known = self.config.num_labels
        if number >= known:
            raise PrunusError(
                field, number, f"the model knows {known} classes, from 0; leave such pixels out (ignore: [{number}]), or say what masks give the "
                "first class (first_class)",
            )  # fmt: skip

    def batch(self, images: Sequence[Image], masks: Sequence[Tensor] | None = None) -> Batch:
        """Inputs of the model of pictures of one size, which stay as large as they are, with labels (B, H, W) if masks are given."""
        inputs: Batch = {"pixel_values": pixels(self.processor, images, sized=True)}
        if masks is None:
            return inputs
        labels = torch.stack(list(masks)).long()
        return inputs | {"labels": labels.masked_fill(labels == IGNORED, self.ignored)}

    @property
    def ignored(self) -> int:
        """Label of the pixels that are not counted: what the model's own loss passes over, unless that is one of its classes."""
        own = getattr(self.config, "semantic_loss_ignore_index", getattr(self.config, "loss_ignore_index", UNLABELLED))
        return IGNORED if 0 <= own < self.config.num_labels else int(own)

    def predict(self, model: nn.Module, batch: Batch) -> Prediction:
        """The cross-entropy of the pixels that count."""
        inputs = for_model(dict(batch), model)
        labels = inputs.pop("labels")
        logits = _as_large(model(**inputs).logits, labels.shape[-2:])
        loss = F.cross_entropy(logits.float(), labels, ignore_index=self.ignored)
        return Prediction(loss, logits.movedim(1, -1), labels != self.ignored)

    def classes(
        self, model: Any, image: Image, size: Sequence[int], side: int | None, stride: int | None, scales: Sequence[float], mirror: bool
    ) -> Tensor:  # fmt: skip
        """The likeliest class of every pixel of a mask, (H, W), on the CPU.

        Args:
            size: height and width of the mask.
            side: shorter side of the picture at scale 1; None is the model's size. The longer one is at most four times as long.
            stride: as of `likelihoods`; None is the model's size.
            scales: at which the picture is looked at; likelihoods are added.
            mirror: whether each is also looked at with left and right exchanged.
        """
        side, stride = side or self.size[0], stride or self.size[0]
        fit = min(4 * side / max(image.size), side / min(image.size))
        total: Any = 0
        for scale in scales:
            width, height = (max(1, int(length * fit * scale + 0.5)) for length in image.size)
            resized = image.resize((width, height), Resampling.BILINEAR)
            for mirrored in (False, True)[: 1 + mirror]:
                total = total + self.likelihoods(model, resized, size, stride, mirrored)
        found: Tensor = total.argmax(0)
        return found.cpu()

    @torch.no_grad()
    def likelihoods(self, model: Any, image: Image, size: Sequence[int], stride: int, mirrored: bool) -> Tensor:
        """Of every class at every pixel of a picture, (K, H, W), fp32, on the model's device.

        Args:
            image: as large as the model is to look at it.
            size: height and width of the result.
            stride: from one window to the next, in pixels.
            mirrored: whether the picture is looked at with left and right exchanged; the result is as the picture is.
        """
        window = self.size[0]
        values = for_model(pixels(self.processor, [image], sized=True), model)
        if min(values.shape[-2:]) < window:
            scale = window / min(values.shape[-2:])
            grown = [max(window, int(side * scale)) for side in values.shape[-2:]]
            values = F.interpolate(values, size=grown, mode="bilinear", align_corners=False)
        if mirrored:
            values = values.flip(-1)
        logits = in_windows(
            lambda part: _as_large(model(pixel_values=part).logits, part.shape[-2:]), values, window, stride
        )
        logits = _as_large(logits.float(), size)
        return (logits.flip(-1) if mirrored else logits)[0].softmax(0)


def _as_large(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits (B, K, h, w) for every pixel, (B, K, H, W)."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=list(size), mode="bilinear", align_corners=False)
