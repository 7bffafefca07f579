"""The cases of `benchmarks.fuzz`: what is damaged, how, and what would be wrong."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import prunus.run
from prunus import Plan, SparsityPlan, Wanda, anatomy, extract, load_model, prune, prune_folder
from prunus.checkpoint import random_model
from prunus.checkpoint.checksums import CHECKSUMS, write_checksums
from prunus.cli.commands import inspect
from prunus.evaluation import evaluate_here
from prunus.recipe import demo_recipe, dump_recipe, parse_recipe
from prunus.report import Report, measured
from prunus.run import run
from prunus.storage import write_text
from prunus.tasks import Noise

RECIPES = Path(__file__).parents[1] / "recipes"
QUIET = Console(quiet=True)
LLAMA: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 50, "max_position_embeddings": 64,
}  # fmt: skip
VIT: dict[str, Any] = {
    "model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
}  # fmt: skip
NOISE = {"name": "noise", "items": 8, "length": 8}
TRAIN = {"steps": 2, "batch_size": 2, "learning_rate": 1e-3, "save_every": 1, "bf16": False}
SEARCH = {"step": "search", "method": {"ratio": 0.5, "interval": 1}, "train": TRAIN}
UNIFIED = {**SEARCH, "method": {"method": "unified", "ratio": 0.5, "hold": 0.5}}
SPELLED = {**SEARCH, "method": {
    "method": "structured", "max_parameters": 3000, "importance": {"importance": "taylor"}, "scope": {"scope": "component", "ratios": {}},
    "closing": {"closing": "progressive", "interval": 1, "gate": {"tolerance": 0.1}},
}}  # fmt: skip
RETRAIN = {"step": "retrain", "train": TRAIN}
CALIBRATION = {"samples": 4, "batch_size": 2}
Case = Callable[[random.Random], "str | None"]


def pruning(method: str, **more: Any) -> dict[str, Any]:
    share = {} if "allocate" in more else {"sparsity": 0.5}
    return {"step": "prune", "method": {"method": method, **share}, "calibration": CALIBRATION,
            "allocation_data": CALIBRATION, **more}  # fmt: skip


def repairing(method: str, **more: Any) -> dict[str, Any]:
    return {"step": "repair", "method": {"method": method, **more}, "train": TRAIN}


RUNS: tuple[dict[str, Any], ...] = tuple(
    {"model": {"random": model}, "task": NOISE, "steps": steps, "measure": {"batch_size": 1, "repeats": 1},
     "evaluate_limit": 4, "output": "run"}
    for model, steps in (
        (LLAMA, [pruning("wanda")]),
        (LLAMA, [pruning("dsnot", allocate={"method": "owl", "sparsity": 0.5})]),
        (LLAMA, [pruning("sparsegpt", allocate={"method": "ecoflap", "sparsity": 0.5, "draws": 1})]),
        (LLAMA, [pruning("magnitude"), repairing("masked_lora", rank=2)]),
        (LLAMA, [pruning("wanda"), repairing("ressa", rank=2)]),
        (LLAMA, [pruning("wanda"), repairing("masked_finetune")]),
        (LLAMA, [SEARCH, {**RETRAIN, "distillation": {"weight": 0.5}}]),
        (VIT, [pruning("wanda", allocate={"method": "iterative_global", "sparsity": 0.5, "rounds": 2})]),
        (VIT, [pruning("sparsegpt", allocate={"method": "manual", "sparsity": {"*": 0.5}})]),
        (VIT, [SEARCH, RETRAIN, pruning("wanda")]),
        (VIT, [UNIFIED]),
        (VIT, [SPELLED]),
    )
)  # fmt: skip

NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 10**7, 10**12, 2**31, 2**63, 10**40, 0.0, -0.5, 1e-300, 1e300, float("inf"), float("-inf"),
    float("nan"), 0.5, 1.5, "", " ", "a", "~", "/", "..", "0-99999999999", "\ud800", "\x00", "x" * 5000, "../../etc", [], [[]],
    [1, 2], [None], {}, {"a": 1}, {"": {}}, "nan", "1e400", "*", "[", "language",
)  # fmt: skip
LONG = frozenset({"draws", "rounds", "repeats", "steps", "matching_steps"})
"""Fields whose value is how long a run takes: what a person may want is not asked for here, what nobody wants is."""


SIZES = frozenset({*LLAMA, *VIT})
"""Of models: neither so large that they take long, nor small enough to be built in no time."""


def prepare(place: Path) -> None:
    """Writes what the cases damage copies of: checkpoints with checksums, pruned and narrowed ones, plans, a finished run."""
    torch.manual_seed(0)
    for name, config in (("llama", LLAMA), ("vit", VIT)):
        folder, inputs = place / name, Noise(items=8, length=8)
        model = random_model(config).eval()
        model.save_pretrained(folder)
        write_checksums(folder)
        batches = inputs.for_model(folder).calibration(4, 2)
        prune_folder(folder, place / f"{name}-pruned", Wanda(sparsity=0.5), batches).save(
            place / f"{name}-sparsity.json"
        )
        plan = halved(model)
        plan.save(place / f"{name}-plan.json")
        extract(model, plan).save_pretrained(place / f"{name}-narrowed")
        write_checksums(place / f"{name}-narrowed")
    letters = Tokenizer(WordLevel({f"w{n}": n for n in range(50)}, unk_token="w0"))
    letters.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="w0").save_pretrained(place / "llama")
    random_model(LLAMA).save_pretrained(place / "sharded", max_shard_size="10KB")
    write_checksums(place / "sharded")
    with tempfile.TemporaryDirectory() as cache, here(place, Path(cache)):
        carry_out({**RUNS[0], "model": {"path": str(place / "llama")}, "output": str(place / "finished")})


def halved(model: Any) -> Plan:
    """Every other channel stays."""
    masks = {unit.name: torch.arange(unit.channels) % 2 == 0 for unit in anatomy(model)}
    return Plan.from_masks(anatomy(model), masks)


def carry_out(data: Any) -> Report:
    recipe = parse_recipe(yaml.safe_dump(data, allow_unicode=True), "fuzz.yaml")
    return run(recipe, QUIET)


@contextmanager
def here(folder: Path, cache: Path) -> Iterator[None]:
    """Runs happen in a folder, in this process and without pictures, which would take most of the time."""
    before, kept = os.getcwd(), os.environ.get("PRUNUS_CACHE")
    elsewhere, drawn = measured.evaluate_elsewhere, prunus.run.write_report
    os.environ["PRUNUS_CACHE"] = str(cache)
    measured.evaluate_elsewhere = evaluate_here
    prunus.run.write_report = lambda report, place: write_text(place / "report.json", report.model_dump_json())
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        measured.evaluate_elsewhere, prunus.run.write_report = elsewhere, drawn
        os.environ.pop("PRUNUS_CACHE")
        if kept is not None:
            os.environ["PRUNUS_CACHE"] = kept


# Recipes: parsed only.


def recipes(place: Path) -> Case:
    bases = [yaml.safe_load(path.read_text()) for path in sorted(RECIPES.rglob("*.yaml"))]
    bases += [yaml.safe_load(dump_recipe(demo_recipe())), *RUNS]

    def case(rng: random.Random) -> None:
        data = copy.deepcopy(rng.choice(bases))
        for _ in range(rng.randint(0, 3)):
            mutate(data, rng)
        text = yaml.safe_dump(data, sort_keys=False)
        if rng.random() < 0.4:
            text = garbled(text, rng)
        overrides = tuple(f"{rng.choice(paths(data))}={rng.choice(NASTY)}" for _ in range(rng.choice((0, 0, 1))))
        recipe = parse_recipe(text, "fuzz.yaml", overrides)
        assert parse_recipe(dump_recipe(recipe), "again.yaml") == recipe

    return case


def places(data: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of nested data."""
    found: list[tuple[Any, Any]] = []
    inside = list(data.items()) if isinstance(data, dict) else list(enumerate(data)) if isinstance(data, list) else []
    for key, value in inside:
        found += [(data, key), *places(value)]
    return found


def paths(data: Any, prefix: str = "") -> list[str]:
    """Every dotted path of nested data."""
    inside = list(data.items()) if isinstance(data, dict) else list(enumerate(data)) if isinstance(data, list) else []
    found = []
    for key, value in inside:
        found += [f"{prefix}{key}", *paths(value, f"{prefix}{key}.")]
    return found or [prefix.rstrip(".") or "a"]


def mutate(data: Any, rng: random.Random) -> None:
    """One change somewhere in nested data."""
    found = places(data)
    if not found:
        return
    container, key = rng.choice(found)
    kind = rng.randrange(6)
    if kind <= 2:
        container[key] = copy.deepcopy(rng.choice(NASTY))
    elif kind == 3:
        del container[key]
    elif kind == 4:
        other, place = rng.choice(found)
        container[key] = copy.deepcopy(other[place])
    elif isinstance(container, dict):
        container[rng.choice((f"{key}s", key[:-1] if isinstance(key, str) else 3, "", 7))] = container.pop(key)
    else:
        container.append(copy.deepcopy(container[key]))


def garbled(text: str, rng: random.Random) -> str:
    """A text with a few characters put in, taken out or repeated."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(text) + 1)
        bad = rng.choice(("&a ", "*a", "<<: ", "- ", ": ", "\t", "\x00", "'", '"', "{", "[", "!!int ", "!!timestamp ", "!!set ",
                          "!!binary ", "!!python/name:os.system ", "9" * 5000, "[" * 2000, "&a [*a]", "\n", "%", "|", "…", "2001-99-99"))  # fmt: skip
        kind = rng.randrange(4)
        if kind == 0:
            text = text[:at] + bad + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + rng.randint(1, 9) :]
        elif kind == 2:
            text = text[:at] + text[at // 2 :]
        else:
            text = text[:at] + bad + text[at + 1 :]
    return text


# Runs: extreme values that can be written, carried out.


def runs(place: Path) -> Case:
    def case(rng: random.Random) -> str | None:
        data = copy.deepcopy(rng.choice(RUNS))
        for _ in range(rng.randint(1, 3)):
            numbers = [(c, k) for c, k in places(data) if not isinstance(c[k], dict | list)]
            container, key = rng.choice(numbers)
            container[key] = extreme(key, container[key], rng)
        defaults = rng.choice(
            ({}, {"seed": rng.choice((0, 2**32 - 1, -1, 10**30))}, {"measure": {"batch_size": 10**6}})
        )
        data |= copy.deepcopy(defaults)
        with tempfile.TemporaryDirectory() as folder, here(Path(folder), Path(folder) / "cache"):
            report = carry_out(data)
            figures = report.models["compressed"]["metrics"].values()
            weights = load_model(report.folders["compressed"]).state_dict().values()
            if not all(torch.isfinite(w).all() for w in weights if w.is_floating_point()):
                return "nonsense"
            return None if all(abs(f) < float("inf") for f in figures) else "nonsense"

    return case


def extreme(key: Any, value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool | str):
        return rng.choice((not value, *NASTY)) if rng.random() < 0.3 else value
    if isinstance(value, int):
        usual = (0, -1, 1, 2, 3, 10**9, 10**12, 2**31, 2**63, 10**40)
        return rng.choice(
            usual if key in LONG else (*usual, 5, 17, 100) if key in SIZES else (*usual, 5, 17, 100, 4096, 10**6)
        )
    return rng.choice(
        (0.0, -0.5, 1e-300, 1e-30, 1e-9, 0.1, 0.5, 0.999, 1.0, 9.9, 100.0, 1e30, 1e300, float("inf"), float("nan"))
    )


# Damage: files of checkpoints, runs and plans.


def damage(place: Path) -> Case:  # noqa: PLR0915
    names = [f"{name}{kind}" for name in ("llama", "vit") for kind in ("", "-pruned", "-narrowed")] + ["sharded"]
    whole = {name: load_model(place / name).state_dict() for name in names}
    figures = {name: evaluate_here(place / name, Noise(items=4, length=8), 2).metrics for name in names}
    again = {name: pruned_again(place / name) for name in names}

    def checkpoint(rng: random.Random, name: str) -> str | None:
        with tempfile.TemporaryDirectory() as made:
            folder, mark = Path(made) / "model", Path(made) / "opened"
            shutil.copytree(place / name, folder)
            known = spoil(folder, mark, rng, place)
            verb = rng.randrange(4)
            try:
                if verb == 0:
                    figure = evaluate_here(folder, Noise(items=4, length=8), 2).metrics
                    wrong = figure != figures[name]
                elif verb == 1:
                    wrong = differs(pruned_again(folder), again[name])
                elif verb == 2:
                    inspect(str(folder), verified=True)
                    wrong = False
                else:
                    wrong = differs(load_model(folder).state_dict(), whole[name])
            finally:
                opened = mark.exists()
        if opened:
            return "pickle"
        return "silent" if wrong and known else None

    def plan(rng: random.Random, name: str) -> None:
        kind = rng.choice(("plan", "sparsity"))
        raw = (place / f"{name}-{kind}.json").read_text()
        data = json.loads(raw)
        for _ in range(rng.randint(1, 2)):
            mutate(data, rng)
        text = spelled(data) if rng.random() < 0.7 else garbled(raw, rng)
        with tempfile.TemporaryDirectory() as made:
            file = Path(made) / "plan.json"
            file.write_text(text, errors="surrogatepass" if rng.random() < 0.1 else "replace")
            model = load_model(place / name)
            if kind == "plan":
                extract(model, Plan.load(file))
            else:
                batches = Noise(items=8, length=8).for_model(place / name).calibration(2, 2)
                prune(model, Wanda(), batches, plan=SparsityPlan.load(file))

    def finished(rng: random.Random) -> None:
        with tempfile.TemporaryDirectory() as made, here(place, Path(made) / "cache"):
            folder = Path(made) / "finished"
            shutil.copytree(place / "finished", folder)
            (folder / "recipe.yaml").write_text(
                (folder / "recipe.yaml").read_text().replace(str(place / "finished"), str(folder))
            )
            files = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".png"]
            destroy(rng.choice(files), rng)
            if rng.random() < 0.5:
                Report.load(folder)
            else:
                carry_out({**RUNS[0], "model": {"path": str(place / "llama")}, "output": str(folder)})

    def case(rng: random.Random) -> str | None:
        kind = rng.random()
        if kind < 0.7:
            return checkpoint(rng, rng.choice(names))
        return plan(rng, rng.choice(("llama", "vit"))) if kind < 0.92 else finished(rng)

    return case


def spelled(data: Any) -> str:
    return json.dumps(data)


def pruned_again(folder: Path) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as made:
        batches = Noise(items=8, length=8).for_model(folder).calibration(2, 2)
        prune_folder(folder, Path(made) / "out", Wanda(sparsity=0.6), batches)
        return load_model(Path(made) / "out").state_dict()


def differs(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() != wanted.keys() or any(not torch.equal(found[name], wanted[name]) for name in wanted)


class Trap:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def spoil(folder: Path, mark: Path, rng: random.Random, place: Path) -> bool:
    """One or two kinds of damage to a checkpoint folder; whether our verbs must notice what changes weights or their meaning."""
    known = True
    for _ in range(rng.choice((1, 1, 2))):
        kind = rng.randrange(10)
        shards = sorted(folder.glob("*.safetensors"))
        if kind <= 3 and shards:
            tensors_changed(rng.choice(shards), rng)
        elif kind == 4 and shards:
            destroy(rng.choice(shards), rng)
        elif kind == 5:
            config_changed(folder / "config.json", rng)
        elif kind == 6:
            destroy(rng.choice([file for file in folder.iterdir() if file.is_file()]), rng)
            known = known and (folder / CHECKSUMS).exists()
        elif kind == 7:
            trap = pickle.dumps(Trap(mark))
            target = rng.choice(
                ("pytorch_model.bin", "adapter_model.bin", "optimizer.pt", "training_args.bin", "model.pt")
            )
            (folder / target).write_bytes(trap)
            if rng.random() < 0.7:
                for shard in shards:
                    shard.unlink()
                (folder / "model.safetensors.index.json").unlink(missing_ok=True)
        elif kind == 8:
            shutil.copyfile(rng.choice(sorted(place.glob("*/config.json"))), folder / "config.json")
        else:
            (folder / CHECKSUMS).unlink(missing_ok=True)
            known = False
            config_changed(folder / "config.json", rng)
    return known


def tensors_changed(file: Path, rng: random.Random) -> None:
    try:
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    except Exception:  # damaged before
        return
    name = rng.choice([name for name, tensor in tensors.items() if tensor.numel()] or [""])
    if not name:
        return
    like = [
        other for other, t in tensors.items() if t.shape == tensors[name].shape and not torch.equal(t, tensors[name])
    ]
    kind = rng.randrange(9)
    if kind <= 1:
        bits = tensors[name].flatten().view(torch.uint8)
        bits[rng.randrange(len(bits))] ^= 1 << rng.randrange(8)
    elif kind == 2 and like:
        other = rng.choice(like)
        tensors[name], tensors[other] = tensors[other], tensors[name]
    elif kind == 3:
        tensors[name].flatten()[0] = rng.choice((float("nan"), float("inf")))
    elif kind == 4:
        tensors[name] = tensors[name].to(rng.choice((torch.float16, torch.bfloat16, torch.float64, torch.int32)))
    elif kind == 5:
        tensors[rng.choice((f"{name}s", "a", name.upper(), name.replace("weight", "bias")))] = tensors.pop(name)
    elif kind == 6:
        del tensors[name]
    elif kind == 7:
        tensors[name] = rng.choice((tensors[name].reshape(-1), tensors[name][:1].clone(), torch.zeros(0)))
    else:
        tensors["another"] = torch.zeros(2)
    save_file(tensors, file, {"format": "pt"})


def config_changed(file: Path, rng: random.Random) -> None:
    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return
    mutate(data, rng)
    file.write_text(spelled(data))


def destroy(file: Path, rng: random.Random) -> None:
    """A file cut off, filled with something else, or gone."""
    if not file.is_file():
        return  # destroyed already
    data = file.read_bytes()
    kind = rng.randrange(9)
    if kind == 0:
        file.write_bytes(data[: rng.randrange(len(data) + 1)])
    elif kind == 1:
        file.write_bytes(b"")
    elif kind == 2:
        file.write_bytes(rng.randbytes(200))
    elif kind == 3:
        file.write_bytes(data + rng.randbytes(9))
    elif kind == 4:
        at = rng.randrange(max(len(data), 1))
        file.write_bytes(data[:at] + rng.randbytes(3) + data[at + 3 :])
    elif kind == 5:
        file.write_text(rng.choice(("null", "[]", "{}", "1", '"a"', '{"a": ' * 3000, "[" * 100_000)))
    else:
        file.unlink()
        if kind == 6:
            file.mkdir()
        elif kind == 7:
            file.symlink_to(file)


SUITES: dict[str, Callable[[Path], Case]] = {"recipes": recipes, "runs": runs, "damage": damage}
