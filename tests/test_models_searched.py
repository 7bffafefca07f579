"""The paper's seven models: searched under transformers' Trainer, extracted, saved, and loaded by a process that only imports prunus."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainingArguments

from prunus import SearchCallback, UPop, anatomy, extract
from tests.families import build

SEVEN = {
    "blip_nlvr": "AutoModel", "blip_answers": "AutoModelForVisualQuestionAnswering", "blip_caption": "AutoModelForImageTextToText",
    "vit": "AutoModelForImageClassification", "blip_retrieval": "AutoModel", "clip_retrieval": "AutoModelForZeroShotImageClassification",
    "segmenter": "AutoModelForSemanticSegmentation",
}  # fmt: skip
"""Family → the Auto class that loads it. A DeiT is a ViT."""
LABELS = {"vit": torch.tensor([1, 4]), "blip_retrieval": torch.tensor([4, 5])}
STEPS, ROWS = 3, 8

LOADS = """
import sys
import prunus, torch, transformers
folder = sys.argv[1]
transformers.AutoConfig.from_pretrained(f"{folder}/vit")
transformers.PreTrainedConfig.get_config_dict(f"{folder}/another.json")
assert "prunus.models" not in sys.modules  # classes of ours are found when they are asked for, and hide no code of a folder's own
for family, auto in SEVEN.items():
    model = getattr(transformers, auto).from_pretrained(f"{folder}/{family}").eval()
    inputs, outputs, name = torch.load(f"{folder}/{family}.pt")
    with torch.no_grad():
        found = model(**inputs)[0]
    assert type(model).__name__ == name, (family, type(model))
    assert torch.equal(found, outputs), family
print("all the same")
"""


@dataclass
class Searched:
    """What came of a family."""

    model: PreTrainedModel
    small: PreTrainedModel
    inputs: dict[str, Tensor]
    units: set[str]
    """Those that the plan is for."""

    @torch.no_grad()
    def outputs(self) -> tuple[Tensor, Tensor]:
        """Of the masked model, and of the extracted one."""
        return self.model(**self.inputs)[0], self.small(**self.inputs)[0]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Searched]:
    folder = tmp_path_factory.mktemp("runs")
    return {family: search(family, folder / family) for family in SEVEN}


def search(family: str, folder: Path) -> Searched:
    case = build(family, 5)
    inputs = dict(case.inputs)
    batch = inputs | case.losses | ({"labels": LABELS[family]} if family in LABELS else {})
    if family == "blip_answers":  # one answer for every question, so that rows are examples
        for name in ("answers", "decoder_input_ids"):
            del batch[name]
    items: list[dict[str, Any]] = [{name: rows[number % 2] for name, rows in batch.items()} for number in range(ROWS)]
    settings = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=4, report_to="none", disable_tqdm=True,
        save_strategy="no", logging_strategy="no", use_cpu=True,
    )  # fmt: skip
    callback = SearchCallback(UPop(ratio=0.5, interval=1))
    Trainer(case.model, settings, train_dataset=items, callbacks=[callback]).train()
    plan = callback.plan()
    return Searched(case.model.eval(), extract(case.model, plan).eval(), inputs, set(plan.units))


@pytest.mark.parametrize("family", SEVEN)
def test_what_is_extracted_is_the_masked_model(family: str, searched: dict[str, Searched]) -> None:
    found = searched[family]
    masked, narrow = found.outputs()
    torch.testing.assert_close(narrow, masked, rtol=1e-5, atol=1e-5)
    parts = anatomy(found.small)
    assert found.units == {unit.name for unit in parts}
    assert not any("_m." in name for name in found.units)
    for unit in parts:
        for copy in unit.mirrors:
            shapes = [[p.shape for p in found.small.get_submodule(path).parameters()] for path in (unit.path, copy)]
            assert shapes[0] == shapes[1]
    assert bool(parts.mirrors) == ("retrieval" in family)
    assert sum(part.numel() for part in found.small.parameters()) < sum(
        part.numel() for part in found.model.parameters()
    )


def test_a_new_process_that_imports_prunus_loads_each_of_them(searched: dict[str, Searched], tmp_path: Path) -> None:
    for family, found in searched.items():
        found.small.save_pretrained(tmp_path / family)
        torch.save((found.inputs, found.outputs()[1], type(found.small).__name__), tmp_path / f"{family}.pt")
    (tmp_path / "another.json").write_text('{"model_type": "segmenter", "auto_map": {"AutoConfig": "theirs.Config"}}')
    code = f"SEVEN = {SEVEN!r}\n{LOADS}"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout == "all the same\n", done.stderr


def test_a_folder_of_a_class_of_ours_says_what_to_import(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    model = build("blip_answers", 1).model
    model.save_pretrained(tmp_path)
    assert "from prunus.models import BlipForVqa" in card.read_text()
    assert "pruned" not in card.read_text()
    build("vit", 1).model.save_pretrained(tmp_path)
    assert not card.exists()
    card.write_text("mine")
    model.save_pretrained(tmp_path)
    assert card.read_text() == "mine"
