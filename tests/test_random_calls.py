"""Random calls of prune, prune_folder, allocate, repair and extract, with inputs right, odd and wrong: each ends right or in one
`PrunusError`, and a refusal leaves every bit of the model, its record and torch's modes as they were.

`RANDOM_CALLS=2000 pytest tests/test_random_calls.py` makes as many as that.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunus import (
    OWL,
    RESSA,
    DSnoT,
    ECoFLaP,
    IterativeGlobal,
    LoRA,
    Magnitude,
    Manual,
    MaskedFinetune,
    MaskedLoRA,
    Plan,
    PrunusError,
    SparseGPT,
    SparsityPlan,
    Training,
    Uniform,
    WalkOptions,
    Wanda,
    allocate,
    anatomy,
    extract,
    prune,
    prune_folder,
    repair,
    sparsity_of,
)  # fmt: skip
from prunus.plan.channels import UnitPlan
from tests.test_refusals import unchanged

CALLS = int(os.environ.get("RANDOM_CALLS", "60"))
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24}
VISION = {**SIZES, "image_size": 16, "patch_size": 8}
TEXT = {**SIZES, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BLOCK = {
    "llama": "model.layers.1",
    "vit": "vit.layers.1",
    "llava": "model.language_model.layers.1",
    "t5": "encoder.block.1",
}


def build(name: str) -> Any:
    torch.manual_seed(0)
    if name == "llama":
        return tf.LlamaForCausalLM(tf.LlamaConfig(**TEXT)).eval()
    if name == "vit":
        return tf.ViTForImageClassification(tf.ViTConfig(**VISION)).eval()
    if name == "t5":
        config = tf.T5Config(
            vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_heads=2, num_layers=2, decoder_start_token_id=0
        )
        return tf.T5ForConditionalGeneration(config).eval()
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**{**VISION, "num_hidden_layers": 3}), text_config=tf.LlamaConfig(**TEXT), image_token_index=7
    )  # fmt: skip
    return tf.LlavaForConditionalGeneration(config).eval()


MODELS = {name: build(name) for name in ("llama", "vit", "llava", "t5")}


def warm() -> None:
    """transformers puts hooks of its own into some models when they first run."""
    for name, model in MODELS.items():
        model(**batch(name))


@cache
def folder(name: str) -> Path:
    path = Path(tempfile.mkdtemp(prefix="random-calls-"))
    MODELS[name].save_pretrained(path)
    return path


def batch(name: str, rows: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    ids = torch.randint(10, 50, (rows, 6), generator=generator)
    pixels = torch.randn(rows, 3, 16, 16, generator=generator)
    if name == "vit":
        return {"pixel_values": pixels, "labels": torch.arange(rows) % 2}
    if name == "t5":
        return {"input_ids": ids, "labels": ids[:, :3].contiguous()}
    if name == "llava":
        ids = torch.cat([torch.full((rows, 4), 7), ids], 1)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


warm()


def a_part(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(BLOCK[name])


def with_one(model: nn.Module, name: str, value: float) -> nn.Module:
    with torch.no_grad():
        next(p for p in a_part(model, name).parameters() if p.ndim == 2)[0, 0] = value
    return model


def compiled(model: nn.Module, part: nn.Module) -> nn.Module:
    part.compile()
    return model


def frozen(model: nn.Module, part: nn.Module) -> nn.Module:
    part.requires_grad_(False)
    return model


def shared(model: nn.Module, name: str) -> nn.Module:
    first, second = (
        [m for m in a_part(model, name).modules() if isinstance(m, nn.Linear) and m.in_features == m.out_features][i]
        for i in (0, 1)
    )
    second.weight = first.weight
    return model


MODEL_FORMS: dict[str, Callable[[Any, str], Any]] = {
    "as it is": lambda m, n: m,
    "train mode": lambda m, n: m.train(),
    "bf16": lambda m, n: m.bfloat16(),
    "fp16": lambda m, n: m.half(),
    "fp64": lambda m, n: m.double(),
    "nan": lambda m, n: with_one(m, n, float("nan")),
    "inf": lambda m, n: with_one(m, n, float("inf")),
    "meta": lambda m, n: m.to("meta"),
    "partly meta": lambda m, n: (a_part(m, n).to("meta"), m)[1],
    "compiled": lambda m, n: compiled(m, m),
    "compiled in part": lambda m, n: compiled(m, a_part(m, n)),
    "frozen": lambda m, n: frozen(m, m),
    "frozen in part": lambda m, n: frozen(m, a_part(m, n)),
    "parallel": lambda m, n: nn.DataParallel(m),
    "shared": shared,
    "no transformer": lambda m, n: nn.Linear(4, 4),
    "a list": lambda m, n: [m],
    "nothing": lambda m, n: None,
}

BATCH_FORMS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "alone": lambda b: b,
    "a tensor": lambda b: next(iter(b.values())),
    "none": lambda b: None,
    "no batch": lambda b: [],
    "used up": lambda b: iter(()),
    "a generator": lambda b: (x for x in [b, b]),
    "encoding": lambda b: [tf.BatchEncoding(b)],
    "tuples": lambda b: [tuple(b.values())],
    "text": lambda b: ["text"],
    "a word": lambda b: "text",
    "lists": lambda b: [{k: v.tolist() for k, v in b.items()}],
    "arrays": lambda b: [{k: v.numpy() for k, v in b.items()}],
    "one row": lambda b: [{k: v[0] for k, v in b.items()}],
    "no rows": lambda b: [{k: v[:0] for k, v in b.items()}],
    "second empty": lambda b: [b, {}],
    "nothing in one": lambda b: [b, None],
    "numbers": lambda b: [3],
    "too high": lambda b: [b, {k: v + 1000 if not v.is_floating_point() else v for k, v in b.items()}],
    "negative": lambda b: [{k: -v - 1 if not v.is_floating_point() else v for k, v in b.items()}],
    "all padding": lambda b: [{**b, "attention_mask": torch.zeros(2, 6, dtype=torch.long)}],
    "wrong mask": lambda b: [{**b, "attention_mask": torch.ones(2, 77, dtype=torch.long)}],
    "float mask": lambda b: [{k: v.float() if k == "attention_mask" else v for k, v in b.items()}],
    "unknown name": lambda b: [{**b, "words": torch.ones(2, 2)}],
    "floats": lambda b: [{k: v.float() for k, v in b.items()}],
    "doubles": lambda b: [{k: v.double() if v.is_floating_point() else v for k, v in b.items()}],
    "halves": lambda b: [{k: v.half() if v.is_floating_point() else v for k, v in b.items()}],
    "nan": lambda b: [b, {k: v * torch.nan if v.is_floating_point() else v for k, v in b.items()}],
    "huge": lambda b: [{k: v * 1e38 if v.is_floating_point() else v for k, v in b.items()}],
    "integers": lambda b: [{k: v.long() for k, v in b.items()}],
    "small ids": lambda b: [{k: v.int() if not v.is_floating_point() else v for k, v in b.items()}],
    "bytes": lambda b: [{k: v.to(torch.uint8) for k, v in b.items()}],
    "on meta": lambda b: [{k: v.to("meta") for k, v in b.items()}],
    "text alone": lambda b: [{k: v for k, v in b.items() if "pixel" not in k}],
    "images alone": lambda b: [{k: v for k, v in b.items() if "pixel" in k}],
    "text beside": lambda b: [b, {"input_ids": torch.full((1, 3), 11)}],
    "no labels": lambda b: [{k: v for k, v in b.items() if k != "labels"}],
    "wrong labels": lambda b: [{**b, "labels": torch.full((2, 3), 4999)}],
    "ignored labels": lambda b: [{**b, "labels": torch.full_like(b.get("labels", next(iter(b.values()))), -100)}],
    "labels of text": lambda b: [{**b, "labels": "cat"}],
    "wide images": lambda b: [{k: torch.randn(2, 3, 99, 5) if "pixel" in k else v for k, v in b.items()}],
    "one more dimension": lambda b: [{k: v[None] for k, v in b.items()}],
}

shares = st.one_of(
    st.sampled_from([0.0, 0.5, 0.3, 1.0, 0.999, -0.1, 1.5, float("nan"), None, "half", {"language": 0.5}, {"vision": 0.4},
                     {"audio": 0.5}, {"text": 0.3, "vision": 0.0}, {}]),
    st.floats(0, 1),
)  # fmt: skip
globs = st.sampled_from(
    [(), (), (), ["*"], ["*.1.*"], ["nothing*"], ["*q*"], ["vision"], ["*mlp*"], ["["], [""], "*", [3]]
)
patterns = st.sampled_from(
    ["unstructured", "unstructured", "unstructured", "2:4", "4:8", "3:7", "0:4", "4:4", "all", 124, None]
)


@st.composite
def models(draw: st.DrawFn) -> tuple[str, Any, str]:
    name = draw(st.sampled_from(sorted(MODELS)))
    form = draw(st.one_of(st.just("as it is"), st.sampled_from(sorted(MODEL_FORMS))))
    note(f"{name}, {form}")
    return name, MODEL_FORMS[form](copy.deepcopy(MODELS[name]), name), form


@st.composite
def batches(draw: st.DrawFn, name: str) -> Any:
    right = batch(name)
    form = draw(st.one_of(st.just(""), st.sampled_from(sorted(BATCH_FORMS))))
    note(f"batches: {form or 'right'}")
    return BATCH_FORMS[form](right) if form else [right, batch(name, 3)]


class OwnError(Exception):
    """What a function of the caller's own raises, which comes through as it is."""


def own_call(model: nn.Module, given: Any) -> object:
    try:
        return model(**given)
    except Exception as error:
        raise OwnError(str(error)) from error


@st.composite
def prunings(draw: st.DrawFn, model: Any, name: str) -> Callable[[], object]:
    kind = draw(st.sampled_from([Magnitude, Wanda, SparseGPT, DSnoT]))
    about = {"sparsity": draw(shares), "pattern": draw(patterns)}
    how = {
        "sequential": draw(st.booleans()), "bf16": draw(st.booleans()),
        "activations": draw(st.sampled_from(["keep", "keep", "cpu", "disk", "away"])), "progress": False,
    }  # fmt: skip
    where = {"include": draw(globs), "exclude": draw(globs)}
    given = draw(batches(name))
    planned = draw(st.sampled_from([None, None, None, *sorted(MODELS)]))
    call = draw(st.sampled_from([None, None, None, None, own_call, 3, lambda m, b: None]))

    note(f"{kind} {about} {how} {where} {planned} {call}")

    def pruning() -> object:
        plan = allocate(MODELS[planned], Uniform(sparsity=0.5)) if planned else None
        return prune(model, kind(**about), given, plan, call=call, options=WalkOptions(**how), **where)  # type: ignore[arg-type]

    return pruning


@st.composite
def prunings_of_folders(draw: st.DrawFn, model: Any, name: str) -> Callable[[], object]:
    kind, share, given = draw(st.sampled_from([Magnitude, Wanda])), draw(shares), draw(batches(name))
    where = {"include": draw(globs), "exclude": draw(globs)}

    def pruning() -> object:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                return prune_folder(
                    folder(name),
                    f"{scratch}/out",
                    kind(sparsity=share),
                    given,
                    options=WalkOptions(progress=False),
                    **where,
                )
            except PrunusError:
                assert not list(Path(scratch).iterdir())
                raise

    return pruning


@st.composite
def allocations(draw: st.DrawFn, model: Any, name: str) -> Callable[[], object]:
    kind = draw(st.sampled_from([
        Uniform, Manual, OWL, IterativeGlobal, ECoFLaP,
        lambda **k: ECoFLaP(order="zeroth", **k), lambda **k: ECoFLaP(granularity="tower", **k),
        lambda **k: ECoFLaP(order="zeroth", together=2, **k),
    ]))  # fmt: skip
    share, given, where = draw(shares), draw(batches(name)), {"include": draw(globs), "exclude": draw(globs)}
    bf16 = draw(st.booleans())
    note(f"{kind} {share} {where} {bf16}")
    return lambda: allocate(model, kind(sparsity=share), given, bf16=bf16, progress=False, **where)


@st.composite
def repairs(draw: st.DrawFn, model: Any, name: str) -> Callable[[], object]:
    kind = draw(st.sampled_from([
        MaskedFinetune, lambda: MaskedLoRA(rank=2), lambda: LoRA(rank=10_000), lambda: RESSA(rank=1), lambda: MaskedLoRA(rank={"audio": 3}),
    ]))  # fmt: skip
    given = draw(batches(name))
    rate = draw(st.sampled_from([1e-3, 1e-3, 0.0, -1.0, 1e30]))
    teacher = draw(st.sampled_from([None, *sorted(MODELS)]))

    def repairing() -> object:
        training = Training(steps=1, batch_size=2, learning_rate=rate, bf16=False)
        items = [{k: v[0] for k, v in b.items()} for b in given] if isinstance(given, list) and all(
            isinstance(b, dict) and all(isinstance(v, Tensor) and v.ndim and len(v) for v in b.values()) for b in given
        ) else given  # fmt: skip
        return repair(model, kind(), items, training, MODELS[teacher] if teacher else None)

    return repairing


@st.composite
def extractions(draw: st.DrawFn, model: Any, name: str) -> Callable[[], object]:
    other = draw(st.sampled_from([name, name, name, *sorted(MODELS)]))
    parts = anatomy(MODELS[other])
    units = {
        unit.name: UnitPlan(channels=unit.channels + draw(st.sampled_from([0, 0, 0, 0, 1])), kept=tuple(sorted(kept)))
        for unit in draw(st.lists(st.sampled_from(list(parts)), unique_by=lambda u: u.name))
        for kept in [draw(st.sets(st.integers(0, unit.channels - 1), min_size=1))]
    }
    if draw(st.booleans()) and units:
        units["somewhere.else"] = next(iter(units.values()))
    plan = Plan(model=parts.model, ratio=0.5, units=units)
    inplace = draw(st.booleans())
    return lambda: extract(model, plan, inplace=inplace)


VERBS = {
    "prune": prunings,
    "allocate": allocations,
    "extract": extractions,
    "folder": prunings_of_folders,
    "repair": repairs,
}
WEIGHTS = ["prune"] * 6 + ["allocate"] * 4 + ["extract"] * 3 + ["folder"] + ["repair"]


@settings(
    max_examples=CALLS, deadline=None, database=None, derandomize=CALLS <= 100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)  # fmt: skip
@given(st.data())
@pytest.mark.filterwarnings("ignore")
def test_every_call_ends_right_or_in_one_refusal(data: st.DataObject) -> None:
    name, model, form = data.draw(models())
    verb = data.draw(st.sampled_from(WEIGHTS))
    if verb == "repair" and form in ("as it is", "train mode", "frozen in part", "frozen", "bf16", "shared"):
        prune(model, Magnitude(), [batch(name)], options=WalkOptions(progress=False))
    carry_out = data.draw(VERBS[verb](model, name))
    before = unchanged(model).state() if isinstance(model, nn.Module) else None
    result = None
    try:
        result = carry_out()
    except (PrunusError, OwnError):
        after = "refused"
    else:
        after = "done"
    if before is not None:
        now = unchanged(model).state()
        if after == "refused" or verb in ("allocate", "folder"):
            assert now == before, (verb, form, after)
        elif verb != "extract":
            assert now[2:] == before[2:], (verb, form, after)  # type: ignore[index]
    if isinstance(result, SparsityPlan) and verb == "prune":
        assert (sparsity_of(getattr(model, "module", model)) is not None) == (result.sparsity > 0)
