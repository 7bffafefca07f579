"""Pruning a folder: the same bits as in memory, for every family; interrupted work goes on; nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig, LlamaForCausalLM

from prunus import (
    Magnitude,
    PrunusError,
    SparseGPT,
    SparsityPlan,
    UPop,
    WalkOptions,
    Wanda,
    load_model,
    matrices,
    prune,
    prune_folder,
    sparsity_of,
)
from prunus.storage import locked
from tests.families import FAMILIES, build

QUIET = WalkOptions(progress=False)


def state(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for file in sorted(folder.glob("*.safetensors")) for key, value in load_file(file).items()}


def seeded(model, batch):
    torch.manual_seed(0)
    return model(**batch)


def reached(case) -> list[str]:
    """Blocks that the inputs use."""
    seen: dict[str, None] = {}
    hooks = [
        case.model.get_submodule(matrix.name).register_forward_pre_hook(
            lambda *_, name=matrix.name: seen.update({name: None})
        )
        for matrix in matrices(case.model)
    ]
    seeded(case.model, case.inputs)
    for hook in hooks:
        hook.remove()
    return list(seen)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_is_pruned_like_a_model(name: str, tmp_path: Path) -> None:
    case = build(name, 3)
    case.model.save_pretrained(tmp_path / "dense", max_shard_size="20KB")
    batches, method, include = [case.inputs, case.inputs], Wanda(sparsity=0.5), reached(case)
    in_memory = prune(case.model, method, batches, include=include, call=seeded, options=QUIET)
    case.model.save_pretrained(tmp_path / "expected", max_shard_size="20KB")
    streamed = prune_folder(
        tmp_path / "dense", tmp_path / "out", method, batches, include=include, call=seeded, options=QUIET
    )
    assert streamed == in_memory
    assert streamed.sparsity > 0.3
    expected, got = state(tmp_path / "expected"), state(tmp_path / "out")
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    again = load_model(tmp_path / "out").eval()
    assert sparsity_of(again) == in_memory
    assert not (tmp_path / "out.partial").exists()
    for matrix in matrices(again):
        if matrix.name in streamed.matrices:
            zeros = int((again.get_submodule(matrix.name).weight == 0).sum())
            assert zeros >= streamed.matrices[matrix.name].pruned


def llama(tmp_path: Path):
    case = next(
        case for case in (build("llama", seed) for seed in range(99)) if case.model.config.num_hidden_layers > 1
    )
    case.model.save_pretrained(tmp_path / "dense")
    return case, [case.inputs]


class StoppedError(Exception):
    pass


def stop_at(blocks: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The run dies when it prunes another block than the first few."""
    from prunus.unstructured import pruning as module

    original, seen = module.prune_block, []

    def dying(request, targets, stop):
        if len(seen) == blocks:
            raise StoppedError
        seen.append(stop.block)
        return original(request, targets, stop)

    monkeypatch.setattr(module, "prune_block", dying)
    return seen


@pytest.mark.parametrize("sequential", [True, False])
def test_interrupted_work_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sequential: bool
) -> None:
    torch.manual_seed(0)
    case = build("t5", 3)
    case.model.save_pretrained(tmp_path / "dense")
    options = QUIET.model_copy(update={"sequential": sequential})
    work = {"method": SparseGPT(), "batches": [case.inputs], "options": options}
    prune_folder(tmp_path / "dense", tmp_path / "whole", **work)
    before = state(tmp_path / "dense")
    with monkeypatch.context() as patch:
        first = stop_at(1, patch)
        with pytest.raises(StoppedError):
            prune_folder(tmp_path / "dense", tmp_path / "out", **work)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial" / "config.json").exists()
    load_model(tmp_path / "out.partial")  # a valid checkpoint, partly pruned
    with monkeypatch.context() as patch:
        rest = stop_at(1000, patch)
        prune_folder(tmp_path / "dense", tmp_path / "out", **work)
    assert not set(first) & set(rest)
    whole, out = state(tmp_path / "whole"), state(tmp_path / "out")
    assert all(torch.equal(whole[key], out[key]) for key in whole)
    assert (tmp_path / "whole/config.json").read_text() == (tmp_path / "out/config.json").read_text()
    after = state(tmp_path / "dense")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_unfinished_work_is_not_mixed_with_other_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, batches = llama(tmp_path)
    with monkeypatch.context() as patch:
        stop_at(1, patch)
        with pytest.raises(StoppedError):
            prune_folder(tmp_path / "dense", tmp_path / "out", Wanda(), [batches[0]] * 2, options=QUIET)
    with pytest.raises(PrunusError, match="other settings"):
        prune_folder(tmp_path / "dense", tmp_path / "out", Wanda(sparsity=0.6), [batches[0]] * 2, options=QUIET)
    with pytest.raises(PrunusError, match="not the batches"):
        prune_folder(tmp_path / "dense", tmp_path / "out", Wanda(), batches, options=QUIET)
    prune_folder(tmp_path / "dense", tmp_path / "out", Wanda(), [batches[0]] * 2, options=QUIET)
    with pytest.raises(PrunusError, match="lies in the source"):
        prune_folder(tmp_path / "dense", tmp_path / "dense" / "sparse", Wanda(), batches, options=QUIET)
    with pytest.raises(PrunusError, match="it exists"):
        prune_folder(tmp_path / "dense", tmp_path / "out", Wanda(), batches, options=QUIET)


def test_damaged_and_absent_files_are_named(tmp_path: Path) -> None:
    _, batches = llama(tmp_path)
    weights = tmp_path / "dense" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(PrunusError, match=r"model\.safetensors"):
        prune_folder(tmp_path / "dense", tmp_path / "out", Wanda(), batches)
    weights.unlink()
    with pytest.raises(PrunusError, match=r"no \*\.safetensors"):
        prune_folder(tmp_path / "dense", tmp_path / "out", Wanda(), batches)
    assert not list(tmp_path.glob("out*"))


def test_narrowed_models_are_pruned_further(tmp_path: Path) -> None:
    from prunus import Search, extract

    case = build("llama", 3)
    search = Search(case.model, UPop(ratio=0.3), total_steps=1)
    case.model(**case.inputs, labels=case.inputs["input_ids"]).loss.backward()
    search.step()
    small = extract(case.model, search.plan())
    small.save_pretrained(tmp_path / "small")
    plan = prune_folder(tmp_path / "small", tmp_path / "out", Wanda(), [case.inputs], options=QUIET)
    expected = prune(small, Wanda(), [case.inputs], options=QUIET)
    assert plan == expected
    again = load_model(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.equal(again(**case.inputs).logits, small.eval()(**case.inputs).logits)


SCRIPT = """
import sys, torch, prunus
from prunus.storage import locked
from tests.families import build
case = build("llava", 3)
torch.set_num_threads(1)
prunus.prune_folder(sys.argv[1], sys.argv[2], prunus.SparseGPT(sparsity=0.6), [case.inputs] * 3,
                    options=prunus.WalkOptions(progress=False))
"""


@pytest.mark.long
def test_a_killed_walk_ends_with_the_same_bits(tmp_path: Path) -> None:
    build("llava", 3).model.save_pretrained(tmp_path / "dense")
    root = Path(__file__).parents[1]

    def start(out: str, slow: bool) -> subprocess.Popen[bytes]:
        script = SCRIPT
        if slow:  # wait before every block, so that the kill lands between two
            script = SCRIPT.replace(
                "torch.set_num_threads(1)",
                "import prunus.unstructured.pruning as p, time; o = p.prune_block; p.prune_block = lambda *a: (time.sleep(0.5), o(*a))[1]; torch.set_num_threads(1)",
            )
        return subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "dense"), str(tmp_path / out)], cwd=root)

    assert start("whole", slow=False).wait() == 0
    journal, kills = tmp_path / "out.partial" / "prunus-journal.json", 0
    for wanted in (1, 2):
        process = start("out", slow=True)
        while process.poll() is None:
            if journal.exists() and len(json.loads(journal.read_text())["done"]) >= wanted:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
                break
            time.sleep(0.02)
    assert kills == 2
    assert start("out", slow=False).wait() == 0
    whole, out = state(tmp_path / "whole"), state(tmp_path / "out")
    assert whole.keys() == out.keys()
    assert all(torch.equal(whole[key], out[key]) for key in whole)


def test_plans_are_checked_and_carried_out(tmp_path: Path) -> None:
    case, batches = llama(tmp_path)
    first = prune(case.model, Magnitude(sparsity=0.25), batches, options=QUIET)
    first.save(tmp_path / "plan.json")
    plan = SparsityPlan.load(tmp_path / "plan.json")
    assert plan == first
    name, matrix = next(iter(plan.matrices.items()))
    edited = plan.model_copy(update={"matrices": {name: matrix.model_copy(update={"pruned": 7})}})
    fresh = load_model(tmp_path / "dense")
    achieved = prune(fresh, Wanda(), batches, plan=edited, options=QUIET)
    assert {key: value.pruned for key, value in achieved.matrices.items()} == {name: 7}
    assert int((fresh.get_submodule(name).weight == 0).sum()) == 7
    with pytest.raises(PrunusError, match="takes no plan"):
        prune(fresh, Wanda(pattern="1:2"), batches, plan=plan, options=QUIET)
    with pytest.raises(PrunusError, match="another model"):
        prune(build("vit", 3).model, Wanda(), batches, plan=plan, options=QUIET)


def test_a_second_pruning_keeps_the_record_of_the_first(tmp_path: Path) -> None:
    case = build("clip", 2)
    case.model.save_pretrained(tmp_path / "dense")
    folder = tmp_path / "dense"
    for tower, method in (("vision", Wanda(sparsity=0.6)), ("language", Magnitude(sparsity=0.3))):
        include = ["vision"] if tower == "vision" else ["text"]
        prune_folder(folder, tmp_path / tower, method, [case.inputs], include=include, options=QUIET)
        prune(case.model, method, [case.inputs], include=include, options=QUIET)
        folder = tmp_path / tower
    for model in (case.model, load_model(folder)):
        record = sparsity_of(model)
        assert record is not None
        assert record.matrices.keys() == {m.name for m in matrices(model)}
        for name, plan in record.matrices.items():
            assert plan.pruned == int((model.get_submodule(name).weight == 0).sum())


def tiny_llama(folder: Path, **more: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=30, tie_word_embeddings=False, **more))
    model.save_pretrained(folder)
    return model


IDS = [{"input_ids": torch.arange(3, 19).view(2, 8)}]


def resaved(folder: Path, change) -> None:
    """The file again, with every tensor changed."""
    file = folder / "model.safetensors"
    save_file({key: change(key, value) for key, value in load_file(file).items()}, file, metadata={"format": "pt"})


def assert_as_in_memory(source: Path, output: Path, method, batches) -> None:
    memory = load_model(source).eval()
    assert prune_folder(source, output, method, batches, options=QUIET) == prune(memory, method, batches, options=QUIET)
    disk = load_model(output)
    assert disk.dtype == memory.dtype
    for name, value in memory.state_dict().items():
        assert torch.equal(disk.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("config", "norms", "rest"),
    [
        ("bfloat16", "float32", "bfloat16"),
        ("bfloat16", "float32", "float32"),
        ("float16", "bfloat16", "float32"),
        ("float32", "float32", "bfloat16"),
        (None, "float32", "bfloat16"),
    ],
)
def test_types_are_those_that_the_config_says(tmp_path: Path, config: str | None, norms: str, rest: str) -> None:
    """SparseGPT changes weights to numbers that the files' type may not hold."""
    tiny_llama(tmp_path / "dense")
    resaved(tmp_path / "dense", lambda key, value: value.to(getattr(torch, norms if "norm" in key else rest)))
    path = tmp_path / "dense/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": config}))
    assert_as_in_memory(tmp_path / "dense", tmp_path / "out", SparseGPT(), IDS)


def test_shards_are_those_that_transformers_loads(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "whole")
    for size, stray in (("5GB", "model_fp16.safetensors"), ("2KB", "original.safetensors")):
        dense, out = tmp_path / f"dense-{size}", tmp_path / f"out-{size}"
        model.save_pretrained(dense, max_shard_size=size)
        shutil.copy(tmp_path / "whole/model.safetensors", dense / stray)
        (dense / "pytorch_model.bin").write_bytes(b"the dense weights again")
        (dense / "notes").mkdir()
        (dense / "notes/read.me").write_text("hello")
        assert_as_in_memory(dense, out, Wanda(), IDS)
        kept = {path.name for path in out.rglob("*")}
        assert not kept & {stray, "pytorch_model.bin"}
        assert "read.me" in kept


def test_links_and_read_only_folders_are_read(tmp_path: Path) -> None:
    """As a snapshot in the hub's cache, in a shared store."""
    tiny_llama(tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (snapshot / file.name).symlink_to(file)
        file.chmod(0o444)
    snapshot.chmod(0o555)
    assert_as_in_memory(snapshot, tmp_path / "out", Wanda(), IDS)
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert all(path.stat().st_mode & 0o200 for path in (tmp_path / "out", *(tmp_path / "out").iterdir()))


def test_files_that_may_not_be_read_are_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_llama(tmp_path / "dense")
    whole = open

    def closed(path, *args, **kwargs):
        if str(path).endswith("model.safetensors"):
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path, *args, **kwargs)

    monkeypatch.setattr("prunus.checkpoint.shards.open", closed, raising=False)
    with pytest.raises(PrunusError, match="not readable"):
        prune_folder(tmp_path / "dense", tmp_path / "out", Wanda(), IDS, options=QUIET)


def test_a_full_disk_is_one_clear_error_and_the_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at the first write, at the third, and so on; with room again, the work is finished."""
    tiny_llama(tmp_path / "dense")
    prune_folder(tmp_path / "dense", tmp_path / "whole", SparseGPT(), IDS, options=QUIET)
    whole, writes, failing = state(tmp_path / "whole"), 0, 1

    def full(original):
        def write(*args, **kwargs):
            nonlocal writes
            writes += 1
            if writes == failing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*args, **kwargs)

        return write

    monkeypatch.setattr(shutil, "copyfile", full(shutil.copyfile))
    monkeypatch.setattr(os, "fsync", full(os.fsync))
    while True:
        writes, output = 0, tmp_path / f"out-{failing}"
        try:
            prune_folder(tmp_path / "dense", output, SparseGPT(), IDS, options=QUIET)
            break
        except PrunusError as error:
            assert "No space left" in str(error)  # noqa: PT017
        assert not output.exists()
        prune_folder(tmp_path / "dense", output, SparseGPT(), IDS, options=QUIET)
        out = state(output)
        assert all(torch.equal(whole[key], out[key]) for key in whole)
        assert {path.name for path in output.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}
        failing += 2
    assert failing > 8


def test_missing_weights_and_unfit_configs_are_refused(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "dense")
    verbs = (load_model, lambda folder: prune_folder(folder, tmp_path / "out", Wanda(), IDS, options=QUIET))
    weights, path = tmp_path / "dense/model.safetensors", tmp_path / "dense/config.json"
    bytes_before, config = weights.read_bytes(), json.loads(path.read_text())
    lost = "model.layers.1.mlp.up_proj.weight"

    def refused(match: str) -> None:
        for verb in verbs:
            with pytest.raises(PrunusError, match=match):
                verb(tmp_path / "dense")
        assert not list(tmp_path.glob("out*"))

    tensors = load_file(weights)
    save_file({key: value for key, value in tensors.items() if key != lost}, weights, metadata={"format": "pt"})
    refused(lost)
    save_file({**tensors, lost: tensors[lost][1:].clone()}, weights, metadata={"format": "pt"})
    refused("mismatch|cannot make")
    weights.write_bytes(bytes_before)
    for field, value in (
        ("architectures", 1), ("architectures", ["NoSuchModel"]), ("hidden_size", "wide"),
        ("hidden_act", {}), ("num_attention_heads", 0), ("rms_norm_eps", "x"), ("model_type", 3), ("rope_parameters", 7),
    ):  # fmt: skip
        path.write_text(json.dumps({**config, field: value}))
        refused(".")
    path.write_text("[1, 2")
    refused("config")


def test_a_parameter_is_read_by_whoever_computes_with_it(tmp_path: Path) -> None:
    """Not only by its owner's forward, also through a view, and given back at the next stop."""
    from prunus.checkpoint.on_use import OnUse, hollow

    read: list[int] = []
    parameter = hollow(torch.empty(3, 2, device="meta"), torch.device("cpu"))
    with torch.no_grad(), OnUse([parameter], lambda p: (read.append(1), p.fill_(2.0))) as on_use:
        assert (parameter.shape, parameter.device.type) == ((3, 2), "cpu")
        assert not read
        view = parameter[1:]
        assert view.sum() == 8
        assert torch.stack([torch.zeros(3, 2), parameter]).sum() == 12
        assert len(read) == 1
        on_use.release()
        assert parameter.untyped_storage().nbytes() == 0
        assert view.sum() == 8
        assert len(read) == 2


def test_autocast_is_that_of_the_device_the_blocks_run_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("vit", 3).model
    model.save_pretrained(tmp_path / "dense")

    def pretended(like: torch.Tensor, device: torch.device) -> torch.nn.Parameter:
        with FakeTensorMode():
            return torch.nn.Parameter(torch.empty(like.shape, device=device))

    autocast = torch.autocast

    def opened(kind: str, *args: object, enabled: bool = True, **kwargs: object) -> torch.autocast:
        if not enabled:  # by trials on small copies, which compute on the CPU
            return autocast(kind, enabled=False)
        raise StoppedError(kind)

    monkeypatch.setattr("prunus.checkpoint.hollow.hollow", pretended)
    monkeypatch.setattr(torch, "autocast", opened)
    options = WalkOptions(progress=False, bf16=True)
    with pytest.raises(StoppedError, match="cuda"):
        prune_folder(tmp_path / "dense", tmp_path / "out", Wanda(), [], device="cuda", options=options)


def test_one_block_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of the rest, what passed since the last stop: the embedding is gone when the second block runs."""
    from prunus.checkpoint.on_use import OnUse

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 4, "intermediate_size": 24}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=300, tie_word_embeddings=False))
    model.save_pretrained(tmp_path / "dense")
    block = sum(p.nbytes for p in model.model.layers[0].parameters())
    peak, fill, known = 0, OnUse.fill, set()

    def watched(self, parameter):
        nonlocal peak
        fill(self, parameter)
        known.add(parameter)
        peak = max(peak, sum(p.untyped_storage().nbytes() for p in known))

    monkeypatch.setattr(OnUse, "fill", watched)
    prune_folder(tmp_path / "dense", tmp_path / "out", Wanda(), IDS * 3, options=QUIET)
    assert len(known) > 4 * 7
    assert peak <= max(block, model.model.embed_tokens.weight.nbytes)
    assert all(p.untyped_storage().nbytes() == 0 for p in known)


def test_folders_that_cannot_be_pruned_are_named(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "dense")
    tiny_llama(tmp_path / "other")

    def refused(match: str) -> None:
        with pytest.raises(PrunusError, match=match):
            prune_folder(tmp_path / "dense", tmp_path / "out", Wanda(), IDS, options=QUIET)
        assert not list(tmp_path.glob("out*"))

    config = tmp_path / "dense/config.json"
    whole = config.read_text()
    config.write_text(json.dumps({**json.loads(whole), "quantization_config": {"quant_method": "awq", "bits": 4}}))
    refused("quantised .awq")
    config.write_text(whole)
    (tmp_path / "dense/adapter_config.json").write_text("{}")
    refused("adapter")
    (tmp_path / "dense/adapter_config.json").unlink()
    (tmp_path / "dense/model.safetensors").unlink()
    names = dict.fromkeys(load_file(tmp_path / "other/model.safetensors"), "../other/model.safetensors")
    (tmp_path / "dense/model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    refused("outside|no file of the folder")
    shutil.rmtree(tmp_path / "dense")
    refused("no such folder")


def test_weights_that_are_not_finite_are_refused_before_anything_is_copied(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "dense")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = torch.nan
    model.save_pretrained(tmp_path / "dense")
    with pytest.raises(PrunusError, match=r"layers\.1\.mlp\.up_proj.*NaN"):
        prune_folder(tmp_path / "dense", tmp_path / "out", Magnitude(), IDS, options=QUIET)
    assert not list(tmp_path.glob("out*"))


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "dense")
    partial = tmp_path / "out.partial"

    def refused(match: str) -> None:
        with pytest.raises(PrunusError, match=match):
            prune_folder(tmp_path / "dense", tmp_path / "out", Wanda(), IDS, options=QUIET)

    partial.mkdir()
    (partial / "thesis.tex").write_text("years of work")
    refused("holds other things")
    assert (partial / "thesis.tex").read_text() == "years of work"
    (partial / "thesis.tex").unlink()
    with locked(partial):
        refused("is at work in it")
    (partial / "prunus-journal.json").write_text('{"request"')
    refused("damaged")
    (partial / "prunus-journal.json").unlink()
    assert_as_in_memory(tmp_path / "dense", tmp_path / "out", Wanda(), IDS)
    assert not {".prunus-lock", "prunus-journal.json"} & {path.name for path in (tmp_path / "out").iterdir()}
