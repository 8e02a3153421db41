"""`moeplan calibrate`: runs in, a machine out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from profiles import load_hardware

BENCH = """\
| model                          |      size |  params | backend | ngl | n_cpu_moe |  test |             t/s |
| ------------------------------ | --------: | ------: | ------- | --: | --------: | ----: | --------------: |
| qwen3moe 30B.A3B Q4_K - Medium | 17.28 GiB | 30.53 B | CUDA    |  99 |        24 | pp512 | 1050.21 ± 10.00 |
| qwen3moe 30B.A3B Q4_K - Medium | 17.28 GiB | 30.53 B | CUDA    |  99 |        24 | tg128 |    55.10 ± 0.30 |

build: abc1234 (5000)
"""
MACHINE = "1xRTX4090,cpu=Ryzen-9-7950X,ram=64GB"


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    path = tmp_path / "bench.md"
    path.write_text(BENCH, encoding="utf-8")
    return path


def test_the_machine_goes_straight_into_solve(moeplan: Any, bench: Path, tmp_path: Path) -> None:
    out = tmp_path / "machine.yaml"
    status, printed, _ = moeplan("calibrate", bench, "--hardware", MACHINE, "-o", out)
    assert status == 0
    assert "cpu.bandwidth" in printed
    assert "8 times in 10" in printed
    machine = load_hardware(out)
    assert machine.cpu.calibration is not None
    assert machine.uncertainty is not None
    assert "calibrated to 2 measurements with llama.cpp" in machine.notes[-1]
    status, printed, _ = moeplan("solve", "qwen3-30b-a3b", out, "--quant", "q4_k_m", "--target", "llama.cpp")
    assert status == 0
    assert "80% sure" in printed


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ((), "--hardware"),
        (("--hardware", MACHINE, "--model", "no-such-model"), "model"),
        (("--hardware", MACHINE, "--engine", "vllm"), "engine"),
        (("--hardware", MACHINE, "--n-cpu-moe", "-3"), "n_cpu_moe"),
    ],
)
def test_what_is_missing_or_wrong_is_one_line(
    moeplan: Any, bench: Path, tmp_path: Path, options: tuple[str, ...], field: str
) -> None:
    out = tmp_path / "machine.yaml"
    status, printed, error = moeplan("calibrate", bench, *options, "-o", out)
    assert (status, printed) == (1, "")
    assert len(error.strip().splitlines()) == 1
    assert field in error
    assert not out.exists()


def test_a_file_of_nothing_known_is_refused(moeplan: Any, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello\n", encoding="utf-8")
    status, _, error = moeplan("calibrate", path, "--hardware", MACHINE)
    assert status == 1
    assert "notes.txt" in error
