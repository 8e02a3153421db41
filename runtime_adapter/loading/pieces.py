"""What every tensor of a checkpoint becomes, by transformers' own rules of renaming and conversion, from headers only.

A *piece* is what is read, converted and placed together: one tensor that only has another name, the tensors of one
expert that become a row of fused parameters, or, for conversions of another kind, all tensors of a parameter.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    Interleave,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from profiles.document import one_line as in_one_line
from profiles.document import short
from profiles.errors import ApplyError
from profiles.safetensors.header import Entry, Headers
from runtime_adapter.loading.dtypes import FLOATS, PLAIN
from runtime_adapter.meta.errors import one_line

Names = dict[str, list[str]]
"""Names of tensors by the pattern of the converter that they match, each list in the order of experts."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Tensors of the checkpoint and the parameter that they become, or of which they become the row `row`.

    Without a converter it is one tensor as it is. A converter may make several parameters; `target` is the first.
    """

    target: str
    sources: Names
    converter: WeightConverter | None = None
    row: int | None = None

    @property
    def names(self) -> list[str]:
        return [name for names in self.sources.values() for name in names]

    def converted(self, tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Values by parameter; rows come with their first dimension, which is 1. Raises what the conversion raises."""
        if self.converter is None:
            (name,) = self.names
            return {self.target: tensors[name]}
        collected: dict[str, Any] = self.converter.collected_tensors
        for pattern, names in self.sources.items():
            # One expert's tensor is given as stacked already, which MergeModulelist lets pass, so that no copy is made.
            one = self.row is not None
            collected[pattern] = tensors[names[0]][None] if one else [tensors[name] for name in names]
        made = self.converter.convert(self.target, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


@dataclass(frozen=True)
class Recipe:
    """All pieces of a model, the files that they are in, and what has no place or no tensor.

    `computed` are parameters that no file need give; `extra` tensors that the model has no place for.
    """

    model: Any
    headers: Headers
    pieces: tuple[Piece, ...]
    computed: tuple[str, ...]
    extra: tuple[str, ...]

    @property
    def entries(self) -> dict[str, Entry]:
        return {name: entry for tensors in self.headers.values() for name, entry in tensors.items()}

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors that will be read."""
        entries = self.entries
        return sum(entries[name].n_bytes for piece in self.pieces for name in piece.names)

    def warn(self) -> None:
        """Say which tensors are left out, except those that transformers is silent about, too."""
        silent = [re.compile(pattern) for pattern in self.model._keys_to_ignore_on_load_unexpected or ()]
        silent += [re.compile(pattern) for pattern in (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")]
        loud = [name for name in self.extra if not any(pattern.search(name) for pattern in silent)]
        if loud:
            some = ", ".join(short(name) for name in loud[:3])
            text = f"{len(loud)} tensors have no place in {type(self.model).__name__} and are left out: {some}"
            warnings.warn(text, stacklevel=4)  # the caller of load


def recipe_of(model: Any, headers: Headers, folder: Path) -> Recipe:
    """How the checkpoint in `headers` becomes `model`, which is on the meta device and is not changed.

    Raises ApplyError naming the tensor or parameter: one is missing, is quantised, or has another shape than the model
    has, which usually means that config.json is another model's.
    """
    entries = {name: entry for tensors in headers.values() for name, entry in tensors.items()}
    state = model.state_dict(keep_vars=True)
    mapping = get_model_conversion_mapping(model)
    groups, extra = _grouped(entries, mapping, model.base_model_prefix, state)
    pieces: list[Piece] = []
    made: set[str] = set()
    for target, (converter, sources) in groups.items():
        for name in (name for names in sources.values() for name in names):
            _check_dtype(name, entries[name], state[target])
        found = _pieces(target, sources, converter, entries, state[target].shape[:1])
        pieces += found
        made |= _checked(found[0], len(found), entries, state, model)
    computed = _uncovered(made, model, state, folder)
    model._weight_conversions = [rule for rule in mapping if rule.was_used()]  # by which save_pretrained goes back
    return Recipe(model, headers, tuple(pieces), tuple(computed), tuple(extra))


def _grouped(
    names: Iterable[str], mapping: list[Any], prefix: str, state: dict[str, Tensor]
) -> tuple[dict[str, tuple[WeightConverter | None, Names]], list[str]]:
    """The tensors that become each parameter, with their converter, and those that become none."""
    renamings = [rule for rule in mapping if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in mapping if isinstance(rule, WeightConverter)]
    converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    groups: dict[str, tuple[WeightConverter | None, Names]] = {}
    extra = []
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:  # a rule caught what has its final name already
            target, pattern = rename_source_key(name, [], [], prefix, state)
        if target not in state:
            extra.append(name)
            continue
        converter = None if pattern is None else converter_of[pattern]
        known, sources = groups.setdefault(target, (converter, defaultdict(list)))
        if known is not converter or (converter is None and sources):
            other = next(iter(sources.values()))[0]
            raise ApplyError(f"{short(name)}: is {target} in the model, and so is {short(other)}; keep one of them")
        sources[pattern or name].append(name)
    return groups, extra


def _pieces(
    target: str, sources: Names, converter: WeightConverter | None, entries: Mapping[str, Entry], rows: torch.Size
) -> list[Piece]:
    """One piece an expert where the conversion lets experts apart, else one for all."""
    if converter is None:
        return [Piece(target, sources)]
    converter = deepcopy(converter)
    if not _keeps_experts_apart(converter):
        return [Piece(target, sources, converter)]
    count = rows.numel()
    for pattern in converter.source_patterns:
        names = sources.get(pattern, [])
        if len(names) != count:
            raise ApplyError(_lacking(target, pattern, names, count))
        odd = next((name for name in names if entries[name].shape != entries[names[0]].shape), None)
        if odd is not None:
            shapes = f"{list(entries[odd].shape)}, but {short(names[0])} is {list(entries[names[0]].shape)}"
            raise ApplyError(f"{short(odd)}: {shapes}; the checkpoint's files are not of one model")
    return [Piece(target, {p: [names[i]] for p, names in sources.items()}, converter, row=i) for i in range(count)]


def _keeps_experts_apart(converter: WeightConverter) -> bool:
    """Whether row i of the result comes from the i-th tensor of each list alone."""
    first, *rest = converter.operations
    stacks = type(first) is MergeModulelist and first.dim == 0 and len(converter.target_patterns) == 1
    return stacks and all(_keeps_rows(operation) for operation in rest)


def _keeps_rows(operation: Any) -> bool:
    if type(operation) in (Concatenate, Interleave):
        return bool(operation.dim > 0)
    return type(operation) is Transpose and not operation.check_dims and min(operation.dim0, operation.dim1) > 0


def _lacking(target: str, pattern: str, names: list[str], count: int) -> str:
    """What to say when a list of experts' tensors is not whole, with the first name that is missing where it shows."""
    said = f"{len(names)} tensors like {pattern} for its {count} experts"
    if not names:
        return f"{target}: no tensor like {pattern} in the checkpoint; download its files again"
    fields = [name.split(".") for name in names]
    varying = [i for i in range(len(fields[0])) if len({parts[i] for parts in fields if i < len(parts)}) > 1]
    if len(varying) == 1 and all(parts[varying[0]].isdigit() for parts in fields):
        there = {int(parts[varying[0]]) for parts in fields}
        lost = next((i for i in range(count) if i not in there), None)
        if lost is not None:
            parts = [*fields[0][: varying[0]], str(lost), *fields[0][varying[0] + 1 :]]
            return f"{'.'.join(parts)}: missing ({said}); download the checkpoint's files again"
    return f"{target}: {said}; config.json and the checkpoint are not of one model"


def _check_dtype(name: str, entry: Entry, parameter: Tensor) -> None:
    fits = entry.dtype in FLOATS if parameter.is_floating_point() else PLAIN.get(entry.dtype) == parameter.dtype
    if not fits:
        raise ApplyError(
            f"{short(name)}: is {entry.dtype}, a quantised or packed type, where the model has {parameter.dtype}; "
            "get the model in bf16"
        )


def _checked(
    piece: Piece, rows: int, entries: Mapping[str, Entry], state: Mapping[str, Tensor], model: nn.Module
) -> set[str]:
    """The parameters that this piece and its like become, after converting it once without values."""
    empty = {
        name: torch.empty(entries[name].shape, dtype=PLAIN[entries[name].dtype], device="meta") for name in piece.names
    }
    try:
        made = piece.converted(empty, model)
    except Exception as problem:  # conversions raise what torch raises for shapes that do not fit
        made, reason = {}, one_line(problem)
    if not made:
        given = ", ".join(f"{short(name)} {list(entries[name].shape)}" for name in piece.names[:3])
        raise ApplyError(in_one_line(f"{piece.target}: {given} cannot be converted: {reason}; check config.json"))
    for name, value in made.items():
        if name not in state:
            raise ApplyError(f"{name}: comes from {short(piece.names[0])}, but the model has none; check config.json")
        shape = list(value.shape) if piece.row is None else [rows, *value.shape[1:]]
        if shape != list(state[name].shape):
            raise ApplyError(
                f"{name}: {shape} by {short(piece.names[0])} of the checkpoint, {list(state[name].shape)} by "
                "config.json; they are not of one model"
            )
    return set(made)


def _uncovered(made: set[str], model: Any, state: Mapping[str, Tensor], folder: Path) -> list[str]:
    """Parameters that no tensor gives and that transformers initialises; ApplyError when any other is missing."""
    given = {id(state[name]) for name in made}  # a tied parameter is given by any of its names
    missing = [name for name, tensor in state.items() if id(tensor) not in given]
    allowed = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    lost = [name for name in missing if not any(pattern.search(name) for pattern in allowed)]
    if lost:
        raise ApplyError(
            in_one_line(
                f"{folder}: {len(lost)} of {len(state)} parameters of {type(model).__name__} are in no file, the first "
                f"is {lost[0]}; download what is missing, or check that config.json is this checkpoint's"
            )
        )
    return missing
