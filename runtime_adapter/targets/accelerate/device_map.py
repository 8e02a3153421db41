"""A plan as a `device_map` of transformers 5 (in JSON), and such a map as a plan.

How a map is resolved (transformers `integrations/accelerate.py`, accelerate `big_modeling.py` and `hooks.py`):

- While loading, a tensor goes where the first matching key says, keys with more dots and then longer ones first. Keys
  are patterns, matched from the start of the name and not closed: "model.layers.1" also takes what layer 10 has no key
  for. Then accelerate wants a key for every tensor, unless all keys name one device.
- A module on "cpu" is not computed there: its weights are copied, at every pass, to the main GPU, the first of a set of
  the GPUs in the map, and computed on it. Without GPUs in the map everything is computed on the CPU.
- Each key's module moves its inputs to where it is computed, and leaves its outputs there. So a layer with a key of its
  own may be anywhere; in a layer in pieces nothing moves what its parts add up, so all of them, and the layer before,
  must be computed on one device.

>>> layers = [{"attention": "cuda:0", "experts": {"cuda:0": "all"}}, {"attention": "cpu", "experts": {"cpu": "all"}}]
>>> plan = Placement(architecture="mixtral", embedding="cuda:0", head="cuda:0", layers=layers)
>>> print(write(plan, Outline.of_plan(plan)))
{
  "model.embed_tokens": 0,
  "model.rotary_emb": 0,
  "model.layers.0": 0,
  "model.layers.1": "cpu",
  "model.norm": 0,
  "lm_head": 0
}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from profiles.device_names import gpu_index, gpu_type, is_gpu, on_machine
from profiles.document import one_line
from profiles.errors import TargetError
from profiles.placement import LayerPlacement, Placement, in_short
from runtime_adapter.targets.accelerate.modules import EMBEDDING, HEAD, NORM, ROTARY, Family, family_of
from runtime_adapter.targets.accelerate.simulator import key_over, keys_of, resolve
from runtime_adapter.targets.target import Outline


def obstacles(plan: Placement, outline: Outline) -> list[str]:
    """Why no device_map can mean the plan, with the remedies: an architecture that is unknown or missing, experts of
    one layer on several devices, or a layer in pieces that would be computed on several."""
    try:
        family_of(outline.architecture)
    except TargetError as problem:
        return [str(problem)]
    types = sorted({gpu_type(device) for device in plan.devices if is_gpu(device)})
    if len(types) > 1:
        kinds = f"GPUs of {len(types)} types ({', '.join(types)}), but a device_map's numbers mean those of one"
        return [f"accelerate: the plan has {kinds}; keep to one, or let moeplan.apply place a loaded model"]
    split = [i for i, layer in enumerate(plan.layers) if len(layer.experts) > 1]
    if split:
        return [
            f"accelerate: layers {in_short(split)} divide their experts over devices, but transformers keeps a layer's "
            "experts in one module; let moeplan.apply divide a loaded model's, or solve with granularity 'module'"
        ]
    return _torn(plan, [not _in_pieces(layer) for layer in plan.layers])


def _torn(plan: Placement, whole: Sequence[bool]) -> list[str]:
    """The obstacle of layers that are not `whole` (under one key) and would be computed on several devices."""
    main = main_device(_blocks(plan))
    torn = []
    before = main if plan.embedding == "cpu" else plan.embedding
    for index, layer in enumerate(plan.layers):
        computed_on = {main if device == "cpu" else device for device in (layer.attention, *layer.experts)}
        if not whole[index] and computed_on != {before}:
            torn.append(index)
        before = main if layer.attention == "cpu" else layer.attention
    problem = f"nothing moves inside or before such a layer, and what is on cpu is computed on {main}"
    remedy = "keep a layer in one place (target 'accelerate' does), or let moeplan.apply place a loaded model"
    return [f"accelerate: layers {in_short(torn)} are in pieces, but {problem}; {remedy}"] if torn else []


def _in_pieces(layer: LayerPlacement) -> bool:
    return bool(set(layer.experts) - {layer.attention})


def main_device(devices: Iterable[str]) -> str:
    """The device that computes what is on the CPU: the first of Python's set of the GPUs' numbers, as they come in the
    map. That is the GPU with the lowest number, if there are none above 7.

    >>> main_device(["cuda:3", "cpu", "cuda:1"])
    'cuda:1'
    """
    gpus = [device for device in devices if is_gpu(device)]
    numbers = {gpu_index(device) for device in gpus}
    return next((f"{gpu_type(gpus[0])}:{number}" for number in numbers), "cpu")


def write(plan: Placement, outline: Outline, model_path: str | None = None) -> str:
    """The device_map as JSON: whole layers where they are in one place, else the layer's parts.

    Load it with `AutoModelForCausalLM.from_pretrained(path, device_map=json.load(file))`. The model's path is not part
    of it. Raises TargetError, in one line, for what a map cannot mean; see `obstacles`.
    """
    for problem in obstacles(plan, outline):
        raise TargetError(problem)
    family = family_of(outline.architecture)
    text = json.dumps({key: _value(device) for key, device in _keys(plan, family)}, indent=2)
    found = read(text, outline, "the device_map written")
    if _blocks(found.renamed(on_machine(found.devices, plan.devices))) != _blocks(plan):
        raise TargetError("accelerate: the map written does not mean the plan; this is a bug in moeplan, report it")
    return text


def _blocks(plan: Placement) -> list[str]:
    """The device of each block."""
    layers = [device for layer in plan.layers for device in (layer.attention, *layer.experts)]
    return [plan.embedding, *layers, plan.head]


def _keys(plan: Placement, family: Family) -> Iterator[tuple[str, str]]:
    yield EMBEDDING, plan.embedding
    yield ROTARY, plan.layers[0].attention
    for index, layer in enumerate(plan.layers):
        if not _in_pieces(layer):
            yield f"model.layers.{index}", layer.attention
            continue
        *parts, experts = family.layer(index, moe=True)
        yield from ((part, layer.attention) for part in parts)
        yield experts, next(iter(layer.experts))
    yield NORM, plan.head
    yield HEAD, plan.head


def _value(device: str) -> int | str:
    """A GPU's number, which accelerate counts among those of the machine's only type; a Mac's has a word."""
    return gpu_type(device) if gpu_type(device) in ("cpu", "mps") else gpu_index(device)


def simulate(text: str, outline: Outline, where: str = "device_map") -> dict[str, str]:
    """The device of every module that holds weights, as transformers loads it and accelerate then finds it.

    Raises TargetError, with the line, for a key that names no module (such as those of transformers 4), a part of one,
    or what another key holds already; for "disk" and other values that are no device; and for a module without a key.
    """
    return resolve(keys_of(text, outline, where), outline, where)


def read(text: str, outline: Outline, where: str = "device_map") -> Placement:
    """The placement that a device_map means; what is on "cpu" is held there and computed on the main GPU.

    The final norm may be anywhere. Raises TargetError for a map that is not complete, or with which a pass would stop
    at tensors on different devices.
    """
    keys = keys_of(text, outline, where)
    devices = resolve(keys, outline, where)
    family = family_of(outline.architecture)
    layers = []
    for index, count in enumerate(outline.experts):
        parts = family.layer(index, moe=count != 0)
        *others, last = parts
        home = _one_device(devices, others if count != 0 else parts, where)
        layers.append(LayerPlacement(attention=home, experts={} if count == 0 else {devices[last]: "all"}))
    plan = Placement(
        model=outline.model,
        architecture=outline.architecture,
        target="accelerate",
        embedding=devices[EMBEDDING],
        head=devices[HEAD],
        layers=tuple(layers),
        notes=tuple(_notes(devices)) or None,
    )
    for problem in _torn(plan, [key_over(f"model.layers.{i}", keys) is not None for i in range(len(layers))]):
        raise TargetError(one_line(f"{where}: {problem}"))
    return plan


def _notes(devices: dict[str, str]) -> Iterator[str]:
    """What a reader of the map may not expect."""
    main = main_device(devices.values())
    if main != "cpu" and "cpu" in devices.values():
        yield f"what is on cpu is computed on {main}, its weights are copied there at every pass"
    if devices[NORM] != devices[HEAD]:
        yield f"{NORM} is on {devices[NORM]}, away from {HEAD}, and is counted with it"


def _one_device(devices: dict[str, str], parts: Iterable[str], where: str) -> str:
    """The device of a layer's parts other than its experts: they add up there, and nothing moves between them."""
    first, *others = parts
    for other in others:
        if devices[other] != devices[first]:
            raise TargetError(
                f"{where}: {other} is on {devices[other]}, {first} on {devices[first]}; "
                "keep all of a layer but its experts on one device"
            )
    return devices[first]
