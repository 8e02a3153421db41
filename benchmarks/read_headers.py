"""Claim: a file of 400 GB is read in a fraction of a second, and so is a checkpoint of 92 000 tensors in 163 files.

Writes sparse files (their headers are whole, their data holes) into a temporary folder, then reads each in a process of
its own: seconds of `load_profile` and the process's largest memory. Run: python benchmarks/read_headers.py
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from checkpoint_files import deepseek, fp8, quantised, write_checkpoint
from gguf_files import write_gguf

from profiles.formats.gguf_layout import predicted_file
from profiles.hf_config.reader import model_tensors
from profiles.presets import model_config_preset

FIELDS = {
    ".block_count": 61, ".attention.head_count": 128, ".attention.head_count_kv": 1, ".attention.key_length_mla": 192,
    ".attention.value_length_mla": 128, ".attention.kv_lora_rank": 512, ".rope.dimension_count": 64,
    ".expert_count": 256, ".expert_used_count": 8, "general.file_type": 15,
}  # fmt: skip
WORDS = 129_280
MEASURE = """
import sys, time
from pathlib import Path
from profiles import load_profile
start = time.perf_counter()
profile = load_profile(sys.argv[1])
seconds = time.perf_counter() - start
status = Path("/proc/self/status").read_text().splitlines()
peak = int(next(line.split()[1] for line in status if line.startswith("VmHWM"))) // 1024
print(f"{profile.file_bytes / 1e9:8.1f} GB  {seconds:6.2f} s  {peak:5d} MiB  {profile.source}")
"""


def main() -> None:
    print(f"{platform.machine()}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deepseek-r1-q4_k_m.gguf"
        tokenizer = {
            "tokenizer.ggml.tokens": [f"word{i}" for i in range(WORDS)],
            "tokenizer.ggml.token_type": [1] * WORDS,
            "tokenizer.ggml.merges": [f"w{i} ord{i}" for i in range(WORDS)],
        }
        tensors = predicted_file(model_tensors(model_config_preset("deepseek-r1") or {}), "q4_k_m")
        write_gguf(path, "deepseek2", FIELDS | tokenizer, [(t.name, t.shape, kind) for t, kind in tensors])
        report("DeepSeek-R1 Q4_K_M, one file", path)
        config = model_config_preset("deepseek-r1") or {}
        checkpoint = Path(folder) / "deepseek-r1"
        write_checkpoint(checkpoint, config, quantised(deepseek(config), fp8), 163)
        report("DeepSeek-R1 fp8, 163 safetensors", checkpoint)


def report(name: str, path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    print(f"{name:45}{done.stdout.strip()}")


if __name__ == "__main__":
    main()
