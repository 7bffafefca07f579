"""How long it takes to read what a large model is made of: `python -m benchmarks.anatomy_speed [NAME …]`.

Each model is built on the meta device, from the numbers of its published config, in a fresh process. The bars are 3 s for
`anatomy` and 8 s for all of `prunus inspect`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from prunus.anatomy import anatomy, survey
from prunus.checkpoint import bare_model
from prunus.evaluation import in_fresh_process

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8192, "intermediate_size": 28672,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip
MIXTRAL = {
    "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "vocab_size": 32000,
}  # fmt: skip
QWEN = {
    "model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"],
    "text_config": {
        "model_type": "qwen3_vl_text", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    },
    "vision_config": {
        "model_type": "qwen3_vl", "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096,
    },
}  # fmt: skip
GEMMA = {
    "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
    "text_config": {
        "model_type": "gemma3_text", "hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 262208,
    },
    "vision_config": {
        "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
        "num_attention_heads": 16, "image_size": 896, "patch_size": 14,
    },
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen3-VL-8B": QWEN, "Gemma-3-12B": GEMMA, "LLaMA-70B": LLAMA, "Mixtral-8x7B": MIXTRAL,
}  # fmt: skip


def measure(config: str) -> dict[str, float]:
    """Seconds to build a model without weights, to read its anatomy, and to find its matrices."""
    times = [time.perf_counter()]
    with torch.device("meta"):
        model = bare_model(config)
    times.append(time.perf_counter())
    parts = anatomy(model)
    times.append(time.perf_counter())
    found = survey(model, parts=parts)
    times.append(time.perf_counter())
    built, read, surveyed = (after - before for before, after in pairwise(times))
    sizes = {"billions": parts.parameters / 1e9, "units": len(parts), "matrices": len(found.matrices)}
    return {**sizes, "build": built, "anatomy": read, "survey": surveyed}


def main() -> None:
    """Prints a table."""
    print(
        f"{'model':<14}{'billions':>9}{'units':>7}{'matrices':>10}{'build s':>9}{'anatomy s':>11}{'survey s':>10}{'inspect s':>11}"
    )
    for name in sys.argv[1:] or CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "config.json"
            file.write_text(json.dumps(CONFIGS[name]))
            row = in_fresh_process(measure, str(file))
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "prunus", "inspect", str(file)], check=True, capture_output=True)
            inspect = time.perf_counter() - start
        print(
            f"{name:<14}{row['billions']:>9.1f}{row['units']:>7}{row['matrices']:>10}{row['build']:>9.2f}{row['anatomy']:>11.2f}"
            f"{row['survey']:>10.2f}{inspect:>11.2f}", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
