"""What every target is: a runtime's way to say where blocks go, in four functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, Self

from profiles.device_names import default_backend, in_order, is_gpu
from profiles.errors import TargetError
from profiles.model import ModelProfile
from profiles.placement import Placement


@dataclass(frozen=True)
class Outline:
    """What the names of a model's modules and tensors depend on.

    `architecture` is Hugging Face's `model_type`; `experts` has the number of experts of each layer: 0 where the layer
    is dense, None where that number is not known. `mtp_layers` is how many blocks for multi-token prediction come after
    the layers of the model's GGUF file, None where that is not known.

    >>> layers = [{"attention": "cuda:0", "experts": {}}, {"attention": "cuda:0", "experts": {"cpu": "all"}}]
    >>> Outline.of_plan(Placement(embedding="cpu", head="cuda:0", layers=layers)).experts
    (0, None)
    """

    model: str | None
    architecture: str | None
    experts: tuple[int | None, ...]
    mtp_layers: int | None = None

    @classmethod
    def of_profile(cls, profile: ModelProfile) -> Self:
        """The outline of a known model."""
        counts = tuple(0 if layer.experts is None else layer.experts.count for layer in profile.layers)
        return cls(profile.model, profile.architecture, counts, profile.mtp_layers)

    @classmethod
    def of_plan(cls, plan: Placement) -> Self:
        """As much as a plan itself says: how many experts there are only where some layer divides them."""
        listed = [sum(len(part) for part in layer.experts.values() if part != "all") for layer in plan.layers]
        count = max(listed, default=0) or None
        return cls(plan.model, plan.architecture, tuple(count if layer.experts else 0 for layer in plan.layers))

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Layers that have experts."""
        return tuple(i for i, count in enumerate(self.experts) if count != 0)

    def check_plan(self, plan: Placement) -> None:
        """Raise TargetError unless the plan is for a model of this outline."""
        if len(plan.layers) != len(self.experts):
            raise TargetError(
                f"the plan has {len(plan.layers)} layers, {self.model or 'the model'} has {len(self.experts)}; "
                "name the model that the plan was made for"
            )
        for index, (layer, count) in enumerate(zip(plan.layers, self.experts, strict=True)):
            if bool(layer.experts) != (count != 0):
                has, places = ("no experts", "some") if count == 0 else ("experts", "none")
                raise TargetError(f"layer {index} has {has}, but the plan places {places}; mend the plan")


def not_cuda(plan: Placement, target: str) -> Iterator[str]:
    """The obstacle of a plan with GPUs that CUDA does not drive, for a target whose operators are CUDA's."""
    backends = plan.backends or {}
    others = [d for d in plan.devices if is_gpu(d) and backends.get(d, default_backend(d)) != "cuda"]
    if others:
        found = ", ".join(f"{d} ({backends.get(d, default_backend(d))})" for d in sorted(others, key=in_order))
        yield f"{target}: runs on CUDA GPUs, not on {found}; export to llama.cpp, or let moeplan.apply place the model"


class Target(Protocol):
    """A runtime: what it can express, its own text for a plan, and what such a text means.

    Every text is simulated before it is returned: the realised placement is the plan, or TargetError is raised.
    """

    def obstacles(self, plan: Placement, outline: Outline, /) -> list[str]:
        """Why the runtime cannot express the plan, one line each with the remedy; empty when it can."""
        ...

    def write(self, plan: Placement, outline: Outline, model_path: str | None, /) -> str:
        """The runtime's text, ready to copy; `model_path` is where the model is, a placeholder stands for None.

        Raises TargetError with the first obstacle.
        """
        ...

    def simulate(self, text: str, outline: Outline, where: str, /) -> Mapping[str, str]:
        """The device of every module or tensor that holds weights, by the runtime's own rules of resolution.

        `where` (a file name) starts the message of any TargetError.
        """
        ...

    def read(self, text: str, outline: Outline, where: str, /) -> Placement:
        """The placement that the text means. Raises TargetError for what cannot be read, or said as a placement."""
        ...
