"""Which experts sglang-kt puts on the GPU: how it counts layers, how it rounds, and its strategies.

Read in sglang-kt 0.7.2, `layers/moe/kt_ep_wrapper.py`. A mask has one set of experts a layer, empty for dense ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from profiles.errors import TargetError
from profiles.placement import in_short
from runtime_adapter.targets.target import Outline

Mask = list[frozenset[int]]


@dataclass(frozen=True)
class Shape:
    """A model as sglang-kt sees it: `dense` layers first (`first_k_dense_replace`), then layers of `experts` each."""

    layers: int
    dense: int
    experts: int

    @property
    def total(self) -> int:
        """The experts of all layers, of which the ratio is a share."""
        return (self.layers - self.dense) * self.experts


def shape_of(outline: Outline) -> Shape:
    """The shape of a model. Raises TargetError where the number of experts is not known or not the same everywhere, and
    for dense layers after others, which sglang-kt would take for layers with experts.

    >>> shape_of(Outline(None, "deepseek_v3", (0, 256, 256))).total
    512
    """
    if None in outline.experts:
        raise TargetError("sglang-kt: the plan does not say how many experts there are; name the model")
    dense = next((i for i, count in enumerate(outline.experts) if count), len(outline.experts))
    counts = set(outline.experts[dense:])
    if not counts:
        raise TargetError("sglang-kt: the model has no experts, and nothing else can be placed; use another target")
    if 0 in counts:
        stray = [i for i, count in enumerate(outline.experts) if not count and i >= dense]
        raise TargetError(f"sglang-kt: only the first layers may be dense, not {in_short(stray)}; use another target")
    if len(counts) > 1:
        raise TargetError("sglang-kt: all layers must have equally many experts; use another target")
    return Shape(len(outline.experts), dense, counts.pop() or 0)


def experts_of_ratio(shape: Shape, ratio: float) -> int:
    """How many experts `--kt-gpu-experts-ratio` means: rounded down, as floats have it."""
    return int(shape.total * ratio)


def ratio_of(shape: Shape, count: int) -> str:
    """The shortest ratio that means exactly `count` experts.

    `count / total` itself may be rounded to one less; the middle of `count` and the next never is.

    >>> ratio_of(Shape(60, 1, 160), 1888), ratio_of(Shape(60, 1, 160), 0), ratio_of(Shape(60, 1, 160), 9440)
    ('0.2', '0.0', '1.0')
    """
    if count == shape.total:
        return "1.0"
    middle = (count + 0.5) / shape.total
    digits = next(n for n in range(1, 18) if experts_of_ratio(shape, round(middle, n)) == count)
    return f"{round(middle, digits):.{digits}f}"


def uniform(shape: Shape, count: int) -> Mask:
    """Strategy uniform: equally many of every layer, one more in the first ones; of each layer the first experts.

    >>> [sorted(part) for part in uniform(Shape(3, 1, 4), 3)]
    [[], [0, 1], [0]]
    """
    each, more = divmod(count, shape.layers - shape.dense)
    return _first(shape, [each + (i < more) for i in range(shape.layers - shape.dense)])


def front_loading(shape: Shape, count: int) -> Mask:
    """Strategy front-loading: one layer after the other is filled.

    >>> [sorted(part) for part in front_loading(Shape(3, 1, 4), 5)]
    [[], [0, 1, 2, 3], [0]]
    """
    left = [max(0, count - i * shape.experts) for i in range(shape.layers - shape.dense)]
    return _first(shape, [min(n, shape.experts) for n in left])


def _first(shape: Shape, counts: list[int]) -> Mask:
    return [frozenset[int]()] * shape.dense + [frozenset(range(n)) for n in counts]
