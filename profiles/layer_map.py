"""The layer map: where every block of a plan lives, as rectangles that every picture of a plan draws alike.

One column a layer, the embedding before them and the head after them; experts from 0 to 1, a split layer's by share,
and attention above them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from profiles.device_names import in_order, short_name

if TYPE_CHECKING:
    from profiles.placement import LayerPlacement, Placement

ATTENTION, TOP = 1.1, 1.6
"""Heights at which the row of attention begins and ends."""
CPU_COLOUR = "#d55e00"
GPU_COLOURS = ("#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")
"""Viridis without its darkest end: told apart by people with any colour vision, and in grey; the CPU is vermilion."""


@dataclass(frozen=True)
class Cell:
    """A rectangle one column wide: a block, or the part of a layer's experts that is on `device`."""

    device: str
    column: int
    bottom: float
    height: float
    says: str


def device_order(devices: Iterable[str]) -> list[str]:
    """GPUs by type and number, then the CPU.

    >>> device_order({"cpu", "cuda:10", "cuda:9"})
    ['cuda:9', 'cuda:10', 'cpu']
    """
    return sorted(devices, key=in_order)


def device_colours(devices: Iterable[str]) -> dict[str, str]:
    """A colour a device, along one scale for GPUs, so that neighbours in number are neighbours in colour.

    >>> device_colours(["cuda:0", "cuda:1", "cpu"])
    {'cuda:0': '#472d7b', 'cuda:1': '#fde725', 'cpu': '#d55e00'}
    """
    order = device_order(devices)
    gpus = [device for device in order if device != "cpu"]
    at = {device: i / max(1, len(gpus) - 1) for i, device in enumerate(gpus)}
    return {device: _on_scale(at[device]) if device in at else CPU_COLOUR for device in order}


def ink(colour: str) -> str:
    """Black or white, whichever can be read on `colour`.

    >>> ink("#472d7b"), ink("#fde725")
    ('#ffffff', '#000000')
    """
    red, green, blue = _rgb(colour)
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#ffffff"


def cells(plan: Placement) -> Iterator[Cell]:
    """Every rectangle of the plan.

    >>> from profiles.placement import Placement
    >>> plan = Placement(embedding="cpu", head="cpu", layers=[{"attention": "cpu", "experts": {"cuda:0": "all"}}])
    >>> [(cell.device, cell.column, cell.says) for cell in cells(plan)][1:3]
    [('cpu', 0, 'layer 0: attention on cpu'), ('cuda:0', 0, 'layer 0: experts on cuda:0')]
    """
    yield Cell(plan.embedding, -1, 0.0, TOP, f"embedding on {plan.embedding}")
    for column, layer in enumerate(plan.layers):
        says = f"layer {column}: attention on {layer.attention}"
        yield Cell(layer.attention, column, ATTENTION, TOP - ATTENTION, says)
        bottom = 0.0
        for device, share in expert_shares(layer).items():
            part = "" if share == 1 else f"{share:.0%} of "
            yield Cell(device, column, bottom, share, f"layer {column}: {part}experts on {device}")
            bottom += share
    yield Cell(plan.head, len(plan.layers), 0.0, TOP, f"head on {plan.head}")


def expert_shares(layer: LayerPlacement) -> dict[str, float]:
    """Which share of the layer's experts is on each device, by number of experts; empty for a dense layer."""
    if layer.experts_device is not None:
        return {layer.experts_device: 1.0}
    together = sum(len(part) for part in layer.experts.values())
    return {device: len(layer.experts[device]) / together for device in device_order(layer.experts)}


def attention_runs(plan: Placement) -> Iterator[tuple[str, int, int]]:
    """(device, first layer, last layer) of each run of layers whose attention is on one device: where names go."""
    for device, run in groupby(range(len(plan.layers)), key=lambda i: plan.layers[i].attention):
        numbers = list(run)
        yield device, numbers[0], numbers[-1]


def svg(plan: Placement, colours: Mapping[str, str]) -> str:
    """The map as an inline picture, with the device's short name on each run of attention that has room for it."""
    width, high, column = len(plan.layers) + 2, 100, 12
    parts = [
        f'<rect x="{(cell.column + 1) * column}" y="{high * (1 - (cell.bottom + cell.height) / TOP):.1f}" '
        f'width="{column}" height="{high * cell.height / TOP:.1f}" fill="{colours[cell.device]}" stroke="#fff" '
        f'stroke-width=".8"><title>{escape(cell.says)}</title></rect>'
        for cell in cells(plan)
    ]
    for device, first, last in attention_runs(plan):
        if last - first + 1 >= len(short_name(device)):
            middle, y = (first + last + 3) / 2 * column, high * (1 - (ATTENTION + 0.18) / TOP)
            parts.append(
                f'<text x="{middle:g}" y="{y:.1f}" font-size="11" font-family="sans-serif" text-anchor="middle" '
                f'pointer-events="none" fill="{ink(colours[device])}">{escape(short_name(device))}</text>'
            )
    label = escape(f"layer map: attention above, experts below, {len(plan.layers)} layers from left to right")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{label}" '
        f'viewBox="0 0 {width * column} {high}" style="width:100%;max-width:{max(20, width) * column}px">'
        f"{''.join(parts)}</svg>"
    )


def _on_scale(share: float) -> str:
    """The colour at `share` of the way along the scale."""
    place = share * (len(GPU_COLOURS) - 1)
    left = min(int(place), len(GPU_COLOURS) - 2)
    mixed = (a + (b - a) * (place - left) for a, b in zip(*map(_rgb, GPU_COLOURS[left : left + 2]), strict=True))
    return "#" + "".join(f"{round(part):02x}" for part in mixed)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
