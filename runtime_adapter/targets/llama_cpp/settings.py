"""What a llama.cpp command says about where weights go, checked, and with what no placement can say refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from profiles.device_names import Backend, default_backend, gpu_index, gpu_type, of_llama_cpp
from profiles.document import short
from profiles.errors import ProfileError, TargetError
from profiles.formats.kv_cache import KV_TYPES
from profiles.workload import Workload
from runtime_adapter.targets.llama_cpp.command import Command, Option
from runtime_adapter.targets.llama_cpp.patterns import Pattern

EXPERTS_OF_ALL = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""What --cpu-moe and, behind a layer's `blk\\.N`, --n-cpu-moe search for (llama.cpp, common/common.h)."""
MAX_OVERRIDES = 1500
MOST_SHOWN = 60
KV_NAMES = {kind: {"fp16": "f16", "fp32": "f32"}.get(kind, kind) for kind in KV_TYPES if kind != "fp8"}
"""Our name of a cache type -> llama.cpp's."""
_HOST = re.compile(r"CPU|(?:CUDA|ROCm|HIP|Vulkan|SYCL|MUSA|CANN)_Host")
_MOVES = {
    "-nkvo": "keeps the cache in RAM, away from its layers' attention",
    "--rpc": "puts layers on other computers",
}
_TAKES = {
    "-md": "a draft model takes memory that is not counted here",
    "--mmproj": "a projector for images takes memory that is not counted here",
}
Split = tuple[tuple[str, ...], tuple[float, ...]]
"""The devices that layers go to, and the share of each."""


@dataclass(frozen=True)
class Override:
    """One pattern and the device that it sends tensors to; `said` is how the user put it, for messages."""

    pattern: Pattern
    device: str
    said: str
    line: int = 0
    from_n_cpu_moe: bool = False


@dataclass(frozen=True)
class Settings:
    """`devices` are those that layers go to, in their order, and `shares` what each gets of them. `layers` is -ngl,
    None for all. `on_cpu` is ik_llama.cpp's count of layers whose experts go to the CPU, None elsewhere. `backends` has
    GPUs that are not driven as their names would have it."""

    layers: int | None
    devices: tuple[str, ...]
    shares: tuple[float, ...]
    overrides: tuple[Override, ...]
    on_cpu: int | None
    kv_quant: str | None
    workload: Workload | None
    notes: tuple[str, ...]
    backends: Mapping[str, Backend] = field(default_factory=dict)


def read_settings(command: Command, ik: bool) -> Settings:
    """The settings of a command of llama.cpp, or with `ik` of ik_llama.cpp. Raises TargetError, with the line."""
    notes = list(command.notes)
    for option in command.options:
        if option.name in _MOVES:
            problem = f"{option.name} {_MOVES[option.name]}, which no placement says; drop it"
            raise TargetError(f"line {option.line}: {problem}")
        if option.name in _TAKES:
            notes.append(_TAKES[option.name])
    overrides, on_cpu = _overrides(command, ik)
    layers = _layers(command, ik, bool(overrides) or on_cpu is not None, notes)
    devices, shares = (("cuda:0",), (1.0,)) if layers == 0 else _split(command, overrides, notes)
    kv_quant, workload = _kv_quant(command, notes), _workload(command)
    backends = _backends(command)
    return Settings(layers, devices, shares, overrides, on_cpu, kv_quant, workload, tuple(notes), backends)


def _whole(option: Option, least: int = 0) -> int:
    try:
        number = int(str(option.value)[:20])
    except ValueError:
        number = least - 1
    if number < least or abs(number) > 10**9:
        problem = f"{option.name} {short(option.value)}: not a whole number; use one >= {least}"
        raise TargetError(f"line {option.line}: {problem}")
    return number


def _layers(command: Command, ik: bool, overrides: bool, notes: list[str]) -> int | None:
    """-ngl; None where all layers go to the GPUs. Without it --fit chooses, unless other options keep it from it."""
    option, fit = command.last("-ngl"), command.last("-fit")
    off = fit is not None and fit.value in ("off", "0", "false")
    if ik and fit is not None and fit.value is not None:
        raise TargetError(f"line {fit.line}: ik_llama.cpp's --fit takes no value; drop {'it' if off else fit.value}")
    fits = fit is not None if ik else not (off or command.is_bench)
    by_hand = overrides or command.last("-ts") or (option is not None and option.value != "auto")
    if fits and (ik or not by_hand):
        found_out = "write what its log says with -ngl, -ts and -ot" if ik else "give what llama-fit-params prints"
        raise TargetError(f"it is --fit that places here, by the memory free at the start; {found_out}")
    if option is None and ik:
        raise TargetError("no -ngl: how many layers go to the GPUs depends on the build; add it, such as -ngl 99")
    if fits and not ik and fit is None and command.program is not None:
        notes.append("--fit is on unless it is turned off: add -fit off, so that nothing else is changed at the start")
    if option is None or option.value in ("auto", "all"):
        return None
    number = _whole(option, least=-2)
    return None if number < 0 else number


def _split(command: Command, overrides: Sequence[Override], notes: list[str]) -> Split:
    """The devices of layers in order, and their shares."""
    devices, shares = _devices(command), _shares(command)
    mode = command.last("-sm")
    if mode is not None and mode.value not in ("layer", "none"):
        problem = f"-sm {short(mode.value)} divides each layer, which no placement says; use layer"
        raise TargetError(f"line {mode.line}: {problem}")
    if mode is not None and mode.value == "none":
        main = command.last("-mg")
        index = _whole(main) if main else 0
        if devices and index >= len(devices):
            raise TargetError(f"-mg {index}: there are {len(devices)} devices; name one of them")
        return (devices[index] if devices else f"cuda:{index}",), (1.0,)
    if shares is not None and any(shares):
        devices = devices or tuple(f"cuda:{i}" for i in range(len(shares)))
        if any(shares[len(devices) :]):
            raise TargetError(f"-ts has {len(shares)} shares for {len(devices)} devices; give one for each")
        return devices, (*shares, *[0.0] * (len(devices) - len(shares)))[: len(devices)]
    named = {override.device for override in overrides} - {"cpu"}
    if len(devices or ()) > 1 or (devices is None and named - {"cuda:0"}):
        raise TargetError(
            "without -ts layers are divided by the memory free at the start, which is not known here; "
            "add -ts with the number of layers of each GPU, the output counted with the last"
        )
    if devices is None:
        notes.append("read for a machine with one GPU: more would divide the layers by free memory; -ts says how")
    return devices or ("cuda:0",), (1.0,)


def _devices(command: Command) -> tuple[str, ...] | None:
    """The devices that -dev or CUDA_VISIBLE_DEVICES names, in order; None where neither does."""
    option = command.last("-dev")
    names = _device_names(command)
    if option is None:
        visible = command.environment.get("CUDA_VISIBLE_DEVICES")
        return None if visible is None else tuple(names(f"CUDA{i}", 0) for i in range(len(visible.split(","))))
    if option.value == "none":
        raise TargetError(f"line {option.line}: -dev none: everything is on the CPU; write -ngl 0")
    return tuple(names(name, option.line) for name in str(option.value).split(","))


def _device_names(command: Command) -> Callable[[str, int], str]:
    """Our name of a buffer or device of llama.cpp's: CUDA_VISIBLE_DEVICES counts them anew."""
    visible = command.environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not re.fullmatch(r"[0-9]{1,2}(,[0-9]{1,2}){0,63}", visible):
        raise TargetError(f"CUDA_VISIBLE_DEVICES={short(visible)}: not a list of numbers; write e.g. 0,1")
    order = None if visible is None else [int(part) for part in visible.split(",")]

    def device(name: str, line: int) -> str:
        if _HOST.fullmatch(name):
            return "cpu"
        found = of_llama_cpp(name)
        recounted = order if found is not None and gpu_type(found[0]) == "cuda" else None
        if found is None or (recounted is not None and gpu_index(found[0]) >= len(recounted)):
            known = "CUDA0, ROCm0, SYCL0, Vulkan0, MTL0 …" if found is None else f"CUDA0 … CUDA{len(order or ()) - 1}"
            raise TargetError(f"line {line}: {short(name)} is no device; use one of CPU, {known}")
        return found[0] if recounted is None else f"cuda:{recounted[gpu_index(found[0])]}"

    return device


def _backends(command: Command) -> dict[str, Backend]:
    """Backends other than those that the GPUs' names stand for, as far as the command names GPUs."""
    names = _device_names(command)
    said = [name for option in command.options if option.name == "-dev" for name in str(option.value).split(",")]
    for option in command.options:
        if option.name == "-ot":
            said += [piece.rpartition("=")[2] for piece in re.split("[,;]", str(option.value))]
    found: dict[str, Backend] = {}
    for name in said:
        known = of_llama_cpp(name)
        if known is not None and found.setdefault(names(name, 0), known[1]) != known[1]:
            problem = f"{short(name)} and a device of another backend have one number, and may be one GPU"
            raise TargetError(f"{problem}; use one backend for all")
    return {name: backend for name, backend in found.items() if backend != default_backend(name)}


def _shares(command: Command) -> tuple[float, ...] | None:
    option = command.last("-ts")
    if option is None:
        return None
    parts = re.split(r"/+" if command.is_bench else r"[,/]+", str(option.value))
    try:
        shares = tuple(float(part) for part in parts)
    except ValueError:
        shares = (-1.0,)
    if not all(0 <= share < 1e9 for share in shares):
        raise TargetError(f"line {option.line}: -ts {short(option.value)}: not a list of shares; write e.g. 20,11")
    return shares


def _overrides(command: Command, ik: bool) -> tuple[tuple[Override, ...], int | None]:
    """The overrides in the order in which they are tried, and ik_llama.cpp's own count, which comes after all."""
    found: list[Override] = []
    on_cpu = None
    for option in command.options:
        if option.name == "-ot":
            found += _of_option(option, command, MAX_OVERRIDES - len(found))
        elif option.name in ("-cmoe", "-ncmoe") and ik:
            on_cpu = 999 if option.name == "-cmoe" else _whole(option)
        elif option.name == "-cmoe":
            found.append(Override(Pattern(EXPERTS_OF_ALL), "cpu", "-cmoe", option.line, from_n_cpu_moe=True))
        elif option.name == "-ncmoe":
            found += n_cpu_moe_overrides(range(min(_whole(option), 1000)), option.line)
    return tuple(found), on_cpu


def n_cpu_moe_overrides(layers: Sequence[int], line: int) -> Iterator[Override]:
    """What -ncmoe stands for: a pattern for each of these layers."""
    for i in layers:
        yield Override(Pattern(rf"blk\.{i}{EXPERTS_OF_ALL}"), "cpu", f"-ncmoe, layer {i}", line, from_n_cpu_moe=True)


def _of_option(option: Option, command: Command, most: int) -> Iterator[Override]:
    """-ot's value: pieces between commas, each cut at its first `=`. llama-bench has `;`, and runs between commas."""
    value, device = str(option.value), _device_names(command)
    if command.is_bench and "," in value:
        raise TargetError(f"line {option.line}: -ot lists several runs of llama-bench, divided by commas; keep one")
    pieces = value.split(";" if command.is_bench else ",")
    if len(pieces) > most:
        raise TargetError(
            f"line {option.line}: more than {MAX_OVERRIDES} overrides; write one pattern for several layers"
        )
    for piece in pieces:
        pattern, equals, buffer = piece.partition("=")
        said = f"-ot `{piece if len(piece) <= MOST_SHOWN else piece[:MOST_SHOWN] + '…'}`"
        at = f"line {option.line}: {said}"
        if not equals:
            raise TargetError(f"{at}: no `=`, after which the buffer's name stands; no pattern may have a comma")
        try:
            yield Override(Pattern(pattern), device(buffer, option.line), said, option.line)
        except TargetError as problem:
            raise TargetError(f"{at}: {str(problem).removeprefix(f'line {option.line}: ')}") from None


def _kv_quant(command: Command, notes: list[str]) -> str | None:
    """The cache's type where keys and values have the same; a note where they have not."""
    kinds = {"f16": "fp16", "f32": "fp32"}
    said = [option.value for name in ("-ctk", "-ctv") if (option := command.last(name)) is not None]
    if not said:
        return None
    if len(said) == 2 and said[0] == said[1] and kinds.get(str(said[0]), said[0]) in KV_TYPES:
        return kinds.get(str(said[0]), said[0])
    notes.append(f"the cache's types ({', '.join(map(short, said))}) are not one that is counted here; give kv_quant")
    return None


def _workload(command: Command) -> Workload | None:
    """What -c and -ub say of it; None where there is no -c, or too small a one for the usual request."""
    context, chunk = command.last("-c"), command.last("-ub")
    if context is None or _whole(context) == 0:
        return None
    try:
        return Workload(context_tokens=_whole(context), prefill_chunk=_whole(chunk, 1) if chunk else 512)
    except ProfileError:
        return None
