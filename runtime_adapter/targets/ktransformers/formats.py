"""What the operators of a rules file make of the weights: bytes depend on them, not on the model alone.

`KExpertsMarlin` and `KLinearMarlin` pack 4 bits, `KLinearFP8` keeps 8, `KExpertsTorch`, `KLinearTorch` and modules that
no operator replaces have 16, whatever the GGUF file has. `KExpertsCPU` computes on the file's own blocks, unless its
`backend` packs tiles for AMX. A layer's attention counts as the widest of its linears.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from profiles.errors import ProfileError
from profiles.model import Layer, ModelProfile
from runtime_adapter.targets.ktransformers.reader import simulated
from runtime_adapter.targets.ktransformers.simulator import Resolved
from runtime_adapter.targets.target import Outline

WIDEST_FIRST = ("bf16", "fp8", "marlin")
BACKENDS = {"AMXInt8": "amx_int8", "AMXInt4": "amx_int4", "AMXBF16": "bf16"}
_SPARED = ("kv_b_proj", "shared_expert_gate")


@dataclass(frozen=True)
class Formats:
    """Weight formats on GPUs: one a layer for attention, one a layer for experts (None: on the CPU, or dense), the
    head's; and that of experts on the CPU, where the rules choose one."""

    attention: tuple[str, ...]
    experts: tuple[str | None, ...]
    head: str
    on_cpu: str | None

    @property
    def gpu_experts(self) -> str:
        """The widest format of experts on GPUs; KT's usual one where none are."""
        return _widest(found for found in self.experts if found) or "marlin"


def weight_formats(text: str, outline: Outline, where: str = "rules") -> Formats:
    """The formats of a rules file. Raises TargetError as reading it does."""
    _, resolved = simulated(text, outline, where)
    linears: dict[int, list[str]] = {index: [] for index in range(len(outline.experts))}
    experts: dict[int, str] = {}
    backends = set()
    for name, found in resolved.items():
        layer, part = found.module.layer, found.module.part
        if layer is None or name.endswith(_SPARED):
            continue
        if part == "linear":
            linears[layer].append(_format(found))
        elif part == "experts" and found.device != "cpu":
            experts[layer] = _format(found)
        elif part == "experts":
            backends.add(BACKENDS.get(str(found.kwargs.get("backend"))))
    return Formats(
        attention=tuple(_widest(found) or "bf16" for found in linears.values()),
        experts=tuple(experts.get(index) for index in linears),
        head=_format(resolved["lm_head"]),
        on_cpu=backends.pop() if len(backends) == 1 else None,
    )


def _format(found: Resolved) -> str:
    operator = str(found.kwargs.get("generate_op", found.kwargs.get("generate_mlp_type", "")))
    return "marlin" if "Marlin" in operator else "fp8" if "FP8" in operator else "bf16"


def _widest(formats: Iterable[str]) -> str | None:
    return min(formats, key=WIDEST_FIRST.index, default=None)


def as_loaded(base: ModelProfile, formats: Formats, load: Callable[[str], ModelProfile]) -> ModelProfile:
    """The profile with every block as its operator stores it; `load` gives the model in another weight format.

    `base` says how the CPU's weights are stored. It is returned as it is, but for a note, where its bytes are fixed.
    """
    on_cpu = formats.on_cpu or (base.quant or "").rpartition("cpu=")[2]
    wanted = {*formats.attention, formats.gpu_experts, formats.head, *(f for f in formats.experts if f)}
    try:
        models = {gpu: load(f"gpu={gpu},cpu={on_cpu}") for gpu in sorted(wanted)}
    except ProfileError:
        note = "bytes by operator are not counted, as this model's are fixed; name its preset or config.json for that"
        return base.replace(notes=(*base.notes, note))
    layers = [_layer(models, formats, index) for index in range(len(base.layers))]
    head = models[formats.head]
    attention = ", ".join(dict.fromkeys(formats.attention))
    note = f"bytes by operator: on GPUs attention {attention}, experts {formats.gpu_experts}; on the CPU {on_cpu}"
    if formats.gpu_experts == "bf16":
        note += f"; KExpertsMarlin's take about a quarter: for a plan with them, --quant gpu=marlin,cpu={on_cpu}"
    return base.replace(
        layers=layers,
        head=head.head,
        tied_bytes=min(base.tied_bytes, head.tied_bytes),
        quant=f"gpu={formats.gpu_experts},cpu={on_cpu}",
        notes=(*base.notes, note),
    )


def _layer(models: Mapping[str, ModelProfile], formats: Formats, index: int) -> Layer:
    experts = models[formats.experts[index] or formats.gpu_experts].layers[index].experts
    return Layer(attention=models[formats.attention[index]].layers[index].attention, experts=experts)
