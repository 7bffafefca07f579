"""One of two processes fails, and both stop: the one with its own error, the other with what it was told, neither waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from prunus import (
    Calibrated,
    Depth,
    ECoFLaP,
    MaskedFinetune,
    PrunusError,
    Search,
    Training,
    UPop,
    Wanda,
    allocate,
    drop_blocks,
    extract_to,
    finetune,
    narrow,
    narrow_folder,
    prune,
    prune_folder,
    repair,
    score_channels,
    sweep,
)
from prunus.checkpoint import piecewise
from prunus.losses import own_loss
from prunus.parallel import agreeing, barrier, everyones, is_first, of_first, told_by_first
from prunus.structured.loss_scale import will_skip
from prunus.training import trainer
from tests.checks import QUIET, check, sharded, shared_folder, words
from tests.families import VOCABULARY, build
from tests.test_repair import pruned, stack


def fails(words_of_it: str = "the cable is gone") -> AbstractContextManager[Any]:
    """Within it, everybody fails: one by itself, the other because it is told."""
    return pytest.raises((OSError, PrunusError), match=words_of_it)


def broken(batches: Sequence[Any], rank: int) -> Iterator[Any]:
    """Batches that one process cannot be given all of."""
    for number, batch in enumerate(batches):
        if number and dist.get_rank() == rank:
            raise OSError("the cable is gone")
        yield batch


def out_of_order(*_: Any, **__: Any) -> Any:
    raise OSError("the cable is gone")


@check
def hears_of_failures_wherever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, within and after what is nested; an error that was caught by all is over."""
    mine, places = dist.get_rank() == 1, dict[str, Callable[[], object]]()
    places["everyones"] = partial(everyones, 1)
    places["of_first"] = partial(of_first, 1)
    places["told_by_first"] = partial(told_by_first, lambda: 1)
    for name, place in places.items():
        with fails(), agreeing():
            with agreeing():
                pass
            if mine:
                out_of_order()
            place()
        assert everyones(name) == [name, name]
    with fails(), agreeing(), agreeing():
        if mine:
            try:
                out_of_order()
            except OSError as error:
                raise PrunusError("cable", 1, "the cable is gone") from error
    with agreeing():
        with suppress(OSError, PrunusError), agreeing():
            if mine:
                out_of_order()
        with fails(), agreeing():
            if not mine:
                out_of_order()
    assert everyones(int(mine)) == [0, 1]


@check
def stops_where_data_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever process it is that cannot read them, and whatever reads; weights are as they were."""
    model = build("llama", 3).model
    before = [parameter.clone() for parameter in model.parameters()]
    for rank in (0, 1):
        given = partial(broken, words(3), rank)
        for reads in (
            lambda given=given: allocate(model, ECoFLaP(), given(), progress=False),
            lambda given=given: prune(model, Wanda(), given(), options=QUIET),
            lambda given=given: narrow(model, Calibrated(ratio=0.3), given(), options=QUIET),
            lambda given=given: score_channels(model, Calibrated(ratio=0.3), given(), options=QUIET),
            lambda given=given: drop_blocks(model, Depth(blocks=1), given(), options=QUIET),
            lambda given=given: sweep(model, [Calibrated(ratio=0.3)], given(), options=QUIET),
        ):
            with fails():
                reads()
    if not is_first():
        model.lm_head.weight.data[0, 0] += 1
    for reads in (
        lambda: allocate(model, ECoFLaP(), words(3), progress=False),
        lambda: prune(model, Wanda(), words(3), options=QUIET),
        lambda: narrow(model, Calibrated(ratio=0.3), words(3), options=QUIET),
    ):
        with pytest.raises(PrunusError, match="same weights"):
            reads()
    if not is_first():
        model.lm_head.weight.data[0, 0] -= 1
    for mine, then in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(mine, then)


@check
def stops_where_the_first_cannot_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a gather, of a walk from disk, of a checkpoint; what was begun is gone."""
    model, first = sharded(build("llama", 3).model), is_first()
    search = Search(model, UPop(ratio=0.4), 1)
    ids = words(1)[0]["input_ids"]
    model(input_ids=ids, labels=ids).loss.backward()
    search.step()
    for name in ("save_file", "narrow"):
        with shared_folder() as folder, monkeypatch.context() as patched:
            patched.setattr(piecewise, "FILE_BYTES", 1)
            if first:
                patched.setattr(piecewise, name, out_of_order)
            with fails():
                extract_to(model, search.plan(), folder / "small")
            barrier()
            assert not list(folder.iterdir())
    with shared_folder() as folder:
        if first:
            build("llama", 3).model.save_pretrained(folder / "dense")
        barrier()
        with monkeypatch.context() as patched:
            if first:
                patched.setattr("prunus.checkpoint.shards.Shards.write", out_of_order)
            with fails():
                prune_folder(folder / "dense", folder / "small", Wanda(), words(3), options=QUIET)
        with monkeypatch.context() as patched:
            if first:
                patched.setattr(trainer, "write_text", out_of_order)
            with fails():
                learned(folder / "run", [{"input_ids": row, "labels": row} for row in ids.repeat(8, 1)])


class Unread(list[dict[str, Tensor]]):
    """Items of which one process cannot read one."""

    def __getitem__(self, place: Any) -> Any:
        return out_of_order() if place == 5 else super().__getitem__(place)


def learned(folder: Path, items: Any, loss: Any = own_loss) -> nn.Module:
    model = build("llama", 3).model
    training = Training(steps=6, batch_size=2, learning_rate=1e-3, bf16=False, save_every=1)
    finetune(model, training, folder, items, stack, loss)
    return model


@check
def stops_where_one_cannot_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """An item that one of them cannot read, a loss that one of them cannot take, a measure that one of them cannot make."""
    ids = torch.randint(10, VOCABULARY, (8, 7), generator=torch.Generator().manual_seed(0))
    items = [{"input_ids": row, "labels": row} for row in ids]
    calls = iter(range(100))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return out_of_order() if next(calls) == 2 and dist.get_rank() == 1 else own_loss(model, batch)

    with shared_folder() as folder:
        with fails():
            learned(folder / "item", Unread(items))
        with fails():
            learned(folder / "loss", items, loss)
        _, model, _ = pruned("llama", seed=4)
        weights = [parameter.clone() for parameter in model.parameters()]
        with fails():
            repair(
                model, MaskedFinetune(), Unread(items), Training(steps=6, batch_size=2, learning_rate=1e-3, bf16=False)
            )
        assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


@check
def skips_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss scaler that finds infinity in one process skips the step in both, whether or not it has looked before."""
    for is_unscaled in (True, False):
        model = nn.Linear(2, 2)
        optimizer, scaler = torch.optim.SGD(model.parameters(), lr=1.0), torch.amp.GradScaler("cpu", init_scale=4.0)
        before = model.weight.clone()
        scaler.scale(model(torch.ones(1, 2)).sum()).backward()
        model.weight.grad[0, 0] = torch.inf if dist.get_rank() else 1.0
        if is_unscaled:
            scaler.unscale_(optimizer)
        assert will_skip(model, scaler)
        if is_unscaled:
            scaler.step(optimizer)
            scaler.update()
            assert torch.equal(model.weight, before)
            assert everyones(scaler.get_scale()) == [2.0, 2.0]


@check
def narrows_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way to narrow without training: the same plan and weights in both; milliseconds are those of the first."""
    case = build("llama", 3)
    batches = words(3)
    for settings in ({"ratio": 0.3}, {"ratio": 0.3, "score": {"score": "gradient"}}):
        small, plan = narrow(case.model, Calibrated(**settings), batches, options=QUIET)
        assert everyones(plan.model_dump_json())[0] == plan.model_dump_json()
        mine = {name: parameter.double().sum().item() for name, parameter in small.named_parameters()}
        assert everyones(mine)[0] == mine
    scores = score_channels(case.model, Calibrated(ratio=0.3), batches, options=QUIET, latency=True)
    assert everyones(scores.header.latency)[0] == scores.header.latency
    vit = build("vit", 3)
    _, gone = drop_blocks(vit.model, Depth(blocks=1), [vit.inputs], options=QUIET)
    assert everyones(gone)[0] == gone
    found = sweep(
        case.model,
        [Calibrated(ratio=0.3)],
        batches,
        scores=scores,
        options=QUIET,
        measure=lambda _: float(dist.get_rank()),
    )
    assert everyones(found)[0] == found
    with shared_folder() as folder:
        if is_first():
            case.model.save_pretrained(folder / "dense")
        barrier()
        plan = narrow_folder(folder / "dense", folder / "small", Calibrated(ratio=0.3), batches, options=QUIET)
        assert everyones(plan)[0] == plan
        with pytest.raises(PrunusError, match="exists"):
            narrow_folder(folder / "dense", folder / "small", Calibrated(ratio=0.3), batches, options=QUIET)
