"""Published checkpoints through the converters: recognised, every tensor used, every parameter filled, one error for what is wrong."""

from __future__ import annotations

import json
import math
import pickle
import random
import re
import zipfile
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from prunus.cli import app
from prunus.errors import PrunusError
from prunus.models import (
    BlipForImagesAndTextClassification,
    BlipForRetrievalTraining,
    BlipForVqa,
    CLIPForRetrieval,
    SegmenterForSemanticSegmentation,
)
from prunus.models.convert import assembled, consumed, convert, families, interpolated, read_tensors, recognised
from prunus.sources import PublishedSource
from prunus.tasks import Noise
from tests.shared import golden

FULL = {
    "blip_vqa": ("blip_vqa_base_480", BlipForVqa),
    "blip_caption": ("blip_caption_base_384", tf.BlipForConditionalGeneration),
    "blip_nlvr": ("blip_nlvr_base_384", BlipForImagesAndTextClassification),
    "blip_retrieval": ("blip_retrieval_base_384", BlipForRetrievalTraining),
    "clip_retrieval": ("clip_vit_l14_336", CLIPForRetrieval),
    "deit": ("deit_small_patch16_224", tf.ViTForImageClassification),
    "segmenter": ("segmenter_small_ade20k_512", SegmenterForSemanticSegmentation),
}
"""Family → the fixture of its published names and shapes, and the class that it fills."""


@pytest.mark.parametrize("name", FULL)
def test_every_published_name_and_shape_is_used(name: str) -> None:
    fixture, cls = FULL[name]
    told = json.loads(golden(f"full_keys/{fixture}.json").read_text())
    shapes = {key: tuple(shape) for key, shape in told["state_dict"].items()}
    family = recognised(shapes, fixture)
    assert family.name == name
    model = consumed(family, shapes)
    assert type(model) is cls
    weights = shapes.keys() - told["buffers"]
    unused = [math.prod(shapes[key]) for key in weights for pattern in family.left_out if re.fullmatch(pattern, key)]
    assert sum(parameter.numel() for parameter in model.parameters()) + sum(unused) == told["n_unique_parameters"]


@pytest.mark.parametrize("name", ["blip_caption", "blip_retrieval"])
def test_the_large_ones_that_are_published_are_read_off_their_shapes(name: str) -> None:
    """Their ViT is twice as deep and a third wider; texts stay as they are, but for what they read."""
    told = json.loads(golden(f"full_keys/{FULL[name][0]}.json").read_text())["state_dict"]
    shapes: dict[str, tuple[int, ...]] = {}
    for key, shape in told.items():
        if key.startswith(("visual_encoder", "vision_proj")) or re.search(
            r"crossattention\.self\.(key|value)\.weight", key
        ):
            rows = 1 if "crossattention" in key or key.startswith("vision_proj") else 0
            wide = tuple(
                size * 4 // 3 if size % 768 == 0 and (place >= rows) else size for place, size in enumerate(shape)
            )
        else:
            wide = tuple(shape)
        shapes[key] = (*wide[:1], 3, 16, 16) if key.endswith("patch_embed.proj.weight") else wide
        if (layer := re.search(r"\.blocks\.(\d+)\.", key)) is not None:
            shapes[key.replace(layer[0], f".blocks.{int(layer[1]) + 12}.")] = wide
    model = consumed(recognised(shapes, "large"), shapes)
    vision = model.config.vision_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads, vision.intermediate_size) == (
        1024, 24, 16, 4096,
    )  # fmt: skip
    assert model.config.text_config.encoder_hidden_size == 1024


HEAD_WIDTH = 12
"""In all fixtures."""


def fixture(name: str) -> dict[str, Tensor]:
    """Tensors of a published model at a tiny size, `section/name` → tensor."""
    return load_file(golden(f"models/{name}.safetensors"))


def section(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}


@pytest.mark.parametrize("name", FULL)
def test_a_published_file_becomes_a_folder_that_the_stock_class_loads(name: str, tmp_path: Path) -> None:
    tensors = fixture("clip" if name == "clip_retrieval" else name)
    torch.save({"model": section(tensors, "sd"), "epoch": 3}, tmp_path / "published.pth")
    model = convert(tmp_path / "published.pth", tmp_path / "out", head_width=HEAD_WIDTH)
    loaded = FULL[name][1].from_pretrained(tmp_path / "out")
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in loaded.state_dict().items())
    assert not any(parameter.is_meta for parameter in loaded.parameters())


def small_deit(width: int = 8) -> dict[str, Tensor]:
    """A DeiT as timm names it: two layers, 3 × 3 patches of 2 pixels."""
    torch.manual_seed(0)
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 10, width), "patch_embed.proj.weight": (width, 3, 2, 2)}
    shapes |= {
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (5, width),
        "head.bias": (5,),
    }
    for layer in range(2):
        block = {"norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,)}
        block |= {
            "attn.qkv.weight": (3 * width, width),
            "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
        }
        block |= {
            "mlp.fc1.weight": (16, width),
            "mlp.fc1.bias": (16,),
            "mlp.fc2.weight": (width, 16),
            "mlp.fc2.bias": (width,),
        }
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def test_a_distilled_deit_has_both_of_its_tokens_and_heads(tmp_path: Path) -> None:
    tensors = small_deit() | {"dist_token": torch.randn(1, 1, 8), "pos_embed": torch.randn(1, 11, 8)}
    tensors |= {"head_dist.weight": torch.randn(5, 8), "head_dist.bias": torch.randn(5)}
    model = convert(saved(tensors, tmp_path), tmp_path / "out", head_width=4)
    assert type(model) is tf.DeiTForImageClassificationWithTeacher
    embeddings = model.deit.embeddings
    assert torch.equal(embeddings.distillation_token, tensors["dist_token"])
    assert torch.equal(embeddings.position_embeddings, tensors["pos_embed"])
    assert torch.equal(model.distillation_classifier.weight, tensors["head_dist.weight"])
    resized = convert(tmp_path / "published.pth", tmp_path / "large", image_size=8, head_width=4)
    assert torch.equal(resized.deit.embeddings.position_embeddings[:, :2], tensors["pos_embed"][:, :2])
    assert resized(pixel_values=torch.randn(1, 3, 8, 8)).logits.shape == (1, 5)


def saved(thing: object, folder: Path, **how: object) -> Path:
    torch.save(thing, folder / "published.pth", **how)
    return folder / "published.pth"


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_ema"])
def test_weights_are_found_in_what_a_trainer_saves(wrapper: str, tmp_path: Path) -> None:
    tensors = small_deit()
    named = {f"module.{name}": tensor for name, tensor in tensors.items()}
    file = saved({"epoch": 1, wrapper: named, "optimizer": {"state": {}}}, tmp_path)
    assert {name: tuple(tensor.shape) for name, tensor in read_tensors(file).items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }


def test_weights_are_found_beside_a_tensor_that_is_none(tmp_path: Path) -> None:
    file = saved({"model": small_deit(), "best": torch.tensor(0.8), "optimizer": {"state": {}}}, tmp_path)
    assert read_tensors(file).keys() == small_deit().keys()


def test_files_of_old_and_of_other_kinds_hold_the_same_tensors(tmp_path: Path) -> None:
    tensors = small_deit()
    file = saved(tensors, tmp_path, _use_new_zipfile_serialization=False)
    save_file(tensors, tmp_path / "published.safetensors")
    save_file(tensors, tmp_path / "published.bin")  # as it is called by some who download it
    for name in (file.name, "published.safetensors", "published.bin"):
        found = read_tensors(tmp_path / name)
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


class Scripted(nn.Module):
    """What a TorchScript archive of a model looks like: modules within modules, halves, a number, a shared storage."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        self.scale = nn.Parameter(torch.tensor(2.5))
        self.register_buffer("rows", torch.arange(6).view(2, 3).t())
        self.size = 4

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs) * self.scale * self.size


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_torchscript_archive_is_read_without_its_code(tmp_path: Path) -> None:
    model = Scripted()
    model.inner.half()
    torch.jit.save(torch.jit.script(model), tmp_path / "scripted.pt")
    found = read_tensors(tmp_path / "scripted.pt")
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


def test_positions_are_interpolated_for_another_image_size(tmp_path: Path) -> None:
    file = saved(small_deit(), tmp_path)
    model = convert(file, tmp_path / "out", image_size=10, head_width=4)
    assert model.config.image_size == 10
    assert model(pixel_values=torch.randn(1, 3, 10, 10)).logits.shape == (1, 5)
    with pytest.raises(PrunusError, match="multiple of the patch size 2"):
        convert(file, tmp_path / "other", image_size=7, head_width=4)


def test_interpolated_positions_are_the_published_ones() -> None:
    tensors = section(load_file(golden("models/blip_nlvr.safetensors")), "extra")
    targets = [name for name in tensors if name.endswith("_out")]
    assert targets
    for name in targets:
        source, side = tensors[f"{name.partition('_to_')[0]}_in"], round((tensors[name].shape[1] - 1) ** 0.5)
        torch.testing.assert_close(interpolated(source, 1, side), tensors[name], atol=1e-6, rtol=1e-5)


class Trap:
    """What a hostile pickle calls while it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("trapped"),)


def refusal(file: Path, out: Path, as_: str | None = None) -> str:
    with pytest.raises(PrunusError) as caught:
        convert(file, out, as_, head_width=4)
    assert not out.exists()
    return str(caught.value)


def test_no_code_of_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for how in ({}, {"_use_new_zipfile_serialization": False}):
        assert "not run" in refusal(saved({"model": small_deit(), "more": Trap()}, tmp_path, **how), tmp_path / "out")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Trap()))
    assert "not run" in refusal(tmp_path / "plain.pth", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps(Trap()))
        archive.writestr("model/constants.pkl", b"")
    assert "holds no plain model" in refusal(tmp_path / "script.pt", tmp_path / "out")
    assert not (tmp_path / "trapped").exists()


def test_files_that_are_no_checkpoints_are_refused_in_one_line(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "cannot be read" in refusal(tmp_path / "absent.pth", out)
    assert "is a folder" in refusal(tmp_path, out)
    whole = saved(small_deit(), tmp_path).read_bytes()
    with zipfile.ZipFile(tmp_path / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("published.pth", whole)
    assert "compressed archive" in refusal(tmp_path / "packed.zip", out)
    for size in (0, 3, 100, len(whole) // 2, len(whole) - 5):
        (tmp_path / "cut.pth").write_bytes(whole[:size])
        assert "download it again" in refusal(tmp_path / "cut.pth", out)
    with (tmp_path / "zeros.pth").open("wb") as file:
        file.truncate(3 << 30)
    assert "no file of torch.save" in refusal(tmp_path / "zeros.pth", out)
    assert "no weights" in refusal(saved([1, 2], tmp_path), out)
    assert "no weights" in refusal(saved({"epoch": 2}, tmp_path), out)
    assert "no tensors: count" in refusal(saved({**small_deit(), "count": 2}, tmp_path), out)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["zip", "pickle", "script", "safetensors"])
def test_whatever_byte_is_damaged_the_file_is_read_or_refused(kind: str, tmp_path: Path) -> None:
    rng, file = random.Random(0), tmp_path / ("file.safetensors" if kind == "safetensors" else "file.pth")
    if kind == "script":
        torch.jit.save(torch.jit.script(Scripted()), file)
    elif kind == "safetensors":
        save_file(small_deit(), file)
    else:
        torch.save({"model": small_deit()}, file, _use_new_zipfile_serialization=kind == "zip")
    whole, refused = file.read_bytes(), 0
    for _ in range(80):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 3, 20))):
            damaged[rng.randrange(min(len(damaged), rng.choice((200, 2000, len(damaged)))))] = rng.randrange(256)
            damaged[-1 - rng.randrange(min(len(damaged), 2000))] = rng.randrange(256)
        file.write_bytes(damaged)
        try:
            read_tensors(file)
        except PrunusError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("kind", ["script/code", "archive/code"])
def test_nothing_that_is_read_may_be_compressed(kind: str, tmp_path: Path) -> None:
    """A few bytes could become all of the memory."""
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{kind}/data.pkl", bytes(10_000_000))
        if kind.startswith("script"):
            archive.writestr(zipfile.ZipInfo(f"{kind}/constants.pkl"), b"")
    assert "compressed archive" in refusal(tmp_path / "bomb.pt", tmp_path / "out")


def test_what_is_left_over_missing_or_misshapen_is_listed(tmp_path: Path) -> None:
    tensors, out = small_deit(), tmp_path / "out"
    tensors["blocks.0.extra"] = tensors.pop("norm.bias")
    tensors["head.bias"] = torch.zeros(6)
    said = refusal(saved(tensors, tmp_path), out)
    assert "left over: blocks.0.extra;" in said
    assert "missing: vit.layernorm.bias;" in said
    assert "misshapen: classifier.bias (6,) where (5,) belongs" in said


def test_a_tensor_that_does_not_hold_three_is_named(tmp_path: Path) -> None:
    tensors = small_deit()
    tensors["blocks.1.attn.qkv.bias"] = torch.zeros(2)
    assert "'blocks.1.attn.qkv.bias': its shape (2,) is none of 3 in one" in refusal(
        saved(tensors, tmp_path), tmp_path / "out"
    )


def test_a_family_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "of no family" in refusal(saved({"weight": torch.zeros(2)}, tmp_path), out)
    assert "no checkpoint of blip_vqa" in refusal(saved(small_deit(), tmp_path), out, "blip_vqa")
    assert "no such family" in refusal(saved(small_deit(), tmp_path), out, "resnet")


def test_what_a_wrong_family_lacks_is_named(tmp_path: Path) -> None:
    file, out = saved(small_deit(), tmp_path), tmp_path / "out"
    for name in families().keys() - {"deit", "eva_vit"}:  # ViTs both, of the same names
        said = refusal(file, out, name)
        assert re.search("missing: |no image encoder in it", said), said
        assert "Error" not in said


@pytest.mark.parametrize("name", FULL)
def test_a_file_that_lacks_a_tensor_is_refused_by_its_name(name: str) -> None:
    tensors, family = section(fixture("clip" if name == "clip_retrieval" else name), "sd"), families()[name]
    needed = [key for key in tensors if not any(re.fullmatch(pattern, key) for pattern in family.left_out)]
    for lacking in needed[:: len(needed) // 5]:
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items() if key != lacking}
        if "cls.predictions" not in lacking:  # parameters of two names
            with pytest.raises(PrunusError, match=r"missing: "):
                consumed(family, shapes, HEAD_WIDTH)


def test_a_narrowed_file_that_lacks_a_bias_of_queries_is_refused() -> None:
    tensors = fixture("clip")
    narrow = section(tensors, "sd") | section(tensors, "extracted_sd")
    del narrow["visual.transformer.resblocks.0.attn.in_proj_bias"]
    with pytest.raises(PrunusError, match=r"missing: vision_model\.encoder\.layers\.0\.self_attn\.[qkv]_proj\.bias"):
        assembled(families()["clip_retrieval"], narrow, head_width=HEAD_WIDTH)


def test_copies_that_the_file_holds_as_one_tensor_become_two(tmp_path: Path) -> None:
    tensors = section(fixture("clip"), "sd")
    tensors["visual_m.proj"] = tensors["visual.proj"]
    model = convert(saved(tensors, tmp_path), tmp_path / "out", head_width=HEAD_WIDTH)
    model.visual_projection.weight.data.zero_()
    assert model.visual_projection_m.weight.any()


def test_others_may_read_the_folder_as_they_may_read_what_else_is_made(tmp_path: Path) -> None:
    rows = torch.arange(9)
    tensors = small_deit()
    tensors["blocks.0.mlp.fc1.weight"] = tensors["blocks.0.mlp.fc1.weight"][rows]
    tensors["blocks.0.mlp.fc1.bias"] = tensors["blocks.0.mlp.fc1.bias"][rows]
    tensors["blocks.0.mlp.fc2.weight"] = tensors["blocks.0.mlp.fc2.weight"][:, rows]
    convert(saved(tensors, tmp_path), tmp_path / "out", head_width=4)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "file").write_text("")
    files = [path for path in (tmp_path / "out").iterdir() if path.suffix != ".safetensors"]  # for whose library to say
    modes = {path.name: path.stat().st_mode for path in files}
    assert {"prunus.json", "README.md", "config.json"} <= modes.keys()
    assert set(modes.values()) == {(tmp_path / "plain" / "file").stat().st_mode}
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_heads_that_do_not_make_up_the_model_are_refused(tmp_path: Path) -> None:
    file = saved(small_deit(), tmp_path)
    for width in (3, 64, None):
        with pytest.raises(PrunusError, match=r"head_width = .* do not make up the model's 8"):
            convert(file, tmp_path / "out", head_width=width)


def test_a_place_where_nothing_can_be_made_is_refused_before_the_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file" / "out", tmp_path / "file" / "more" / "out"):
        with pytest.raises(PrunusError, match="nothing can be made in"):
            convert(tmp_path / "absent.pth", out)


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(PrunusError, match="it is there already"):
        convert(saved(small_deit(), tmp_path), tmp_path / "out", head_width=4)


def test_a_folder_that_comes_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = tf.PreTrainedModel.save_pretrained

    def slow(model: tf.PreTrainedModel, folder: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("mine")
        save(model, folder)

    monkeypatch.setattr(tf.PreTrainedModel, "save_pretrained", slow)
    with pytest.raises(PrunusError, match="it is there already"):
        convert(saved(small_deit(), tmp_path), tmp_path / "out", head_width=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "published.pth"]
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_a_link_to_an_empty_folder_or_to_none_is_followed(tmp_path: Path) -> None:
    file = saved(small_deit(), tmp_path)
    (tmp_path / "there").mkdir()
    for name in ("there", "not-yet"):
        (tmp_path / f"to-{name}").symlink_to(tmp_path / name)
        convert(file, tmp_path / f"to-{name}", head_width=4)
        assert (tmp_path / f"to-{name}").is_symlink()
        assert (tmp_path / name / "config.json").exists()


def test_a_tied_parameter_that_the_file_holds_twice_must_be_one(tmp_path: Path) -> None:
    tensors = fixture("blip_caption")
    published = section(tensors, "sd")
    published["text_decoder.cls.predictions.decoder.weight"] = (
        published["text_decoder.cls.predictions.decoder.weight"] + 1
    )
    with pytest.raises(PrunusError, match="are one parameter"):
        assembled(families()["blip_caption"], published, head_width=HEAD_WIDTH)
    del published["text_decoder.cls.predictions.decoder.weight"]
    assembled(families()["blip_caption"], published, head_width=HEAD_WIDTH)


def test_a_narrowed_checkpoint_is_read_as_a_narrowed_model(tmp_path: Path) -> None:
    tensors = small_deit()
    rows = torch.arange(24).view(3, 2, 4)[..., :3].flatten()
    tensors["blocks.1.attn.qkv.weight"] = tensors["blocks.1.attn.qkv.weight"][rows]
    tensors["blocks.1.attn.qkv.bias"] = tensors["blocks.1.attn.qkv.bias"][rows]
    tensors["blocks.1.attn.proj.weight"] = tensors["blocks.1.attn.proj.weight"][:, :6]
    tensors["blocks.0.mlp.fc1.weight"] = tensors["blocks.0.mlp.fc1.weight"][:9]
    tensors["blocks.0.mlp.fc1.bias"] = tensors["blocks.0.mlp.fc1.bias"][:9]
    tensors["blocks.0.mlp.fc2.weight"] = tensors["blocks.0.mlp.fc2.weight"][:, :9]
    model = convert(saved(tensors, tmp_path), tmp_path / "out", head_width=4)
    loaded = tf.ViTForImageClassification.from_pretrained(tmp_path / "out").eval()
    assert loaded.vit.layers[1].attention.q_proj.weight.shape == (6, 8)
    assert loaded.vit.layers[0].mlp.fc1.weight.shape == (9, 8)
    pixels = torch.randn(2, 3, 6, 6)
    assert torch.equal(model(pixel_values=pixels).logits, loaded(pixel_values=pixels).logits)


def test_the_command_line_converts(tmp_path: Path) -> None:
    file = saved(small_deit(), tmp_path)
    result = CliRunner().invoke(app, ["convert", str(file), str(tmp_path / "out"), "--as", "deit", "--head-width", "4"])
    assert result.exit_code == 0
    assert "ViTForImageClassification, 1,453 parameters" in result.output
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_recipe_starts_from_a_published_file(tmp_path: Path) -> None:
    source = PublishedSource(published=str(saved(small_deit(), tmp_path)), head_width=4)
    folder = source.folder(tmp_path / "cache")
    assert source.folder(tmp_path / "cache") == folder
    loaded = tf.ViTForImageClassification.from_pretrained(folder)
    with torch.device("meta"):
        bare = source.skeleton(Noise())
    assert {name: tensor.shape for name, tensor in bare.state_dict().items()} == {
        name: tensor.shape for name, tensor in loaded.state_dict().items()
    }
    changed = small_deit() | {"head.bias": torch.ones(5)}
    saved(changed, tmp_path)
    assert source.folder(tmp_path / "cache") != folder
    with pytest.raises(PrunusError, match=r"model\.published"):
        PublishedSource(published=str(tmp_path / "absent.pth")).folder(tmp_path / "cache")
