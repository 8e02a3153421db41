"""A phrase that was read as a machine: devices, pools, links, and notes on what was assumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from profiles.catalogue import CpuPart, GpuPart, find_cpu, machine_links
from profiles.hardware import Device, Hardware, Pool
from profiles.parts import Unified
from profiles.phrase.devices import cpu_device, cpu_notes, gpu_device, gpu_names, gpu_notes
from profiles.phrase.gpus import Gpus, with_memory
from profiles.phrase.host import Cpus, Options, Ram, ram_bandwidth, sockets_of
from profiles.phrase.text import MAX_GPUS, fail
from profiles.units import gb

DEFAULT_RAM_BYTES = 512 * 10**9
POOL = "unified"


@dataclass(frozen=True)
class _Host:
    """The CPU device and what it was made of."""

    device: Device
    part: CpuPart | None
    notes: tuple[str, ...]


def machine(phrase: str, groups: Sequence[Gpus], options: Options) -> Hardware:
    """The machine of these GPUs and options."""
    number = sum(group.count for group in groups)
    if number > MAX_GPUS:
        fail(phrase, f"has {number} GPUs; use at most {MAX_GPUS} in one machine")
    chip = _the_chip(phrase, groups)
    if chip is not None:
        chip = _with_pool(phrase, chip, options)
        groups = [chip, *(group for group in groups if group.part.unified is None)]
        options = _of_chip(phrase, chip, options)
    host = _host(phrase, groups, options, chip)
    parts = [group.part for group in groups for _ in range(group.count)]
    sizes = [_gpu_bytes(group) for group in groups for _ in range(group.count)]
    names = gpu_names(parts)
    gpus = [_gpu(phrase, *one, options.budget_bytes) for one in zip(names, parts, sizes, strict=True)]
    if options.nvlink and not any(part.nvlink for part in parts):
        fail(phrase, "link=nvlink, but none of its GPUs has NVLink; leave it out or use e.g. A100-80GB or RTX3090")
    if options.budget_bytes is not None and not gpus:
        fail(phrase, "budget is for GPUs and there are none; leave it out, or set ram")
    named: list[tuple[str, GpuPart | None]] = list(zip(names, parts, strict=True))
    pools = () if chip is None else (Pool(name=POOL, memory_bytes=chip.memory_bytes or 0),)
    notes = [note for group in groups for note in (*group.notes(), *gpu_notes(group.part), *_memory_notes(group))]
    notes += host.notes
    if options.budget_bytes is not None:
        notes.append(f"budget: {gb(options.budget_bytes)} of each GPU may be used, driver and libraries included")
    return Hardware(
        name=phrase,
        source="hardware phrase; speeds from moeplan's catalogue",
        notes=tuple(dict.fromkeys(notes)),
        devices=(*gpus, host.device),
        pools=pools,
        links=tuple(machine_links(named, host.part, options.host_bytes_per_s, options.nvlink)),
    )


def _gpu(phrase: str, name: str, part: GpuPart, memory_bytes: int, budget_bytes: int | None) -> Device:
    if budget_bytes is not None and budget_bytes > memory_bytes:
        fail(phrase, f"budget of {budget_bytes} bytes is too much, {part.name} has {memory_bytes}; lower it")
    device = gpu_device(name, part, memory_bytes).replace(budget_bytes=budget_bytes)
    return device.replace(pool=POOL) if part.unified is not None else device


def _gpu_bytes(group: Gpus) -> int:
    memory_bytes = group.memory_bytes or group.part.memory_bytes
    return memory_bytes if group.part.unified is None else group.part.unified.gpu_bytes(memory_bytes)


def _the_chip(phrase: str, groups: Sequence[Gpus]) -> Gpus | None:
    """The GPU that shares its memory with the CPU; a machine has one at most, though a phrase may name both halves."""
    chips = [group for group in groups if group.part.unified is not None]
    if not chips:
        return None
    first = chips[0]
    if any(chip.part != first.part or chip.count > 1 for chip in chips):
        several = " and ".join(dict.fromkeys(chip.part.name for chip in chips))
        fail(phrase, f"{several}: each is a machine with one memory for GPU and CPU; plan for one, 1x{first.part.name}")
    return max(chips, key=lambda chip: chip.memory_bytes or 0)


def _with_pool(phrase: str, chip: Gpus, options: Options) -> Gpus:
    """The chip with the memory it is said to have, in its name or as RAM; the size it is sold with if that is one."""
    said, ram = chip.memory_bytes, options.ram.ram_bytes if options.ram else None
    if said is not None and ram is not None and said != ram:
        fail(phrase, f"{chip.part.name} has one memory for GPU and CPU, not {gb(said)} and {gb(ram)}; keep one of them")
    if said is None and ram is None:
        sizes, name = _unified(chip.part).sizes, chip.part.name
        if len(sizes) > 1 and not name.endswith("GB"):
            forms = {size for part in (chip.part, *chip.others) for size in _unified(part).sizes}
            sold = ", ".join(f"{size / 1e9:g}" for size in sorted(forms))
            fail(phrase, f"{name} is sold with {sold} GB of memory; write which, e.g. {name}-{max(forms) / 1e9:g}GB")
        return replace(chip, memory_bytes=chip.part.memory_bytes)
    return with_memory(chip, said or ram or 0)


def _unified(part: GpuPart) -> Unified:
    assert part.unified is not None, part.name
    return part.unified


def _of_chip(phrase: str, chip: Gpus, options: Options) -> Options:
    """The options of a machine whose CPU is on the chip: nothing may be said that it has of its own."""
    own = find_cpu(_unified(chip.part).cpu)
    cpus = options.cpus
    if cpus is not None and own not in (cpus.part, *cpus.others):
        fail(phrase, f"{chip.part.name} has its own CPU; leave cpu={cpus.asked[:30]} out")
    sockets = sockets_of(options, phrase)
    speed = options.bandwidth_bytes_per_s is not None or (options.ram and options.ram.mega_transfers_per_s)
    if sockets > 1 or speed:
        what = "sockets" if sockets > 1 else "its memory's speed"
        fail(phrase, f"{chip.part.name} is one chip with its own memory; leave {what} out")
    if own is None:
        return options
    return replace(options, cpus=Cpus(own, 1, own.name), ram=Ram(chip.memory_bytes or 0))


def _host(phrase: str, groups: Sequence[Gpus], options: Options, chip: Gpus | None) -> _Host:
    options = _soldered(groups, options)
    part, sockets = options.cpus.part if options.cpus else None, sockets_of(options, phrase)
    device = cpu_device(part, options.ram.ram_bytes if options.ram else DEFAULT_RAM_BYTES, sockets)
    notes = cpu_notes(part, sockets)
    if options.cpus is not None and options.cpus.others and chip is None:
        others = " or ".join(other.name for other in options.cpus.others)
        notes.append(f"{options.cpus.asked[:60]}: taken for {options.cpus.part.name}, not for {others}")
    if options.ram is None:
        notes.append(f"RAM is not stated: {gb(DEFAULT_RAM_BYTES)} are assumed; write ram=…")
    elif not options.ram.sure:
        notes.append(f"{options.ram.text}: taken for RAM; write ram={options.ram.text} to be sure")
    if chip is not None:
        return _Host(device.replace(pool=POOL), part, tuple(notes))
    rate, said = ram_bandwidth(options, sockets, phrase)
    if rate is not None:
        device = device.replace(bandwidth_bytes_per_s=rate)
    return _Host(device, part, (*notes, *said))


def _soldered(groups: Sequence[Gpus], options: Options) -> Options:
    """The options with the CPUs and the RAM that GPUs are soldered beside, where nothing else is said."""
    group = next((group for group in groups if group.part.beside is not None), None)
    beside = group.part.beside if group else None
    own = find_cpu(beside.cpu) if beside else None
    if group is None or beside is None or own is None:
        return options
    number = -(-sum(g.count for g in groups if g.part.beside == beside) // beside.gpus_per_cpu)
    if options.cpus is None:
        options = replace(options, cpus=Cpus(own, number, own.name))
    if options.ram is None:
        options = replace(options, ram=Ram((group.host_bytes or beside.memory_bytes) * number))
    return options


def _memory_notes(group: Gpus) -> list[str]:
    """What is assumed of memory that a GPU shares with, or has beside, the CPU's."""
    part, name = group.part, group.part.name
    if part.unified is not None:
        whole, share = group.memory_bytes or 0, _gpu_bytes(group)
        why = {
            "metal": "Metal's default, which sysctl iogpu.wired_limit_mb changes",
            "rocm": "assumed: the BIOS or the driver's GTT limit says how much",
            "cuda": "all of it",
        }.get(part.backend, "assumed")
        return [f"{name}: GPU and CPU share {gb(whole)}, counted once; the GPU may use {gb(share)} ({why})"]
    if part.beside is not None:
        own = f"{gb(part.beside.memory_bytes)} for every {part.beside.gpus_per_cpu} of them unless stated"
        return [f"{name}: beside a {part.beside.cpu} with memory of its own ({own}), reached over {part.host_link}"]
    return []
