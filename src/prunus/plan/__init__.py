"""Plans as data, JSON, inspectable, editable, re-usable: kept channels per unit, or pruned weights per matrix."""

from prunus.plan.channels import Plan, UnitPlan
from prunus.plan.drawing import draw_plans
from prunus.plan.sparsity import MatrixPlan, SparsityPlan, uniform

__all__ = ["MatrixPlan", "Plan", "SparsityPlan", "UnitPlan", "draw_plans", "uniform"]
