"""Plans, profiles and machines as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.table import Column, Table
from rich.text import Text

from profiles import Attention, Block, DeviceMemory, Experts, Hardware, ModelProfile, Placement, Prediction
from profiles.placement import PoolMemory, in_short
from profiles.units import gb
from solver import Evaluation

BAR_WIDTH = 20
PARTS = (("weights", "█", "cyan"), ("kv", "▓", "magenta"), ("workspace", "▒", "yellow"))


def memory_bar(held: DeviceMemory, width: int = BAR_WIDTH) -> Text:
    """Usable memory as a bar: weights, KV cache and workspace, then what is free; `!` for what does not fit.

    Anything there at all is at least one cell wide, and the bar is never longer than `width` unless memory overflows.
    """
    bar, filled = Text(), 0
    scale = max(held.usable_bytes, 1)
    sizes = (held.weights_bytes, held.kv_bytes, held.workspace_bytes)
    for (_, mark, style), size in zip(PARTS, sizes, strict=True):
        cells = min(max(round(width * size / scale), int(size > scale / 1000)), width - filled)
        bar.append(mark * cells, style=style)
        filled += cells
    bar.append("·" * (width - filled), style="dim")
    if held.free_bytes < 0:
        bar.append("!" * max(1, min(6, round(width * -held.free_bytes / scale))), style="bold red")
    return bar


def _table(title: str, *columns: str | Column) -> Table:
    table = Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.pad_edge, table.collapse_padding = False, True
    for column in table.columns:
        column.overflow = "fold"
    return table


def _number(name: str) -> Column:
    return Column(name, justify="right", no_wrap=True)


def plan_table(
    plan: Placement, memory: Mapping[str, DeviceMemory], title: str, pools: Mapping[str, PoolMemory] | None = None
) -> Table:
    """One row a device: what it holds, its memory bar, bytes used of usable, bytes free or missing; then one for each
    memory that devices share, the plan's own where none are given."""
    table = _table(
        title, "device", "holds", Column("memory", no_wrap=True), _number("used"), _number("usable"), _number("free")
    )
    for device, held in memory.items():
        free = Text(gb(held.free_bytes), style="bold red" if held.free_bytes < 0 else "")
        table.add_row(device, plan.holds(device), memory_bar(held), gb(held.used_bytes), gb(held.usable_bytes), free)
    for name, shared in (plan.pools or {} if pools is None else pools).items():
        free = Text(gb(shared.free_bytes), style="bold red" if shared.free_bytes < 0 else "")
        table.add_row(name, "what devices share, in all", "", gb(shared.used_bytes), gb(shared.usable_bytes), free)
    table.caption = "  ".join(f"{mark} {name}" for name, mark, _ in PARTS) + "  · free"
    table.caption_justify = "left"
    return table


def short_lines(short_bytes: Mapping[str, int]) -> list[str]:
    """One line a device that overflows, to the byte."""
    return [f"{device} overflows by {n} bytes ({gb(n)})" for device, n in short_bytes.items()]


def load_lines(memory: Mapping[str, DeviceMemory], hardware: Hardware) -> list[str]:
    """One warning a device that holds more while the model is loaded than it has, though the plan fits afterwards."""
    lines = []
    for device, held in memory.items():
        there = hardware.device(device).memory_bytes - held.reserved_bytes
        if held.load_peak_bytes is not None and held.load_peak_bytes > there:
            lines.append(
                f"warning: while loading, {device} holds {gb(held.load_peak_bytes)}, {gb(held.load_peak_bytes - there)}"
                " more than it has; load from a file straight to the devices, or add swap for that time"
            )
    return lines


def prediction_line(prediction: Prediction) -> str:
    return (
        f"prefill {prediction.prefill_s:.3f} s, decode step {prediction.decode_step_s * 1e3:.2f} ms, "
        f"{prediction.tokens_per_s:.1f} tokens/s{_doubt(prediction)}"
    )


def _doubt(prediction: Prediction) -> str:
    """The interval of the decode speed, for people."""
    if prediction.interval is None:
        return ""
    batch = prediction.tokens_per_s * prediction.decode_step_s
    low, high = (batch / seconds for seconds in reversed(prediction.interval.decode_step_s))
    return f" ({low:.1f} to {high:.1f}, {prediction.interval.level:.0%} sure)"


def proof_line(plan: Placement) -> str:
    """Status, objective, bound and gap in one line."""
    assert plan.objective_s is not None
    assert plan.bound_s is not None
    assert plan.gap is not None
    return (
        f"{plan.status}: {plan.objective} {plan.objective_s:.4f} s, proven bound {plan.bound_s:.4f} s, "
        f"gap {plan.gap:.2%}, solved in {plan.solve_s:.2f} s"
    )


def whole_line(plan: Placement) -> str | None:
    """How much better splitting experts is, where that is proved; None for other plans."""
    if plan.module_bound_s is None or plan.objective_s is None or not plan.objective_s:
        return None
    gain = plan.module_bound_s / plan.objective_s - 1
    if gain <= 0:
        return "no worse than any plan found that leaves each layer's experts whole"
    return f"any plan that leaves each layer's experts whole takes at least {gain:.1%} longer"


def profile_table(profile: ModelProfile) -> Table:
    """Blocks and bytes, equal layers in one row; one column of bytes where GPU and CPU store the same."""
    rows = list(_profile_rows(profile))
    differ = any(block.weight_bytes.gpu != block.weight_bytes.cpu for _, _, block in rows)
    sizes = ("bytes on a GPU", "on the CPU") if differ else ("bytes each",)
    table = _table(
        f"{profile.model}: {gb(profile.weight_bytes)} of weights",
        Column("block", no_wrap=True), *(_number(name) for name in sizes), _number("together"),
        _number("parameters"), _number("KV a token"), _number("experts"), _number("one expert"),
    )  # fmt: skip
    for name, layers, block in rows:
        weight, params = block.weight_bytes, block.params
        cells = [f"{weight.gpu:,}", f"{weight.cpu:,}"] if differ else [f"{weight.gpu:,}"]
        together = gb(weight.gpu * max(1, len(layers)))
        parameters = "?" if params is None else f"{params / 1e6:,.1f} M"
        table.add_row(
            f"{name} {_layers_cell(layers)}".strip(),
            *cells,
            together,
            parameters,
            _kv_cell(block),
            *_experts_cells(block),
        )
    if profile.mtp is not None:
        table.caption = (
            f"with multi-token-prediction layers, which are not loaded, the file has {gb(profile.file_bytes)}"
        )
        table.caption_justify = "left"
    return table


def _profile_rows(profile: ModelProfile) -> Iterator[tuple[str, list[int], Block]]:
    """(block, its layers if it is in any, the block), one for each kind."""
    yield "embedding", [], profile.embedding
    layer_class = profile.layer_class
    for same in dict.fromkeys(layer_class):
        numbers = [number for number, first in enumerate(layer_class) if first == same]
        layer = profile.layers[same]
        yield "attention", numbers, layer.attention
        if layer.experts is not None:
            yield "experts", numbers, layer.experts
    yield "head", [], profile.head


def _layers_cell(layers: list[int]) -> str:
    """The layers in short; of many separate runs the first and the last."""
    runs = in_short(layers).split(",") if layers else []
    return ",".join(runs if len(runs) <= 4 else [*runs[:2], "…", runs[-1]]) + (f" ({len(layers)})" if layers else "")


def _kv_cell(block: Block) -> str:
    if not isinstance(block, Attention):
        return ""
    if block.state_bytes and not block.kv_bytes_per_token:
        return f"{block.state_bytes:,} once"
    cell = f"{block.kv_bytes_per_token:,}"
    if block.kv_window_tokens is not None:
        cell += f" (last {block.kv_window_tokens:,})"
    return cell + (f" + {block.state_bytes:,} once" if block.state_bytes else "")


def _experts_cells(block: Block) -> tuple[str, str]:
    if not isinstance(block, Experts):
        return "", ""
    each = block.expert_weight_bytes
    one = f"{block.weight_bytes.gpu // block.count:,}" if each is None else f"{min(each):,}-{max(each):,}"
    return f"{block.active} of {block.count}", one


def hardware_tables(hardware: Hardware) -> list[Table]:
    """Devices, then cores where they are known, then shared memory and links where there are any."""
    devices = _table(
        hardware.name, "device", "model", _number("memory"), _number("reserved"), _number("bandwidth"),
        _number("16-bit peak"),
    )  # fmt: skip
    cores = _table("", "device", _number("cores"), _number("threads"), _number("NUMA nodes"), "instruction sets")
    for device in hardware.devices:
        peak = next((device.flops_per_s[k] for k in ("bf16", "fp16") if k in device.flops_per_s), None)
        devices.add_row(
            device.name,
            device.model or "",
            gb(device.memory_bytes),
            gb(device.reserved_bytes),
            f"{device.bandwidth_bytes_per_s / 1e9:,.{0 if device.bandwidth_bytes_per_s >= 100e9 else 1}f} GB/s",
            "?" if peak is None else f"{peak / 1e12:,.1f} TFLOP/s",
        )
        known = (device.cores, device.threads, device.numa_nodes)
        if any(known) or device.isa:
            cores.add_row(device.name, *(str(n or "?") for n in known), " ".join(device.isa or ("?",)))
    pools = _table("", "shared memory", "of", _number("memory"), _number("reserved"))
    for pool in hardware.pools:
        names = ", ".join(device.name for device in hardware.in_pool(pool.name))
        pools.add_row(pool.name, names, gb(pool.memory_bytes), gb(pool.reserved_bytes))
    links = _table("", "link", _number("bandwidth"), _number("latency"))
    for link in hardware.links:
        rate = f"{link.bandwidth_bytes_per_s / 1e9:,.1f} GB/s"
        links.add_row(" - ".join(link.between), rate, f"{link.latency_s * 1e6:.1f} us")
    return [table for table in (devices, cores, pools, links) if table is devices or table.row_count]


def comparison_table(title: str, found: Mapping[str, Evaluation], plans: Sequence[Placement]) -> Table:
    """Layouts side by side, judged for `request`; what does not fit shows no speed."""
    table = _table(
        title, "layout", "fits", _number("experts on CPU"), _number("unused on GPUs"), _number("prefill"),
        _number("decode step"), _number("tokens/s"), _number("request"),
    )  # fmt: skip
    for (name, evaluation), plan in zip(found.items(), plans, strict=True):
        on_cpu = sum("cpu" in layer.experts for layer in plan.layers)
        unused = sum(held.free_bytes for device, held in evaluation.memory.items() if device != "cpu")
        speed = ["-"] * 4
        if evaluation.feasible:
            told = evaluation.prediction
            speed = [
                f"{told.prefill_s:.3f} s", f"{told.decode_step_s * 1e3:.2f} ms", f"{told.tokens_per_s:.1f}",
                f"{evaluation.objective_s:.2f} s",
            ]  # fmt: skip
        fits = Text("yes", style="green") if evaluation.feasible else Text("no", style="bold red")
        table.add_row(name, fits, f"{on_cpu} layers", gb(unused) if evaluation.feasible else "-", *speed)
    return table
