"""The base of tasks: what follows from the three members that a task writes, on the task of a stranger."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from prunus import PrunusError
from prunus.cli import app
from prunus.losses import Prediction, own_loss, own_prediction
from prunus.tasks import AnyTask, Metric, Task
from tests.strangers.own_task import Counting


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=16, initializer_range=0.5, **sizes)).eval()


def test_the_rest_follows_from_three_members(model: PreTrainedModel, tmp_path: Path) -> None:
    task = Counting(words=10, length=4)
    assert task.headline == "bits"
    assert task.for_model(tmp_path) is task
    task.check()
    task.check_model(tmp_path)
    task.save_processor(tmp_path)
    assert not list(tmp_path.iterdir())
    batch = task.collate(task.train_data()[:3])
    assert torch.equal(task.loss(model, batch), own_loss(model, batch))
    assert torch.equal(task.predict(model, batch).logits, own_prediction(model, batch).logits)
    for make in (task.warm_start, task.skeleton):
        with pytest.raises(PrunusError, match="the counting task has no model of its own"):
            make(layers=2)


def test_calibration_is_training_items_at_even_distances(model: PreTrainedModel) -> None:
    task = Counting(words=10, length=4)
    batches = task.calibration(5, 2)
    assert [batch["input_ids"][:, 0].tolist() for batch in batches] == [[0, 2], [4, 6], [8]]
    model(**batches[0])
    with pytest.raises(PrunusError, match="there are 10"):
        task.calibration(11, 2)


def test_an_example_is_one_forward_pass_over_so_many_items(model: PreTrainedModel) -> None:
    seen: list[Any] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, given: seen.append(given["input_ids"]), with_kwargs=True
    )
    call = Counting(words=3, length=4).example(model, 5)
    assert not seen
    call()
    handle.remove()
    assert [ids[:, 0].tolist() for ids in seen] == [[0, 1, 2, 0, 1]]


def test_a_loss_goes_with_a_prediction_of_one_s_own(model: PreTrainedModel) -> None:
    class Half(Counting):
        name: Literal["half"] = "half"

        def predict(self, model: nn.Module, batch: dict[str, Any]) -> Prediction:
            found = own_prediction(model, batch)
            return Prediction(found.loss / 2, found.logits, found.counted)

    batch = Counting().collate(Counting().train_data()[:2])
    assert torch.equal(Half().loss(model, batch), Counting().loss(model, batch) / 2)


def test_a_task_is_whole_when_it_has_a_name() -> None:
    class Base(Task):
        def train_data(self) -> Any:
            return []

    assert Base.__abstractmethods__ == {"collate", "evaluate"}
    with pytest.raises(PrunusError, match=r"Partly.*write what it lacks: collate, evaluate"):

        class Partly(Base):
            name: Literal["partly"] = "partly"
            metrics: ClassVar = {"bits": Metric()}

    with pytest.raises(PrunusError, match=r"Unmeasured.*write what it lacks: metrics"):

        class Unmeasured(Counting):
            name: Literal["unmeasured"] = "unmeasured"
            metrics: ClassVar = {}

    with pytest.raises(PrunusError, match=r"Untyped.*write what it lacks: metrics"):

        class Untyped(Counting):
            name: Literal["untyped"] = "untyped"
            metrics: ClassVar = {"bits": "plain"}


def test_what_is_measured_is_plain_numbers_and_has_the_headline(model: PreTrainedModel) -> None:
    class Changed(Counting):
        name: Literal["changed"] = "changed"
        found: dict[str, Any]

        def evaluate(self, model: Any, limit: int | None = None, progress: bool = True) -> dict[str, float]:
            return self.found

    assert Changed(found={"bits": torch.tensor(1.5)}).measure(model) == {"bits": 1.5}
    for found, said in (({"bit": 1.0}, "returns bit;"), ({}, "returns nothing;")):
        with pytest.raises(PrunusError, match=said):
            Changed(found=found).measure(model)


def test_any_task_is_found_by_its_name() -> None:
    adapter: TypeAdapter[Task] = TypeAdapter(AnyTask)
    assert adapter.validate_python({"name": "counting", "words": 5}) == Counting(words=5)
    assert adapter.dump_python(Counting(words=5)) == {"name": "counting", "words": 5, "length": 8}
    with pytest.raises(ValueError, match="did you mean counting"):
        adapter.validate_python({"name": "countin"})


def test_the_command_line_writes_a_metric_in_its_unit(
    model: PreTrainedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path)
    asked = ["--task", "counting", "--import", str(Path(__file__).parent / "strangers/own_task.py"), "--limit", "4"]
    app(["evaluate", str(tmp_path), *asked], standalone_mode=False)
    bits = Counting().evaluate(model, 4)["bits"]
    assert bits > 1
    assert capsys.readouterr().out.split() == ["bits", f"{bits:.2f}"]


def test_the_page_of_the_documentation_shows_the_task_that_is_tested() -> None:
    root = Path(__file__).parents[1]
    code = (root / "tests/strangers/own_task.py").read_text()
    assert f"```python\n{code}```" in (root / "docs/library.md").read_text()
