"""The machine of a scenario: other GPUs or another number of them, other memory, links or RAM."""

from __future__ import annotations

import re
from itertools import combinations

from profiles.catalogue import find_cpu, find_gpu, nvlinks
from profiles.device_names import counted_on, in_order
from profiles.document import short
from profiles.errors import HardwareError
from profiles.hardware import Device, Hardware, Link
from profiles.read_phrase import MAX_GPUS, read_phrase
from profiles.units import gb


def vary(
    hardware: Hardware,
    *,
    gpus: int | None = None,
    gpu: str | None = None,
    memory: int | None = None,
    link: float | None = None,
    ram_bandwidth: float | None = None,
) -> Hardware:
    """The machine with these changes; its name says which, as a phrase where one means this very machine.

    `gpus`: so many of its first kind of GPU and no others; links among those that it has are kept, GPUs beyond those
    get the links that the first has. `gpu`: another kind by its name in the catalogue, as many as the machine has
    unless `gpus` says otherwise, on the links that the catalogue knows for it beside this CPU. `memory`: bytes of every
    GPU. `link`: bytes/s between every GPU and the CPU, as `link=` of a phrase; what joins GPUs directly stays as it is.
    `ram_bandwidth`: bytes/s of the CPU's memory, the peak.

    >>> from profiles import load_hardware
    >>> vary(load_hardware("2xL40-46GB,ram=256GB"), gpus=3).name
    '3xL40-46GB,ram=256GB'
    >>> machine = vary(load_hardware("2xL40-46GB"), gpus=3, link=50e9)
    >>> machine.name, [link.bandwidth_bytes_per_s for link in machine.links]
    ('2xL40-46GB, gpus=3, link=50 GB/s', [50000000000.0, 50000000000.0, 50000000000.0])
    """
    found = hardware
    if gpu is not None:
        found = _with_other_gpus(found, gpu, len(found.gpus) if gpus is None else gpus)
    elif gpus is not None:
        found = _with_gpus(found, gpus)
    if memory is not None:
        found = _with_memory(found, memory)
    if link is not None:
        links = [one.replace(bandwidth_bytes_per_s=link) if "cpu" in one.between else one for one in found.links]
        found = found.replace(links=tuple(links))
    if ram_bandwidth is not None:
        found = _with_devices(found, [found.cpu.replace(bandwidth_bytes_per_s=ram_bandwidth)])
    said = {
        "gpus": gpus,
        "gpu": gpu,
        "memory": memory and gb(memory),
        "link": link and f"{link / 1e9:g} GB/s",
        "ram_bandwidth": ram_bandwidth and f"{ram_bandwidth / 1e9:g} GB/s",
    }
    changes = [f"{name}={value}" for name, value in said.items() if value is not None]
    phrase = _phrase(hardware.name, gpus, gpu, memory)
    known = phrase is not None and _same(found, phrase)
    return found.replace(name=phrase if known else ", ".join([hardware.name, *changes]))


def _phrase(name: str, gpus: int | None, gpu: str | None, memory: int | None) -> str | None:
    """What a machine that is called by a phrase would be called with other GPUs; None where it is called otherwise."""
    found = re.match(r"([0-9]+)x([A-Za-z0-9-]+?)(-[0-9.]+ ?[GM]i?B)?(?=,|$)", name)
    if found is None:
        return None
    number, kind, size = found[1] if gpus is None else gpus, gpu or found[2], "" if gpu else found[3] or ""
    size = size if memory is None else f"-{memory / 1e9:g}GB"
    return f"{number}x{kind}{size}{name[found.end() :]}"


def _same(machine: Hardware, phrase: str) -> bool:
    """Whether the phrase means this machine."""
    try:
        other = read_phrase(phrase)
    except HardwareError:
        return False
    return (other.devices, frozenset(other.links)) == (machine.devices, frozenset(machine.links))


def _with_devices(hardware: Hardware, changed: list[Device]) -> Hardware:
    by_name = {device.name: device for device in changed}
    return hardware.replace(devices=tuple(by_name.get(device.name, device) for device in hardware.devices))


def _with_memory(hardware: Hardware, memory: int) -> Hardware:
    bound = next((gpu for gpu in hardware.gpus if gpu.budget_bytes is not None), None)
    if bound is not None:
        raise HardwareError(f"memory: {bound.name} of {hardware.name} has an absolute budget; leave one of the two out")
    sizes = {pool.name: pool.memory_bytes for pool in hardware.pools}
    shares = next((gpu for gpu in hardware.gpus if memory > sizes.get(gpu.pool or "", memory)), None)
    if shares is not None:
        most = f"{shares.name} of {hardware.name} shares {gb(sizes[shares.pool or ''])} with others"
        raise HardwareError(f"memory: {most}; ask for no more")
    return _with_devices(hardware, [gpu.replace(memory_bytes=memory) for gpu in hardware.gpus])


def _with_gpus(hardware: Hardware, number: int) -> Hardware:
    """The first `number` GPUs of the first kind, and copies of the first where there are not so many."""
    if not hardware.gpus:
        if number:
            raise HardwareError(f"gpus: {hardware.name} has no GPU to take {number} of; name one with gpu")
        return hardware
    first = hardware.gpus[0]
    kind = [gpu for gpu in hardware.gpus if gpu.replace(name=first.name) == first]
    kept = kind[:number]
    if number > len(kept) and first.pool is not None:
        shares = f"{first.name} of {hardware.name} shares its memory ({first.pool})"
        raise HardwareError(f"gpus: {shares}, so there can be no more like it; ask for at most {len(kept)}")
    last = max((gpu.name for gpu in kept), key=in_order, default=first.name)
    more = [first.replace(name=counted_on(last, 1 + n)) for n in range(number - len(kept))]
    names = {"cpu", *(gpu.name for gpu in kept)}
    links = [link for link in hardware.links if names.issuperset(link.between)]
    return _of_devices(hardware, [*kept, *more, hardware.cpu], [*links, *_links_of_more(hardware, kind, kept, more)])


def _of_devices(hardware: Hardware, devices: list[Device], links: list[Link]) -> Hardware:
    """The machine with these, and what is left of its pools."""
    shared = {device.pool for device in devices}
    pools = tuple(pool for pool in hardware.pools if pool.name in shared)
    return hardware.replace(devices=tuple(devices), links=tuple(links), pools=pools)


def _links_of_more(hardware: Hardware, kind: list[Device], kept: list[Device], more: list[Device]) -> list[Link]:
    """For each GPU more the first one's links to the CPU, and what joins it to its equals."""
    host = [link for link in hardware.links if set(link.between) == {"cpu", kind[0].name}]
    links = [link.replace(between=("cpu", gpu.name)) for gpu in more for link in host]
    new = {gpu.name for gpu in more}
    return links + [link for link in _joined(hardware, kind, [*kept, *more]) if new.intersection(link.between)]


def _joined(hardware: Hardware, kind: list[Device], gpus: list[Device]) -> list[Link]:
    """Direct links among `gpus` as the catalogue has them, at the rate of the machine's own; of a kind that it does not
    know: among all of them, if the machine joins all it has."""
    here = {gpu.name for gpu in kind}
    own = [link for link in hardware.links if here.issuperset(link.between)]
    names, part = [gpu.name for gpu in gpus], find_gpu(kind[0].model or "")
    if part is not None:
        found = nvlinks([(name, part) for name in names], bridged=bool(own))
        return [own[0].replace(between=link.between) for link in found] if own else found
    pairs = {frozenset(link.between) for link in own}
    whole = len(here) > 1 and len(pairs) == len(here) * (len(here) - 1) // 2
    return [own[0].replace(between=pair) for pair in combinations(names, 2)] if whole else []


def _with_other_gpus(hardware: Hardware, gpu: str, number: int) -> Hardware:
    """`number` GPUs of a kind that the catalogue knows, beside the machine's own CPU."""
    if re.search(r"[,=+]|^\s*[0-9]+\s*[xX×*]", gpu):
        raise HardwareError(f"gpu: {short(gpu)} is not one kind of GPU; write e.g. RTX4090 or L40-46GB")
    cpu = f",cpu={hardware.cpu.model}" if find_cpu(hardware.cpu.model or "") else ""
    other = read_phrase(f"{max(1, number)}x{gpu}{cpu}")
    if number > MAX_GPUS:
        raise HardwareError(f"gpus: {number} is too many; use at most {MAX_GPUS}")
    devices, links = (other.gpus, other.links) if number else ((), ())
    return _of_devices(hardware, [*devices, hardware.cpu], list(links))
