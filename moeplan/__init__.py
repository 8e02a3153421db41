"""Where do the layers and experts of a Mixture-of-Experts model go on several GPUs and a CPU?

>>> from moeplan import solve
>>> plan = solve("deepseek-v2-measured", "8xL40-46GB")
>>> plan.status, plan.gap
('optimal', 0.0)
"""

from profiles import (
    ApplyError,
    Hardware,
    HardwareError,
    InfeasiblePlacement,
    ModelProfile,
    MoeplanError,
    Placement,
    ProfileError,
    TargetError,
    Workload,
    load_hardware,
    load_placement,
    load_profile,
)
from runtime_adapter import (
    Applied,
    DryRun,
    Rehearsal,
    apply,
    dry_run,
    export,
    load,
    load_distributed,
    measure,
    read_activations,
    read_rules,
    rehearse,
    stages_of,
)
from solver import (
    Comparison,
    Evaluation,
    compare,
    evaluate,
    frontier,
    largest_context,
    sensitivity,
    smallest,
    solve,
    what_if,
)

__all__ = [
    "Applied",
    "ApplyError",
    "Comparison",
    "DryRun",
    "Evaluation",
    "Hardware",
    "HardwareError",
    "InfeasiblePlacement",
    "ModelProfile",
    "MoeplanError",
    "Placement",
    "ProfileError",
    "Rehearsal",
    "TargetError",
    "Workload",
    "apply",
    "compare",
    "dry_run",
    "evaluate",
    "export",
    "frontier",
    "largest_context",
    "load",
    "load_distributed",
    "load_hardware",
    "load_placement",
    "load_profile",
    "measure",
    "read_activations",
    "read_rules",
    "rehearse",
    "sensitivity",
    "smallest",
    "solve",
    "stages_of",
    "what_if",
]
