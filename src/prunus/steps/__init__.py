"""Steps of recipes, one file each: settings, check and deed."""

from typing import TYPE_CHECKING

from prunus.steps.bench import Bench
from prunus.steps.narrow import NarrowStep
from prunus.steps.prune import Calibration, PruneStep
from prunus.steps.quantise import QuantiseStep
from prunus.steps.repair import RepairStep
from prunus.steps.retrain import RetrainStep
from prunus.steps.search import SearchStep
from prunus.steps.step import History, Sketch, Step
from prunus.typed import named

if TYPE_CHECKING:
    AnyStep = Step
else:
    AnyStep = named(Step, "step")
"""Any step, by its name in a recipe."""

__all__ = [
    "AnyStep", "Bench", "Calibration", "History", "NarrowStep", "PruneStep", "QuantiseStep", "RepairStep", "RetrainStep", "SearchStep", "Sketch", "Step",
]  # fmt: skip
