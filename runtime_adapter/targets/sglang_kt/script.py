"""The script that writes sglang-kt's file of marked experts, and what such a script marks.

Only this very script is read back, its numbers and the file's name aside. Nothing of a text is ever run.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from profiles.document import short
from profiles.errors import TargetError
from profiles.placement import ranges
from runtime_adapter.targets.sglang_kt.masks import Mask, Shape

_SCRIPT = """\
python3 - <<'EOF'
import torch

# layers:experts that go to the GPU
rows = '''
ROWS'''


def numbers(text):
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


counts = torch.zeros(1, LAYERS, EXPERTS)
for row in rows.split():
    layers, experts = row.split(":")
    for layer in numbers(layers):
        counts[0, layer, list(numbers(experts))] = 1
torch.save({"logical_count": counts}, "FILE")
EOF
"""
SCRIPT = re.compile(
    re.escape(_SCRIPT)
    .replace("ROWS", r"(?P<rows>[0-9,:\-\n]*)")
    .replace("LAYERS", r"(?P<layers>[0-9]{1,6})")
    .replace("EXPERTS", r"(?P<experts>[0-9]{1,6})")
    .replace("FILE", r"(?P<file>[\w./\-]{1,200})")
)


def script(mask: Mask, shape: Shape, file: str) -> str:
    """Shell text that writes `file`: one row for all layers with the same experts on the GPU, numbers as ranges."""
    layers: dict[frozenset[int], list[int]] = defaultdict(list)
    for index, part in enumerate(mask):
        if part:
            layers[part].append(index)
    rows = "".join(f"{ranges(where)}:{ranges(sorted(part))}\n" for part, where in layers.items())
    sized = _SCRIPT.replace("LAYERS", str(shape.layers)).replace("EXPERTS", str(shape.experts))
    return sized.replace("ROWS", rows).replace("FILE", file)


def marked(text: str, shape: Shape) -> tuple[str, Mask] | None:
    """The file that the script in the text writes, and the experts marked in it; None where there is no script.

    Raises TargetError for a script of another model, and for rows that are not ascending numbers of its layers and
    experts.
    """
    found = SCRIPT.search(text)
    if found is None:
        return None
    if (int(found["layers"]), int(found["experts"])) != (shape.layers, shape.experts):
        size = f"{found['layers']} layers with {found['experts']} experts"
        raise TargetError(
            f"the script is for {size}, the model has {shape.layers} with {shape.experts}; name its model"
        )
    mask: Mask = [frozenset()] * shape.layers
    for row in found["rows"].split():
        where, _, ids = row.partition(":")
        part = frozenset(_numbers(ids, shape.experts, row))
        for layer in _numbers(where, shape.layers, row):
            if mask[layer] or layer < shape.dense:
                reason = "has a row already" if mask[layer] else "is dense"
                raise TargetError(f"row {short(row)}: layer {layer} {reason}; take it out")
            mask[layer] = part
    return found["file"], mask


def _numbers(text: str, below: int, row: str) -> Iterator[int]:
    """The whole numbers of "0-2,5"; they must ascend, so that a short text never means much work."""
    last = -1
    for part in text.split(","):
        ends = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", part)
        if ends is None or not last < int(ends[1]) <= int(ends[2] or ends[1]) < below:
            problem = f"{short(part)} is not the next number, or range, below {below}"
            raise TargetError(f"row {short(row)}: {problem}; mend it")
        last = int(ends[2] or ends[1])
        yield from range(int(ends[1]), last + 1)
