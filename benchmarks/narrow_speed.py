"""Which result to take: the speed of narrow LLaMAs with as many parameters as each other, `python -m benchmarks.narrow_speed`.

A LLaMA of random weights in SmolLM2-135M's shape loses whole blocks, and as many parameters as irregular widths, as a plain config, with widths that
are multiples, and in whole heads. Prefill of a prompt, and decoding with a cache, token by token, in fp32 and bf16; all models in turns, so that
a machine that others use slows all; what counts is the quotient to the dense one. Nothing else should run. `--output FILE.json`,
`--layers`, `--share`, `--prompt`, `--tokens`, `--repeats`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from benchmarks.measured import Figures, found, table
from prunus import Calibrated, Depth, Everyone, Score, WalkOptions, drop_blocks, narrow
from prunus.cost import latencies
from prunus.unstructured import Statistics

QUIET = WalkOptions(progress=False)
DENSE, IRREGULAR, DEPTH = "dense", "irregular", "fewer blocks"
RESULTS: dict[str, dict[str, Any]] = {
    IRREGULAR: {"scope": Everyone()},
    "plain": {"plain": True},
    "plain, align 32": {"plain": True, "align": 32},
    "plain, align 64": {"plain": True, "align": 64},
    "plain, whole heads, align 64": {"plain": True, "attention": "heads", "align": 64},
}
PREFILL, DECODE = "prefill", ("decode 1", "decode 8")
"""What is timed; numbers are sequences at a time."""


class Uneven(Score):
    """Scores by chance that differ from unit to unit, as real ones do."""

    score: Literal["uneven"] = "uneven"

    def of_matrix(self, weight: Tensor, columns: Tensor, inputs: Statistics) -> Tensor:
        return torch.rand(len(columns)) + 0.5 * torch.rand(1)


def models(layers: int, share: float) -> dict[str, Any]:
    """Name → model; all but the dense one have as many parameters as that with fewer blocks, or up to a step of their width less."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9, num_key_value_heads=3,
        tie_word_embeddings=True,
    )  # fmt: skip
    dense: Any = LlamaForCausalLM(config).eval()
    batches = [{"input_ids": torch.randint(0, config.vocab_size, (1, 8))}]
    shorter, _ = drop_blocks(dense, Depth(blocks=round(share * layers)), batches, options=QUIET)
    made = {DENSE: dense}
    for name, settings in RESULTS.items():
        method = Calibrated(
            max_parameters=shorter.num_parameters(), score=Uneven(), compensation="none", **settings
        )  # fmt: skip
        made[name], _ = narrow(dense, method, batches, options=QUIET)
    return {**made, DEPTH: shorter}


class Decoding:
    """A prompt in the cache, and tokens that follow it one by one; afterwards the cache is as it was."""

    def __init__(self, model: Any, sequences: int, prompt: int, tokens: int):
        self.model, self.tokens = model, tokens
        self.next = torch.zeros(sequences, 1, dtype=torch.long)
        self.cache = DynamicCache(config=model.config)
        with torch.no_grad():
            ids = torch.randint(0, model.config.vocab_size, (sequences, prompt))
            model(input_ids=ids, past_key_values=self.cache, logits_to_keep=1)

    def __call__(self) -> None:
        for _ in range(self.tokens):
            self.model(input_ids=self.next, past_key_values=self.cache)
        self.cache.crop(-self.tokens)


def works(
    models: dict[str, Any], prompt: int, tokens: int
) -> Iterator[tuple[str, dict[str, Callable[[], object]], int]]:
    """What is timed, of all models, and the tokens that each sequence goes on by."""
    ids = torch.randint(0, models[DENSE].config.vocab_size, (1, prompt))
    yield PREFILL, {name: lambda m=m: m(input_ids=ids, logits_to_keep=1) for name, m in models.items()}, 1  # type: ignore[misc]
    for work in DECODE:
        sequences = int(work.split()[1])
        yield work, {name: Decoding(m, sequences, prompt, tokens) for name, m in models.items()}, tokens


def speed(rows: Sequence[dict[str, Any]], model: str, work: str, dtype: str) -> float:
    """How many times as fast as the dense model."""
    times = [found(rows, model=name, work=work, dtype=dtype)[0]["milliseconds"] for name in (DENSE, model)]
    return float(times[0] / times[1])


def overall(rows: Sequence[dict[str, Any]], model: str, work: Sequence[str]) -> float:
    """The geometric mean over types and works."""
    kinds = sorted({row["dtype"] for row in rows})
    return statistics.geometric_mean(speed(rows, model, one, dtype) for one in work for dtype in kinds)


def rows_of(rows: Sequence[dict[str, Any]]) -> str:
    """The table: times as fast as the dense model."""
    columns = [(row["dtype"], row["work"]) for row in found(rows, model=DENSE)]
    head = [
        "",
        "parameters",
        *(f"{dtype.replace('float', 'fp').replace('bfp', 'bf')}, {work}" for dtype, work in columns),
    ]
    lines = []
    for name in (DENSE, *RESULTS, DEPTH):
        own = found(rows, model=name)
        if name == DENSE:
            cells = [f"{row['milliseconds']:.0f} ms" for row in own]
        else:
            cells = [f"{speed(rows, name, work, dtype):.2f} ×" for dtype, work in columns]
        lines.append([name, f"{own[0]['parameters'] / 1e6:.1f} M", *cells])
    return table(head, lines)


def advice(rows: Sequence[dict[str, Any]]) -> str:
    """Which to take, in words: by the figures, and by where a result loads."""
    everything = (PREFILL, *DECODE)

    def best(names: Sequence[str], work: Sequence[str]) -> str:
        return max(names, key=lambda name: overall(rows, name, work))

    def said(name: str, work: Sequence[str]) -> str:
        return f"{overall(rows, name, work):.2f} ×"

    plain = [name for name in RESULTS if name != IRREGULAR]
    taken = best(plain, everything)
    apart = overall(rows, IRREGULAR, everything) / overall(rows, taken, everything) - 1
    fastest = " and ".join(
        f"{what} `{(name := best([*RESULTS, DEPTH], work))}` ({said(name, work)})"
        for what, work in (("at prefill", (PREFILL,)), ("at decoding", DECODE))
    )
    compared = f"{abs(apart):.0%} {'faster' if apart > 0 else 'slower'} and" if abs(apart) >= 0.02 else "as fast, but"
    return (
        f"At the same parameters the fastest is {fastest}. Of the results that keep every block take `{taken}`: {said(taken, everything)} over "
        f"all columns, and it loads with the stock class; `{IRREGULAR}` is {compared} loads only where prunus is, so take it where it "
        f"keeps more quality. `{DEPTH}` is {said(DEPTH, everything)} as fast; what each keeps of the quality, `python -m benchmarks.narrow_quality` says."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--share", type=float, default=0.3, help="of the blocks that leave, and of their parameters")
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--tokens", type=int, default=16, help="that are decoded")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    asked = parser.parse_args()
    settings = {name: getattr(asked, name) for name in ("layers", "share", "prompt", "tokens", "repeats")}
    figures = Figures(asked.output, settings | {"threads": torch.get_num_threads()})
    made = models(asked.layers, asked.share)
    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        for model in made.values():
            model.to(dtype)
        for work, runs, steps in works(made, asked.prompt, asked.tokens):
            if figures.find(work=work, dtype=kind):
                continue
            for name, taken in latencies(runs, asked.repeats, warmup=2).items():
                figures.keep(
                    model=name, work=work, dtype=kind, milliseconds=1000 * taken.median / steps, low=1000 * taken.low / steps,
                    high=1000 * taken.high / steps, parameters=made[name].num_parameters(),
                )  # fmt: skip
    print(rows_of(figures.rows) + "\n\n" + advice(figures.rows))


if __name__ == "__main__":
    main()
