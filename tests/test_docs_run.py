"""Every block of Python and every shell line of README and docs is carried out on tiny stand-ins, but for the lines that `tests.snippets.LEFT` names.

What a page takes as given (a model, batches, a folder) is made here; what would take long is replaced in its text. (Tutorials, which make all that they
need: test_tutorials.py.)
"""

from __future__ import annotations

import copy
import json
import os
import re
import socket
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf
import yaml

from prunus import Magnitude, prune
from prunus.evaluation import evaluate_here
from tests import lookers, speakers
from tests.families import build
from tests.snippets import FENCED, LANGUAGES, LEFT, PAGES, ROOT, blocks, carry_out, in_child, lines_left, quick
from tests.test_convert import small_deit
from tests.test_studies import STUDY

Names = dict[str, Any]
SENTENCE = "the cat sat on the mat and looked at the dog. "


def llama() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    return tf.LlamaForCausalLM(
        tf.LlamaConfig(**sizes, num_hidden_layers=3, vocab_size=speakers.VOCABULARY, max_position_embeddings=8192)
    ).eval()


def mixtral() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    return tf.MixtralForCausalLM(
        tf.MixtralConfig(**sizes, num_hidden_layers=2, vocab_size=speakers.VOCABULARY, num_local_experts=4)
    ).eval()


def in_hand(model: Any, batch: Names) -> Names:
    """What is around a model that one trains: batches of two items, a loader, an optimiser, single items."""
    batches = [batch, {name: value.flip(0) for name, value in batch.items()}]
    return {
        "model": model, "batches": batches, "loader": batches, "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-3),
        "dataset": [{name: value[row] for name, value in batch.items()} for row in (0, 1)], "dense": copy.deepcopy(model),
    }  # fmt: skip


def tokens() -> Names:
    ids = torch.randint(20, 250, (2, 12), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids}


def reads(block: str = "", names: Names | None = None) -> Names:
    """A language model; one with experts where a block is about experts."""
    return in_hand(mixtral() if "RouterWeighted" in block else llama(), tokens())


def answers(block: str = "", names: Names | None = None) -> Names:
    """A BLIP that answers questions."""
    case = build("blip_vqa", 0)
    return in_hand(
        case.model.train(), {name: value for name, value in case.inputs.items() if name != "decoder_input_ids"}
    )


def of_the_readme(block: str, names: Names) -> Names:
    return reads() if "prunus.repair(" in block else answers()


def of_the_library(block: str, names: Names) -> Names:
    found = answers()
    if "vision_model_m" in block:
        found["model"].vision_model_m = copy.deepcopy(found["model"].vision_model)
    found["args"] = tf.TrainingArguments(
        output_dir="trainer",
        max_steps=2,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    return {**found, "data": found["dataset"], "accuracy": lambda model, items: 0.5, "held_out": found["dataset"]}


def of_zeros(block: str, names: Names) -> Names:
    def train() -> None:
        optimizer = torch.optim.AdamW(names["model"].parameters(), lr=1e-2)
        names["model"](**tokens()).loss.backward()
        optimizer.step()

    return {"tokenizer": speakers.tokenizer(), "text": 40 * SENTENCE, "trainer": SimpleNamespace(train=train)}


def of_narrowing(block: str, names: Names) -> Names:
    return {**reads(block), "accuracy": lambda model: float(-model(**tokens()).loss.detach())}


def of_a_class(block: str, names: Names) -> Names:
    from tests.strangers.own_architecture import Graft

    return {"Graft": Graft}


def of_a_graph(block: str, names: Names) -> Names:
    return {"inputs": {"pixel_values": torch.randn(2, 3, lookers.SIDE, lookers.SIDE)}}


def with_tokens(model: Any, folder: str) -> None:
    model.save_pretrained(folder)
    speakers.tokenizer().save_pretrained(folder)


def reader_folder() -> None:
    with_tokens(llama(), "dense")


def reader_and_text() -> None:
    reader_folder()
    Path("test.txt").write_text(20 * SENTENCE)


def sparse_folders() -> None:
    """A model before and after it was pruned, and a text."""
    reader_and_text()
    model = llama()
    prune(model, Magnitude(sparsity=0.5), [tokens()])
    for name in ("out", "pruned"):
        with_tokens(model, name)


def answering_folder() -> None:
    answers()["model"].save_pretrained("dense")


def study_file() -> None:
    """One cell of one method, of random numbers."""
    part = STUDY["parts"]["noise"]
    parts = {"classification": {**part, "axes": {"method": {"upop": {}}}, "seeds": [0], "leave_out": []}}
    Path("study.yaml").write_text(yaml.safe_dump({**STUDY, "parts": parts, "findings": [], "output": "study"}))


def recipe_file() -> None:
    vit = STUDY["parts"]["noise"]["recipe"]
    recipe = {**vit, "steps": [{"step": "prune", "method": {"method": "magnitude", "sparsity": 0.5}}], "output": "run"}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))


def recipe_and_folder() -> None:
    recipe_file()
    llama().save_pretrained("dense")


def published_files() -> None:
    for name in ("model_base_vqa_capfilt_large.pth", "deit_small_patch16_224.pth"):
        torch.save({"model": small_deit(64)}, name)


def captioned_folder() -> None:
    """Pictures with captions, and a model for them."""
    rows = [json.loads(line) for line in speakers.pictures(Path("photos")).read_text().splitlines()]
    for split in ("train", "test"):
        Path(f"photos/{split}.jsonl").write_text(
            "\n".join(json.dumps({k: row[k] for k in ("image", "captions")}) for row in rows)
        )
    speakers.save("blip_captions", Path("blip"))


def classifier_folder() -> None:
    lookers.saved("vit", Path("runs/demo/2-retrain/model"))


@dataclass(frozen=True)
class Given:
    """What a page takes as given."""

    names: Callable[[str, Names], Names] = lambda block, names: {}
    """Of a block's text and the names so far."""
    before: Callable[[], None] = lambda: None
    """Makes the folders and files."""
    instead: dict[str, str] = field(default_factory=dict)
    """Of its text, what stands for it."""
    needs: tuple[str, ...] = ()
    """Packages."""
    is_long: bool = False


STEPS = {"total_steps=1000": "total_steps=2", "steps=500": "steps=2"}
BUDGETS = {
    "max_parameters=100_000_000": "max_parameters=13_000",
    "--max-bytes 500000000": "--max-bytes 2500000",
    "blocks=4": "blocks=1",
    "sweep MODEL --task easy_vqa": """sweep dense --task '{"name": "text", "training": "test.txt", "evaluation": "test.txt", "length": 8}' --samples 4 --batch-size 4""",
}
BLIP = {"Salesforce/blip-image-captioning-base": "blip"}
GIVEN = {
    "README": Given(
        of_the_readme,
        answering_folder,
        STEPS | {"teacher=dense)": "prunus.Training(steps=2, learning_rate=1e-4), teacher=dense)"},
    ),
    "docs/ablations": Given(),
    "docs/allocation": Given(answers, instead=STEPS),
    "docs/architecture": Given(of_a_class),
    "docs/export": Given(of_a_graph, classifier_folder, needs=("onnxruntime", "onnxscript"), is_long=True),
    "docs/library": Given(of_the_library, instead=STEPS | {"ratio=0.9": "ratio=0.5"}),
    "docs/many-devices": Given(reads, recipe_and_folder),
    "docs/narrow": Given(of_narrowing, reader_and_text, BUDGETS),
    "docs/published": Given(before=published_files, instead={"--image-size 384": "--image-size 8"}),
    "docs/quantise": Given(before=sparse_folders, needs=("torchao",), is_long=True),
    "docs/repair": Given(reads, sparse_folders, STEPS),
    "docs/robustness": Given(),
    "docs/studies": Given(before=study_file, is_long=True),
    "docs/unstructured": Given(
        of_zeros, reader_folder, {"path/or/hub-id": "dense", "samples=128, length=512": "samples=4, length=16"}
    ),
    "docs/your-own-data": Given(
        before=captioned_folder, instead=BLIP, needs=("pycocoevalcap.cider.cider",), is_long=True
    ),
}
"""Page → what it takes as given. Tutorials take nothing."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).with_suffix("").as_posix()


def has_code(page: Path) -> bool:
    return any(block.language in ("python", "bash") for block in blocks(page.read_text()))


def test_every_page_with_code_is_carried_out() -> None:
    pages = {name_of(page) for page in PAGES if has_code(page)}
    assert {name for name in pages if not name.startswith("docs/tutorials/")} == set(GIVEN)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_its_language(page: Path) -> None:
    text = page.read_text()
    assert {block.language for block in blocks(text)} <= set(LANGUAGES)
    assert len(FENCED.findall(text)) * 2 == len(re.findall(r"(?m)^ *```", text))


def test_what_is_left_is_on_a_page_and_could_not_be_carried_out() -> None:
    left = [line for page in PAGES for line in lines_left(page)]
    for beginning, reason in LEFT.items():
        assert reason
        assert not beginning.startswith("prunus")
        assert any(line.startswith(beginning) for line in left), f"no page shows {beginning}; take it from the list"
    assert len(left) <= 12, "more lines than before are not carried out"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if given.is_long else ()) for name, given in GIVEN.items()]
)
def test_a_page_does_what_it_says(name: str, tmp_path: Path) -> None:
    given = GIVEN[name]
    for package in given.needs:
        pytest.importorskip(package)
    text = (ROOT / f"{name}.md").read_text()
    for written, instead in given.instead.items():
        text = text.replace(written, instead)
    for written in GIVEN[name].instead:
        assert written in (ROOT / f"{name}.md").read_text() or written in STEPS, f"{name} has no {written} any more"
    in_child(_carried_out, name, text, given, tmp_path)


def _carried_out(name: str, text: str, given: Given, folder: Path) -> None:
    """In a process of its own."""
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setenv("PRUNUS_CACHE", str(folder / "cache"))
    patch.setattr("prunus.report.measured.evaluate_elsewhere", evaluate_here)
    patch.setattr("prunus.studies.carrying_out.in_fresh_process", lambda function, *given, **how: function(*given))
    patch.setattr("prunus.studies.carrying_out.keeping_warm", lambda modules: nullcontext())
    if "dist.init_process_group()" in text:
        with socket.create_server(("localhost", 0)) as server:
            port = server.getsockname()[1]
        os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="localhost", MASTER_PORT=str(port))
    given.before()
    carry_out(name, text, given.names)


def test_recipes_are_made_quick() -> None:
    made = quick("train: {steps: 2000, batch_size: 16}\noutput: runs/x")
    assert (
        made == "train: {steps: 2, bf16: false, batch_size: 16}\nmeasure: {batch_size: 2, repeats: 1}\noutput: runs/x"
    )
