"""Models that judge a statement about two pictures: BLIP and ViLT for natural language and visual reasoning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor, nn

from prunus.batches import for_model
from prunus.calibration import Batch
from prunus.losses import Prediction, own_prediction
from prunus.tasks.kinds.kind import Kind, architecture
from prunus.tasks.kinds.parts import Parted, pixels, wide_enough


class PairReader(Parted, Kind):
    """Two pictures and a statement → logits of false and true."""

    takes: ClassVar = "models that judge two pictures: BLIP for NLVR2, ViltForImagesAndTextClassification"

    @classmethod
    def fits(cls, config: Any) -> bool:
        return architecture(config) == "BlipForImagesAndTextClassification"

    def batch(
        self, pairs: Sequence[Sequence[Image]], texts: Sequence[str], labels: Sequence[int] | None = None, sized: bool = False,
        length: int | None = None,
    ) -> Batch:  # fmt: skip
        """Inputs of the model, with labels (B,) if they are given.

        Args:
            pairs: of pictures, in the order in which the model reads them.
            labels: 1 where the statement is true.
            sized: whether the pictures have the model's size already.
            length: tokens of a statement at the most.
        """
        flat = pixels(self.pictures, [image for pair in pairs for image in pair], sized)
        inputs: Batch = {**self.tokens(texts, length), "pixel_values": flat.view(len(pairs), 2, *flat.shape[1:])}
        inputs.pop("token_type_ids", None)
        return inputs if labels is None else inputs | {"labels": torch.tensor([int(label) for label in labels])}

    def predict(self, model: nn.Module, batch: Batch) -> Prediction:
        return own_prediction(model, batch)

    @torch.no_grad()
    def logits(
        self, model: Any, pairs: Sequence[Sequence[Image]], texts: Sequence[str], length: int | None = None
    ) -> Tensor:
        """(B, 2), fp32, on the CPU."""
        found: Tensor = model(**for_model(self.batch(pairs, texts, length=length), model)).logits
        return found.float().cpu()


class ViltPairs(PairReader):
    """ViLT, whose pictures may differ in size and are padded, with a mask."""

    @classmethod
    def fits(cls, config: Any) -> bool:
        return architecture(config) == "ViltForImagesAndTextClassification" and config.num_images == 2

    def batch(
        self, pairs: Sequence[Sequence[Image]], texts: Sequence[str], labels: Sequence[int] | None = None, sized: bool = False,
        length: int | None = None,
    ) -> Batch:  # fmt: skip
        flat = wide_enough(self.pictures, [image for pair in pairs for image in pair])
        made = self.pictures(images=flat, return_tensors="pt", **({"do_resize": False} if sized else {}))
        seen = {name: made[name].unflatten(0, (len(pairs), 2)) for name in ("pixel_values", "pixel_mask")}
        inputs: Batch = {**self.tokens(texts, length), **seen}
        return inputs if labels is None else inputs | {"labels": torch.tensor([int(label) for label in labels])}
