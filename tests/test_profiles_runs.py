"""Measured runs: measurements, our own documents; what is wrong with a file is said in one line."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from profiles import MoeplanError
from profiles.document import dump_yaml
from profiles.run import Run, Runs
from profiles.runs import read_runs

MEASUREMENTS = Path(__file__).resolve().parents[1] / "benchmarks" / "measurements.yaml"
RECORD: dict[str, Any] = {
    "id": "m1",
    "sweep_id": "s",
    "machine_id": "box",
    "model": "Qwen3-235B-A22B",
    "quant": "IQ3_K",
    "model_size_gib": 106.83,
    "engine": "ik_llama.cpp llama-bench -n 128",
    "gpus": [{"model": "RTX 3090", "count": 2, "memory_mib": 24576, "pcie": "4.0 x16"}],
    "cpu": "EPYC 9355",
    "sockets": 2,
    "cores_total": 64,
    "ram": {"type": "DDR5", "channels_per_socket": 12, "mt_s": 6000, "size_gb": 768, "measured_gb_s": 720},
    "placement": "ffn of layers 0-11 on GPU, rest CPU; NPS0, single socket",
    "n_moe_layers": 94,
    "n_moe_layers_on_cpu": 82,
    "cpu_weight_mib": 89709.28,
    "batch": 1,
    "prompt_tokens": 512,
    "context_depth": 4096,
    "ubatch": 512,
    "threads": "32/64",
    "decode_tok_s": 9.68,
    "prefill_tok_s": 138.61,
    "grade": "A",
    "os": None,
    "something_new": [1, 2],
}


def read(tmp_path: Path, text: str, name: str = "runs.log", **known: Any) -> tuple[Run, ...]:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_runs(path, **known)


def records(tmp_path: Path, *changes: dict[str, Any]) -> tuple[Run, ...]:
    return read(tmp_path, dump_yaml([{**RECORD, **change} for change in changes or ({},)]), "m.yaml")


@cache
def measured() -> dict[str, Run]:
    """The project's own collection by id."""
    return {run.id: run for run in read_runs(MEASUREMENTS)}


# --- measurements ----------------------------------------------------------------------------------------------------


def test_a_record_becomes_a_run(tmp_path: Path) -> None:
    (run,) = records(tmp_path)
    assert (run.id, run.machine, run.sweep, run.engine) == ("m1", "box", "s", "ik_llama.cpp")
    assert run.file_bytes == round(106.83 * 2**30)
    assert run.cpu_weight_bytes == round(89709.28 * 2**20)
    assert run.gpus is not None
    assert (run.gpus[0].count, run.gpus[0].memory_bytes, run.gpus[0].pcie) == (2, 24576 * 2**20, "4.0 x16")
    assert (run.threads, run.prefill_threads) == (32, 64)
    assert (run.sockets, run.sockets_used, run.numa) == (2, 1, "nps0, single socket")
    assert run.ram_type == "DDR5-6000"
    assert run.ram_peak_bytes_per_s == pytest.approx(2 * 12 * 6000e6 * 8)
    assert (run.ram_measured_bytes_per_s, run.ram_bytes) == (720e9, 768 * 10**9)
    assert (run.cpu_layers, run.cpu_layers_at, run.attention) == (82, "last", "gpu")
    assert run.gpu_expert_share is None
    assert (run.generated_tokens, run.prefill_depth) == (128, None)
    assert (run.decode_tokens_per_s, run.prefill_tokens_per_s) == (9.68, 138.61)


def test_a_record_needs_hardly_anything(tmp_path: Path) -> None:
    (run,) = read(tmp_path, "- {decode_tok_s: 3}\n- {unknown: 1, id: b, total_throughput_tok_s: 4.5}\n", "m.yml")[:1]
    assert run.replace(id="x", attention=None) == Run(id="x", decode_tokens_per_s=3)
    assert run.gpus is None


@pytest.mark.parametrize(
    ("placement", "at"),
    [
        ("--n-cpu-moe 6: experts of first 6 layers CPU, rest GPU", "first"),
        ("ffn of the last 14 layers (34-47) CPU, rest GPU", "last"),
        ("ffn of layers 0-11 GPU, rest CPU", "last"),
        ("14 layers ffn on 2 GPUs (0-6, 7-13), rest CPU", "last"),
        ("layer 3 ffn on GPU0, layer 5 ffn on GPU1, other routed experts CPU", "last"),
        ("5 layers ffn on GPU, rest CPU", "unknown"),
        ("layers 10-20 CPU, rest GPU", "unknown"),
        ("all routed experts CPU", "unknown"),
    ],
)
def test_which_layers_are_on_the_cpu_is_read_from_plain_words(tmp_path: Path, placement: str, at: str) -> None:
    assert records(tmp_path, {"placement": placement})[0].cpu_layers_at == at


def test_cpu_only_runs_have_their_attention_there(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{"gpus": []}, {"placement": "CPU only (GPU hidden)"}, {"regime": "cpu_only"}]
    assert [run.attention for run in records(tmp_path, *changes)] == ["cpu"] * 3


def test_shares_are_for_layers_that_are_split() -> None:
    uniform, static = measured()["m0012"], measured()["m0696"]
    assert (uniform.gpu_expert_share, uniform.expert_strategy, uniform.cpu_layers) == (0.2, "uniform", None)
    assert (static.gpu_expert_share, static.cpu_layers) == (None, 21)
    assert (measured()["m0697"].gpu_expert_share, measured()["m0697"].engine) == (0.125, "other")
    assert measured()["m0010"].expert_strategy == "dynamic"
    assert measured()["m0003"].expert_strategy == "front-loading"


def test_a_depth_that_is_the_prompts_end(tmp_path: Path) -> None:
    request, sweep = records(tmp_path, {"prompt_tokens": 4096}, {"prompt_tokens": 4096, "ubatch": 4096})
    assert (request.prefill_depth, sweep.prefill_depth) == (0, None)


def test_every_record_of_the_collection_reads() -> None:
    runs = measured()
    assert len(runs) == 579
    assert sum(run.grade == "A" for run in runs.values()) == 437
    assert sum(run.grade == "A" and run.regime == "normal" for run in runs.values()) == 429
    assert sum(run.decode_tokens_per_s is not None for run in runs.values()) == 502
    assert sum(run.prefill_tokens_per_s is not None for run in runs.values()) == 348
    assert all(run.source and run.machine for run in runs.values())
    engines = {engine: sum(run.engine == engine for run in runs.values()) for engine in ("other", "ktransformers")}
    assert engines == {"other": 40, "ktransformers": 30}
    assert runs["m0060"].engine == "llama.cpp"
    assert (runs["m0483"].threads, runs["m0483"].prefill_threads, runs["m0483"].sockets_used) == (128, 192, 1)


# --- our own documents -----------------------------------------------------------------------------------------------


def test_our_own_documents_take_units_and_come_back(tmp_path: Path) -> None:
    run = {"id": "r", "file_bytes": "17.5 GiB", "ram_peak_bytes_per_s": "89.6 GB/s", "decode_tokens_per_s": 20}
    gpu = {"model": "RTX 4090", "memory_bytes": "24 GiB"}
    runs = read(tmp_path, dump_yaml({"runs": [{**run, "gpus": [gpu]}]}), "mine.yaml")
    assert runs[0].file_bytes == 35 * 2**29
    assert runs[0].ram_peak_bytes_per_s == 89.6e9
    Runs(runs=runs).save(tmp_path / "again.yaml")
    Runs(runs=runs).save(tmp_path / "again.json")
    assert read_runs(tmp_path / "again.yaml") == read_runs(tmp_path / "again.json") == runs


def test_what_is_known_beats_what_the_file_says(tmp_path: Path) -> None:
    (run,) = read(tmp_path, "eval rate:   13.3 tokens/s\n", machine="mine", gpus=[{"model": "RTX 4090"}], cpu_layers=58)
    assert (run.machine, run.cpu_layers, run.engine) == ("mine", 58, "ktransformers")
    assert run.gpus is not None
    assert run.gpus[0].model == "RTX 4090"
    assert read(tmp_path, "eval rate:   13.3 tokens/s\n", engine="sglang-kt")[0].engine == "sglang-kt"


# --- what is wrong ---------------------------------------------------------------------------------------------------

BAD_RECORDS: list[tuple[dict[str, Any], str]] = [
    ({"decode_tok_s": "fast"}, "decode_tokens_per_s: 'fast' is not a quantity"),
    ({"decode_tok_s": -3}, "must not be negative"),
    ({"decode_tok_s": float("nan")}, "decode_tokens_per_s"),
    ({"decode_tok_s": None, "prefill_tok_s": None}, "without a speed"),
    ({"threads": "many"}, "threads: 'many' is no number of threads"),
    ({"threads": [1]}, "threads: a list of 1"),
    ({"model_size_gib": "12 GiB"}, "model_size_gib: '12 GiB' is not a number"),
    ({"model": 5}, "model"),
    ({"gpus": "RTX 4090"}, "gpus: 'RTX 4090' is not a list"),
    ({"gpus": [{"model": None}]}, "gpus[0].model: missing"),
    ({"gpus": [{"model": "X", "count": 0}]}, "gpus[0].count"),
    ({"ram": [1]}, "ram: expected a mapping"),
    ({"ram": {"theoretical_gb_s": "x"}}, "ram.theoretical_gb_s: 'x' is not a number"),
    ({"ram": {"measured_how": 3}}, "measured_how: 3 is not text"),
    ({"n_moe_layers_on_cpu": 95}, "cpu_layers 95 is more than moe_layers 94"),
    ({"placement": 7}, "placement: 7 is not text"),
    ({"grade": "D"}, "grade"),
    ({"batch": 0}, "batch_size"),
    ({"prompt_tokens": 1.5}, "prompt_tokens"),
    ({"gpu_expert_fraction": 2, "n_moe_layers_on_cpu": None}, "gpu_expert_share"),
]


@pytest.mark.parametrize(("change", "said"), BAD_RECORDS, ids=[said[:30] for _, said in BAD_RECORDS])
def test_bad_records_name_the_record_and_the_field(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(MoeplanError) as caught:
        records(tmp_path, {}, {**change, "id": "second"})
    message = str(caught.value)
    assert said in message
    assert "m.yaml: [1] ('second')" in message
    assert "\n" not in message


BAD_FILES: list[tuple[str, str, str]] = [
    ("x.yaml", "runs: []", "runs"),
    ("x.yaml", "runs: [{id: a, decode_tokens_per_s: 1, speed: 2}]", "runs[0].speed: unknown key"),
    ("x.yaml", "runs: [{id: a, decode_tokens_per_s: 1, engine: vllm}]", "runs[0].engine"),
    ("x.yaml", "runs: [{id: a}]", "without a speed"),
    (
        "x.yaml",
        "runs: [{id: a, decode_tokens_per_s: 1, ram_bytes: 3 parsec}]",
        "ram_bytes: '3 parsec' is not a quantity",
    ),
    ("x.yaml", "[1, 2]", "[0]: expected a mapping"),
    ("x.yaml", "- {a: 1}", "without runs, tests or measurements"),
    ("x.yaml", "a: &x 1\nb: *x", "aliases"),
    ("x.json", '{"runs": ', "not valid JSON"),
    ("x.json", "[{}]", "without runs, tests or measurements"),
    ("x.jsonl", '{"avg_ts": 1}\n{"avg_ts": }', "not valid JSON"),
    ("x.txt", "hello there", "is no known form of runs"),
    ("x.txt", "", "is no known form of runs"),
    ("x.log", "eval rate:  fast tokens/s", "no answer in it was finished"),
    ("x.log", "eval rate:  1.2.3 tokens/s", "line 1: '1.2.3' is not a number"),
    ("x.log", "eval count: 1e400 token(s)\neval rate: 5 tokens/s", "line 1: '1e400' is not a number"),
]


@pytest.mark.parametrize(("name", "text", "said"), BAD_FILES, ids=[said[:30] for _, _, said in BAD_FILES])
def test_bad_files_are_refused_in_one_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(MoeplanError) as caught:
        read(tmp_path, text, name)
    message = str(caught.value)
    assert said in message
    assert name in message
    assert "\n" not in message


def test_files_that_are_none(tmp_path: Path) -> None:
    for path, said in ((tmp_path, "is a folder"), (tmp_path / "gone.md", "cannot be read"), (5, "expected")):
        with pytest.raises(MoeplanError, match=said):
            read_runs(path)  # type: ignore[arg-type]
    with pytest.raises(MoeplanError, match="more than the 1048576"):
        read(tmp_path, "- {decode_tok_s: 3}\n" * 100_000)


def test_bad_knowledge_names_the_field(tmp_path: Path) -> None:
    with pytest.raises(
        MoeplanError, match="what is known of its runs: Run: machin: unknown key, did you mean 'machine'"
    ):
        read(tmp_path, "eval rate:   13.3 tokens/s\n", machin="x")
    with pytest.raises(MoeplanError, match="ram_peak_bytes_per_s"):
        read(tmp_path, "eval rate:   13.3 tokens/s\n", ram_peak_bytes_per_s="fast")


def test_json_and_yaml_of_measurements_are_the_same(tmp_path: Path) -> None:
    assert read(tmp_path, json.dumps([RECORD]), "m.json") == records(tmp_path)
