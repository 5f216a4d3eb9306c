"""Plans: what a recipe will do to which tensors, and at what cost, before a tensor is read."""

from surgery.plan.plan import Plan, Step, build_plan

__all__ = ["Plan", "Step", "build_plan"]
