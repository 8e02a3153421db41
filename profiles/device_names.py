"""What devices are called: in plans as torch calls them (`cuda:0`, `xpu:0`, `mps:0`), by other runtimes as each does.

torch calls AMD GPUs `cuda:<index>` as well (its ROCm build), Intel's `xpu:<index>`, Apple's `mps`, Ascend NPUs
`npu:<index>` and Gaudi `hpu:<index>`. What drives a GPU is its *backend*, which a name alone does not say.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

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


def is_backend(word: str) -> bool:
    return word in get_args(Backend)
