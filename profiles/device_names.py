"""What devices are called: in plans as torch calls them (`cuda:0`, `xpu:0`, `mps:0`), by other runtimes as each does.

torch calls AMD GPUs `cuda:<index>` as well (its ROCm build), Intel's `xpu:<index>`, Apple's `mps`, Ascend NPUs
`npu:<index>` and Gaudi `hpu:<index>`. What drives a GPU is its *backend*, which a name alone does not say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, WithJsonSchema

Backend = Literal["cuda", "rocm", "sycl", "metal", "vulkan", "cann", "hpu"]

BACKENDS: dict[str, tuple[Backend, ...]] = {
    "cuda": ("cuda", "rocm", "vulkan"),
    "xpu": ("sycl", "vulkan"),
    "mps": ("metal", "vulkan"),
    "npu": ("cann",),
    "hpu": ("hpu",),
}
"""For each of torch's types of GPU what may drive it; the first unless said otherwise."""

GPU_TYPES = tuple(BACKENDS)
DEVICE_NAME = re.compile(r"cpu|mps:0|(?:cuda|xpu|npu|hpu):(?:0|[1-9][0-9]{0,3})")
ALLOWED = "'cpu', 'cuda:0', 'cuda:1', … or, for GPUs that torch calls so, 'xpu:0', 'mps:0', 'npu:0', 'hpu:0'"


def device_name(name: str) -> str:
    """`name` if it is `cpu` or a GPU's, else ValueError.

    >>> device_name("xpu:1")
    'xpu:1'
    """
    if not DEVICE_NAME.fullmatch(name):
        raise ValueError(f"is not a device name; use {ALLOWED}")
    return name


DeviceName = Annotated[
    str,
    AfterValidator(device_name),
    WithJsonSchema({"type": "string", "pattern": f"^(?:{DEVICE_NAME.pattern})$"}),
]


def is_gpu(name: str) -> bool:
    return name != "cpu"


def gpu_type(name: str) -> str:
    """torch's type of a device: `cuda` of `cuda:1`, and `cpu`."""
    return name.partition(":")[0]


def gpu_index(name: str) -> int:
    """The number of a GPU among those of its type.

    >>> gpu_index("xpu:12")
    12
    """
    return int(name.partition(":")[2])


def in_order(name: str) -> tuple[bool, int, int]:
    """A key to sort device names by: GPUs by type and number, then the CPU.

    >>> sorted(["cpu", "cuda:10", "xpu:0", "cuda:9"], key=in_order)
    ['cuda:9', 'cuda:10', 'xpu:0', 'cpu']
    """
    if not is_gpu(name):
        return True, 0, 0
    return False, GPU_TYPES.index(gpu_type(name)), gpu_index(name)


def short_name(name: str) -> str:
    """A device for small places: `0` for `cuda:0`; others are told by their type.

    >>> short_name("cuda:3"), short_name("xpu:3"), short_name("mps:0"), short_name("cpu")
    ('3', 'xpu3', 'mps', 'cpu')
    """
    if gpu_type(name) == "mps":
        return "mps"
    return name.removeprefix("cuda:").replace(":", "")


def counted_on(name: str, more: int) -> str:
    """The name `more` devices after this one.

    >>> counted_on("cuda:1", 2)
    'cuda:3'
    """
    return f"{gpu_type(name)}:{gpu_index(name) + more}"


def default_backend(name: str) -> Backend:
    """What drives a GPU of that name unless its machine says otherwise."""
    return BACKENDS[gpu_type(name)][0]


def gpu_numbers(names: Iterable[str]) -> dict[str, int]:
    """A number of its own for every GPU of a machine: its index, counted on from one type to the next.

    >>> gpu_numbers(["xpu:1", "cpu", "cuda:2"])
    {'cuda:2': 2, 'xpu:1': 4}
    """
    found: dict[str, int] = {}
    first, type_ = 0, ""
    for name in sorted(filter(is_gpu, names), key=in_order):
        if gpu_type(name) != type_:
            first, type_ = max(found.values(), default=-1) + 1, gpu_type(name)
        found[name] = first + gpu_index(name)
    return found


# ---- llama.cpp's names ---------------------------------------------------------------------------------------------

LLAMA_CPP: dict[Backend, str] = {
    "cuda": "CUDA", "rocm": "ROCm", "sycl": "SYCL", "metal": "MTL", "vulkan": "Vulkan", "cann": "CANN"
}  # fmt: skip
"""What llama.cpp's devices and their buffers are called, before a number (build 11434: GGML_*_NAME in ggml's headers
and ggml-metal.cpp, where the device of a Mac is MTL0; older builds say Metal)."""
_LLAMA_CPP = re.compile(
    r"(CUDA|ROCm|HIP|MUSA|SYCL|MTL|Vulkan|CANN)([0-9]{1,2})(?:_Private|_Mapped)?|(Metal)", re.IGNORECASE
)
_MEANT: dict[str, tuple[str, Backend]] = {
    "cuda": ("cuda", "cuda"), "rocm": ("cuda", "rocm"), "hip": ("cuda", "rocm"), "musa": ("cuda", "cuda"),
    "vulkan": ("cuda", "vulkan"), "sycl": ("xpu", "sycl"), "mtl": ("mps", "metal"), "metal": ("mps", "metal"),
    "cann": ("npu", "cann"),
}  # fmt: skip


def of_llama_cpp(word: str) -> tuple[str, Backend] | None:
    """The name and the backend of a GPU as llama.cpp calls it; None where it is none. Vulkan does not say whose GPU it
    is: `cuda` is taken, and `on_machine` sets it right where the machine is known.

    >>> of_llama_cpp("ROCm1"), of_llama_cpp("SYCL0"), of_llama_cpp("Metal"), of_llama_cpp("CPU")
    (('cuda:1', 'rocm'), ('xpu:0', 'sycl'), ('mps:0', 'metal'), None)
    """
    found = _LLAMA_CPP.fullmatch(word)
    if found is None:
        return None
    type_, backend = _MEANT[(found[1] or found[3]).lower()]
    name = f"{type_}:{int(found[2] or 0)}"
    return (name, backend) if DEVICE_NAME.fullmatch(name) else None


def for_llama_cpp(names: Iterable[str], backends: Mapping[str, Backend]) -> dict[str, str]:
    """What llama.cpp calls the GPUs of a machine; those of one backend are counted together, in `in_order`. GPUs that
    it has no backend for are left out.

    >>> for_llama_cpp(["cuda:0", "cuda:1", "xpu:0", "cpu"], {"cuda:0": "vulkan", "xpu:0": "vulkan"})
    {'cuda:0': 'Vulkan0', 'cuda:1': 'CUDA1', 'xpu:0': 'Vulkan1'}
    """
    gpus = sorted(filter(is_gpu, names), key=in_order)
    drives = {name: backends.get(name, default_backend(name)) for name in gpus}
    alike = {backend: gpu_numbers(name for name in gpus if drives[name] == backend) for backend in drives.values()}
    known = (name for name in gpus if drives[name] in LLAMA_CPP)
    return {name: f"{LLAMA_CPP[drives[name]]}{alike[drives[name]][name]}" for name in known}


def on_machine(names: Iterable[str], machine: Iterable[str]) -> dict[str, str]:
    """Which of the machine's devices are meant, where a text only has numbers: a GPU that it has by no such name is
    that of the same number.

    >>> on_machine(["cuda:0", "cpu"], ["xpu:0", "xpu:1", "cpu"])
    {'cuda:0': 'xpu:0', 'cpu': 'cpu'}
    """
    there = list(machine)
    by_number = {number: name for name, number in gpu_numbers(there).items()}
    given = list(names)
    numbers = gpu_numbers(given)
    return {name: name if name in there else by_number.get(numbers.get(name, -1), name) for name in given}
