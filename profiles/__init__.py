"""The nouns: model profiles, hardware, workloads, placements, and the readers of real files."""

from profiles.cases import Case, case_of
from profiles.errors import (
    ApplyError,
    HardwareError,
    InfeasiblePlacement,
    MoeplanError,
    ProfileError,
    TargetError,
)
from profiles.hardware import Device, Hardware, Link, Pool
from profiles.load import (
    hardware_presets,
    load_hardware,
    load_placement,
    load_profile,
    load_workload,
    profile_presets,
)
from profiles.model import Attention, Block, Experts, KindBytes, Layer, ModelProfile, Workspace
from profiles.placement import DeviceMemory, LayerPlacement, Placement, Prediction
from profiles.run import Run, RunGpu, Runs
from profiles.runs import read_runs
from profiles.workload import Workload

__all__ = [
    "ApplyError",
    "Attention",
    "Block",
    "Case",
    "Device",
    "DeviceMemory",
    "Experts",
    "Hardware",
    "HardwareError",
    "InfeasiblePlacement",
    "KindBytes",
    "Layer",
    "LayerPlacement",
    "Link",
    "ModelProfile",
    "MoeplanError",
    "Placement",
    "Pool",
    "Prediction",
    "ProfileError",
    "Run",
    "RunGpu",
    "Runs",
    "TargetError",
    "Workload",
    "Workspace",
    "case_of",
    "hardware_presets",
    "load_hardware",
    "load_placement",
    "load_profile",
    "load_workload",
    "profile_presets",
    "read_runs",
]
