"""Checked headers of a checkpoint -> bytes of every block, as stored.

Every tensor is counted exactly once: with the block its name says, as multi-token prediction, or as a tower (seeing,
hearing), which is left out with a note. A name that says nothing is refused. All of a decoder layer that is not a
routed expert is its attention, buffers included.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from profiles.document import short
from profiles.formats.stored import Stored, StoredExperts, same
from profiles.safetensors.header import Entry, Headers, bad
from profiles.safetensors.names import MTP_MARK, Home, home_of, projection_of
from profiles.tensors import LayerTensors, ModelTensors, Tensors, params

PLAIN = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"}
"""Types whose every value is a parameter or a scale; the others may pack several parameters into one value."""
OTHER_CONFIG = "a file is missing, or config.json is another model's"
_IN_LAYER = re.compile(r"(?:.*?\.)?(?:layers|h|blocks)\.[0-9]+\.(.+)", re.DOTALL)


@dataclass
class Sum:
    """Bytes of one block, and how many parameters they are at most (None where values may pack several)."""

    n_bytes: int = 0
    values: int | None = 0

    def add(self, entry: Entry) -> None:
        self.n_bytes += entry.n_bytes
        self.values = self.values + entry.values if self.values is not None and entry.dtype in PLAIN else None


@dataclass
class ExpertsSum(Sum):
    """The same of a layer's experts: `one` has tensors of a single expert, `fused` those of all together."""

    one: Counter[tuple[int, str]] = field(default_factory=Counter)
    fused: Counter[str] = field(default_factory=Counter)


@dataclass
class _Sums:
    """Everything that is added up. `embedding` is the token table alone, `beside` what else comes before the layers."""

    attention: list[Sum]
    experts: list[ExpertsSum]
    embedding: Sum = field(default_factory=Sum)
    beside: Sum = field(default_factory=Sum)
    lm_head: Sum = field(default_factory=Sum)
    norm: Sum = field(default_factory=Sum)
    mtp: Sum = field(default_factory=Sum)
    towers: Sum = field(default_factory=Sum)


def stored_in_checkpoint(model: ModelTensors, headers: Headers, quant: str, folder: Path, extra_layers: int) -> Stored:
    """Bytes of every block of `model` under the name `quant`; `extra_layers` predict further tokens.

    Raises ProfileError naming the file and tensor, or `folder` and the layer: a tensor of no known block, of a layer
    or expert that the config does not have, and blocks of which the files hold less than the config says.
    """
    sums = _Sums([Sum() for _ in model.layers], [ExpertsSum() for _ in model.layers])
    for path, name, entry, home in _homes(model, headers, extra_layers):
        _add(sums, model, path, name, entry, home)
    for index, layer in enumerate(model.layers):
        _check_attention(folder, index, layer, sums.attention[index])
        _check_experts(folder, index, layer, sums.experts[index])
    tied = _tied_bytes(sums, model, folder)
    notes = _notes(sums, model)
    return Stored(
        quant=quant,
        embedding=same(sums.embedding.n_bytes + sums.beside.n_bytes),
        attention=tuple(same(part.n_bytes) for part in sums.attention),
        experts=tuple(
            _experts(part, layer.experts.count) if layer.experts else None
            for part, layer in zip(sums.experts, model.layers, strict=True)
        ),
        head=same(sums.norm.n_bytes + (sums.lm_head.n_bytes or tied)),
        tied_bytes=tied,
        mtp_bytes=sums.mtp.n_bytes,
        notes=notes,
    )


def _homes(model: ModelTensors, headers: Headers, extra_layers: int) -> Iterator[tuple[Path, str, Entry, Home]]:
    """Every tensor with its home, all layers under one root and none beyond those the model has."""
    layers, roots = len(model.layers), dict[str, str]()
    known, routed = _outside_by_model(model), _routed_by_model(model)
    marked = {home_of(name).layer for held in headers.values() for name in held if MTP_MARK in name}
    for path, tensors in headers.items():
        for name, entry in tensors.items():
            home = home_of(name)
            if home.layer >= layers:
                if home.layer >= layers + extra_layers and home.layer not in marked:
                    problem = f"there is no layer {home.layer}, config.json says num_hidden_layers {layers}"
                    raise bad(path, f"tensor {short(name)}: {problem}; give this checkpoint's own config.json")
                home = Home("mtp")
            elif home.layer >= 0 and roots.setdefault(home.root, name) and len(roots) > 1:
                both = " and ".join(short(first) for first in roots.values())
                raise bad(path, f"has layers of two models: {both}; keep the files of one")
            if home.part == "layer" and home.rest in routed:
                home = home._replace(part="experts", projection=projection_of(home.rest))
            elif home.part == "" and (part := known.get(_module(home.rest) or home.rest)):
                home = Home(part)
            yield path, name, entry, home


def _outside_by_model(model: ModelTensors) -> dict[str, str]:
    """Modules outside the layers under the architecture's own names and its checkpoints', which the table of names need
    not have. A parameter that is in no module (DeepSeek-V4's `hc_head_fn`) stands for itself."""
    parts = {t.name: "beside embedding" for t in model.embedding[1:]}
    parts |= {t.name: "embedding" for t in model.embedding[:1]}
    parts |= {t.name: "lm_head" if model.vocab_size in t.shape[:-1] else "head" for t in model.head}
    rests = [(home_of(name).rest, part) for own, part in parts.items() for name in (own, model.disk_names.module(own))]
    return {_module(rest) or rest: part for rest, part in rests}


def _routed_by_model(model: ModelTensors) -> set[str]:
    """Names within a layer of routed experts that the table of names takes for something else."""
    names = {t.name for layer in model.layers if layer.experts for t in layer.experts.tensors}
    inside = {match[1] for name in names if (match := _IN_LAYER.fullmatch(name))}
    return {name for name in inside if home_of(f"layers.0.{name}").part == "layer"}


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _add(sums: _Sums, model: ModelTensors, path: Path, name: str, entry: Entry, home: Home) -> None:
    if home.part == "layer":
        sums.attention[home.layer].add(entry)
    elif home.part == "experts":
        _add_expert(sums.experts[home.layer], model.layers[home.layer], path, name, entry, home)
    elif home.part == "":
        problem = "belongs to no block that is known here"
        raise bad(path, f"tensor {short(name)}: {problem}; plan from config.json, or write the bytes in a profile YAML")
    else:
        outside = {"embedding": sums.embedding, "beside embedding": sums.beside, "lm_head": sums.lm_head}
        outside |= {"head": sums.norm, "mtp": sums.mtp, "tower": sums.towers}
        outside[home.part].add(entry)


def _add_expert(found: ExpertsSum, layer: LayerTensors, path: Path, name: str, entry: Entry, home: Home) -> None:
    count = layer.experts.count if layer.experts else 0
    problem = ""
    if not count:
        problem = f"config.json says that layer {home.layer} is dense"
    elif home.expert is not None and home.expert >= count:
        problem = f"there is no expert {home.expert}, config.json says {count} experts"
    elif home.expert is None and len(entry.shape) > 2 and entry.shape[0] != count:
        problem = f"shape of {entry.shape[0]} experts, config.json says {count}"
    if problem:
        raise bad(path, f"tensor {short(name)}: {problem}; give this checkpoint's own config.json")
    found.add(entry)
    if home.expert is None:
        found.fused[home.projection] += entry.n_bytes
    else:
        found.one[home.expert, home.projection] += entry.n_bytes


def _check_attention(folder: Path, index: int, layer: LayerTensors, found: Sum) -> None:
    if not found.n_bytes:
        raise bad(folder, f"layer {index}: the files hold no tensor of it; {OTHER_CONFIG}")
    _check_values(folder, f"layer {index}: attention", layer.attention, found)


def _check_values(folder: Path, where: str, promised: Tensors, found: Sum) -> None:
    """The files may hold more than the config's shapes (scales, biases, buffers) but not less."""
    if found.values is not None and found.values < params(promised):
        less = f"the files hold {found.values} of its {params(promised)} parameters"
        raise bad(folder, f"{where}: {less}; {OTHER_CONFIG}")


def _check_experts(folder: Path, index: int, layer: LayerTensors, found: ExpertsSum) -> None:
    """All projections of all experts are there."""
    if layer.experts is None:
        return
    if not found.n_bytes:
        raise bad(folder, f"layer {index}: the files hold none of its {layer.experts.count} experts; {OTHER_CONFIG}")
    single = {projection for _, projection in found.one}
    for projection in single:
        lacks = next((i for i in range(layer.experts.count) if (i, projection) not in found.one), None)
        if lacks is not None:
            raise bad(folder, f"layer {index}: expert {lacks} has no {projection} projection; {OTHER_CONFIG}")
    wanted = _apart({projection_of(t.name) for t in layer.experts.tensors})
    missing = sorted(wanted - _apart(single | set(found.fused)))
    if missing:
        raise bad(folder, f"layer {index}: its experts have no {missing[0]} projection; {OTHER_CONFIG}")
    _check_values(folder, f"layer {index}: experts", layer.experts.tensors, found)


def _apart(projections: set[str]) -> set[str]:
    """Gate and up counted apart, whether stored so or not; what has no known name is not asked for."""
    split = {"gate", "up"} if "gate_up" in projections else set()
    return (projections | split) - {"gate_up", "other"}


def _tied_bytes(sums: _Sums, model: ModelTensors, folder: Path) -> int:
    """Bytes of the head that are the embedding's; ProfileError where embedding or head are not whole."""
    embedding, head = Sum(sums.embedding.n_bytes, sums.embedding.values), Sum()
    tied = model.tied and not sums.lm_head.n_bytes
    if not embedding.n_bytes:
        raise bad(folder, f"embedding: the files hold no embed_tokens or the like; {OTHER_CONFIG}")
    if not tied and not sums.lm_head.n_bytes:
        says = "config.json does not say tie_word_embeddings: true"
        raise bad(folder, f"head: the files hold no lm_head or the like, and {says}; {OTHER_CONFIG}")
    for target, parts in ((embedding, (sums.beside,)), (head, (sums.norm, sums.embedding if tied else sums.lm_head))):
        for part in parts:
            plain = target.values is not None and part.values is not None
            target.values = (target.values or 0) + (part.values or 0) if plain else None
    _check_values(folder, "embedding", model.embedding, embedding)
    _check_values(folder, "head", model.head, head)
    return sums.embedding.n_bytes if tied else 0


def _notes(sums: _Sums, model: ModelTensors) -> tuple[str, ...]:
    notes = []
    if sums.towers.n_bytes:
        notes.append(f"the text model only: {sums.towers.n_bytes} bytes of towers for images or sound are left out")
    if sums.mtp.n_bytes:
        notes.append(f"{sums.mtp.n_bytes} bytes of multi-token-prediction layers are in the files and not loaded")
    if model.tied and sums.lm_head.n_bytes:
        notes.append("config.json ties the head to the embedding, but the files hold both; both are counted")
    if sums.beside.n_bytes:
        notes.append(f"{sums.beside.n_bytes} bytes outside the layers (positions, buffers) count with the embedding")
    return tuple(notes)


def _experts(found: ExpertsSum, count: int) -> StoredExperts:
    projections = Counter(found.fused)
    each = [0] * count
    for (expert, projection), n_bytes in found.one.items():
        each[expert] += n_bytes
        projections[projection] += n_bytes
    shared = sum(found.fused.values())
    each = [own + shared // count + (i < shared % count) for i, own in enumerate(each)]
    differ = len(set(each)) > 1 and bool(found.one)
    return StoredExperts(same(found.n_bytes), tuple(each) if differ else None, dict(projections))
