"""Plans as data, JSON, inspectable, editable, re-usable: kept channels per unit, or pruned weights per matrix."""

from prunus.plan.channels import Plan, UnitPlan
from prunus.plan.drawing import draw_plans
from prunus.plan.sparsity import DensePart, MatrixPlan, SparsityPlan, uniform

__all__ = ["DensePart", "MatrixPlan", "Plan", "SparsityPlan", "UnitPlan", "draw_plans", "uniform"]
