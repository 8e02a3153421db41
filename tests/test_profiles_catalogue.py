"""The catalogue: its figures against those of the makers, its names, and that it agrees with itself."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

import pytest

from profiles.catalogue import catalogue, cpus_named, find_cpu, find_gpu, find_link, gpus_named, unknown_part
from profiles.document import parse_document
from profiles.part_names import keys, plain
from profiles.parts import MEMORY_LINK, CpuPart, GpuPart
from profiles.phrase.devices import gpu_device
from profiles.read_phrase import read_phrase

MIB = 2**20
KINDS = ("gpus", "cpus", "links")


def document(kind: str) -> dict[str, Any]:
    """A file of the catalogue through the strict reader, which refuses aliases and keys given twice."""
    text = files("profiles").joinpath(f"data/hardware/{kind}.yaml").read_text(encoding="utf-8")
    return dict(parse_document(text, f"{kind}.yaml"))


DOCUMENTS = {kind: document(kind) for kind in KINDS}


def test_files_are_what_the_quick_reader_makes_of_them() -> None:
    for kind, parts in zip(KINDS, (catalogue().gpus, catalogue().cpus, catalogue().links), strict=True):
        assert DOCUMENTS[kind]["schema"] == 1
        entries = DOCUMENTS[kind][kind]
        assert [entry["name"] for entry in entries] == [part.name for part in parts]
        assert [type(part)(**entry) for part, entry in zip(parts, entries, strict=True)] == list(parts)


def test_it_has_what_was_sold() -> None:
    assert len(catalogue().gpus) >= 130
    assert len(catalogue().cpus) >= 160
    assert {gpu.maker for gpu in catalogue().gpus} == {"NVIDIA", "AMD", "Intel", "Apple", "Huawei"}


# Each maker's data sheet, or techpowerup.com's copy of it: bytes/s, dense bf16 or fp16 FLOP/s (None: fp32 or unknown).
DATA_SHEETS = [
    ("RTX5090", 1792, 209.5),
    ("RTX-PRO-6000-Blackwell-Server", 1597, 467.8),
    ("RTX-PRO-6000", 1792, 500.0),
    ("RTX4070Ti-SUPER", 672.3, 88.2),
    ("RTX2080Ti", 616, 53.8),
    ("H100-NVL", 3900, 835.5),
    ("L40", 864, 181.05),
    ("L40S", 864, 362.05),
    ("A800-80GB-PCIe", 1935, 312),
    ("MI300X", 5300, 1307.4),
    ("MI355X", 8000, 2516.6),
    ("RX7900XTX", 960, 122.8),
    ("Gaudi3", 3670, 1835),
    ("Apple-M2-Ultra", 800, 27.2),
    ("GB10", 273, 118.9),
]


@pytest.mark.parametrize(("name", "gb_per_s", "tflops"), DATA_SHEETS)
def test_figures_of_data_sheets(name: str, gb_per_s: float, tflops: float) -> None:
    part = find_gpu(name)
    assert part is not None
    assert part.bandwidth_bytes_per_s == pytest.approx(gb_per_s * 1e9)
    assert next(part.flops_per_s[k] for k in ("bf16", "fp16") if k in part.flops_per_s) == pytest.approx(tflops * 1e12)


def test_what_was_wrong_is_mended() -> None:
    """fp4 of GeForce 50 was half of what NVIDIA's white paper gives (5090: 1676 dense), a quarter of the AI TOPS."""
    for name, ai_tops in [("RTX5090", 3352), ("RTX5080", 1801), ("RTX5070Ti", 1406), ("RTX5070", 988)]:
        part = find_gpu(name)
        assert part is not None
        assert part.flops_per_s["fp4"] == pytest.approx(ai_tops / 2 * 1e12, rel=0.001)
        assert part.flops_per_s["bf16"] == pytest.approx(ai_tops / 16 * 1e12, rel=0.002)
    server, workstation = find_gpu("RTX PRO 6000 Server"), find_gpu("RTX-PRO-6000")
    assert server is not None
    assert workstation is not None
    assert server.bandwidth_bytes_per_s < workstation.bandwidth_bytes_per_s
    assert [part.name for part in gpus_named("RTX PRO 6000")] == [
        "RTX-PRO-6000",
        "RTX-PRO-6000-Blackwell-Max-Q",
        "RTX-PRO-6000-Blackwell-Server",
    ]


@pytest.mark.parametrize("part", catalogue().gpus, ids=lambda part: part.name)
def test_every_name_of_a_gpu_is_its_own(part: GpuPart) -> None:
    """Its name means it alone or first; what it shares with others still finds it, and its memory tells it apart."""
    assert find_gpu(part.name) is part
    for name in (part.name, *part.driver_names, *part.aliases):
        for spelling in {name, name.lower(), name.upper(), name.replace("-", " "), name.replace(" ", "")}:
            assert part in gpus_named(spelling), spelling
    totals = part.unified.sizes if part.unified else (part.memory_bytes, *part.other_totals)
    for name in part.driver_names:
        for total in totals:
            found = gpus_named(name, total)
            assert part in found
            assert all(other.has_total(total) for other in found)
    if part.unified is None:
        (device,) = read_phrase(part.name).gpus
        assert device.model == part.name
        assert device.compute_capability == part.compute_capability


@pytest.mark.parametrize("part", catalogue().cpus, ids=lambda part: part.name)
def test_every_name_of_a_cpu_is_its_own(part: CpuPart) -> None:
    assert find_cpu(part.name) is part
    for name in (part.name, *part.aliases):
        for spelling in {name, name.lower(), name.replace("-", " ")}:
            assert part in cpus_named(spelling), spelling
    device = read_phrase(f"cpu={part.name}").cpu
    assert (device.model, device.cores) == (part.name, part.cores)


def test_only_forms_of_one_chip_share_a_name() -> None:
    """What a driver prints for several chips (`AMD Radeon Graphics`) is asked about instead."""
    for part in catalogue().gpus:
        for name in (part.name, *part.aliases):
            assert {other.arch for other in gpus_named(name)} == {part.arch}, name


def test_totals_of_drivers() -> None:
    """As nvidia-smi and rocm-smi were seen to print them, by driver and with or without ECC."""
    for name, totals in {
        "Tesla V100-SXM2-16GB": (16160, 16384),
        "NVIDIA L40": (46068, 49140),
        "NVIDIA RTX A6000": (49140, 46068),
        "NVIDIA A100-SXM4-40GB": (40536, 40960),
        "Tesla P40": (22919, 23040, 24576),
        "NVIDIA GeForce RTX 3080": (10240, 12288),
        "NVIDIA GeForce RTX 4060 Ti": (8188, 16380),
        "NVIDIA GB300": (284208, 256703),
        "AMD Instinct MI300X": (196592,),
    }.items():
        for total in totals:
            part = find_gpu(name, total * MIB)
            assert part is not None
            assert total * MIB in (part.memory_bytes, *part.other_totals), (name, total)


@pytest.mark.parametrize(
    ("name", "wanted"), [("RTX4090", "8.9"), ("H100", "9.0"), ("A100-80GB", "8.0"), ("T4", "7.5"), ("GB10", "12.1")]
)
def test_compute_capability_is_on_the_device(name: str, wanted: str) -> None:
    part = find_gpu(name)
    assert part is not None
    assert gpu_device("cuda:0", part, 10**9).compute_capability == wanted
    assert all(gpu.compute_capability for gpu in catalogue().gpus if gpu.backend == "cuda")
    assert all(gpu.llvm_target for gpu in catalogue().gpus if gpu.backend == "rocm")


def test_parts_of_other_makers_are_called_as_torch_calls_them() -> None:
    machine = read_phrase("4090 + 2x7900XTX + B580 + Gaudi 3 + Ascend 910B3")
    assert [gpu.name for gpu in machine.gpus] == ["cuda:0", "cuda:1", "cuda:2", "xpu:0", "hpu:0", "npu:0"]
    assert [gpu.driven_by for gpu in machine.gpus] == ["cuda", "rocm", "rocm", "sycl", "hpu", "cann"]


def test_sources_are_given_and_listed() -> None:
    for kind in ("gpus", "cpus"):
        sources = DOCUMENTS[kind]["sources"]
        for entry in DOCUMENTS[kind][kind]:
            given = [value for key, value in entry.items() if key.endswith("source")]
            assert given, entry["name"]
            assert all(given), entry["name"]
            for text in given:
                for key in re.findall(r"\b(smi|rsmi|tpu|aic|ark|amd2[356]):", text):
                    assert key in sources, entry["name"]


def test_the_catalogue_agrees_with_itself() -> None:
    for part in (*catalogue().gpus, *catalogue().cpus):
        assert part.host_link == MEMORY_LINK or find_link(part.host_link) is not None
        assert set(part.unverified) <= {*type(part).model_fields, "peak_bytes_per_s"}, part.name
    for gpu in catalogue().gpus:
        assert gpu.nvlink is None or gpu.nvlink.bandwidth_bytes_per_s * 2 <= gpu.nvlink.total_bytes_per_s
        assert (gpu.unified is None) == (gpu.host_link != MEMORY_LINK)
        own = gpu.unified or gpu.beside
        cpu = find_cpu(own.cpu) if own else None
        assert own is None or cpu is not None
        assert gpu.unified is None or cpu.peak_bytes_per_s == gpu.bandwidth_bytes_per_s  # type: ignore[union-attr]
        marketing = re.search(r"-(\d+)GB$", gpu.name)
        assert marketing is None or gpu.has_total(int(marketing[1]) * 10**9)
    for cpu in catalogue().cpus:
        assert cpu.clock_hz is None or 1.5e9 <= cpu.clock_hz <= 5.5e9
        assert 1e11 <= cpu.flops_per_s["bf16"] <= 2e14
        assert cpu.peak_bytes_per_s >= 40e9


PEAKS = {
    "EPYC-9654": 460.8,
    "EPYC-7763": 204.8,
    "EPYC-7282": 85.3,
    "Xeon-6980P": 614.4,
    "Xeon-Gold-6330": 187.7,
    "Xeon-E5-2680-v4": 76.8,
    "Core-i9-14900K": 89.6,
    "Threadripper-PRO-7995WX": 332.8,
    "Grace-480GB": 384,
}
"""GB/s a socket as Intel's ARK, AMD's product table and NVIDIA give them themselves."""


@pytest.mark.parametrize("name", PEAKS)
def test_peaks_of_ram_are_those_of_the_makers(name: str) -> None:
    part = find_cpu(name)
    assert part is not None
    assert part.peak_bytes_per_s == pytest.approx(PEAKS[name] * 1e9, rel=0.001)


def test_keys_keep_what_tells_parts_apart() -> None:
    assert plain("NVIDIA GeForce RTX 4090") == "rtx4090"
    assert keys("RTX 4090 Laptop GPU", "GPU")[-1] == "4090laptop"
    assert keys("AMD EPYC 9654 96-Core Processor", "CPU")[-1] == "9654"
    assert not set(keys("RTX 4070 Ti SUPER", "GPU")) & set(keys("RTX 4070 Ti", "GPU"))


def test_unknown_parts_are_told_the_nearest() -> None:
    assert "did you mean RTX4090" in unknown_part("GPU", "RTX4091")
    assert "did you mean EPYC-9654" in unknown_part("CPU", "EPYC 9654B")
