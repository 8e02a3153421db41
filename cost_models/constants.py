"""Defaults for what a hardware description leaves out. Every figure has a source; calibration replaces them."""

from __future__ import annotations

from typing import Literal

Kind = Literal["gpu", "cpu"]

GPU_SAFETY_MARGIN = 0.10
CPU_SAFETY_MARGIN = 0.05
"""Shares of memory never planned for: fragmentation, the driver's context, the operating system (docs/model.md)."""

BANDWIDTH_EFFICIENCY: dict[Kind, float] = {"gpu": 0.80, "cpu": 0.75}
"""Reachable share of the datasheet bandwidth. GPU: NVIDIA aiconfigurator's empirical factor in its system files
(ai-dynamo/aiconfigurator, systems/l40s.yaml). CPU: STREAM-like figures of seven server and desktop CPUs lie at
0.70-0.92 of peak; engines read less than STREAM (ik_llama.cpp discussions 258 and 357)."""

FLOPS_EFFICIENCY: dict[Kind, float] = {"gpu": 0.50, "cpu": 0.50}
"""Reachable share of the datasheet FLOP/s in prefill. An assumption: half, on both; GPUs with large products do better,
many small expert products do worse."""

LAUNCH_S: dict[Kind, float] = {"gpu": 17.5e-6, "cpu": 10e-6}
"""Fixed price of running one block. GPU: 33-37 us a layer fit all-GPU runs of llama.cpp on an A10 and a GH200
(harshithkantamneni/moe-speed-of-light), split evenly over a layer's two blocks. CPU: assumed, waking threads."""

SYNC_S: dict[Kind, float] = {"gpu": 5e-6, "cpu": 25e-6}
"""Fixed price of handing a layer's experts to another device. CPU: 23 us (A10) to 42 us (GH200) fit published sweeps,
with the copies (here counted as hops) included, from the same source. GPU: an assumption, one event wait."""
