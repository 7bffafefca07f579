"""Functions in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prunus import PrunusError
from prunus.evaluation import evaluate_elsewhere, evaluate_once, in_fresh_process, read_task
from prunus.tasks import Noise

pytestmark = pytest.mark.long


class OtherNoise(Noise):
    pass


def told(value: int, kind: str) -> object:
    print("this is not the answer")
    if kind == "refuse":
        raise PrunusError("value", value, "take another")
    if kind == "die":
        os._exit(3)
    return {"value": value, "process": os.getpid()}


@pytest.mark.usefixtures("unwarmed")
def test_what_a_function_returns_in_another_process() -> None:
    answer = in_fresh_process(told, 7, "return")
    assert answer["value"] == 7
    assert answer["process"] != os.getpid()


@pytest.mark.usefixtures("unwarmed")
def test_what_it_refuses_is_refused_here() -> None:
    with pytest.raises(PrunusError, match="value = 7: take another"):
        in_fresh_process(told, 7, "refuse")
    with pytest.raises(PrunusError, match="status 3"):
        in_fresh_process(told, 7, "die")


def test_a_task_is_read_by_name_or_by_settings() -> None:
    assert read_task("noise") == Noise()
    assert read_task('{"name": "noise", "items": 4}') == Noise(items=4)
    with pytest.raises(PrunusError, match=r"--task: \.?name = 'nothing'"):
        read_task("nothing", "--task")
    with pytest.raises(PrunusError, match=r"--task: .*items"):
        read_task('{"name": "noise", "items": "many"}', "--task")
    with pytest.raises(PrunusError, match=r"^--task = .*noise.*: give a task's name, or settings as JSON"):
        read_task('{"name": "noise"', "--task")


@pytest.mark.usefixtures("unwarmed")
@pytest.mark.parametrize("guarded", [True, False])
def test_a_script_is_imported_by_the_process_it_starts(tmp_path: Path, guarded: bool) -> None:
    script = tmp_path / "script.py"
    call = "print(in_fresh_process(told))"
    script.write_text(
        "from prunus.evaluation import in_fresh_process\ndef told():\n    return 'heard'\n"
        + (f"if __name__ == '__main__':\n    {call}\n" if guarded else call)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=100)
    assert (done.stdout, done.returncode) == (("heard\n", 0) if guarded else ("", 1))
    assert guarded or "must stand under: if __name__ == '__main__'" in done.stderr


def test_a_task_that_inherits_its_name_is_not_measured_as_another() -> None:
    with pytest.raises(PrunusError, match=r"OtherNoise.*would take Noise"):
        evaluate_elsewhere(Path("absent"), OtherNoise(), 1)


def test_a_new_process_ends_with_the_one_that_started_it() -> None:
    """Whatever kills that one closes its end of the pipe."""
    request = {"imports": [], "module": "time", "function": "sleep", "arguments": [60]}
    command = [sys.executable, "-P", "-m", "prunus.evaluation"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        process.communicate(json.dumps(request) + "\n", timeout=50)
        assert process.returncode == 1


def test_an_evaluation_that_is_kept_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the weights, or what is asked, are others."""
    folder, kept = tmp_path / "model", tmp_path / "kept"
    folder.mkdir()
    asked: list[object] = []

    def found(*arguments: object, **_: object) -> dict[str, object]:
        asked.append(arguments)
        return {
            "metrics": {"loss": len(asked)},
            "peak_memory": 1,
            "seconds": 0.5,
            "exhibits": [{"said": "a", "right": "b"}],
        }

    monkeypatch.setattr("prunus.evaluation.evaluate.in_fresh_process", found)

    def loss(batch_size: int = 2) -> float:
        return evaluate_once(kept, folder, Noise(), batch_size).metrics["loss"]

    assert [loss(), loss()] == [1, 2], "nothing tells which weights these are"
    (folder / "prunus-checksums.json").write_text("one")
    assert [loss(), loss(), loss(batch_size=3), loss()] == [3, 3, 4, 3]
    (folder / "prunus-checksums.json").write_text("other")
    assert [loss(), loss()] == [5, 5]
    (folder / "preprocessor_config.json").write_text("{}")
    assert [loss(), loss()] == [6, 6], "pictures are turned into other numbers"
    monkeypatch.setattr("prunus.evaluation.evaluate.has_bf16", lambda device: "otherwise")
    assert [loss(), loss()] == [7, 7], "another machine computes otherwise"
    for file in kept.iterdir():
        file.write_text("{")
    assert [loss(), loss()] == [8, 8]
    assert evaluate_once(kept, folder, Noise(), 2).exhibits[0].right == "b"
