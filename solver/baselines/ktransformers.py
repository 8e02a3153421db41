"""KTransformers' injection rules: attention on the GPUs, experts layer by layer, the embedding on the CPU."""

from __future__ import annotations

from cost_models import CostModel
from profiles.placement import Placement
from solver.baselines.layout import CPU, Layout, Ledger
from solver.baselines.shares import even_runs, have_room


def ktransformers_even_split(costs: CostModel) -> Placement | None:
    """The rule files that ship with it: attention split evenly by index, the experts of every layer on the CPU
    (optimize_rules/DeepSeek-V3-Chat-multi-gpu-4.yaml). It runs attention on GPUs only: without any there is no plan.
    """
    ledger = Ledger(costs)
    gpus = _homes(ledger)
    if not gpus:
        return None
    n_layers = len(ledger.layers)
    attention = [gpus[i * len(gpus) // n_layers] for i in range(n_layers)]
    return Layout(CPU, attention[-1], attention, ledger.homes_of_experts(lambda _: CPU)).placement()


def ktransformers_front_loading(costs: CostModel) -> Placement | None:
    """Experts of the first layers on the GPUs until these are full (strategy `front-loading`, kt_ep_wrapper.py), as
    rules can say it: whole layers, each beside its attention, every GPU equally full by bytes.

    sglang-kt itself fills the boundary layer expert by expert and cuts every expert over all GPUs.
    """
    ledger = Ledger(costs)
    if not ledger.gpus:
        return None
    ledger.gpus = _homes(ledger)
    n_layers = len(ledger.layers)
    choices = ([i >= n for i in range(n_layers)] for n in range(n_layers, 0, -1))
    on_cpu = next((choice for choice in choices if have_room(ledger, choice)), [True] * n_layers)
    return even_runs(ledger, on_cpu).placement()


def _homes(ledger: Ledger) -> list[str]:
    """GPUs that may have attention: its Mixtral has no transfer map, so there all of it stays on the first one."""
    return ledger.gpus[:1] if ledger.costs.profile.architecture == "mixtral" else ledger.gpus
