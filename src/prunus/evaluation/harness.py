"""Any task of lm-evaluation-harness, for models that generate text, about images too (extra `eval`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from prunus.checkpoint import load_model
from prunus.errors import PrunusError, refusing
from prunus.tasks import Generative


def harness_scores(
    folder: Path, tasks: Sequence[str], limit: int | None = None, batch_size: int = 16, task_folder: Path | None = None
) -> dict[str, float]:
    """Scores of a saved model, as {"task metric": value}.

    Args:
        tasks: names of the harness.
        limit: documents per task.
        task_folder: where to look for task definitions of one's own.

    Raises:
        PrunusError: the harness is not installed, knows no such task, or cannot run it: its data are not here, or the model
            is not one that generates text.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise PrunusError("--tasks", ",".join(tasks), "it needs lm-eval; run: pip install 'prunus[eval]'") from None
    manager = TaskManager(include_path=str(task_folder) if task_folder else None)
    for task in tasks:
        if task not in manager.all_tasks:
            raise PrunusError("--tasks", task, "lm-eval has no such task; `lm-eval ls tasks` lists them")
    loaded = load_model(folder)
    with refusing("model", str(folder), "lm-eval needs its tokenizer or processor, and a decoder"):
        model = _wrapped(loaded, folder, batch_size)
    with refusing("--tasks", ",".join(tasks), "lm-eval cannot run it"):
        answer = simple_evaluate(model=model, tasks=list(tasks), limit=limit, task_manager=manager)
    return numbers_in(answer["results"])


def _wrapped(model: Any, folder: Path, batch_size: int) -> Any:
    """The model as the harness calls it: one that goes on with texts in which images stand is asked with images where a task has them."""
    if Generative.fits(model.config):
        from lm_eval.models.hf_vlms import HFMultimodalLM

        return HFMultimodalLM(pretrained=model, batch_size=batch_size)
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    return HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=batch_size)


def numbers_in(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The scores among what a harness says of its tasks, "metric,filter", as {"task metric": value}; standard errors are left out."""
    return {
        f"{task} {name.removesuffix(',none')}": float(value)
        for task, values in results.items()
        for name, value in values.items()
        if isinstance(value, Real) and "," in name and "stderr" not in name
    }
