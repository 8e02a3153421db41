"""The plan document itself as a target: it can say every plan, and means what it says."""

from __future__ import annotations

from collections.abc import Mapping

from profiles.document import parse_document
from profiles.placement import Placement
from runtime_adapter.targets.target import Outline


def obstacles(plan: Placement, outline: Outline) -> list[str]:
    """Nothing stands in the way."""
    return []


def write(plan: Placement, outline: Outline, model_path: str | None = None) -> str:
    """The plan as YAML. `model_path` is not part of a plan."""
    return plan.to_yaml()


def simulate(text: str, outline: Outline, where: str = "plan") -> Mapping[str, str]:
    """The device of every block; of every expert where a layer divides them.

    >>> layer = {"attention": "cuda:0", "experts": {"cpu": [0], "cuda:0": [1]}}
    >>> plan = Placement(embedding="cpu", head="cuda:0", layers=[layer])
    >>> outline = Outline.of_plan(plan)
    >>> simulate(write(plan, outline), outline)["layers.0.experts.1"]
    'cuda:0'
    """
    plan = read(text, outline, where)
    found = {"embedding": plan.embedding, "head": plan.head}
    for index, layer in enumerate(plan.layers):
        found[f"layers.{index}.attention"] = layer.attention
        for device, part in layer.experts.items():
            block = f"layers.{index}.experts"
            found.update({block: device} if part == "all" else {f"{block}.{i}": device for i in part})
    return found


def read(text: str, outline: Outline, where: str = "plan") -> Placement:
    """The plan. Raises ProfileError for a document that is none, TargetError for one of another model's layers."""
    plan = Placement.from_dict(parse_document(text, where), where)
    outline.check_plan(plan)
    return plan
