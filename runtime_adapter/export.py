"""A plan in the words of a runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from profiles.errors import TargetError
from profiles.hub.allow import is_allowed
from profiles.hub.name import HubName
from profiles.load import load_profile, profile_presets
from profiles.model import ModelProfile
from profiles.placement import Placement
from runtime_adapter.targets.known import TARGETS, target_named
from runtime_adapter.targets.target import Outline

Model = ModelProfile | dict[str, Any] | str | Path


def export(plan: Placement, to: str, *, model: Model | None = None, model_path: str | None = None) -> str:
    """The plan as text for the runtime `to`; "moeplan" is the plan document itself.

    `model` is a profile, or anything that `load_profile` takes; without it the preset that the plan names, else as
    much of the model as the plan says. `model_path` stands in the text for where the model's files are.

    Every text is simulated by the runtime's own rules before it is returned. Raises TargetError when the runtime is
    unknown or cannot express the plan.

    >>> layer = {"attention": "cuda:0", "experts": {}}
    >>> export(Placement(embedding="cpu", head="cuda:0", layers=[layer]), to="moeplan").splitlines()[0]
    'schema: 1'
    """
    target = target_named(to)
    return target.write(plan, outline_of(plan, model), model_path)


def expressible(plan: Placement, *, model: Model | None = None) -> dict[str, str | None]:
    """For every target None where it can express the plan, else why not and what to do, in one line.

    >>> layer = {"attention": "cpu", "experts": {"cpu": "all"}}
    >>> plan = Placement(architecture="deepseek_v3", embedding="cpu", head="cpu", layers=[layer])
    >>> expressible(plan)["moeplan"], expressible(plan)["ktransformers"][:46]
    (None, 'ktransformers: layers 0 have their attention o')
    """
    outline = outline_of(plan, model)
    return {name: next(iter(_obstacles(name, plan, outline)), None) for name in TARGETS}


def _obstacles(name: str, plan: Placement, outline: Outline) -> list[str]:
    try:
        return TARGETS[name].obstacles(plan, outline)
    except TargetError as problem:
        return [str(problem)]


def outline_of(plan: Placement, model: Model | None = None) -> Outline:
    """The outline of the plan's model. Raises TargetError where `model` is not the plan's."""
    if model is not None:
        outline = Outline.of_profile(load_profile(model))
        outline.check_plan(plan)
        return outline
    if plan.model is not None and (plan.model in profile_presets() or (is_allowed() and HubName.parse(plan.model))):
        outline = Outline.of_profile(load_profile(plan.model))
        if plan.architecture in (None, outline.architecture) and _fits(outline, plan):
            return outline
    return Outline.of_plan(plan)


def _fits(outline: Outline, plan: Placement) -> bool:
    try:
        outline.check_plan(plan)
    except TargetError:
        return False
    return True
