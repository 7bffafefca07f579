"""EVA's ViT as a classifier: the image encoder of BLIP-2, a norm, a linear layer.

Fang et al., "EVA: Exploring the Limits of Masked Visual Representation Learning at Scale", 2023.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, Blip2VisionConfig, Blip2VisionModel
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.blip_2.modeling_blip_2 import Blip2PreTrainedModel
from transformers.utils.generic import can_return_tuple


class EvaVitConfig(Blip2VisionConfig):  # type: ignore[misc]
    """That of BLIP-2's image encoder, ViT-g by default.

    Examples:
        >>> EvaVitConfig(num_labels=1000).hidden_size
        1408
    """

    model_type = "eva_vit"
    base_config_key = ""

    initializer_range: float = 0.02
    mean_pooling: bool = False
    """Whether the mean of the patches is classified, normed after it was taken; else the class token is."""


class EvaVitForImageClassification(Blip2PreTrainedModel):  # type: ignore[misc]
    """An image, classified.

    Examples:
        >>> model(pixel_values=pixels, labels=labels).loss.shape
        torch.Size([])
    """

    config_class, main_input_name, input_modalities = EvaVitConfig, "pixel_values", ("image",)

    def __init__(self, config: EvaVitConfig) -> None:
        super().__init__(config)
        self.vision_model = Blip2VisionModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, interpolate_pos_encoding: bool = False, **kwargs: Any
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values: (B, 3, height, width).
            labels: (B,), int64.
            interpolate_pos_encoding: for images of another size than the config's.

        Returns:
            logits (B, labels), and the cross-entropy where there are labels.
        """
        tower = self.vision_model
        states = tower.embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        states = tower.encoder(inputs_embeds=states, **kwargs).last_hidden_state
        pooled = states[:, 1:].mean(1) if self.config.mean_pooling else states[:, 0]
        logits = self.classifier(tower.post_layernorm(pooled))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


AutoConfig.register(EvaVitConfig.model_type, EvaVitConfig)
AutoModel.register(EvaVitConfig, EvaVitForImageClassification)
AutoModelForImageClassification.register(EvaVitConfig, EvaVitForImageClassification)
