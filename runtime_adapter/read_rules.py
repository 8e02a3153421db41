"""A runtime's own text read back as a plan."""

from __future__ import annotations

from profiles.model import ModelProfile
from profiles.placement import Placement
from runtime_adapter.targets.known import target_named
from runtime_adapter.targets.target import Outline


def read_rules(text: str, format: str, profile: ModelProfile, where: str = "rules") -> Placement:
    """The placement that `text` means for `profile`'s model; `where` (a file name) starts the message of any error.

    `format` is the name of a target; "ktransformers" is a whole rules file, resolved as that runtime does, "moeplan" a
    plan document. Raises TargetError for an unknown format or rules that would not run, ProfileError for a document
    that is no plan.
    """
    return target_named(format).read(text, Outline.of_profile(profile), where)
