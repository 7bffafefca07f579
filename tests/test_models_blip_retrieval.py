"""BLIP retrieval as it trains."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, BlipForImageTextRetrieval, Trainer, TrainingArguments

from prunus import (
    MaskedLoRA,
    SearchCallback,
    Training,
    UPop,
    Wanda,
    anatomy,
    extract,
    load_model,
    prune,
    repair,
)
from prunus.models import BlipForRetrievalTraining
from prunus.repair.lora import Adapters
from prunus.repair.masks import zeros_of
from tests.families import IMAGE, VOCABULARY, build

PAIRS = [("vision_model", "vision_model_m"), ("text_encoder", "text_encoder_m"), ("vision_proj", "vision_proj_m"), ("text_proj", "text_proj_m")]  # fmt: skip


@pytest.fixture
def model() -> BlipForRetrievalTraining:
    built = build("blip_retrieval", 3).model
    assert isinstance(built, BlipForRetrievalTraining)
    return built


def batch(images: list[int]) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(10, VOCABULARY, (len(images), 6))
    return {
        "input_ids": ids,
        "pixel_values": torch.randn(len(images), 3, IMAGE, IMAGE),
        "labels": torch.tensor(images),
    }


def test_a_training_step_moves_copies_and_queues(model: BlipForRetrievalTraining) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    model(**batch([4, 5, 4, 6])).loss.backward()
    share = model.config.momentum
    for original, follower in PAIRS:
        for name, weight in model.get_submodule(original).named_parameters():
            expected = share * before[f"{follower}.{name}"] + (1 - share) * weight
            torch.testing.assert_close(model.get_parameter(f"{follower}.{name}"), expected)
            assert model.get_parameter(f"{follower}.{name}").grad is None
    assert model.queue.ids.tolist() == [[4, 5, 4, 6, -100, -100]]
    model(**batch([7, 8, 9, 7]))
    assert model.queue.ids.tolist() == [[9, 7, 4, 6, 7, 8]]  # the oldest went
    assert model.queue.place.tolist() == [2]
    for queue in (model.queue.images, model.queue.texts):
        torch.testing.assert_close(queue.norm(dim=0), torch.ones(6))
    assert model.temp.grad is not None


def test_evaluation_changes_nothing_and_says_the_same_twice(model: BlipForRetrievalTraining) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = (model(**batch([0, 1, 2])) for _ in range(2))
    assert torch.equal(first.loss, second.loss)
    assert torch.equal(first.loss, first.itc_loss + first.itm_loss)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("training", [False, True])
def test_texts_of_one_image_are_no_negatives_of_each_other(model: BlipForRetrievalTraining, training: bool) -> None:
    chosen: list[torch.Tensor] = []
    draw = model.draw
    model.draw = lambda weights: chosen.append(draw(weights)) or chosen[-1]
    labels = torch.tensor([1, 2, 1, 1])
    model.train(training)(**batch(labels.tolist()))
    assert len(chosen) == 2
    assert all(bool((labels[places] != labels).all()) for places in chosen)


@pytest.mark.parametrize("images", [[3], [3, 3]])
def test_a_batch_of_one_image_has_no_negatives(model: BlipForRetrievalTraining, images: list[int]) -> None:
    given = batch(images)
    with torch.no_grad():
        scores = [
            model(given["input_ids"][row : row + 1], given["pixel_values"][row : row + 1]).itm_score
            for row in range(len(images))
        ]
    result = model.train()(**given)
    torch.testing.assert_close(
        result.itm_loss, torch.nn.functional.cross_entropy(torch.cat(scores), torch.ones(len(images)).long())
    )
    result.loss.backward()


def test_pairs_without_labels_are_positive_with_their_own_text_alone(model: BlipForRetrievalTraining) -> None:
    known, unknown = batch([5, 6, 7]), batch([5, 6, 7])
    del unknown["labels"]
    torch.testing.assert_close(model(**unknown, return_loss=True).loss, model(**known).loss)


def test_without_a_loss_it_is_the_stock_model(model: BlipForRetrievalTraining, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is BlipForRetrievalTraining
    stock = BlipForImageTextRetrieval(model.config).eval()
    stock.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in stock.state_dict()})
    given = batch([0, 1])
    del given["labels"]
    with torch.no_grad():
        similar = model(**given, use_itm_head=False).itm_score
        assert torch.equal(similar, stock(**given, use_itm_head=False).itm_score)
        matched = model(**given).itm_score
        given["input_ids"][:, 0] = model.config.enc_token_id
        assert torch.equal(matched, stock(**given).itm_score)


def test_the_trainer_searches_it_and_the_copies_follow(model: BlipForRetrievalTraining, tmp_path: Path) -> None:
    given = batch(list(range(8)))
    items = [{name: tensor[row] for name, tensor in given.items()} for row in range(8)]
    callback = SearchCallback(UPop(ratio=0.5, interval=1))
    settings = TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=3, per_device_train_batch_size=4, report_to="none", disable_tqdm=True,
        save_strategy="no", logging_strategy="no", use_cpu=True,
    )  # fmt: skip
    Trainer(model, settings, None, items, callbacks=[callback]).train()
    plan = callback.plan()
    assert set(plan.units) == {unit.name for unit in anatomy(model)}
    assert not any("_m." in name for name in plan.units)
    small = extract(model.eval(), plan)
    for original, follower in PAIRS:
        shapes = [
            {n: p.shape for n, p in small.get_submodule(path).named_parameters()} for path in (original, follower)
        ]
        assert shapes[0] == shapes[1]
    small.copy_momentum()
    assert all(
        torch.equal(first, second)
        for original, follower in PAIRS
        for first, second in zip(
            small.get_submodule(original).parameters(), small.get_submodule(follower).parameters(), strict=True
        )
    )
    del given["labels"]
    with torch.no_grad():
        masked, narrow = model(**given).itm_score, small(**given).itm_score
    torch.testing.assert_close(narrow, masked, rtol=1e-5, atol=1e-5)
    small.save_pretrained(tmp_path / "small")
    card = (tmp_path / "small" / "README.md").read_text()
    assert "from prunus.models import BlipForRetrievalTraining" in card
    assert f"{model.num_parameters():,} before" in card
    again = load_model(tmp_path / "small")
    assert not any(p.requires_grad for _, follower in PAIRS for p in again.get_submodule(follower).parameters())
    again.train()(**batch([0, 1, 2, 3])).loss.backward()


def test_copies_follow_what_adapters_make_of_their_originals(model: BlipForRetrievalTraining) -> None:
    dense = copy.deepcopy(model)
    given = batch([4, 5, 4, 6])
    prune(model.eval(), Wanda(), [{name: value for name, value in given.items() if name != "labels"}])
    adapters = Adapters(model, zeros_of(model), 2, 4.0, teacher=dense)
    for name, adapter in adapters.layers.items():
        torch.nn.init.normal_(adapter.linear.lora_B)
        assert not torch.equal(model.get_parameter(f"{name}.weight"), adapter.effective())
    model.train()
    model(**given).loss.backward()  # moves the copies
    model.copy_momentum()
    adapters.merge()
    for original, behind in PAIRS:
        for name, weight in model.get_submodule(original).named_parameters():
            assert torch.equal(model.get_parameter(f"{behind}.{name}"), weight)


def test_masked_adapters_repair_it_and_a_training_is_kept(model: BlipForRetrievalTraining, tmp_path: Path) -> None:
    given = batch([4, 5, 4, 6])
    prune(model.eval(), Wanda(), [{name: value for name, value in given.items() if name != "labels"}])
    zeros = {name: mask.unpack() for name, mask in zeros_of(model).items()}
    rows = [{name: tensor[row] for name, tensor in given.items()} for row in range(4)]
    settings = Training(steps=2, batch_size=4, learning_rate=1e-3, bf16=False, save_every=1)
    repair(model, MaskedLoRA(rank=2), rows, settings, folder=tmp_path)  # type: ignore[arg-type]
    (kept,) = tmp_path.rglob("checkpoint-1")
    assert not (kept / "README.md").exists()  # which would speak of adapters
    assert all(not bool(model.get_submodule(name).weight[~kept].any()) for name, kept in zeros.items())


@pytest.mark.filterwarnings("ignore:You are using a model of type")
def test_training_begins_with_a_checkpoint_that_has_no_copies(model: BlipForRetrievalTraining, tmp_path: Path) -> None:
    stock = BlipForImageTextRetrieval(model.config)
    stock.save_pretrained(tmp_path)
    loaded = BlipForRetrievalTraining.from_pretrained(tmp_path)
    loaded.copy_momentum()
    for original, follower in PAIRS:
        for name, weight in loaded.get_submodule(original).named_parameters():
            assert torch.equal(weight, stock.get_parameter(f"{original}.{name}"))
            assert torch.equal(weight, loaded.get_parameter(f"{follower}.{name}"))
            assert not loaded.get_parameter(f"{follower}.{name}").requires_grad
    assert loaded.temp.item() == pytest.approx(model.config.temperature)
    torch.testing.assert_close(loaded.queue.images.norm(dim=0), torch.ones(6))
    assert loaded.queue.ids.eq(-100).all()
    assert loaded.queue.place.tolist() == [0]
