"""The story moeplan began with: eight layers a card, and why it dies."""

from __future__ import annotations

from rich.console import Console

from cost_models import CostModel
from moeplan.tables import comparison_table, plan_table, proof_line, short_lines
from profiles import Placement, load_hardware, load_profile
from profiles.units import gb
from solver import solve
from solver.baselines import even_layers, spill_experts
from solver.evaluate import judge

MODEL, MACHINE, LAYERS_A_CARD = "deepseek-v2-measured", "8xL40-46GB", 8


def tell(console: Console) -> Placement:
    """Print the story and return the plan it ends with."""
    profile, hardware = load_profile(MODEL), load_hardware(MACHINE)
    costs = CostModel(profile, hardware)
    layer = profile.layers[1]
    assert layer.experts is not None
    size = layer.attention.weight_bytes.gpu + layer.experts.weight_bytes.gpu
    usable = costs.usable_bytes("cuda:0")
    console.print(
        f"\n[bold]DeepSeek-V2 on eight L40 cards of 46 GB[/bold]: {gb(profile.weight_bytes)} of weights, "
        f"{gb(sum(d.memory_bytes for d in hardware.gpus))} of memory. The sum fits. A decoder layer takes {gb(size)}, "
        f"a card may fill {gb(usable)} (46 GB less a safety margin of {costs.safety_margin:.0%})."
    )

    by_hand = even_layers(costs, per_card=LAYERS_A_CARD)
    dies = judge(by_hand, costs)
    console.print(plan_table(by_hand, dies.memory, f"\n1. By hand: {LAYERS_A_CARD} layers a card"))
    for line in short_lines(dies.short_bytes):
        console.print(f"   {line}: out of memory", style="red")

    cure = spill_experts(by_hand, costs)
    cured = judge(cure, costs)
    console.print(plan_table(cure, cured.memory, "\n2. The cure by hand: of the eighth layer, experts to RAM"))

    plan = solve(profile, hardware)
    console.print(plan_table(plan, plan.memory or {}, "\n3. moeplan"))
    console.print(f"   {proof_line(plan)}", style="green")

    even = spill_experts(even_layers(costs), costs)
    rows = {
        f"{LAYERS_A_CARD} layers a card": dies,
        "the cure by hand": cured,
        "split evenly, then the cure": judge(even, costs),
        "moeplan": judge(plan, costs),
    }
    plans = [by_hand, cure, even, plan]
    work = costs.workload
    title = f"\nSide by side: {work.prompt_tokens} prompt tokens in, {work.generated_tokens} out, same bytes for all"
    console.print(comparison_table(title, rows, plans))
    console.print(
        "Predicted from data-sheet figures and stated efficiencies, not measured. Next:\n"
        f"  moeplan solve {MODEL} {MACHINE} --target ktransformers -o plan.yaml\n"
        "  moeplan export plan.yaml --to ktransformers\n",
        highlight=False,
    )
    return plan
