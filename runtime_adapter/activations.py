"""Which experts a model really uses: counts that sglang recorded -> frequencies in a profile.

sglang's recorder (`/start_expert_distribution_record`, `/dump_expert_distribution_record`, mode `stat`) saves
{"logical_count": counts}, a tensor [buffers, layers, experts] or, from its running sum, [layers, experts], with zeros
in dense layers; sglang-kt reads the same file back (`--init-expert-location`).
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiles.document import one_line, short
from profiles.errors import ApplyError, ProfileError
from profiles.model import Experts, Layer, ModelProfile
from profiles.placement import in_short
from runtime_adapter.meta.errors import one_line as reason_of

if TYPE_CHECKING:
    import torch

KEY = "logical_count"
MAX_BYTES = 2**30
"""More than any recorder writes: 1000 buffers of 61 layers with 384 experts are 187 MB."""
_DIGITS = 9
"""A frequency is rounded to so many decimals: finer than any count, and a saved profile stays short."""


def read_activations(path: str | Path, profile: ModelProfile) -> ModelProfile:
    """`profile` with the experts' `frequencies` of each layer as the recorded file `path` counted them.

    f_i = active * count_i / (all counts of the layer), summed over buffers. None is above 1: what that cuts off goes to
    the layer's other experts in proportion to their counts (evenly where they have none), so that frequencies still sum
    to `active`. Layers whose experts were all used equally often, or never, are uniform; a note names the latter.

    The file is read as data, no code in it is run. Raises ProfileError, one line with the file, for one that is
    missing, damaged, too large, or not of this model; ApplyError where torch is not installed.
    """
    if not isinstance(path, (str, Path)):
        raise ProfileError(f"activations: {short(path)} is no path; give a .pt file that sglang recorded")
    path = Path(path)
    try:
        counts, buffers = _sums(_load(path), profile)
        layers, silent = [], []
        for i, (layer, row) in enumerate(zip(profile.layers, counts, strict=True)):
            if layer.experts is not None and not any(row):
                silent.append(i)
            layers.append(_with_frequencies(i, layer, row))
    except ProfileError as problem:
        raise ProfileError(one_line(f"{path}: {problem}")) from None
    total = sum(math.fsum(row) for row in counts)
    name = one_line(path.name)
    note = (
        f"experts are used as {name} counted: {total:,.0f} uses in {buffers} {'buffer' if buffers == 1 else 'buffers'}"
    )
    if silent:
        note += f"; nothing was counted in layers {in_short(silent)}, where experts are used equally"
    return profile.replace(
        source=f"{profile.source}; use of experts from {name}",
        notes=(*profile.notes, note),
        layers=tuple(layers),
    )


def _load(path: Path) -> Any:
    """What the file holds, read without running anything; ProfileError without the path."""
    try:
        import torch
    except ImportError:
        raise ApplyError("read_activations: torch is not installed; install moeplan[torch]") from None
    _check_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # torch raises whatever a damaged or forbidden file leads it to
        remedy = "record it again, or save {'logical_count': counts} with torch.save"
        raise ProfileError(f"cannot be read as data ({reason_of(problem)[:120]}); {remedy}") from None


def _check_file(path: Path) -> None:
    """Before torch sees it: a regular file that torch.save can have written, small packed and unpacked."""
    try:
        if not path.is_file():
            what = "is not a regular file" if path.exists() else "no such file"
            raise ProfileError(f"{what}; give a .pt file that sglang recorded")
        sizes = [path.stat().st_size]
        if sizes[0] <= MAX_BYTES and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                sizes.append(sum(entry.file_size for entry in archive.infolist()))
    except (OSError, ValueError, zipfile.BadZipFile) as problem:
        raise ProfileError(f"cannot be read: {reason_of(problem)[:120]}; check the path") from None
    if max(sizes) > MAX_BYTES:
        raise ProfileError(f"{max(sizes)} bytes, more than the {MAX_BYTES} that counts may have; record fewer buffers")
    if len(sizes) == 1:
        raise ProfileError("is no file of torch.save (or cut short); give a .pt file that sglang recorded")


def _sums(saved: Any, profile: ModelProfile) -> tuple[list[list[float]], int]:
    """Counts by layer and expert, summed over buffers, and how many buffers; ProfileError where they are no counts of
    this profile's experts."""
    import torch

    counts = _of_this_model(saved, profile)
    if counts.numel() * 8 > MAX_BYTES:  # a tensor may repeat a few bytes of its file without end
        raise ProfileError(f"{KEY}: {counts.numel()} counts are too many; record fewer buffers")
    if not math.isfinite(float(counts.sum(dtype=torch.float64))):
        raise ProfileError(f"{KEY}: holds values that are not finite; record it again")
    if float(counts.min()) < 0:
        raise ProfileError(f"{KEY}: {float(counts.min()):g} is no count, it is negative; record it again")
    rows: list[list[float]] = counts.sum(dim=0, dtype=torch.float64).tolist()
    return rows, len(counts)


def _of_this_model(saved: Any, profile: ModelProfile) -> torch.Tensor:
    """The tensor in the file as [buffers, layers, experts]; ProfileError where it is none of this profile's shape."""
    import torch

    if not isinstance(saved, dict) or KEY not in saved:
        found = f"has the keys {', '.join(map(short, list(saved)[:5]))}" if isinstance(saved, dict) else short(saved)
        raise ProfileError(f"{KEY}: missing ({found[:80]}); record in mode stat, or save {{'{KEY}': counts}}")
    counts = saved[KEY]
    if not isinstance(counts, torch.Tensor) or not _is_plain(counts):
        raise ProfileError(f"{KEY}: {_kind(counts)} is no plain tensor of numbers; record it again")
    shape = list(counts.shape)
    n_experts = {layer.experts.count for layer in profile.layers if layer.experts is not None}
    if not n_experts:
        raise ProfileError(f"{profile.model} has no layers with experts; leave activations out")
    expected = f"[buffers, {len(profile.layers)}, {' or '.join(map(str, sorted(n_experts)))}] of {profile.model}"
    if len(shape) not in (2, 3) or shape[-2] != len(profile.layers) or {shape[-1]} != n_experts or not shape[0]:
        raise ProfileError(f"{KEY}: has the shape {shape[:6]}, not {expected}; give the file of this model")
    return counts.detach() if len(shape) == 3 else counts.detach().unsqueeze(0)


def _is_plain(counts: torch.Tensor) -> bool:
    """A dense tensor of real numbers in this process's memory."""
    import torch

    kinds = ("uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
    number = counts.dtype in [getattr(torch, kind) for kind in kinds]
    return number and counts.layout is torch.strided and counts.device.type == "cpu"


def _kind(value: Any) -> str:
    return str(getattr(value, "dtype", None) or type(value).__name__)


def _with_frequencies(number: int, layer: Layer, counts: Sequence[float]) -> Layer:
    if layer.experts is None:
        if any(counts):
            used = sum(map(bool, counts))
            raise ProfileError(
                f"{KEY}: layer {number} is dense, but {used} experts were counted; give this model's file"
            )
        return layer
    return layer.replace(experts=layer.experts.replace(frequencies=frequencies(layer.experts, counts)))


def frequencies(experts: Experts, counts: Sequence[float]) -> tuple[float, ...] | None:
    """f_i = active * count_i / sum(counts), at most 1 each and `active` together; None where all counts are equal.

    A token uses `active` different experts, so no frequency of true counts is above 1. Where one is (counts made by
    hand, few tokens), it becomes 1 and the others share the rest in proportion, again and again until none is above.
    """
    if min(counts) == max(counts):
        return None
    found = [0.0] * experts.count
    left, open_ = experts.active, list(range(experts.count))
    while open_:
        total = math.fsum(counts[i] for i in open_)
        share = {i: left * (counts[i] / total if total else 1 / len(open_)) for i in open_}
        full = [i for i in open_ if share[i] > 1]
        for i in full or open_:
            found[i] = min(1.0, share[i])
        left -= len(full)
        open_ = [i for i in open_ if i not in full] if full else []
    return tuple(round(f, _DIGITS) for f in found)
