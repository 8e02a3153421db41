"""llama-bench: each test is a run. Rows of `-o json` and `-o jsonl`; the table of `-o md` is read into the same rows.

Fields as written by ggml-org/llama.cpp, tools/llama-bench/llama-bench.cpp at 0104b151 (test::get_fields), and by
ikawrakow/ik_llama.cpp, examples/llama-bench/llama-bench.cpp at 0115ace2, which has no depth but tests "tg64@pp512"
(decoding after a prompt that is not counted), and `override_tensor` for `tensor_buft_overrides`. A test of prompt and
answer together ("pp512+tg128") has one speed for both and says neither.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from profiles.document import short
from profiles.run import Run
from profiles.runs.making import failure, gpus_of, made, names_in

IK_FIELDS = ("mla_attn", "attn_max_batch", "fused_moe", "grouped_er", "override_tensor")
OVERRIDES = {"ik": "override_tensor", "llama.cpp": "tensor_buft_overrides"}
SETTINGS = ("type_k", "type_v", "flash_attn", "split_mode", "tensor_split", "mla_attn", "fused_moe", "repack")
TEST = re.compile(
    r"(?:pp\s*(?P<pp>\d{1,8}))?\s*\+?\s*(?:tg\s*(?P<tg>\d{1,8}))?"
    r"(?:\s*@\s*(?:d\s*(?P<depth>\d{1,8})|pp\s*(?P<after>\d{1,8})))?"
)
_OVERRIDE = re.compile(r"([^=]+=[A-Za-z]+_?[A-Za-z]*\d*)(?:[;,]\s*|$)")


def is_row(row: Mapping[str, Any]) -> bool:
    return "avg_ts" in row


def from_rows(rows: list[dict[str, Any]], where: str) -> tuple[Run, ...]:
    """One run a row. Raises ProfileError naming the row and the field."""
    stem = PurePath(where).stem
    return tuple(run_of(row, f"{stem}:{i}", f"{where}: test {i}") for i, row in enumerate(rows, 1))


def run_of(row: Mapping[str, Any], name: str, at: str) -> Run:
    """The run of one row, with llama-bench's own names for its fields."""
    model, quant = names_in(_text(row, "model_filename", at) or "", _text(row, "model_type", at) or "")
    ngl = _count(row, "n_gpu_layers", at)
    on_cpu = _is_cpu_only(row, ngl, at)
    is_ik = any(key in row for key in IK_FIELDS)
    return made(
        {
            "id": name,
            "model": model,
            "quant": quant,
            "file_bytes": _count(row, "model_size", at) or None,
            "engine": "ik_llama.cpp" if is_ik else "llama.cpp",
            "gpus": _gpus(row, on_cpu, at),
            "cpu": (_text(row, "cpu_info", at) or "").strip() or None,
            "threads": _count(row, "n_threads", at),
            "attention": "cpu" if on_cpu else None,
            "gpu_layers": ngl,
            "n_cpu_moe": _count(row, "n_cpu_moe", at),
            "tensor_overrides": overrides_in(_text(row, OVERRIDES["ik" if is_ik else "llama.cpp"], at)),
            "batch_size": 1,
            "ubatch": _count(row, "n_ubatch", at),
            "notes": _settings(row),
            **_tests(row, at),
        },
        at,
    )


def overrides_in(text: str | None) -> tuple[str, ...]:
    """The parts of -ot, "pattern=buffer" each; ik_llama.cpp parts them by commas, llama.cpp by semicolons.

    >>> overrides_in(r"blk\\.(3|4)\\.ffn_.*=CUDA0;exps=CPU")
    ('blk\\\\.(3|4)\\\\.ffn_.*=CUDA0', 'exps=CPU')
    """
    if not text or text == "none":
        return ()
    return tuple(part.strip() for part in _OVERRIDE.findall(text))


def _tests(row: Mapping[str, Any], at: str) -> dict[str, Any]:
    """What was tested and how fast it was."""
    read, written, depth = (_count(row, key, at) or 0 for key in ("n_prompt", "n_gen", "n_depth"))
    label = _text(row, "test", at)
    match = TEST.fullmatch(label.strip()) if label else None
    if label and (match is None or not (match["pp"] or match["tg"])):
        raise failure(
            f"{at}, test", f"{short(label)} is not a test of llama-bench; write e.g. pp512, tg128 or tg128 @ d4096"
        )
    if match is not None:
        read, written = int(match["pp"] or 0), int(match["tg"] or 0)
        depth = int(match["depth"] or match["after"] or depth)
    speed = row.get("avg_ts")
    if isinstance(speed, bool) or not isinstance(speed, (int, float)):
        raise failure(f"{at}.avg_ts", f"{short(speed)} is not a number; keep llama-bench's output as it is")
    found = {"context_depth": depth, "prompt_tokens": read, "generated_tokens": written}
    if not read and not written:
        raise failure(at, "neither a prompt nor an answer was tested; take the row out")
    if read and written:
        return {**found, "total_tokens_per_s": speed}
    return {**found, "prefill_tokens_per_s" if read else "decode_tokens_per_s": speed}


def _is_cpu_only(row: Mapping[str, Any], ngl: int | None, at: str) -> bool:
    backends = _text(row, "backends", at)
    return ngl == 0 or (backends is not None and not re.search("CUDA|ROCm|HIP|Vulkan|SYCL|Metal|MUSA|CANN", backends))


def _gpus(row: Mapping[str, Any], on_cpu: bool, at: str) -> Any:
    listed = _text(row, "gpu_info", at)
    if not listed or not listed.strip():
        return () if on_cpu else None
    return gpus_of([name for part in re.split(r"[,/]", listed) if (name := part.strip())])


def _settings(row: Mapping[str, Any]) -> str | None:
    """Settings that have no field of their own, as text."""
    said = [f"{name}={short(row[name], 40)}" for name in SETTINGS if row.get(name) not in (None, "")]
    return ", ".join(said) or None


def _text(row: Mapping[str, Any], key: str, at: str) -> str | None:
    value = row.get(key)
    if value is None or isinstance(value, str):
        return value
    raise failure(f"{at}.{key}", f"{short(value)} is not text; keep llama-bench's output as it is")


def _count(row: Mapping[str, Any], key: str, at: str) -> int | None:
    value = row.get(key)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise failure(f"{at}.{key}", f"{short(value)} is not a whole number; keep llama-bench's output as it is")
