"""A list of published measurements, one record a point, as `benchmarks/measurements.yaml` has them.

A record names a machine (`machine_id`), what it is made of (`gpus`, `cpu`, `sockets`, `ram`), a model and its format,
where the experts were (`n_moe_layers_on_cpu` or `gpu_expert_fraction`, and `placement` in words), the workload and the
speeds (`decode_tok_s`, `prefill_tok_s`, `total_throughput_tok_s`). Every key may be missing or null but one speed;
keys that are not known here are ignored. What only stands in words is taken from them where they are plain:

- which layers were on the CPU ("first 3 layers", "last 14 layers", "layers 0-11 on GPU … rest CPU"), that all of it was
  there, one or two sockets, NPS, the strategy, and that an equal share of "whole layers" was meant;
- `generated_tokens` from "-n 128" and "tg64".

`context_depth` is where decoding began. In a sweep the prompt begins there too; where it is as long as the prompt and
the prompt took several micro-batches, it is the end of that prompt, which then began at nothing (`prefill_depth` 0).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from profiles.document import require_mapping, short
from profiles.errors import ProfileError
from profiles.run import Run
from profiles.runs.making import failure, made

Record = Mapping[str, Any]
SPEED_KEYS = {
    "decode_tok_s": "decode_tokens_per_s",
    "prefill_tok_s": "prefill_tokens_per_s",
    "total_throughput_tok_s": "total_tokens_per_s",
}
SAME = {
    "machine_id": "machine", "sweep_id": "sweep", "model": "model", "quant": "quant", "cpu": "cpu",
    "sockets": "sockets", "cores_total": "cores", "n_moe_layers": "moe_layers", "batch": "batch_size",
    "prompt_tokens": "prompt_tokens", "context_depth": "context_depth", "ubatch": "ubatch", "top_k": "top_k",
    "hot_hit_rate": "hot_hit_rate", "grade": "grade", "regime": "regime", "placement": "placement_text",
    "source": "source", "notes": "notes", **SPEED_KEYS,
}  # fmt: skip
"""Keys whose values are those of a field of `Run`."""
BYTES = {"model_size_gib": ("file_bytes", 2**30), "cpu_weight_mib": ("cpu_weight_bytes", 2**20)}
BYTES |= {"gpu_weight_mib": ("gpu_weight_bytes", 2**20)}
ENGINES = (
    ("ik_llama", "ik_llama.cpp"),
    ("llama.cpp", "llama.cpp"),
    ("ktransformers", "ktransformers"),
    ("torch", "torch"),
    ("transformers", "torch"),
)
_GPU_FIRST = re.compile(r"(?:layers?:? |blk |\()\d.*\b(?:rest|other)\b.*\bcpu")


def is_row(row: Record) -> bool:
    return any(key in row for key in SPEED_KEYS)


def from_rows(rows: list[dict[str, Any]], where: str) -> tuple[Run, ...]:
    """One run a record. Raises ProfileError naming the record, the key and the value."""
    return tuple(_run(row, i, where) for i, row in enumerate(rows))


def _run(record: Record, index: int, where: str) -> Run:
    name = record.get("id")
    name = name if isinstance(name, str) and name else f"{index}"
    at = f"{where}: [{index}] ({short(name, 20)})"
    placement = _text(record, "placement", at)
    fields: dict[str, Any] = {field: record.get(key) for key, field in SAME.items()}
    for key, (field, unit) in BYTES.items():
        fields[field] = _bytes(record, key, unit, at)
    fields |= {"id": name, "engine": engine_of(_text(record, "engine", at)), "gpus": _gpus(record, at)}
    fields |= _threads(record, at)
    fields |= _ram(record, at)
    fields |= _where_experts_were(record, placement, at)
    fields |= _workload(record, at)
    on_cpu = fields["gpus"] == [] or placement.lower().startswith("cpu only") or record.get("regime") == "cpu_only"
    fields["attention"] = "cpu" if on_cpu else "gpu"
    return made(fields, at)


def engine_of(name: str) -> str | None:
    """The engine of `Run` that a source's words mean; patched versions are "other".

    >>> [engine_of(name) for name in ("llama.cpp HIP", "llama.cpp + expert cache", "KTransformers/SGLang kt-kernel")]
    ['llama.cpp', 'other', 'sglang-kt']
    """
    plain = name.lower()
    if not plain:
        return None
    if "+ expert" in plain or "branch" in plain:
        return "other"
    if "sglang" in plain:
        return "sglang-kt"
    return next((engine for start, engine in ENGINES if plain.startswith(start)), "other")


def _where_experts_were(record: Record, placement: str, at: str) -> dict[str, Any]:
    layers, on_cpu = record.get("n_moe_layers"), record.get("n_moe_layers_on_cpu")
    share = record.get("gpu_expert_fraction")
    found: dict[str, Any] = {"cpu_layers": on_cpu, "cpu_layers_at": _at_which_end(placement)}
    if placement.startswith("static: whole layers") and isinstance(layers, int) and share is not None:
        return {**found, "cpu_layers": layers - round(layers * _number(record, "gpu_expert_fraction", at))}
    if on_cpu is None:
        found["gpu_expert_share"] = share
    strategy = re.search(r"strategy ([a-z]+(?:-loading)?)", placement)
    return {**found, "expert_strategy": strategy[1] if strategy else None}


def _at_which_end(placement: str) -> str:
    """Whether the layers with experts on the CPU are the first or the last ones, as far as the words say it."""
    text = placement.lower()
    if "n-cpu-moe" in text or re.search(r"experts of first \d+ layers cpu", text):
        return "first"
    if re.search(r"last \d+ layers", text) or _GPU_FIRST.search(text):
        return "last"
    return "unknown"


def _workload(record: Record, at: str) -> dict[str, Any]:
    said = f"{_text(record, 'engine', at)} {_text(record, 'notes', at)}"
    generated = re.search(r"-n (\d{1,6})\b|\btg(\d{1,6})@", said)
    prompt, depth, ubatch = (record.get(key) for key in ("prompt_tokens", "context_depth", "ubatch"))
    is_request = isinstance(ubatch, int) and isinstance(prompt, int) and prompt == depth and ubatch < prompt
    return {
        "generated_tokens": int(generated[1] or generated[2]) if generated else None,
        "prefill_depth": 0 if is_request else None,
    }


def _threads(record: Record, at: str) -> dict[str, int | None]:
    """One number, or two as in "128/192": 128 decode, 192 read the prompt."""
    value = record.get("threads")
    if isinstance(value, int) and not isinstance(value, bool):
        return {"threads": value}
    if value is None:
        return {}
    match = re.fullmatch(r"\s*(\d{1,6})\s*(?:/\s*(\d{1,6})\s*)?", value) if isinstance(value, str) else None
    if match is None:
        raise failure(
            f"{at}.threads", f"{short(value)} is no number of threads; write e.g. 32, or 128/192 (decode/prefill)"
        )
    return {"threads": int(match[1]), "prefill_threads": int(match[2]) if match[2] else None}


def _ram(record: Record, at: str) -> dict[str, Any]:
    """RAM's type, size and speeds; the peak is derived from channels and transfer rate where only these are said."""
    ram = require_mapping(record.get("ram") or {}, f"{at}.ram", ProfileError)
    words = f"{_text(record, 'placement', at)}; {_text(ram, 'measured_how', at)}".lower()
    numa = re.findall(r"nps\d|numactl(?: -[nm] \d)*|(?:one|single|dual|2) sockets?", words)
    used = {"one": 1, "single": 1, "dual": 2, "2": 2}.get(next((n.split()[0] for n in numa if "socket" in n), ""))
    at = f"{at}.ram"
    rate, channels, sockets = (_number(ram, "mt_s", at), _number(ram, "channels_per_socket", at), record.get("sockets"))
    peak = _number(ram, "theoretical_gb_s", at)
    if not peak and rate and channels and isinstance(sockets, int):
        peak = channels * rate * 8 * sockets / 1000
    kind = _text(ram, "type", at)
    return {
        "numa": ", ".join(dict.fromkeys(numa)) or None,
        "sockets_used": used if isinstance(sockets, int) and used and used <= sockets else None,
        "ram_type": f"{kind}-{rate:g}" if kind and rate else kind or None,
        "ram_bytes": _bytes(ram, "size_gb", 10**9, at),
        "ram_peak_bytes_per_s": peak * 1e9 or None,
        "ram_measured_bytes_per_s": _number(ram, "measured_gb_s", at) * 1e9 or None,
    }


def _gpus(record: Record, at: str) -> list[dict[str, Any]] | None:
    """GPUs; those that have no name are kept with the words in its place, so that nobody takes them for none."""
    listed = record.get("gpus")
    if listed is None:
        return None
    if not isinstance(listed, list):
        raise failure(f"{at}.gpus", f"{short(listed)} is not a list; write [] or [{{model: RTX 4090, count: 1}}]")
    found = []
    for i, entry in enumerate(listed):
        gpu = require_mapping(entry, f"{at}.gpus[{i}]", ProfileError)
        memory = _bytes(gpu, "memory_mib", 2**20, f"{at}.gpus[{i}]")
        kept = {"memory_bytes": memory, **{key: gpu.get(key) for key in ("model", "count", "pcie")}}
        found.append({key: value for key, value in kept.items() if value is not None})
    return found


def _text(record: Record, key: str, at: str) -> str:
    value = record.get(key)
    if value is None or isinstance(value, str):
        return value or ""
    raise failure(f"{at}.{key}", f"{short(value)} is not text; write words")


def _number(record: Record, key: str, at: str) -> float:
    """The number there; 0 where there is none."""
    value = record.get(key)
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e12:
        raise failure(f"{at}.{key}", f"{short(value)} is not a number; write e.g. 307.2, or leave it out")
    return float(value)


def _bytes(record: Record, key: str, unit: int, at: str) -> int | None:
    return round(_number(record, key, at) * unit) or None
