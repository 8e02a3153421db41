"""Rules that a plan is compared with and never worse than: what people do by hand, and what other runtimes do.

Every rule is written from its source, which it names, and gets what our memory rule leaves of each device (usable
bytes), neither more nor less than the plan it is compared with. Where a rule has a knob, the knob is set as is best for
it. A rule says where blocks go and nothing else: how fast its own runtime is does not count.
"""

from __future__ import annotations

from collections.abc import Callable

from cost_models import CostModel
from profiles.placement import Placement
from solver.baselines.accelerate import accelerate_balanced
from solver.baselines.by_hand import even_layers, experts_on_cpu, spill_experts, spilled_layers
from solver.baselines.ik_llama import ik_llama_fit, ik_llama_n_cpu_moe
from solver.baselines.ktransformers import ktransformers_even_split, ktransformers_front_loading
from solver.baselines.llama_cpp import llama_cpp_fit, llama_cpp_n_cpu_moe
from solver.baselines.masks import frequency_mask, uniform_mask

__all__ = ["RULES", "Rule", "even_layers", "hand_plans", "spill_experts"]

Rule = Callable[[CostModel], Placement | None]
"""A plan, whether it fits or not; None where the rule gives up or does not apply."""

RULES: dict[str, Rule] = {
    "layers split evenly": even_layers,
    "split evenly, experts spilled": spilled_layers,
    "all experts on the CPU": experts_on_cpu,
    "accelerate balanced": accelerate_balanced,
    "llama.cpp --fit": llama_cpp_fit,
    "llama.cpp -ncmoe": llama_cpp_n_cpu_moe,
    "ik_llama.cpp --fit": ik_llama_fit,
    "ik_llama.cpp -ncmoe": ik_llama_n_cpu_moe,
    "KTransformers even split": ktransformers_even_split,
    "KTransformers front-loading": ktransformers_front_loading,
    "sglang-kt uniform, one GPU": uniform_mask,
    "sglang-kt frequency, one GPU": frequency_mask,
}


def hand_plans(costs: CostModel) -> dict[str, Placement]:
    """The plans of all rules that have one, by the rule's name; a plan may not fit."""
    plans = {name: rule(costs) for name, rule in RULES.items()}
    return {name: plan for name, plan in plans.items() if plan is not None}
