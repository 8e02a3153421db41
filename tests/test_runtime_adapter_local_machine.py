"""This machine as a Hardware: facts from made-up /proc and /sys, a stand-in for torch's GPUs, probes that fail."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moeplan import Hardware, HardwareError, Workload, evaluate, load_hardware, load_profile, solve
from moeplan import cli as command
from runtime_adapter.local_machine import probes
from runtime_adapter.local_machine import read as local_machine
from runtime_adapter.local_machine.facts import Facts, read_facts
from runtime_adapter.local_machine.gpu_probes import GpuFacts
from runtime_adapter.local_machine.probes import Limits
from runtime_adapter.local_machine.read import describe

GIB = 2**30
QUICK = Limits(seconds=0.02, repetitions=2, least_buffer_bytes=2**22, most_buffer_bytes=2**22, product_sizes=(16, 32))
EPYC = """processor\t: 0
model name\t: AMD EPYC 9654 96-Core Processor
flags\t\t: fpu sse2 avx2 avx512f avx512_bf16 avx512_vnni smep
"""


def write(root: Path, files: dict[str, object]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="utf-8")


def two_sockets(root: Path) -> None:
    """Two sockets of two cores, two threads a core: CPUs 0-3 are the cores' first threads, 4-7 their second ones."""
    write(root, {"proc/cpuinfo": EPYC, "sys/devices/system/cpu/online": "0-7"})
    for cpu in range(8):
        core = cpu % 4
        here = f"sys/devices/system/cpu/cpu{cpu}"
        half = "0-1,4-5" if core < 2 else "2-3,6-7"
        write(root, {
            f"{here}/topology/core_cpus_list": f"{core},{core + 4}", f"{here}/topology/physical_package_id": core // 2,
            f"{here}/cache/index0/level": 1, f"{here}/cache/index0/size": "32K", f"{here}/cache/index0/type": "Data",
            f"{here}/cache/index0/shared_cpu_list": f"{core},{core + 4}",
            f"{here}/cache/index3/level": 3, f"{here}/cache/index3/size": "16M", f"{here}/cache/index3/type": "Unified",
            f"{here}/cache/index3/shared_cpu_list": half,
        })  # fmt: skip
    for node, cpus in enumerate(("0-1,4-5", "2-3,6-7")):
        text = f"Node {node} MemTotal:  {32 * 2**20} kB\nNode {node} MemFree: 5 kB"
        write(root / f"sys/devices/system/node/node{node}", {"cpulist": cpus, "meminfo": text})


def facts_of(root: Path, affinity: set[int] | None = None, own_bytes: int = 0) -> Facts:
    return read_facts(root / "proc", root / "sys", affinity or set(range(8)), (64 * GIB, 60 * GIB), own_bytes)


def a_machine(**changes: Any) -> Facts:
    """Facts of a machine that is not in the catalogue, on CPUs that this process really has."""
    cpus = read_facts().usable[:1]
    known: dict[str, Any] = {
        "cpu_name": "Some CPU", "sockets": 1, "cores": 1, "logical": 1, "usable": cpus, "quota": None, "numa": (),
        "isa": ("avx2",), "cache_bytes": 2**20, "memory_bytes": 64 * GIB, "memory_limited": False,
        "available_bytes": 60 * GIB, "own_bytes": GIB,
    }  # fmt: skip
    return Facts(**{**known, **changes})


def noted(machine: Hardware, *words: str) -> str:
    """The one note that has all words in it."""
    (note,) = [note for note in machine.notes if all(word in note for word in words)]
    return note


class Event:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None: ...
    def synchronize(self) -> None: ...

    def elapsed_time(self, end: Event) -> float:
        return 2.0  # milliseconds


class Tensor:
    """Bytes on a device that does nothing; `broken` devices raise when anything is done there."""

    def __init__(self, torch: FakeTorch, device: str = "cpu", is_random: bool = False) -> None:
        self.torch, self.device, self.is_random = torch, device, is_random

    def work(self, *_: object, **__: object) -> Tensor:
        if self.device in self.torch.broken:
            raise RuntimeError(f"an illegal memory access on {self.device}\nmore of it")
        return self

    def __matmul__(self, other: Tensor) -> Tensor:
        assert self.is_random, "products of zeros take less power than real ones, and are faster for it"
        assert other.is_random
        self.torch.done.append("product")
        return self.work()

    sum = copy_ = pin_memory = __getitem__ = work


class FakeTorch:
    """As much of torch as the probes use, with GPUs whose every timed run takes 2 ms."""

    float32, bfloat16, float16, uint8 = "float32", "bfloat16", "float16", "uint8"
    __version__ = "0.fake"

    def __init__(self, *names: str, broken: tuple[str, ...] = (), deaf: int | None = None, peers: bool = True) -> None:
        self.names, self.broken, self.deaf = names, broken, deaf
        self.kinds, self.done = list[str](), list[str]()
        self.cuda = SimpleNamespace(
            is_available=lambda: bool(names), device_count=lambda: len(names), mem_get_info=self.memory,
            get_device_name=lambda index: names[index], get_device_capability=lambda index: (8, 9),
            memory_reserved=lambda index: GIB, Event=Event, device=lambda index: nullcontext(),
            synchronize=lambda index: None, can_device_access_peer=lambda a, b: peers,
            empty_cache=lambda: self.done.append("emptied"),
        )  # fmt: skip

    def memory(self, index: int) -> tuple[int, int]:
        if index == self.deaf:
            raise RuntimeError("no answer")
        return 20 * GIB, 24 * GIB

    def zeros(self, shape: object, dtype: str, device: str = "cpu") -> Tensor:
        self.kinds.append(dtype)
        self.done.append("zeros")
        return Tensor(self, device).work()

    def randn(self, shape: object, dtype: str, device: str) -> Tensor:
        self.kinds.append(dtype)
        return Tensor(self, device, is_random=True).work()

    def ones(self, shape: tuple[int, int], dtype: str) -> Any:
        return np.ones(shape, np.float32)

    def zeros_like(self, other: Tensor) -> Tensor:
        return Tensor(self, other.device)

    def get_num_threads(self) -> int:
        return 1

    def set_num_threads(self, count: int) -> None: ...


# -- facts


def test_cores_nodes_caches_and_instruction_sets(tmp_path: Path) -> None:
    two_sockets(tmp_path)
    facts = facts_of(tmp_path)
    assert facts.cpu_name == "AMD EPYC 9654 96-Core Processor"
    assert (facts.sockets, facts.cores, facts.logical, facts.threads) == (2, 4, 8, 8)
    assert facts.isa == ("avx2", "avx512f", "avx512_vnni", "avx512_bf16")
    assert [(n.number, n.cpus, n.memory_bytes) for n in facts.numa] == [
        (0, (0, 1, 4, 5), 32 * GIB),
        (1, (2, 3, 6, 7), 32 * GIB),
    ]
    assert facts.cache_bytes == 2 * 16 * 2**20
    assert (facts.memory_bytes, facts.memory_limited, facts.in_use_bytes) == (64 * GIB, False, 4 * GIB)
    assert facts_of(tmp_path, own_bytes=3 * GIB).in_use_bytes == GIB
    narrow = facts_of(tmp_path, affinity={0, 4})
    assert (narrow.threads, narrow.cache_bytes) == (2, 16 * 2**20)  # the other socket's cache is out of reach


@pytest.mark.parametrize(
    ("group", "files"),
    [
        ("0::/a/b", {"a/cpu.max": "250000 100000", "a/memory.max": 8 * GIB, "a/memory.current": 7 * GIB,
                     "a/memory.stat": f"anon 5\ninactive_file {GIB}", "a/b/cpu.max": "max 100000",
                     "a/b/memory.max": "max"}),
        ("0::/not/here", {"cpu.max": "200000 100000", "memory.max": 8 * GIB, "memory.current": 6 * GIB}),
        ("0::/../..", {"cpu.max": "200000 100000", "memory.max": 8 * GIB, "memory.current": 6 * GIB}),
        ("5:cpu,cpuacct:/x\n4:memory:/x\n0::/", {
            "cpu,cpuacct/x/cpu.cfs_quota_us": 200000, "cpu,cpuacct/x/cpu.cfs_period_us": 100000,
            "cpu,cpuacct/cpu.cfs_quota_us": -1, "cpu,cpuacct/cpu.cfs_period_us": 100000,
            "memory/x/memory.limit_in_bytes": 8 * GIB, "memory/x/memory.usage_in_bytes": 8 * GIB,
            "memory/x/memory.stat": f"inactive_file 0\ntotal_inactive_file {2 * GIB}",
            "memory/memory.limit_in_bytes": 9223372036854771712}),
    ],
    ids=["v2-parent", "v2-container", "v2-above-the-root", "v1"],
)  # fmt: skip
def test_control_groups_limit_cpus_and_memory(tmp_path: Path, group: str, files: dict[str, object]) -> None:
    two_sockets(tmp_path)
    write(tmp_path, {"proc/self/cgroup": group} | {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    facts = facts_of(tmp_path)
    assert facts.threads == 2
    assert (facts.memory_bytes, facts.memory_limited) == (8 * GIB, True)
    assert facts.available_bytes == 2 * GIB


@pytest.mark.parametrize("quota", ["50000 100000", "max 100000", "rubbish", ""])
def test_a_quota_below_one_cpu_is_one_thread_and_rubbish_is_none(tmp_path: Path, quota: str) -> None:
    two_sockets(tmp_path)
    write(tmp_path, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": quota})
    assert facts_of(tmp_path).threads == (1 if quota.startswith("50000") else 8)


def test_a_machine_that_says_nothing_still_has_facts(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, affinity={0, 1})
    assert (facts.usable, facts.logical, facts.sockets, facts.numa, facts.isa) == ((0, 1), 2, 1, (), ())
    assert facts.cores >= 1
    assert facts.cache_bytes == 0


# -- probes


def test_the_buffer_is_far_above_the_cache_and_far_below_free_memory() -> None:
    limits = Limits(least_buffer_bytes=100, most_buffer_bytes=2**34)
    assert probes.buffer_bytes_for(GIB, 1000 * GIB, limits) == 4 * GIB
    assert probes.buffer_bytes_for(GIB, 8 * GIB, limits) == GIB
    assert probes.buffer_bytes_for(100 * GIB, 1000 * GIB, limits) == 2**34


def test_reading_says_threads_bytes_and_method() -> None:
    cpus = read_facts().usable
    before = threading.active_count()
    found = probes.read_bandwidth(cpus, 2**20, GIB, QUICK)
    assert found.value > 1e6
    assert f"{len(cpus)} thread" in found.how
    assert "4 MiB (4.0 x the last-level cache)" in found.how
    assert "reduce over uint64" in found.how
    assert threading.active_count() <= before + len(cpus)  # they end by themselves


def test_a_thread_that_fails_is_the_probes_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError("no such luck")

    monkeypatch.setattr(probes, "READS", {"refused": refuse})
    with pytest.raises(MemoryError, match="no such luck"):
        probes.read_bandwidth(read_facts().usable, 0, GIB, QUICK)


def test_a_busy_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "BUSY_SHARE", float("inf"))
    assert "others used the CPUs" in probes.read_bandwidth(read_facts().usable, 0, GIB, QUICK).how
    monkeypatch.setattr(probes, "BUSY_SHARE", 0.0)
    assert "others" not in probes.read_bandwidth(read_facts().usable, 0, GIB, QUICK).how


def test_large_products_are_left_out_when_small_ones_take_the_time() -> None:
    asked = []

    def product(size: int) -> Any:
        asked.append(size)
        return lambda: 1.0

    found = probes.best_product(product, (2, 4, 8), "slow", Limits(seconds=2.0))
    assert asked == [2]
    assert found.value == 2 * 2**3
    assert "2 x 2 product" in found.how


# -- the machine


def test_without_torch_the_cpu_is_measured_and_a_note_says_why_no_gpu_is_seen() -> None:
    machine = describe(a_machine(), None, "torch is not installed", QUICK)
    assert [device.name for device in machine.devices] == ["cpu"]
    assert "torch is not installed" in noted(machine, "GPUs: none are seen")
    cpu = machine.cpu
    assert (cpu.memory_bytes, cpu.reserved_bytes, cpu.threads, cpu.isa) == (64 * GIB, 3 * GIB, 1, ("avx2",))
    assert cpu.bandwidth_efficiency is None  # an engine reaches less than a plain loop
    assert f"{cpu.bandwidth_bytes_per_s / 1e9:,.1f} GB/s measured" in noted(machine, "cpu bandwidth")
    assert list(cpu.flops_per_s) == ["fp32"]
    assert "numpy" in noted(machine, "cpu fp32 products")
    assert Hardware.from_dict(machine.to_dict()) == machine


def test_a_probe_that_fails_leaves_the_catalogues_figure_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_machine, "read_bandwidth", lambda *_: 1 / 0)
    monkeypatch.setattr(local_machine, "numpy_flops", lambda *_: 1 / 0)
    known = describe(a_machine(cpu_name="AMD EPYC 9654 96-Core Processor", sockets=2), None, "no torch", QUICK)
    listed = load_hardware("cpu=EPYC-9654,sockets=2").cpu
    assert known.cpu.model == "EPYC-9654"
    assert known.cpu.bandwidth_bytes_per_s == listed.bandwidth_bytes_per_s
    assert (known.cpu.flops_per_s, known.cpu.bandwidth_efficiency) == (listed.flops_per_s, listed.bandwidth_efficiency)
    assert "the catalogue's 922 GB/s instead (the peak, " in noted(
        known, "cpu bandwidth: not measured (ZeroDivisionError"
    )
    unknown = describe(a_machine(), None, "no torch", QUICK)
    assert unknown.cpu.bandwidth_bytes_per_s == 200e9
    assert "200 GB/s assumed" in noted(unknown, "cpu bandwidth: not measured")
    assert "4 TFLOP/s bf16 assumed" in noted(unknown, "cpu fp32 products: not measured")


def test_torch_measures_bf16_only_where_the_cpu_has_it() -> None:
    plain = describe(a_machine(), FakeTorch(), limits=QUICK)
    assert list(plain.cpu.flops_per_s) == ["fp32"]
    assert "none, as torch 0.fake reports" in noted(plain, "GPUs")
    with_bf16 = describe(a_machine(isa=("avx2", "avx512_bf16")), FakeTorch(), limits=QUICK)
    assert noted(with_bf16, "cpu bf16 products", "measured: torch, bf16, 1 thread")


def test_one_gpu_is_measured() -> None:
    torch = FakeTorch("NVIDIA L40")
    machine = describe(a_machine(), torch, limits=QUICK)
    (gpu,) = machine.gpus
    assert (gpu.name, gpu.model, gpu.memory_bytes, gpu.reserved_bytes) == ("cuda:0", "L40", 24 * GIB, 3 * GIB)
    assert gpu.bandwidth_bytes_per_s == pytest.approx(2 * GIB / 2e-3)  # copied, both directions
    assert gpu.bandwidth_efficiency is None
    assert gpu.flops_per_s == {"bf16": pytest.approx(2 * 8192**3 / 2e-3)}
    assert "compute capability 8.9" in noted(machine, "cuda:0: NVIDIA L40 (the catalogue's L40)")
    (link,) = machine.links
    assert link.between == ("cpu", "cuda:0")
    assert link.bandwidth_bytes_per_s == pytest.approx(2**27 / 2e-3)
    assert 0 < link.latency_s < 1
    assert "pinned" in noted(machine, "cpu - cuda:0", "GB/s measured")
    assert "copy of 8 KiB" in noted(machine, "cpu - cuda:0", "us measured")


def test_what_a_probe_took_is_given_back_before_the_next() -> None:
    torch = FakeTorch("NVIDIA L40")
    describe(a_machine(), torch, limits=QUICK)
    done = torch.done
    first_product = done.index("product")
    # Else cuBLAS cuts its workspace out of the bandwidth probe's buffer, which then cannot be given back any more.
    assert "emptied" in done[done.index("zeros") : first_product]
    assert done[-1] == "emptied"


@pytest.mark.parametrize("peers", [True, False])
def test_two_gpus_have_a_measured_link(peers: bool) -> None:
    machine = describe(a_machine(), FakeTorch("NVIDIA L40", "NVIDIA L40", peers=peers), limits=QUICK)
    assert [link.between for link in machine.links] == [("cpu", "cuda:0"), ("cpu", "cuda:1"), ("cuda:0", "cuda:1")]
    assert ("with peer" if peers else "without peer") in noted(machine, "cuda:0 - cuda:1", "GB/s measured")


def test_a_gpu_that_fails_keeps_the_catalogues_figures_and_the_other_is_measured() -> None:
    torch = FakeTorch("NVIDIA GeForce RTX 4090", "Some GPU", "Other GPU", broken=("cuda:0", "cuda:2"))
    machine = describe(a_machine(), torch, limits=QUICK)
    first, second, third = machine.gpus
    listed = load_hardware("RTX4090")
    assert first.bandwidth_bytes_per_s == listed.gpus[0].bandwidth_bytes_per_s
    assert (first.flops_per_s, first.bandwidth_efficiency) == (listed.gpus[0].flops_per_s, None)
    assert "from the catalogue instead" in noted(machine, "cuda:0 bandwidth: not measured", "illegal memory access")
    assert (second.model, second.bandwidth_efficiency) == ("Some GPU", None)
    assert (third.bandwidth_bytes_per_s, third.flops_per_s) == (300e9, {"fp16": 50e12})
    assert "300 GB/s assumed" in noted(machine, "cuda:2 bandwidth: not measured")
    assert machine.links[0] == listed.links[0]
    assert noted(machine, "cpu - cuda:0: not measured", "us (assumed) instead")
    assert noted(machine, "cuda:0 - cuda:1: not measured", "planned through RAM")


def test_a_gpu_whose_driver_does_not_answer_is_left_out() -> None:
    machine = describe(a_machine(), FakeTorch("NVIDIA L40", "NVIDIA L40", deaf=0), limits=QUICK)
    assert [gpu.name for gpu in machine.gpus] == ["cuda:1"]
    assert "no answer" in noted(machine, "cuda:0: not measured", "left out")


def test_gpu_probes_stop_when_their_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_machine, "GPU_SECONDS", -1.0)
    machine = describe(a_machine(), FakeTorch("NVIDIA L40"), limits=QUICK)
    assert machine.cpu.bandwidth_efficiency is None
    assert machine.gpus == ()
    assert "are over" in noted(machine, "cuda:0: not measured", "left out")


@pytest.mark.parametrize(
    ("told", "listed"),
    [
        ("NVIDIA H100 80GB HBM3", "H100-SXM"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB-SXM"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB"),
        ("Tesla V100-SXM2-32GB", "V100-32GB"),
        ("NVIDIA GeForce RTX 3090", "RTX3090"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX-PRO-6000"),
        ("AMD Instinct MI300X", "MI300X"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 NVL", "H100-NVL"),
        ("NVIDIA A10G", None),
    ],
)
def test_gpus_are_matched_by_the_drivers_name_or_not_at_all(told: str, listed: str | None) -> None:
    part = local_machine._gpu_part(GpuFacts(0, told, 80 * GIB, 80 * GIB, 0, (9, 0)))
    assert (part.name if part else None) == listed


@pytest.mark.parametrize(
    ("told", "listed"),
    [
        ("Intel(R) Xeon(R) Gold 6454S", "Xeon-Gold-6454S"),
        ("Intel(R) Xeon(R) Platinum 8358 CPU @ 2.60GHz", "Xeon-Platinum-8358"),
        ("Intel(R) Xeon(R) Platinum 8480+", "Xeon-Platinum-8480+"),
        ("13th Gen Intel(R) Core(TM) i9-13900K", "Core-i9-13900K"),
        ("AMD Ryzen Threadripper PRO 7995WX 96-Cores", "Threadripper-PRO-7995WX"),
        ("Intel(R) Xeon(R) Processor", None),
        ("", None),
        (None, None),
    ],
)
def test_cpus_are_matched_by_a_part_of_their_name(told: str | None, listed: str | None) -> None:
    part = local_machine._cpu_part(told)
    assert (part.name if part else None) == listed


# -- the loader, the solver and the command


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Facts]]:
    """Makes reading this machine quick, for one test; the list has what was read."""
    reads: list[Facts] = []

    def facts() -> Facts:
        reads.append(a_machine())
        return reads[-1]

    monkeypatch.setattr(local_machine, "read_facts", facts)
    monkeypatch.setattr(local_machine, "Limits", lambda: QUICK)
    monkeypatch.setattr(local_machine, "_import_torch", lambda: (FakeTorch("NVIDIA L40"), ""))
    local_machine._this_machine.cache_clear()
    yield reads
    local_machine._this_machine.cache_clear()


def test_local_is_read_once_a_process_and_again_when_asked(quick: list[Facts]) -> None:
    machine = load_hardware("local")
    assert machine.name == "local"
    assert load_hardware(" Local ") is machine
    assert len(quick) == 1
    assert local_machine.read_machine(refresh=True) is not machine
    assert len(quick) == 2


def test_local_solves_and_the_plan_is_checked_on_local_again(quick: list[Facts]) -> None:
    profile = load_profile("qwen3-30b-a3b", quant="int4")
    plan = solve(profile, "local", Workload(prompt_tokens=64, generated_tokens=8, prefill_chunk=64), time_limit=5)
    assert plan.hardware == "local"
    assert plan.memory is not None
    assert plan.memory["cuda:0"].reserved_bytes == 3 * GIB
    assert evaluate(plan, profile).feasible
    assert len(quick) == 1


def test_local_says_what_to_do_where_moeplan_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiles.load.entry_points", lambda **_: ())
    with pytest.raises(HardwareError, match=r"^local: .*install moeplan") as problem:
        load_hardware("LOCAL")
    assert "\n" not in str(problem.value)


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[str, str]:
    monkeypatch.setattr("sys.argv", ["moeplan", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code in (0, None)
    told = capsys.readouterr()
    return told.out, told.err


def test_the_command_shows_cores_memory_and_how_bandwidth_was_measured(
    quick: list[Facts], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out, _ = run(capsys, monkeypatch, "hardware", "local")
    for words in ("cores", "NUMA nodes", "68.72 GB", "cuda:0", "cpu - cuda:0", "measured by reading", "avx2"):
        assert words in out
    out, _ = run(capsys, monkeypatch, "hardware", "local", "--json", "-o", tmp_path / "box.yaml")
    assert Hardware.from_dict(json.loads(out)) == load_hardware("local") == load_hardware(tmp_path / "box.yaml")
    out, _ = run(capsys, monkeypatch, "hardware", "2xL40")
    assert "NUMA" not in out  # a phrase knows nothing of it


def test_the_real_machine_is_read_within_its_limits() -> None:
    machine = describe(read_facts(), None, "left out by this test", QUICK)
    assert machine.cpu.memory_bytes > 0
    assert machine.cpu.threads is not None
    assert noted(machine, "cpu bandwidth", "measured by reading")
