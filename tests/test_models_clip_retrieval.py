"""CLIP for retrieval against the published code: features, loss, gates and their gradients, queue and copies after a step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPModel, Trainer, TrainingArguments

from prunus import SearchCallback, UPop, anatomy, extract, load_model
from prunus.models import CLIPForRetrieval
from prunus.models.convert import assembled, convert, recognised
from prunus.models.momentum import NOBODY, FeatureQueue, contrast
from prunus.structured.gates import Gates
from tests.families import IMAGE, PATCH, build
from tests.published import Fixture

MASKED = {r"(.*\.attn)\.alpha": r"\1.out_proj.weight", r"(.*resblocks\.\d+)\.alpha": r"\1.mlp.c_proj.weight"}
PUBLISHED = Fixture("clip", 12, MASKED, "clip_retrieval")


def contrasted(model: Any) -> Any:
    given = PUBLISHED.section("in")
    return model.train()(given["text"], given["image"], labels=given["idx"], soft_target_weight=given["alpha"])


def check(section: str, model: Any) -> None:
    """One training step of a model against a section of the fixture, and what it leaves behind."""
    outputs = contrasted(model)
    PUBLISHED.check(
        section,
        image_embed=outputs.image_embeds,
        text_embed=outputs.text_embeds,
        image_features=outputs.vision_model_output.pooler_output,
        text_features=outputs.text_model_output.pooler_output,
        logits_per_image=outputs.logits_per_image,
        loss=outputs.loss,
        post_image_queue=model.queue.images,
        post_text_queue=model.queue.texts,
        post_text_projection_m=model.text_projection_m.weight.T,
    )
    expected = PUBLISHED.section(section)
    assert torch.equal(model.queue.ids, expected["post_idx_queue"])
    assert torch.equal(model.queue.place, expected["post_ptr_queue"])


def test_it_computes_what_the_published_code_does() -> None:
    check("plain", PUBLISHED.model())


@pytest.mark.parametrize("masks", ["frac", "bin"])
def test_gates_do_what_the_published_masks_do(masks: str) -> None:
    model = PUBLISHED.model()
    Gates(model, anatomy(model)).set(PUBLISHED.gates(model, f"alpha_{masks}"))
    check(f"search_{masks}", model)


@pytest.mark.parametrize("masks", ["ones", "frac"])
def test_gradients_of_gates_are_those_of_the_published_masks(masks: str) -> None:
    model = PUBLISHED.model()
    gates = Gates(model, anatomy(model))
    if masks == "frac":
        gates.set(PUBLISHED.gates(model, "alpha_frac"))
    contrasted(model).loss.backward()
    PUBLISHED.check_gradients(model, gates, f"grad_{masks}")


def test_a_published_compressed_checkpoint_computes_what_its_evaluation_did() -> None:
    check("reference_extracted", PUBLISHED.model(**compressed()))


def compressed() -> dict[str, torch.Tensor]:
    """The published names of a compressed model, its momentum copies equal to it."""
    tensors = PUBLISHED.section("sd") | PUBLISHED.section("extracted_sd")
    originals = {name: name.replace("_m.", ".", 1).removesuffix("_m") for name in tensors}
    return tensors | {name: tensors[original] for name, original in originals.items() if original != name}


def test_a_published_clip_is_a_stock_one() -> None:
    copies = re.compile(r".*(_m\b|_queue).*")
    tensors = {name: tensor for name, tensor in PUBLISHED.section("sd").items() if not copies.fullmatch(name)}
    sizes = {name: torch.tensor(7) for name in ("input_resolution", "context_length", "vocab_size")}
    family = recognised({name: tuple(tensor.shape) for name, tensor in tensors.items()}, "file")
    assert family.name == "clip"
    model = assembled(family, tensors | sizes, head_width=12)
    assert type(model) is CLIPModel
    given = PUBLISHED.section("in")
    PUBLISHED.check("plain", logits_per_image=model(given["text"], given["image"]).logits_per_image)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_an_archive_of_torchscript_becomes_a_stock_one(tmp_path: Path) -> None:
    """As OpenAI publishes it: halves, sizes beside the weights, and code that is not run."""
    copies = re.compile(r".*(_m\b|_queue).*")
    tensors = {name: tensor for name, tensor in PUBLISHED.section("sd").items() if not copies.fullmatch(name)}
    archive = torch.nn.Module()
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        place = archive
        for part in path:
            if part not in dict(place.named_children()):
                place.add_module(part, torch.nn.Module())
            place = place.get_submodule(part)
        place.register_parameter(last, torch.nn.Parameter(tensor.half()))
    for name in ("input_resolution", "context_length", "vocab_size"):
        archive.register_buffer(name, torch.tensor(7))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Module, "forward", lambda self, pixels: pixels)
        torch.jit.save(torch.jit.trace(archive, torch.zeros(1)), tmp_path / "clip.pt")
    model = convert(tmp_path / "clip.pt", tmp_path / "out", head_width=12)
    assert type(model) is CLIPModel
    assert model.dtype == torch.float32
    given = PUBLISHED.section("in")
    expected = PUBLISHED.section("plain")["logits_per_image"]
    found = CLIPModel.from_pretrained(tmp_path / "out").eval()(given["text"], given["image"]).logits_per_image
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)  # of halves


def test_what_is_extracted_is_the_masked_model() -> None:
    """The published extraction starts the copies anew from the narrow model."""
    model = PUBLISHED.model()
    small = extract(model, PUBLISHED.plan(model))
    given = PUBLISHED.section("in")
    PUBLISHED.check("search_bin", logits_per_image=small(given["text"], given["image"]).logits_per_image)
    before = [part.shape for part in small.vision_model.parameters()]
    assert before == [part.shape for part in small.vision_model_m.parameters()]
    small.copy_momentum()
    for copy, original in small.prunus_mirrors.items():
        pairs = zip(small.get_submodule(copy).parameters(), small.get_submodule(original).parameters(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


def test_only_training_moves_the_copies_and_fills_the_queue() -> None:
    case = build("clip_retrieval", 2)
    before = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    first, second = (case.model(**case.inputs, **case.losses).loss for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(tensor, before[name]) for name, tensor in case.model.state_dict().items())
    case.model.train()(**case.inputs, **case.losses)
    changed = {name for name, tensor in case.model.state_dict().items() if not torch.equal(tensor, before[name])}
    copied = {name for name, _ in case.model.named_parameters() if "_m." in name}
    assert copied == {name for name in changed if not name.startswith("queue.")}
    assert {name for name in changed if name.startswith("queue.")} == {
        f"queue.{name}" for name in ("images", "texts", "ids", "place")
    }
    assert case.model.queue.ids.tolist() == [[4, 5, NOBODY, NOBODY, NOBODY, NOBODY]]


@pytest.mark.filterwarnings("ignore:You are using a model of type")
def test_copies_take_no_gradient_and_start_as_their_originals(tmp_path: Path) -> None:
    clip = build("clip", 4).model
    model = CLIPForRetrieval.around(clip, queue_size=4)
    assert {name for name, part in model.named_parameters() if not part.requires_grad} == {
        name for name, _ in model.named_parameters() if "_m." in name
    }
    inputs = build("clip", 4).inputs
    assert torch.equal(model.eval()(**inputs).logits_per_image, clip(**inputs).logits_per_image)
    torch.testing.assert_close(
        torch.stack(model._momentum_features(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"])),
        torch.stack([model(**inputs).image_embeds, model(**inputs).text_embeds]),
    )
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is CLIPForRetrieval
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert not any(part.requires_grad for name, part in loaded.named_parameters() if "_m." in name)
    stock = CLIPModel.from_pretrained(tmp_path).eval()
    assert torch.equal(stock(**inputs).logits_per_image, model(**inputs).logits_per_image)
    larger = inputs | {"pixel_values": torch.randn(2, 3, IMAGE + PATCH, IMAGE + PATCH)}
    assert model(**larger, labels=torch.tensor([1, 2]), interpolate_pos_encoding=True).loss.isfinite()
    as_tuple = model(**inputs, labels=torch.tensor([1, 2]), return_dict=False)
    assert torch.equal(as_tuple[0], model(**inputs, labels=torch.tensor([1, 2])).loss)


def test_the_trainer_searches_it_and_the_copies_follow(tmp_path: Path) -> None:
    case = build("clip_retrieval", 5)
    model, inputs = case.model, case.inputs
    before = model.vision_model_m.encoder.layers[0].mlp.fc1.weight.clone()
    items = [{name: tensor[row % 2] for name, tensor in (inputs | case.losses).items()} for row in range(8)]
    settings = TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=3, per_device_train_batch_size=4, report_to="none", disable_tqdm=True,
        save_strategy="no", logging_strategy="no", use_cpu=True,
    )  # fmt: skip
    callback = SearchCallback(UPop(ratio=0.5, interval=1))
    Trainer(model, settings, None, items, callbacks=[callback]).train()
    assert not torch.equal(model.vision_model_m.encoder.layers[0].mlp.fc1.weight, before)
    plan = callback.plan()
    assert set(plan.units) == {unit.name for unit in anatomy(model)}
    assert not any("_m." in name for name in plan.units)
    small = extract(model.eval(), plan)
    for tower in ("vision_model", "text_model.encoder"):
        copy = next(copy for copy, original in small.prunus_mirrors.items() if original == tower)
        shapes = [[part.shape for part in small.get_submodule(path).parameters()] for path in (tower, copy)]
        assert shapes[0] == shapes[1]
    with torch.no_grad():
        masked, narrow = model(**inputs).logits_per_image, small(**inputs).logits_per_image
    torch.testing.assert_close(narrow, masked, rtol=1e-5, atol=1e-5)
    small.save_pretrained(tmp_path / "small")
    load_model(tmp_path / "small").train()(**inputs, **case.losses).loss.backward()


def test_a_queue_keeps_the_last_pairs_and_goes_round() -> None:
    queue = FeatureQueue(2, 5)
    torch.testing.assert_close(queue.images.norm(dim=0), torch.ones(5))
    for start in (0, 3):
        rows = torch.arange(start, start + 3)[:, None].expand(-1, 2).float()
        queue.push(rows, -rows, torch.arange(start, start + 3))
    assert queue.ids.tolist() == [[5, 1, 2, 3, 4]]
    assert queue.images.tolist() == [[5.0, 1.0, 2.0, 3.0, 4.0]] * 2
    assert queue.texts.tolist() == [[-5.0, -1.0, -2.0, -3.0, -4.0]] * 2
    assert queue.place.tolist() == [1]
    queue.push(torch.zeros(7, 2), torch.zeros(7, 2), None)
    assert queue.ids.tolist() == [[NOBODY] * 5]


def test_pairs_of_one_image_share_what_is_wanted_of_them() -> None:
    queue = FeatureQueue(2, 3)
    queue.ids[0, 1] = 4
    assert queue.matches(torch.tensor([4, 9, 4]), 3).tolist() == [
        pytest.approx(row)
        for row in ([1 / 3, 0, 1 / 3, 0, 1 / 3, 0], [0, 1, 0, 0, 0, 0], [1 / 3, 0, 1 / 3, 0, 1 / 3, 0])
    ]
    assert torch.equal(queue.matches(None, 3), torch.eye(3, 6))
    assert torch.equal(queue.matches(torch.full((3,), NOBODY), 3), torch.eye(3, 6))


def test_without_soft_targets_the_loss_is_that_of_the_right_texts() -> None:
    torch.manual_seed(0)
    queue, scale = FeatureQueue(4, 3), torch.tensor(3.0)
    image, text, image_m, text_m = (F.normalize(torch.randn(2, 4), dim=1) for _ in range(4))
    found = contrast((image, text), (image_m, text_m), queue, scale, 0.0, None)
    expected = 0.0
    for own, others, kept in ((image, text_m, queue.texts), (text, image_m, queue.images)):
        logits = 3 * own @ torch.cat([others, kept.T]).T
        expected += F.cross_entropy(logits, torch.arange(2)) / 2
    torch.testing.assert_close(found, expected)
