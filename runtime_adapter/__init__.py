"""A plan meets a runtime: live torch models and other runtimes' own files. torch is imported when first needed."""

from runtime_adapter.activations import read_activations
from runtime_adapter.apply import Applied, apply
from runtime_adapter.distributed import load_distributed, stages_of
from runtime_adapter.dry_run import dry_run
from runtime_adapter.export import export
from runtime_adapter.fakes.live_bytes import DryRun
from runtime_adapter.load import load
from runtime_adapter.measure import measure
from runtime_adapter.read_rules import read_rules
from runtime_adapter.rehearse import Rehearsal, rehearse

__all__ = [
    "Applied",
    "DryRun",
    "Rehearsal",
    "apply",
    "dry_run",
    "export",
    "load",
    "load_distributed",
    "measure",
    "read_activations",
    "read_rules",
    "rehearse",
    "stages_of",
]
