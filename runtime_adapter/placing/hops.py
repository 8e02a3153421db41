"""One hop: a tensor from a device to another, through pinned memory where one of them is a CUDA device and one the CPU.

No GPU waits for another, and the CPU waits only for what it is about to read.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def hop(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`: the same object where it is there already, else a copy that may be used at once.

    From CUDA to the CPU the copy goes into pinned memory, and is whole when this returns. To CUDA it goes from pinned
    memory in the device's current stream, so that whatever is launched there afterwards sees it, and this returns
    before it is done. torch keeps both pinned copies for the next hop of that size.
    """
    if tensor.device == device:
        return tensor
    if isinstance(tensor, FakeTensor):
        return tensor.to(device)
    if tensor.is_cuda and device.type == "cpu":
        arrived = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        arrived.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream(tensor.device).synchronize()
        return arrived
    if device.type == "cuda":
        source = tensor if tensor.is_cuda or tensor.is_pinned() else tensor.pin_memory()
        return source.to(device, non_blocking=True)
    return tensor.to(device)
