"""Plans as data, JSON, inspectable, editable, re-usable: kept channels per unit, or pruned weights per matrix."""

from prunus.plan.channels import Plan, UnitPlan
from prunus.plan.drawing import draw_plans
from prunus.plan.history import Entry
from prunus.plan.sparsity import DensePart, MatrixPlan, SparsityPlan, part_of, uniform

__all__ = ["DensePart", "Entry", "MatrixPlan", "Plan", "SparsityPlan", "UnitPlan", "draw_plans", "part_of", "uniform"]
