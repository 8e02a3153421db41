"""What engines print, read as runs: llama-bench, llama-sweep-bench, SGLang, KTransformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from profiles import MoeplanError
from profiles.run import Run
from profiles.runs import read_runs


def read(tmp_path: Path, text: str, name: str = "bench.md", **known: Any) -> tuple[Run, ...]:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_runs(path, **known)


# --- llama-bench -----------------------------------------------------------------------------------------------------

TABLE = """\
ggml_cuda_init: found 2 CUDA devices:
  Device 0: NVIDIA GeForce RTX 3090, compute capability 8.6, VMM: yes
  Device 1: NVIDIA GeForce RTX 3090, compute capability 8.6, VMM: yes
| model                          |       size |     params | backend    | ngl |  n_cpu_moe | n_ubatch | fa |            test |                  t/s |
| ------------------------------ | ---------: | ---------: | ---------- | --: | ---------: | -------: | -: | --------------: | -------------------: |
| qwen3moe 30B.A3B Q4_K - Medium |  17.28 GiB |    30.53 B | CUDA       |  99 |         20 |     1024 |  1 |           pp512 |      1240.03 ± 12.02 |
| qwen3moe 30B.A3B Q4_K - Medium |  17.28 GiB |    30.53 B | CUDA       |  99 |         20 |     1024 |  1 |           tg128 |         51.03 ± 0.20 |
| qwen3moe 30B.A3B Q4_K - Medium |  17.28 GiB |    30.53 B | CUDA       |  99 |         20 |     1024 |  1 |   tg128 @ d4096 |         47.41 ± 0.31 |
| qwen3moe 30B.A3B Q4_K - Medium |  17.28 GiB |    30.53 B | CUDA       |  99 |         20 |     1024 |  1 |     pp512+tg128 |        210.00 ± 1.00 |

build: 5c0eb5ef5 (6382)
"""  # noqa: E501


def test_llama_benchs_table(tmp_path: Path) -> None:
    prompt, decode, deep, both = read(tmp_path, TABLE)
    assert [run.id for run in (prompt, decode, deep, both)] == ["bench:1", "bench:2", "bench:3", "bench:4"]
    assert (prompt.model, prompt.quant, prompt.engine) == ("qwen3moe 30B.A3B", "Q4_K_M", "llama.cpp")
    assert prompt.file_bytes == round(17.28 * 2**30)
    assert prompt.gpus is not None
    assert [(gpu.model, gpu.count) for gpu in prompt.gpus] == [("NVIDIA GeForce RTX 3090", 2)]
    assert (prompt.n_cpu_moe, prompt.gpu_layers, prompt.ubatch, prompt.cpu_layers) == (20, 99, 1024, None)
    assert (prompt.prompt_tokens, prompt.prefill_tokens_per_s, prompt.decode_tokens_per_s) == (512, 1240.03, None)
    assert (decode.generated_tokens, decode.context_depth, decode.decode_tokens_per_s) == (128, 0, 51.03)
    assert (deep.context_depth, deep.decode_tokens_per_s, deep.machine, deep.cpu) == (4096, 47.41, None, None)
    assert (both.total_tokens_per_s, both.prompt_tokens, both.generated_tokens) == (210.0, 512, 128)
    assert prompt.notes == "flash_attn='1'"


def test_older_tables_and_the_cpu_backend(tmp_path: Path) -> None:
    head = "| model | size | params | backend | threads | test | t/s |\n|---|---:|---:|---|---:|---|---:|\n"
    row = "| llama 7B mostly Q4_0 | 900.56 MiB | 6.74 B | CPU | 16 | tg 128 | 17.78 ± 0.12 |\n"
    (run,) = read(tmp_path, head + row)
    assert (run.threads, run.generated_tokens, run.decode_tokens_per_s) == (16, 128, 17.78)
    assert (run.gpus, run.attention, run.file_bytes) == ((), "cpu", round(900.56 * 2**20))


def test_ik_llamas_table(tmp_path: Path) -> None:
    head = "| model | size | params | backend | ngl | threads | mla | ot | rtr | fmoe | test | t/s |\n|-|-|\n"
    settings = "| CUDA | 100 | 8 | 1 | blk\\.(3|4)\\.ffn_.*=CUDA0,exps=CPU | 1 | 1 |"
    rows = f"| deepseek2 16B IQ4_NL - 4.5 bpw | 8.47 GiB | 15.76 B {settings} tg64@pp512 | 52.53 ± 0.04 |\n"
    (run,) = read(tmp_path, head + rows)
    assert (run.engine, run.model, run.quant, run.threads) == ("ik_llama.cpp", "deepseek2 16B", "IQ4_NL", 8)
    assert run.tensor_overrides == (r"blk\.(3|4)\.ffn_.*=CUDA0", "exps=CPU")
    assert (run.context_depth, run.generated_tokens, run.prompt_tokens, run.decode_tokens_per_s) == (512, 64, 0, 52.53)


JSON: dict[str, Any] = {
    "build_commit": "8cf427ff",
    "build_number": 5163,
    "cpu_info": "AMD EPYC 9355 32-Core Processor",
    "gpu_info": "NVIDIA GeForce RTX 5090, NVIDIA GeForce RTX 3090, NVIDIA GeForce RTX 3090",
    "backends": "CUDA",
    "model_filename": "/models/DeepSeek-R1-UD-Q2_K_XL-00001-of-00005.gguf",
    "model_type": "deepseek2 671B Q2_K - Medium",
    "model_size": 226588000000,
    "model_n_params": 671026419200,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_threads": 32,
    "type_k": "f16",
    "n_gpu_layers": 99,
    "n_cpu_moe": 0,
    "flash_attn": 1,
    "tensor_buft_overrides": r"blk\.(3|4)\.ffn_.*=CUDA0;blk\.5\.ffn_.*=CUDA1;exps=CPU",
    "n_prompt": 512,
    "n_gen": 0,
    "n_depth": 4096,
    "avg_ns": 68135061,
    "avg_ts": 114.56,
    "stddev_ts": 0.4,
    "samples_ts": [114.1, 115.0],
}


def test_llama_benchs_json_and_jsonl(tmp_path: Path) -> None:
    rows = [JSON, {**JSON, "n_prompt": 0, "n_gen": 128, "avg_ts": 13.68}]
    prompt, decode = read(tmp_path, json.dumps(rows, indent=2), "bench.json")
    assert (prompt.model, prompt.quant, prompt.file_bytes) == ("DeepSeek-R1", "UD-Q2_K_XL", 226588000000)
    assert prompt.gpus is not None
    assert [(gpu.model[-8:], gpu.count) for gpu in prompt.gpus] == [("RTX 5090", 1), ("RTX 3090", 2)]
    assert (prompt.cpu, prompt.threads) == ("AMD EPYC 9355 32-Core Processor", 32)
    assert prompt.tensor_overrides[1:] == (r"blk\.5\.ffn_.*=CUDA1", "exps=CPU")
    assert (prompt.context_depth, prompt.prefill_tokens_per_s) == (4096, 114.56)
    assert (decode.decode_tokens_per_s, decode.prefill_tokens_per_s) == (13.68, None)
    assert read(tmp_path, "\n".join(map(json.dumps, rows)), "bench.jsonl") == (prompt, decode)
    assert read(tmp_path, json.dumps(rows), "bench.log") == (prompt, decode)


def test_ik_llamas_json(tmp_path: Path) -> None:
    kept = {key: value for key, value in JSON.items() if key not in ("n_depth", "n_cpu_moe", "tensor_buft_overrides")}
    row = {**kept, "mla_attn": 3, "override_tensor": r"blk\.(1|2)\.ffn=CUDA0,exps=CPU", "test": "tg64@pp1024"}
    (run,) = read(tmp_path, json.dumps([{**row, "n_prompt": 1024, "n_gen": 64}]), "ik.json")
    assert (run.engine, run.context_depth, run.generated_tokens) == ("ik_llama.cpp", 1024, 64)
    assert run.tensor_overrides == (r"blk\.(1|2)\.ffn=CUDA0", "exps=CPU")
    assert (run.n_cpu_moe, run.decode_tokens_per_s) == (None, 114.56)


# --- llama-sweep-bench -----------------------------------------------------------------------------------------------

SWEEP = """\
llm_load_tensors:        CPU buffer size = 89709.28 MiB
main: n_kv_max = 32768, n_batch = 2048, n_ubatch = 512, flash_attn = 1, n_gpu_layers = 99, n_threads = 16, n_threads_batch = 32

|    PP |     TG |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |
|-------|--------|--------|----------|----------|----------|----------|
|   512 |    128 |      0 |    4.165 |   122.94 |   11.925 |    10.73 |
|   512 |    128 |    512 |    3.848 |   133.06 |   12.031 |    10.64 |
"""  # noqa: E501


def test_sweep_benchs_table_and_jsonl(tmp_path: Path) -> None:
    first, second = read(tmp_path, SWEEP, "sweep.log", machine="box")
    assert (first.prompt_tokens, first.generated_tokens, first.ubatch, first.context_depth) == (512, 128, 512, 0)
    assert (second.prefill_tokens_per_s, second.decode_tokens_per_s, second.context_depth) == (133.06, 10.64, 512)
    assert (second.threads, second.prefill_threads, second.gpu_layers, second.machine) == (16, 32, 99, "box")
    settings = {"n_kv_max": 32768, "n_ubatch": 512, "n_gpu_layers": 99, "n_threads": 16, "n_threads_batch": 32}
    row = {
        **settings,
        "pp": 512,
        "tg": 128,
        "n_kv": 0,
        "t_pp": 4.1,
        "speed_pp": 122.94,
        "t_tg": 11.9,
        "speed_tg": 10.73,
    }
    again = read(tmp_path, json.dumps(row) + "\n" + json.dumps({**row, "n_kv": 512}), "sweep.jsonl", machine="box")
    assert again[0] == first
    assert again[1].context_depth == 512


def test_sweep_benchs_table_with_memory(tmp_path: Path) -> None:
    text = SWEEP.replace("S_TG t/s |", "S_TG t/s |    RSS HWM | VRAM delta |").replace(
        "10.73 |", "10.73 |  n/a |  8120.0 |"
    )
    assert read(tmp_path, text, "sweep.log")[0].decode_tokens_per_s == 10.73


# --- servers ---------------------------------------------------------------------------------------------------------

PREFILL = (
    "[2026-09-24 09:45:{:02d}] Prefill batch, #new-seq: 1, #new-token: {}, #cached-token: 0, full token usage: 0.00, "
)
PREFILL += "#running-req: 0, #queue-req: 0, #pending-token: 0, cuda graph: False, input throughput (token/s): {}\n"
DECODE = "[2026-09-24 09:46:{:02d} TP0] Decode batch, #running-req: {}, #full token: {}, full token usage: 0.10, "
DECODE += "cuda graph: True, gen throughput (token/s): {}, #queue-req: 0\n"
OLD = "[2026-09-24 09:46:00 TP0] Decode batch. #running-req: 1, #token: 16500, token usage: 0.10, "
OLD += "gen throughput (token/s): 0.90, #queue-req: 0\n"
ARGUMENTS = (
    "server_args=ServerArgs(model_path='/models/Kimi-K2-Thinking', kt_method='AMXINT4', kt_cpuinfer=60, x=None)\n"
)
SGLANG = ARGUMENTS + "".join(
    PREFILL.format(*line) for line in [(1, 1, 0.03), (10, 8192, 2.1), (29, 8192, 415), (49, 100, 405)]
)
SGLANG += OLD + DECODE.format(4, 1, 16540, 21.5) + '[2026-09-24 09:46:06] INFO: "POST /v1/chat/completions" 200 OK\n'
SGLANG += "".join(DECODE.format(*line) for line in [(8, 1, 16580, 22.5), (10, 4, 66000, 40.0), (12, 4, 66160, 61.0)])


def test_sglangs_log(tmp_path: Path) -> None:
    runs = {run.id: run for run in read(tmp_path, SGLANG, "server.log")}
    assert set(runs) == {"server:decode-1", "server:decode-4", "server:prefill-1", "server:prefill-8192"}
    alone, together = runs["server:decode-1"], runs["server:decode-4"]
    assert (alone.batch_size, alone.decode_tokens_per_s, alone.context_depth) == (1, 22.0, 16560)
    assert (together.batch_size, together.decode_tokens_per_s, together.context_depth) == (4, 61.0, 16540)
    assert (alone.model, alone.threads, alone.engine) == ("Kimi-K2-Thinking", 60, "sglang-kt")
    chunk = runs["server:prefill-8192"]
    assert (chunk.prompt_tokens, chunk.ubatch, chunk.prefill_tokens_per_s) == (8192, 8192, 410.0)
    assert chunk.decode_tokens_per_s is None


def test_a_log_whose_speeds_are_all_waiting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MoeplanError, match=r"server\.log: no line of the log follows another"):
        read(tmp_path, PREFILL.format(1, 900, 15) + OLD, "server.log")


CHAT = """\
Chat: Count from one to ten in Mandarin Chinese.

prompt eval count:    14 token(s)
prompt eval duration: 0.8247685432434082s
prompt eval rate:     16.974459216090978 tokens/s
eval count:           750 token(s)
eval duration:        56.33242607116699s
eval rate:            13.31382388985866 tokens/s
"""
SERVER = "2025-02-21 11:57:02,966 INFO ktransformers/server/backend/base.py[64]: Performance(T/s): prefill 11.489579, "
SERVER += "decode 5.333968008750722. Time(s): tokenize 0.01175, prefill 1.4796016216278076, decode 233.22224617004395\n"
OLLAMA = "load duration: 8.7s\nprompt eval count: 3869 token(s)\neval rate: 16.43 tokens/s"


def test_ktransformers_logs(tmp_path: Path) -> None:
    chat, served = read(tmp_path, CHAT + SERVER, "kt.log")
    assert (chat.prompt_tokens, chat.generated_tokens, chat.engine) == (14, 750, "ktransformers")
    assert chat.prefill_tokens_per_s == pytest.approx(16.97446, rel=1e-5)
    assert chat.decode_tokens_per_s == pytest.approx(13.31382, rel=1e-5)
    assert (served.prompt_tokens, served.generated_tokens) == (17, 1244)
    assert served.decode_tokens_per_s == pytest.approx(5.33397, rel=1e-5)
    assert read(tmp_path, OLLAMA, "ollama.log")[0].engine == "other"


# --- what is wrong ---------------------------------------------------------------------------------------------------

HEAD = "| model | size | backend | ngl | test | t/s |\n|---|---|---|---|---|---|\n"
BAD: list[tuple[str, str]] = [
    (HEAD, "bench.md: a table of llama-bench without rows"),
    (HEAD + "| a | 1 GiB | CUDA | 99 | pp512 |\n", "line 3: 5 cells under 6 columns"),
    (HEAD + "| a | 1 GiB | CUDA | 99 | pp512 | 5 | 6 |\n", "line 3: 7 cells under 6 columns"),
    (HEAD + "| a | 1 GiB | CUDA | many | pp512 | 5 |\n", "line 3, ngl: 'many' is not a whole number"),
    (HEAD + "| a | huge | CUDA | 99 | pp512 | 5 |\n", "line 3, size: 'huge' is not a size"),
    (HEAD + "| a | 1 GiB | CUDA | 99 | ppl | 5 |\n", "line 3, test: 'ppl' is not a test"),
    (HEAD + "| a | 1 GiB | CUDA | 99 | pp512 | fast |\n", "line 3, t/s: 'fast' is not a speed"),
    (HEAD + "| a | 1 GiB | CUDA | 99 | pp512 | 5.5.5 |\n", "line 3, t/s: '5.5.5' is not a number"),
    (HEAD + "| a | 1 GiB | CUDA | 99 | pp512 | 0 |\n", "prefill_tokens_per_s"),
    (SWEEP.replace("122.94", "n/a"), "line 6, S_PP t/s: 'n/a' is not a number"),
    (
        SWEEP.replace("|   512 |    128 |      0", "|   512 |    128 |     -5"),
        "line 6, N_KV: '-5' is not a whole number",
    ),
    (SWEEP.split("|   512")[0], "without rows"),
    (SWEEP.replace("S_PP t/s", "speed"), "line 6: no column S_PP t/s"),
    (json.dumps([{**JSON, "avg_ts": "5"}]), "test 1.avg_ts: '5' is not a number"),
    (json.dumps([{**JSON, "n_gen": 0.5}]), "test 1.n_gen: 0.5 is not a whole number"),
    (json.dumps([{**JSON, "model_type": 3}]), "test 1.model_type: 3 is not text"),
    (json.dumps([{**JSON, "n_prompt": 0}]), "neither a prompt nor an answer"),
    (json.dumps([{**JSON, "n_threads": 0}]), "test 1: threads"),
    ('{"n_kv": 0, "speed_pp": 5, "pp": 512}', "row 1.tg: None is not a number"),
]


@pytest.mark.parametrize(("text", "said"), BAD, ids=[said[:40] for _, said in BAD])
def test_bad_output_names_the_line_and_the_column(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(MoeplanError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
