r"""A plan as a command line of llama.cpp, and such a command line, or llama-fit-params' output, as a plan.

Layers go to GPUs by `-ngl` (how many slots, the output being the last) and `-ts` (how many each GPU gets); experts that
are elsewhere than their layer by one pattern a device in `-ot`. `-fit off` keeps llama.cpp from changing any of it.

>>> layers = [{"attention": "cuda:0", "experts": {"cpu": "all"}}, {"attention": "cuda:1", "experts": {"cuda:1": "all"}}]
>>> plan = Placement(architecture="mixtral", embedding="cpu", head="cuda:1", layers=layers)
>>> print(write(plan, Outline.of_plan(plan)), end="")
llama-server -m MODEL.gguf \
  -fit off -ngl 3 -sm layer -ts 1,2 \
  -ot '^blk\.0\.ffn_(?:up|down|gate_up|gate)_(?:ch)?exps\.=CPU' \
  -c 640 -np 1 -ub 512 -fa on
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from profiles.device_names import for_llama_cpp, gpu_index, gpu_type, in_order, is_gpu, of_llama_cpp
from profiles.document import one_line
from profiles.errors import TargetError
from profiles.placement import LayerPlacement, Placement, ranges
from profiles.workload import Workload
from runtime_adapter.targets.llama_cpp.command import command_line, located, parse_command
from runtime_adapter.targets.llama_cpp.loader import Loaded, load
from runtime_adapter.targets.llama_cpp.notes import notes_on
from runtime_adapter.targets.llama_cpp.settings import KV_NAMES, read_settings
from runtime_adapter.targets.llama_cpp.tensors import blocks_of
from runtime_adapter.targets.numbers_regex import one_of
from runtime_adapter.targets.target import Outline

MOST_GPUS = 15
"""Shares that -ts takes: fewer than llama_max_devices(), which is 16."""
MOST_NOTES = 50
DEFAULT_BATCH = 2048
"""llama.cpp's -b, which a larger -ub has to raise."""


@dataclass(frozen=True)
class LlamaCpp:
    """llama.cpp, or with `ik` its fork ik_llama.cpp, as a target."""

    ik: bool = False

    @property
    def name(self) -> str:
        return "ik_llama.cpp" if self.ik else "llama.cpp"

    def obstacles(self, plan: Placement, outline: Outline) -> list[str]:
        """Why no command line can mean the plan, with the remedies: split experts, an embedding away from the CPU,
        attention that goes back to an earlier device, a head before the last layer, a cache type that is not known."""
        problems = (*self._obstacles_of_gpus(plan), *_obstacles(plan), *self._obstacles_of_head(plan))
        return [f"{self.name}: {problem}" for problem in problems]

    def _obstacles_of_gpus(self, plan: Placement) -> Iterator[str]:
        known = _runtime_names(plan)
        for name in sorted(filter(is_gpu, plan.devices - known.keys()), key=in_order):
            yield f"has no backend for {name}; use target torch"
        both = [word for word in known.values() if [*map(_read, known.values())].count(_read(word)) > 1]
        if both:
            yield f"would have GPUs called {' and '.join(both)}, of which no reader can tell that they are two; " + (
                "describe all with backend: vulkan, or none"
            )
        if self.ik and any(not runtime_name.startswith("CUDA") for runtime_name in known.values()):
            yield "is kept up for CUDA and CPUs only, and the plan's GPUs are others; export to llama.cpp"

    def _obstacles_of_head(self, plan: Placement) -> Iterator[str]:
        rank = _ranks(plan)
        last = plan.layers[-1].attention
        on_cpu = [i for i, layer in enumerate(plan.layers) if layer.attention == "cpu"]
        if self.ik and on_cpu and plan.head != "cpu":
            yield (
                f"attention of layers {ranges(on_cpu)} is on cpu and the head on {plan.head}, but its -ngl takes the "
                "head only after all layers; pin the head to cpu or all attention to GPUs"
            )
        elif rank[plan.head] < rank[last] and not (self.ik and plan.head == "cpu"):
            yield f"the head is on {plan.head}, but it is the last of the slots: pin it to {last} or a later GPU"

    def write(self, plan: Placement, outline: Outline, model_path: str | None = None) -> str:
        """The command, already checked: loaded as llama.cpp does, every tensor is where the plan says.

        Raises TargetError, in one line, for what llama.cpp cannot do; see `obstacles`.
        """
        outline.check_plan(plan)
        for problem in self.obstacles(plan, outline):
            raise TargetError(problem)
        off = [] if self.ik else ["-fit", "off"]
        attention = [] if self.ik else ["-fa", "on"]
        groups = [
            ["-m", model_path or "MODEL.gguf"],
            [*off, *_slots(plan, blocks_of(outline) - len(plan.layers))],
            _override(plan),
            [*_of_workload(plan), *attention, *_cache(plan)],
        ]
        text = command_line("llama-server", groups)
        self._check_written(text, plan, outline)
        return text

    def simulate(self, text: str, outline: Outline, where: str = "command") -> dict[str, str]:
        """The device of every tensor, as llama.cpp resolves the command. Raises TargetError for one that it would not
        take, or that leaves the placement to the memory free at the start."""
        with located(where):
            loaded = load(read_settings(parse_command(text), self.ik), outline, self.ik)
            return {tensor.name: loaded.device(tensor) for tensor in loaded.tensors}

    def read(self, text: str, outline: Outline, where: str = "command") -> Placement:
        """The placement that the command means; what is odd about it is in the placement's `notes`.

        Raises TargetError for a command that cannot be read, and for what a placement cannot say: experts parted by
        projection, other tensors away from their layer's device.
        """
        with located(where):
            settings = read_settings(parse_command(text), self.ik)
            loaded = load(settings, outline, self.ik)
            return Placement(
                model=outline.model,
                architecture=outline.architecture,
                kv_quant=settings.kv_quant,
                target="llama.cpp",
                backends=settings.backends or None,
                embedding=loaded.device_of("token_embd.weight"),
                head=loaded.device_of("output.weight"),
                layers=_layers(loaded),
                workload=settings.workload,
                notes=_first((*settings.notes, *notes_on(loaded))) or None,
            )

    def _check_written(self, text: str, plan: Placement, outline: Outline) -> None:
        """Read our own text back; a difference is a bug of ours, and must not reach a machine."""
        found = self.read(text, outline, "the command written")
        if plan.backends:  # Vulkan's names do not say whose GPUs they are
            found = found.renamed({_read(word): name for name, word in _runtime_names(plan).items()})
        if _meaning(found) != _meaning(plan) or found.notes:
            problem = "the command written does not mean the plan; this is a bug in moeplan, report it"
            raise TargetError(f"{self.name}: {problem}")


def _read(word: str) -> str:
    """The GPU that is read where a command says `word`."""
    found = of_llama_cpp(word)
    assert found is not None
    return found[0]


def _meaning(plan: Placement) -> tuple[object, ...]:
    """Where blocks are, and what drives the GPUs that have any."""
    backends = {name: backend for name, backend in (plan.backends or {}).items() if name in plan.devices}
    return plan.layers, plan.embedding, plan.head, backends


LLAMA_CPP = LlamaCpp()
IK_LLAMA_CPP = LlamaCpp(ik=True)
obstacles, write, simulate, read = LLAMA_CPP.obstacles, LLAMA_CPP.write, LLAMA_CPP.simulate, LLAMA_CPP.read


def _first(notes: Sequence[str]) -> tuple[str, ...]:
    """The notes, of very many only the first."""
    more = (f"and {len(notes) - MOST_NOTES} notes more",) if len(notes) > MOST_NOTES else ()
    return (*map(one_line, notes[:MOST_NOTES]), *more)


def _gpus(plan: Placement) -> list[str]:
    """GPUs up to the last of each type that the plan knows of, in their order."""
    known = filter(is_gpu, {*plan.devices, *(plan.memory or ())})
    last = {gpu_type(name): name for name in sorted(known, key=in_order)}
    return [f"{kind}:{n}" for kind, name in last.items() for n in range(gpu_index(name) + 1)]


def _ranks(plan: Placement) -> dict[str, int]:
    """The place of each device in the order of slots: the CPU's come first, then the GPUs' by index."""
    return {"cpu": -1, **{name: place for place, name in enumerate(_gpus(plan))}}


def _runtime_names(plan: Placement) -> dict[str, str]:
    return for_llama_cpp(_gpus(plan), plan.backends or {})


def _obstacles(plan: Placement) -> Iterator[str]:
    split = [i for i, layer in enumerate(plan.layers) if len(layer.experts) > 1]
    order, rank = [layer.attention for layer in plan.layers], _ranks(plan)
    back = [i for i, (a, b) in enumerate(pairwise(order), 1) if rank[b] < rank[a]]
    gpus = max(rank[device] for device in (*order, plan.head)) + 1
    if split:
        yield (
            f"layers {ranges(split)} split their experts over devices, but a layer's experts are one tensor each for "
            "gate, up and down; solve with granularity 'module'"
        )
    if plan.embedding != "cpu":
        yield f"the embedding is on {plan.embedding}, but tokens are looked up on the CPU; pin it to cpu"
    if back:
        yield (
            f"attention of layers {ranges(back)} goes back to an earlier device ({order[back[0]]} after "
            f"{order[back[0] - 1]}), but layers go to cpu, {', '.join(_gpus(plan)[:2])} … in this order; solve for "
            "target llama.cpp"
        )
    if gpus > MOST_GPUS:
        yield f"-ts takes {MOST_GPUS} GPUs, and layers go up to {_gpus(plan)[gpus - 1]}; solve for fewer"
    if plan.kv_quant is not None and plan.kv_quant not in KV_NAMES:
        yield f"kv_quant {plan.kv_quant} is no type of its cache; use one of {', '.join(KV_NAMES)}"


def _slots(plan: Placement, extra: int) -> list[str]:
    """-ngl and -ts, and -dev where GPUs are not CUDA's. Blocks for multi-token prediction stand between the layers and
    the output and go with it, or with the last layer where that is on a GPU and the head is not."""
    order, rank = [layer.attention for layer in plan.layers], _ranks(plan)
    slots = [*order, *[max(order[-1], plan.head, key=rank.__getitem__)] * extra, plan.head]
    ranks = [rank[device] for device in slots if device != "cpu"]
    if not ranks:
        return ["-ngl", "0"]
    shares = ",".join(str(ranks.count(gpu)) for gpu in range(max(ranks) + 1))
    names = list(_runtime_names(plan).values())
    others = [] if all(name.startswith("CUDA") for name in names) else ["-dev", ",".join(names[: max(ranks) + 1])]
    return [*others, "-ngl", str(len(ranks)), "-sm", "layer", "-ts", shares]


def _override(plan: Placement) -> list[str]:
    """-ot with one pattern for each device that has experts of layers on other devices."""
    guests: dict[str, list[int]] = defaultdict(list)
    for index, layer in enumerate(plan.layers):
        if layer.experts_device not in (None, layer.attention):
            guests[str(layer.experts_device)].append(index)
    names = {"cpu": "CPU", **_runtime_names(plan)}
    order = sorted(guests, key=_ranks(plan).__getitem__)
    rules = [f"{experts_pattern(guests[device])}={names[device]}" for device in order]
    return ["-ot", ",".join(rules)] if rules else []


def experts_pattern(layers: Sequence[int]) -> str:
    r"""Finds the routed experts of exactly these layers, and neither routers nor shared experts.

    >>> experts_pattern([1, 2, 10])
    '^blk\\.(?:[1-2]|10)\\.ffn_(?:up|down|gate_up|gate)_(?:ch)?exps\\.'
    """
    return rf"^blk\.{one_of(layers)}\.ffn_(?:up|down|gate_up|gate)_(?:ch)?exps\."


def _of_workload(plan: Placement) -> list[str]:
    """The cache for all sequences together, and the tokens of one step: without -c it would be the model's longest."""
    work = plan.workload or Workload()
    sequences = work.batch_size
    tokens = work.prefill_chunk * sequences
    larger = ["-b", str(tokens)] if tokens > DEFAULT_BATCH else []
    return ["-c", str(work.context_tokens * sequences), "-np", str(sequences), *larger, "-ub", str(tokens)]


def _cache(plan: Placement) -> list[str]:
    if plan.kv_quant is None:
        return []
    kind = KV_NAMES[plan.kv_quant]
    return ["-ctk", kind, "-ctv", kind]


def _layers(loaded: Loaded) -> tuple[LayerPlacement, ...]:
    """Raises TargetError for the first layer that no placement can say, with the override to blame."""
    experts: list[dict[str, str]] = [{} for _ in range(loaded.layers)]
    for tensor in loaded.tensors:
        home, device = loaded.home(tensor), loaded.device(tensor)
        if tensor.part == "experts" and tensor.is_matrix:
            experts[tensor.index][tensor.name] = device
        elif tensor.part == "attention" and device != home:
            override = loaded.moved[tensor.name]
            raise TargetError(
                f"line {override.line}: {override.said} puts {tensor.name} on {device}, away from its layer's cache on "
                f"{home}, which no placement says; end the pattern in _exps, or move layers with -ngl and -ts"
            )
    for index, devices in enumerate(experts):
        if len(set(devices.values())) > 1:
            raise TargetError(_parted(loaded, index, devices))
    return tuple(
        LayerPlacement(attention=slot, experts={next(iter(devices.values())): "all"} if devices else {})
        for slot, devices in zip(loaded.slots, experts, strict=False)
    )


def _parted(loaded: Loaded, index: int, devices: dict[str, str]) -> str:
    places = ", ".join(f"{name.split('.')[2]} on {device}" for name, device in devices.items())
    override = next(loaded.moved[name] for name in devices if name in loaded.moved)
    return (
        f"line {override.line}: {override.said} parts the experts of layer {index} by projection ({places}), which no "
        "placement says; match all with ffn_(up|down|gate_up|gate)_exps"
    )
