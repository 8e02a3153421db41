"""A runtime's own text read back as a plan."""

from __future__ import annotations

from profiles.document import parse_document
from profiles.errors import TargetError
from profiles.model import ModelProfile
from profiles.placement import Placement
from runtime_adapter.targets import ktransformers_simulator

FORMATS = ("ktransformers", "moeplan")


def read_rules(text: str, format: str, profile: ModelProfile, where: str = "rules") -> Placement:
    """The placement that `text` means for `profile`'s model; `where` (a file name) starts the message of any error.

    "ktransformers" is a whole rules file, resolved as that runtime does; "moeplan" a plan document. Raises TargetError
    for an unknown format or rules that would not run, ProfileError for a document that is no plan.
    """
    if format == "ktransformers":
        has_experts = [layer.experts is not None for layer in profile.layers]
        plan = ktransformers_simulator.read(text, profile.architecture, has_experts, where)
        return plan.replace(architecture=profile.architecture, target="ktransformers")
    if format == "moeplan":
        return Placement.from_dict(parse_document(text, where), where)
    raise TargetError(f"{where}: no reader for {format!r}; use one of {', '.join(FORMATS)}")
