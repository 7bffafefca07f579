"""An architecture that transformers does not have: its layers have names of their own, and an entry in the catalog each."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from prunus.anatomy import Attention, Mlp, describe


class OrchardConfig(PreTrainedConfig):
    model_type = "orchard"
    width: int = 16
    heads: int = 2
    image_size: int = 8


class Graft(nn.Module):
    def __init__(self, config: OrchardConfig) -> None:
        super().__init__()
        self.head_width, self.scale = config.width // config.heads, (config.width // config.heads) ** -0.5
        self.ask, self.offer, self.carry, self.join = (nn.Linear(config.width, config.width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        parts = (layer(x).unflatten(-1, (-1, self.head_width)) for layer in (self.ask, self.offer, self.carry))
        mixed = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in parts), scale=self.scale)
        return x + self.join(mixed.transpose(1, 2).flatten(2))


class Ripen(nn.Sequential):
    def __init__(self, config: OrchardConfig) -> None:
        super().__init__(
            nn.Linear(config.width, 3 * config.width), nn.GELU(), nn.Linear(3 * config.width, config.width)
        )


class OrchardForImageClassification(PreTrainedModel):
    config_class, main_input_name, input_modalities = OrchardConfig, "pixel_values", ("image",)

    def __init__(self, config: OrchardConfig) -> None:
        super().__init__(config)
        self.patches = nn.Conv2d(3, config.width, 4, 4)
        self.layers = nn.ModuleList([nn.Sequential(Graft(config), Ripen(config)) for _ in range(2)])
        self.head = nn.Linear(config.width, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **_: object) -> ImageClassifierOutput:
        x = self.patches(pixel_values).flatten(2).mT
        for layer in self.layers:
            x = layer(x)
        logits = self.head(x.mean(1))
        return ImageClassifierOutput(None if labels is None else F.cross_entropy(logits, labels), logits)


describe(Graft, Attention("ask", "offer", "carry", "join", width="head_width"))
describe(Ripen, Mlp("0", "2"))
AutoConfig.register("orchard", OrchardConfig)
