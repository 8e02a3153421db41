"""The catalogue's nouns: what is known of a kind of GPU, CPU or link. Facts; what is computed of them is a property."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from profiles.device_names import Backend
from profiles.document import Noun
from profiles.units import ByteCount, BytesPerSecond, FlopPerSecond, Share

Flops = Annotated[dict[str, FlopPerSecond], Field(min_length=1)]
Positive = Annotated[float, Field(gt=0)]

MAKERS: dict[Backend, str] = {
    "cuda": "NVIDIA",
    "rocm": "AMD",
    "sycl": "Intel",
    "hpu": "Intel",
    "metal": "Apple",
    "cann": "Huawei",
}
"""Whose GPUs a backend drives: each is what its maker's own software uses."""

TORCH_TYPES: dict[Backend, str] = {
    "cuda": "cuda",
    "rocm": "cuda",
    "sycl": "xpu",
    "metal": "mps",
    "cann": "npu",
    "hpu": "hpu",
}
"""What torch calls the GPUs that a backend drives."""

MEMORY_LINK = "memory"
"""The `host_link` of a chip whose GPU and CPU read the same memory: there is no way between them that is slower."""


class LinkPart(Noun):
    """A host link, by its effective host-to-device rate (pinned memory), which is below what its name promises."""

    name: str
    bandwidth_bytes_per_s: BytesPerSecond
    source: str


class NvLink(Noun):
    """GPU to GPU, each direction of one pair, whatever its maker calls it. `always`: the part is only sold joined."""

    bandwidth_bytes_per_s: BytesPerSecond
    joins: Literal["all", "pairs"]
    always: bool
    total_bytes_per_s: BytesPerSecond
    notes: str | None = None
    source: str | None = None


class Unified(Noun):
    """A GPU on one chip with the CPU `cpu`, reading the same memory, of which it is sold with `sizes`.

    `gpu_share` is the most that the GPU gets of it; `metal` is Apple's default, see `gpu_bytes`.
    """

    cpu: str
    sizes: Annotated[tuple[ByteCount, ...], Field(min_length=1)]
    gpu_share: Literal["metal"] | Share

    def gpu_bytes(self, pool_bytes: int) -> int:
        """How much of a pool the GPU may use.

        Metal's recommendedMaxWorkingSetSize was 2/3 of 16 GiB (llama.cpp prints 11453.25 MB) and 3/4 from 36 GiB on;
        newer systems give more (26800.60 MB of 32 GiB, 30150.67 MB of 36 GiB). The lower figures are taken.
        """
        if self.gpu_share == "metal":
            return pool_bytes * 2 // 3 if pool_bytes < 36 * 10**9 else pool_bytes * 3 // 4
        return round(pool_bytes * self.gpu_share)


class Beside(Noun):
    """The CPU that a GPU is soldered beside, each with its own memory: one for every `gpus_per_cpu` GPUs."""

    cpu: str
    memory_bytes: ByteCount
    gpus_per_cpu: Annotated[int, Field(ge=1)]


class GpuPart(Noun):
    """One kind of GPU. `memory_bytes` is what its driver prints, `other_totals` what else it was seen to print.

    `driver_names` are how the driver's tools, torch and llama.cpp call it; `compute_capability` is NVIDIA's,
    `llvm_target` AMD's name of the instruction set; `per_card` is how many of them a card shows. `unverified` lists
    fields that were remembered and not looked up, `doubts` figures on which sources disagree.
    """

    name: str
    aliases: tuple[str, ...] = ()
    driver_names: tuple[str, ...] = ()
    backend: Backend = "cuda"
    per_card: Annotated[int, Field(ge=1)] = 1
    arch: str
    compute_capability: str | None = None
    llvm_target: str | None = None
    unified: Unified | None = None
    beside: Beside | None = None
    memory_bytes: ByteCount
    other_totals: tuple[ByteCount, ...] = ()
    memory_source: str
    bandwidth_bytes_per_s: BytesPerSecond
    bandwidth_source: str
    flops_per_s: Flops
    flops_source: str
    host_link: str
    nvlink: NvLink | None = None
    tdp_w: Positive | None = None
    measured: dict[str, str] | None = None
    unverified: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    notes: str | None = None

    @property
    def maker(self) -> str:
        return MAKERS[self.backend]

    @property
    def verified(self) -> bool:
        """Whether every figure was looked up."""
        return not self.unverified

    def has_total(self, memory_bytes: int) -> bool:
        """Whether a card that is said to have `memory_bytes` is of this kind: what its driver prints, or its maker.

        Makers round: a card of "24 GB" prints 24564 MiB, 7 % more than 24 * 10^9 bytes; with ECC on, 7 % less.
        """
        totals = self.unified.sizes if self.unified else (self.memory_bytes, *self.other_totals)
        return any(abs(memory_bytes - total) <= 0.08 * total for total in totals)


SERVER_GHZ, DESKTOP_GHZ = 2.0, 3.0
"""Clock under load of wide vectors, assumed: of servers and workstations, and of desktops."""

FLOPS_PER_CYCLE = {
    "AMX_BF16": (512, "half of AMX"),
    "AVX512_ZEN5": (128, "full-width AVX512_BF16"),
    "AVX512_BF16": (64, "AVX512_BF16"),
    "AVX512F": (32, "AVX512 without bf16"),
    "AVX2": (16, "AVX2"),
    "BF16": (64, "Arm's bf16 products"),
    "NEON": (8, "NEON"),
}
"""FLOPs a cycle and core for bf16 experts by the widest instruction set, remembered from instruction tables: half of
AMX's peak of 1024 (a blog of LMSYS gives 21.3 TFLOP/s a socket reached by KTransformers); without bf16 half of the
fp32 rate, for the conversion."""


class CpuPart(Noun):
    """One kind of CPU, figures of one socket.

    `chiplets` is on how many dies the cores are, where that is known; `memory` the type with its MT/s, `other_memory`
    a faster type that it takes as well. `measured` is what benchmarks of memory read, for people: a plan starts from
    the peak. `unverified` lists fields that were remembered, `doubts` figures on which sources disagree.
    """

    name: str
    aliases: tuple[str, ...] = ()
    cores: int
    base_ghz: Positive | None = None
    boost_ghz: Positive | None = None
    all_core_boost_ghz: Positive | None = None
    chiplets: int | None = None
    channels: int | None = None
    memory: str
    peak: Annotated[BytesPerSecond | None, Field(alias="peak_bytes_per_s")] = None
    other_memory: str | None = None
    isa: tuple[str, ...]
    host_link: str
    pcie_lanes: int | None = None
    tdp_w: Positive | None = None
    numa_per_socket: str | None = None
    measured: dict[str, str] | None = None
    source: str
    unverified: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    notes: str | None = None

    @property
    def maker(self) -> str:
        first = self.name.partition("-")[0]
        of = {"Xeon": "Intel", "Core": "Intel", "EPYC": "AMD", "Ryzen": "AMD", "Threadripper": "AMD", "MI300A": "AMD"}
        arm = {"Apple": "Apple", "Ampere": "Ampere", "AmpereOne": "Ampere", "Kunpeng": "Huawei"}
        return of.get(first) or arm.get(first, "NVIDIA")

    @property
    def verified(self) -> bool:
        """Whether every figure was looked up."""
        return not self.unverified

    @property
    def memory_type(self) -> str:
        """`DDR5` of `DDR5-4800`."""
        return self.memory.partition("-")[0]

    @property
    def mega_transfers_per_s(self) -> int | None:
        speed = self.memory.partition("-")[2]
        return int(speed) if speed.isdigit() else None

    @property
    def memory_text(self) -> str:
        return f"{self.channels} channels of {self.memory}" if self.channels else self.memory

    @property
    def peak_bytes_per_s(self) -> float:
        """All channels at their rate, 8 bytes a transfer, unless the maker says less (some EPYC with few chiplets)."""
        if self.peak is not None:
            return self.peak
        assert self.channels, self.name
        assert self.mega_transfers_per_s, self.name
        return self.channels * self.mega_transfers_per_s * 8e6

    @property
    def clock_hz(self) -> float | None:
        """The root of base times boost clock; None where one of them is not known."""
        if self.base_ghz is None or self.boost_ghz is None:
            return None
        return round(math.sqrt(self.base_ghz * self.boost_ghz), 2) * 1e9

    @property
    def flops_per_s(self) -> dict[str, float]:
        """An estimate for bf16 experts: cores x clock x FLOPs a cycle."""
        return {"bf16": self.cores * self._vector_ghz * 1e9 * self._per_cycle[0]}

    @property
    def flops_source(self) -> str:
        per_cycle, why = self._per_cycle
        return f"estimate: {self.cores} cores x {self._vector_ghz:g} GHz x {per_cycle} ({why})"

    @property
    def _vector_ghz(self) -> float:
        return DESKTOP_GHZ if self.name.startswith(("Core-", "Ryzen-", "Apple-")) else SERVER_GHZ

    @property
    def _per_cycle(self) -> tuple[int, str]:
        return next(FLOPS_PER_CYCLE[kind] for kind in FLOPS_PER_CYCLE if kind in self.isa)
