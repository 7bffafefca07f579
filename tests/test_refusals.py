"""What cannot be done is refused in one clear error, and leaves the model, and torch, as they were."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from prunus import (
    ECoFLaP,
    Magnitude,
    PrunusError,
    SparseGPT,
    WalkOptions,
    Wanda,
    allocate,
    prune,
    prune_folder,
    sparsity_of,
)
from prunus.checkpoint.on_use import hollow
from prunus.cli import main
from prunus.undo import Undo
from prunus.unstructured.walk import Walk
from tests.families import build

QUIET = WalkOptions(progress=False)
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24}


def llama() -> tf.PreTrainedModel:
    torch.manual_seed(0)
    return tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, vocab_size=50)).eval()


def ids(rows: int = 2) -> Tensor:
    return torch.randint(3, 50, (rows, 8), generator=torch.Generator().manual_seed(0))


def bits(model: nn.Module) -> list[bytes]:
    return [
        b"" if t.is_meta else t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        for t in model.state_dict().values()
    ]


class unchanged:  # noqa: N801
    """The model's bits, record, modes, hooks and forwards are the same at the end of the context as at its beginning."""

    def __init__(self, model: nn.Module):
        self.model = model

    def state(self) -> object:
        return (
            bits(self.model),
            sparsity_of(self.model),
            [module.training for module in self.model.modules()],
            [parameter.requires_grad for parameter in self.model.parameters()],
            [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in self.model.modules()],
            ["forward" in module.__dict__ for module in self.model.modules()],
            getattr(getattr(self.model, "config", None), "use_cache", None),
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            len(_get_current_function_mode_stack()),
        )

    def __enter__(self) -> None:
        self.before = self.state()

    def __exit__(self, *error: object) -> None:
        assert self.state() == self.before


FORMS: dict[str, Any] = {
    "Tensor": ids(),
    "dict": {"input_ids": ids()},
    "BatchEncoding": tf.BatchEncoding({"input_ids": ids()}),
    "str": "some text",
    "int": 3,
    "a model": nn.Linear(2, 2),
    "text": ["some text"],
    "tuple": [(ids(), ids())],
    "is a list of numbers": [{"input_ids": ids().tolist()}],
    "is an array": [{"input_ids": ids().numpy()}],
    "batch dimension is missing": [{"input_ids": ids()[0]}],
    "is empty": [{"input_ids": ids()[:0]}, {"input_ids": ids()}],
    "no tensor": [{}],
    "ids are integers": [{"input_ids": ids().float()}],
    "is padding": [{"input_ids": ids(), "attention_mask": torch.zeros_like(ids())}],
    "not finite": [{"input_ids": ids()}, {"inputs_embeds": torch.full((1, 4, 16), torch.nan)}],
    "batch 1.*cannot run it": [{"input_ids": ids()}, {"input_ids": ids() + 1000}],
    "batch 0.*cannot run it": [{"words": ids()}],
    "at least one": iter(()),
}


@pytest.mark.parametrize("reason", FORMS)
def test_batches_in_a_wrong_form_are_refused(reason: str) -> None:
    model = llama()
    with unchanged(model), pytest.raises(PrunusError, match=f"(?s)batches.*{'' if reason == 'a model' else reason}"):
        prune(model, Wanda(), FORMS[reason], options=QUIET)
    if reason == "at least one":
        return
    with unchanged(model), pytest.raises(PrunusError, match="batch"):
        allocate(model, ECoFLaP(sparsity=0.5), FORMS[reason], progress=False)


def test_what_a_function_of_the_callers_own_takes_is_its_own_matter() -> None:
    pairs = [(ids(), None)]
    plan = prune(llama(), Wanda(), pairs, call=lambda model, batch: model(batch[0]), options=QUIET)
    assert plan.sparsity == 0.5
    model = llama()
    with unchanged(model), pytest.raises(ZeroDivisionError):
        prune(model, Wanda(), pairs, call=lambda model, batch: 1 / 0, options=QUIET)


@pytest.mark.parametrize("form", ["meta", "sparse"])
def test_what_has_no_numbers_is_refused_for_a_function_of_the_callers_own_too(form: str) -> None:
    rows = ids().to("meta") if form == "meta" else ids().float().to_sparse()
    model = llama()
    with unchanged(model), pytest.raises(PrunusError, match="batch 0: input_ids"):
        prune(model, Wanda(), [{"input_ids": rows}], call=lambda model, batch: model(ids()), options=QUIET)


def test_compiled_models_are_refused_and_leave_nothing_behind() -> None:
    inside = llama()
    inside.model.layers[1].compile()
    whole = llama()
    whole.compile()
    for model in (whole, inside):
        with pytest.raises(PrunusError, match="compiled"):
            prune(model, Wanda(), [{"input_ids": ids()}], options=QUIET)
        with pytest.raises(PrunusError, match="compiled"):
            allocate(model, ECoFLaP(), [{"input_ids": ids()}], progress=False)
    assert prune(llama(), Wanda(), [{"input_ids": ids()}], options=QUIET).sparsity == 0.5
    for wrap in (nn.DataParallel, torch.compile):
        model = llama()
        assert prune(wrap(model), Wanda(), [{"input_ids": ids()}], options=QUIET).sparsity == 0.5
        assert sparsity_of(model) is not None
    with pytest.raises(PrunusError, match="give a model"):
        prune("llama", Wanda(), [{"input_ids": ids()}], options=QUIET)  # type: ignore[arg-type]


def test_quantised_weights_are_refused_by_that_name_unless_excluded() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = llama()
    quantization.quantize_(model.model.layers[1], quantization.Int8WeightOnlyConfig())
    first = model.model.layers[0].mlp.up_proj.weight.clone()
    with pytest.raises(PrunusError, match=r"layers\.1.*quantised"):
        prune(model, Wanda(), [{"input_ids": ids()}], options=QUIET)
    assert torch.equal(first, model.model.layers[0].mlp.up_proj.weight)
    plan = prune(model, Wanda(), [{"input_ids": ids()}], exclude=["model.layers.1.*"], options=QUIET)
    assert {matrix.split(".")[2] for matrix in plan.matrices} == {"0"}


def test_layers_of_bitsandbytes_are_refused_and_not_passed_over() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    model = llama()
    up = model.model.layers[1].mlp.up_proj
    quantised = bnb.nn.Linear4bit(up.in_features, up.out_features, bias=False)
    quantised.weight = bnb.nn.Params4bit(up.weight.data, requires_grad=False)
    model.model.layers[1].mlp.up_proj = quantised
    model.to("cpu")
    with pytest.raises(PrunusError, match="quantised"):
        prune(model, Wanda(), [{"input_ids": ids()}], options=QUIET)


@pytest.mark.parametrize("what", ["nan", "inf"])
def test_weights_that_are_not_finite_are_refused_before_the_first_block(what: str) -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 4] = float(what)
    with unchanged(model), pytest.raises(PrunusError, match=r"layers\.1\.mlp\.down_proj.*NaN or infinity"):
        prune(model, Magnitude(), [{"input_ids": ids()}], options=QUIET)


@pytest.mark.parametrize(
    "wrong", [{"method": "wanda"}, {"method": Wanda}, {"plan": {}}, {"options": 3}, {"keep_zeros": "yes"}], ids=str
)
def test_arguments_of_another_type_are_refused_by_their_name(wrong: dict[str, Any]) -> None:
    model = llama()
    with unchanged(model), pytest.raises(PrunusError) as refused:
        prune(model, **{"method": Wanda(), "batches": [ids()], **wrong})
    assert refused.value.field == next(iter(wrong))


class Stubborn(SparseGPT):
    """Does well, until the last block."""

    def prune(self, weight: Tensor, inputs: Any, quota: Any) -> tuple[Tensor, Tensor]:
        if inputs.tokens and len(seen) > 9:
            raise seen[0]
        seen.append(None)  # type: ignore[arg-type]
        return super().prune(weight, inputs, quota)


seen: list[BaseException] = []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no"), PrunusError("a", "b", "c")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("disk", [True, False])
def test_whatever_is_raised_while_walking_the_model_is_as_it_was(
    error: BaseException, dtype: torch.dtype, disk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not disk:  # full from the third matrix on
        write = Undo._write
        monkeypatch.setattr(Undo, "_write", lambda self, t: full() if len(self._in_file) > 2 else write(self, t))
    model = llama().to(dtype)
    seen[:] = [error]
    with unchanged(model), pytest.raises(type(error)):
        prune(model, Stubborn(), [{"input_ids": ids()}] * 2, options=QUIET)
    assert len(seen) > 9


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_block_that_no_batch_reaches_costs_nothing() -> None:
    case = build("llava", 7)
    text = {"input_ids": ids()}
    with unchanged(case.model), pytest.raises(PrunusError, match="no calibration batch reached this block"):
        prune(case.model, Wanda(), [text], options=QUIET)
    assert prune(case.model, Wanda(), [text], include=["*language*"], options=QUIET).sparsity > 0


class Towers(nn.Module):
    """Declares its second tower first."""

    def __init__(self, text: nn.Module, vision: nn.Module):
        super().__init__()
        self.text, self.vision = text, vision

    def forward(self, input_ids: Tensor, pixel_values: Tensor | None = None) -> object:
        embedded = self.text.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            embedded = torch.cat([self.vision(pixel_values=pixel_values).last_hidden_state, embedded], 1)
        return self.text(inputs_embeds=embedded)


def towers() -> Towers:
    torch.manual_seed(0)
    text = tf.LlamaModel(tf.LlamaConfig(**SIZES, vocab_size=50))
    vision = tf.ViTModel(tf.ViTConfig(**SIZES, image_size=16, patch_size=8), add_pooling_layer=False)
    return Towers(text, vision).eval()


@pytest.mark.parametrize("with_images_first", [True, False])
def test_the_walk_follows_the_models_order_and_not_the_declarations(with_images_first: bool) -> None:
    """A text alone waits at the language tower until the images have been through theirs, and all count there."""
    batches: list[dict[str, Tensor]] = [
        {"input_ids": ids()},
        {"input_ids": ids(), "pixel_values": torch.randn(2, 3, 16, 16)},
    ]
    if with_images_first:
        batches.reverse()
    model = towers()
    blocks = [f"text.layers.{i}" for i in range(2)] + [f"vision.layers.{i}" for i in range(2)]
    met: list[tuple[str, int]] = []
    with Walk(model, batches, blocks) as walk:
        for stop in walk:
            met.append((stop.block, len(stop.visits)))
            for visit in stop.visits:
                stop.run(visit)
    assert met == [("vision.layers.0", 1), ("vision.layers.1", 1), ("text.layers.0", 2), ("text.layers.1", 2)]


def test_every_batch_has_its_own_modes_and_the_thread_keeps_its_own() -> None:
    """Contexts that batches open and close in turns do not leak into one another, nor out."""
    model, types = llama(), []

    def call(model: nn.Module, batch: dict[str, Tensor]) -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=len(batch["input_ids"]) == 2), torch.device("cpu"):
            return model(**batch)

    batches = [{"input_ids": ids(rows)} for rows in (2, 1, 2, 1)]
    with unchanged(model), Walk(model, batches, ["model.layers.0", "model.layers.1"], call) as walk:
        for stop in walk:
            assert not torch.is_autocast_enabled("cpu")
            for visit in stop.visits:
                model.get_submodule(stop.block).mlp.act_fn.register_forward_hook(
                    lambda *_: types.append(torch.is_autocast_enabled("cpu"))
                )
                stop.run(visit)
                assert types[-1] == (visit.batch % 2 == 0)
            for module in model.modules():
                module._forward_hooks.clear()


def test_undo_puts_back_views_and_moved_parameters() -> None:
    base, moved = torch.randn(3, 4), nn.Parameter(torch.randn(2).half())
    before, was = base.clone(), moved.detach().clone()

    def fail() -> Iterator[None]:
        with Undo() as undo:
            undo.keep(base.T)
            undo.keep(moved)
            base.zero_()
            moved.data = torch.zeros(2)
            moved.data = moved.data.half()
            raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        next(fail())
    assert torch.equal(base, before)
    assert torch.equal(moved, was)


def test_a_folder_that_is_refused_leaves_nothing_and_one_that_was_interrupted_stays(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "dense")
    good = {"input_ids": ids()}
    for batches in (good, [good, {"input_ids": ids() + 1000}], [good, "text"]):
        with pytest.raises(PrunusError, match="batches"):
            prune_folder(tmp_path / "dense", tmp_path / "out", Wanda(), batches, options=QUIET)
        assert [path.name for path in tmp_path.iterdir()] == ["dense"]

    def interrupted() -> Iterator[dict[str, Tensor]]:
        yield good
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_folder(tmp_path / "dense", tmp_path / "out", Wanda(), interrupted(), options=QUIET)
    assert (tmp_path / "out.partial").exists()
    assert prune_folder(tmp_path / "dense", tmp_path / "out", Wanda(), [good], options=QUIET).sparsity == 0.5


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "Tasks for such a model: "),
        (["--task", '{"name": "text", "evaluation": "TEXT"}'], "tokenizer"),
        (["--task", '{"name": "text", "evaluation": "/nowhere"}'], "no such file"),
        pytest.param(["--tasks", "arc_easy"], "lm-eval", marks=pytest.mark.long),
    ],
)
def test_evaluation_that_is_not_possible_is_one_line_and_status_2(
    options: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    llama().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("once upon a time")
    options = [option.replace("TEXT", str(tmp_path / "text.txt")) for option in options]
    monkeypatch.setattr("sys.argv", ["prunus", "evaluate", str(tmp_path / "model"), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert "Traceback" not in said
    assert reason in " ".join(said.split())


def test_zeros_of_emptied_weights_are_not_counted_but_taken_from_the_record() -> None:
    model = llama()
    prune(model, Magnitude(sparsity=0.5), [ids()], options=QUIET)
    before = sparsity_of(model)
    for parameter in model.parameters():
        parameter.data = hollow(parameter, torch.device("cpu")).data
    assert sparsity_of(model) == before
    with pytest.raises(PrunusError, match="not in memory"):
        prune(model, Magnitude(sparsity=0.5), [ids()], options=QUIET)
