"""Plans as data, JSON, inspectable, editable, re-usable: kept channels per unit, or pruned weights per matrix."""

from prunus.plan.channels import Plan, UnitPlan
from prunus.plan.drawing import draw_plans
from prunus.plan.history import Entry, Recorded
from prunus.plan.record import (
    RECORD,
    Narrowing,
    configs_of,
    forget,
    mark,
    marks,
    plan_of,
    recorded,
    records_of,
    true_record,
    write_record,
)
from prunus.plan.sparsity import DensePart, MatrixPlan, SparsityPlan, part_of, uniform, written_sparsities

__all__ = [
    "RECORD", "DensePart", "Entry", "MatrixPlan", "Narrowing", "Plan", "Recorded", "SparsityPlan", "UnitPlan",
    "configs_of", "draw_plans", "forget", "mark", "marks", "part_of", "plan_of", "recorded", "records_of", "true_record",
    "uniform", "write_record", "written_sparsities",
]  # fmt: skip
