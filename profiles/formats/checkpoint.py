"""Bytes of every block of a model as its checkpoint stores it, by what the checkpoint's config says of every module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from profiles.document import short
from profiles.errors import ProfileError
from profiles.formats.by_shape import ASK, PLAIN_BYTES, stored_by_shape
from profiles.formats.methods import rules_of
from profiles.formats.module import Module, Part, Rules
from profiles.formats.schemes import Scheme
from profiles.formats.settings import Beside, holders, nothing_beside, settings_of
from profiles.formats.stored import Stored, StoredExperts, same
from profiles.tensors import LayerTensors, ModelTensors, Tensor

DTYPES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}
GATE_UP = "gate_up_proj"
ROUTER_ENDS = (".gate.weight", ".router.weight", ".shared_expert_gate.weight", ".wg.weight")
EXPERT_PROJECTIONS = {"gate_proj": 0, "up_proj": 1, "down_proj": 2}


def stored_by_config(model: ModelTensors, config: Mapping[str, Any], beside: Beside = nothing_beside) -> Stored:
    """Bytes of every block as `config`, or a method's file beside it, says that the checkpoint stores them.

    Raises ProfileError, one line: a method, a setting or a type that is not known, or too little said.
    """
    settings, plain = settings_of(config, beside), plain_format(config)
    if settings is None:
        return stored_by_shape(model, plain)
    return stored_by_rules(model, rules_of(settings), plain)


def plain_format(config: Mapping[str, Any]) -> str:
    """The format of what is not quantised: the type that the config, or its text model's part, names; else bf16."""
    for prefix, holder in holders(config):
        for key in ("dtype", "torch_dtype"):
            dtype = holder.get(key)
            if dtype is None:
                continue
            name = dtype.removeprefix("torch.") if isinstance(dtype, str) else dtype
            if not isinstance(name, str) or name not in DTYPES:
                raise ProfileError(f"{prefix}{key}: {short(dtype)} is not a known type; pass quant= ({ASK})")
            return DTYPES[name]
    return "bf16"


def stored_by_rules(model: ModelTensors, rules: Rules, plain: str = "bf16", quant: str | None = None) -> Stored:
    """Bytes of every block of `model` under `rules`, everything that they leave alone in `plain`.

    `quant` is what to call the whole; by default what the rules or the schemes are called.
    """
    sums = _Sums(model, rules, plain)
    embedding = sums.block(model.embedding, "embedding")
    attention = [sums.block(layer.attention, "attention") for layer in model.layers]
    experts = [sums.experts(layer) for layer in model.layers]
    tied = sums.block(model.embedding[:1], "embedding") if model.tied else 0
    head = (
        sums.block([t for t in model.head if not (model.tied and t.shape == model.embedding[0].shape)], "head") + tied
    )
    mtp = sums.block(model.mtp, "mtp")
    return Stored(
        quant=quant or rules.label or sums.label(),
        embedding=same(embedding),
        attention=tuple(map(same, attention)),
        experts=tuple(experts),
        head=same(head),
        tied_bytes=tied,
        mtp_bytes=mtp,
        notes=rules.notes,
        packed_by=rules.method if sums.packs_anything else None,
        value_bytes=PLAIN_BYTES[plain],
    )


_Names = Callable[[Iterable[int]], "list[tuple[str, ...]]"]


class _Sums:
    """Adds up blocks, and remembers which schemes were met where, for the name of it all."""

    def __init__(self, model: ModelTensors, rules: Rules, plain: str) -> None:
        self.model, self.rules, self.plain = model, rules, plain
        self.met: dict[str, Counter[str]] = {}

    @property
    def packs_anything(self) -> bool:
        return any(name != self.plain for names in self.met.values() for name in names)

    def block(self, tensors: Iterable[Tensor], block: str) -> int:
        return sum(self._tensor(tensor, block) for tensor in tensors)

    def experts(self, layer: LayerTensors) -> StoredExperts | None:
        """All of a layer's routed experts; each by itself where a rule tells them apart and they differ."""
        if layer.experts is None:
            return None
        each = [0] * layer.experts.count
        for tensor in layer.experts.tensors:
            each = [known + size for known, size in zip(each, self._each(tensor, "experts"), strict=True)]
        differ = len(set(each)) > 1
        return StoredExperts(same(sum(each)), tuple(each) if differ else None)

    def _tensor(self, tensor: Tensor, block: str) -> int:
        if ".experts." in tensor.name and len(tensor.shape) == 3:
            return sum(self._each(tensor, block))
        part = _part(tensor, block)
        if part is None or tensor.fp32:
            return self._plain_bytes(tensor)
        module = self._module(part, tensor.name.removesuffix(".weight"))
        times, rows = tensor.matrices * tensor.stacked, tensor.out_features // tensor.stacked
        return times * self._matrix(self.rules.scheme_of(module), rows, tensor.in_features, block, part, times)

    def _each(self, tensor: Tensor, block: str) -> list[int]:
        """Bytes of every expert's part of a tensor of all of a layer's."""
        count = tensor.shape[0]
        if not tensor.quantisable or tensor.fp32:
            return [self._plain_bytes(tensor) // count] * count
        each = [0] * count
        for names, rows in self._projections(tensor):
            found = [self.rules.scheme_of(Module("experts", module)) for module in names(range(self._asked(count)))]
            size_of = {
                scheme: self._matrix(scheme, rows, tensor.in_features, block, "experts", times)
                for scheme, times in Counter(found).items()
            }
            sizes = [size_of[scheme] for scheme in found]
            each = [
                known + size for known, size in zip(each, sizes if len(sizes) == count else sizes * count, strict=True)
            ]
        return each

    def _asked(self, count: int) -> int:
        """How many experts to ask about: one stands for all where no rule tells them apart."""
        return count if self.rules.one_by_one else 1

    def _projections(self, tensor: Tensor) -> Iterator[tuple[_Names, int]]:
        """What an expert's part of `tensor` is stored as: names of the modules of given experts, and output rows."""
        inside, _, last = tensor.name.removesuffix(".weight").rpartition(".")
        known, rows = self.model.disk_names.projections, tensor.out_features
        outer = tuple(dict.fromkeys((self.model.disk_names.module(inside), inside)))
        if self.rules.fused or not known:
            whole = tuple(f"{name}.{last}" for name in outer)
            yield lambda experts: [whole for _ in experts], rows
            return
        own = (
            known[:2]
            if last == GATE_UP
            else (known[EXPERT_PROJECTIONS[last]],)
            if last in EXPERT_PROJECTIONS
            else (last,)
        )
        for projection in own:
            yield partial(_of_experts, outer, projection), rows // len(own)

    def _module(self, part: Part, name: str) -> Module:
        disk = self.model.disk_names.module(name)
        return Module(part, (disk,) if disk == name else (disk, name))

    def _matrix(self, scheme: Scheme | None, rows: int, columns: int, block: str, part: Part, times: int = 1) -> int:
        """Bytes of one matrix, of which there are so many `times`."""
        if columns % self.rules.divides:
            scheme = None
        if part not in ("embedding", "router") and block != "mtp":
            self.met.setdefault(block, Counter())[scheme.name if scheme else self.plain] += times * rows * columns
        return scheme.n_bytes(rows, columns) if scheme else rows * columns * PLAIN_BYTES[self.plain]

    def _plain_bytes(self, tensor: Tensor) -> int:
        return tensor.params * (4 if tensor.fp32 else PLAIN_BYTES[self.plain])

    def label(self) -> str:
        """Such as "nvfp4 experts, bf16 attention", or one word where projections are all alike."""
        inner = {block: self._most(self.met[block]) for block in ("experts", "attention") if block in self.met}
        head = self._most(self.met.get("head", Counter({self.plain: 1})))
        alike = set(inner.values())
        name = alike.pop() if len(alike) == 1 else ", ".join(f"{kind} {block}" for block, kind in inner.items())
        return name if head == self.plain else f"{name}, {head} head"

    def _most(self, seen: Counter[str]) -> str:
        """The formats of a block, the most used first; what is a fiftieth at most is passed over."""
        total = sum(seen.values())
        return "/".join(name for name, size in seen.most_common(2) if 50 * size > total) or self.plain


def _of_experts(outer: Sequence[str], projection: str, experts: Iterable[int]) -> list[tuple[str, ...]]:
    """Names of one projection of each of the `experts`."""
    return [tuple([f"{name}.{expert}.{projection}" for name in outer]) for expert in experts]


def _part(tensor: Tensor, block: str) -> Part | None:
    """What kind of module a tensor is the matrix of; None where it is of none that any format packs."""
    if tensor.quantisable:
        return "linear"
    if len(tensor.shape) != 2:
        return None
    if block in ("embedding", "head"):
        return "head" if block == "head" else "embedding"
    return "router" if tensor.name.endswith(ROUTER_ENDS) else None
