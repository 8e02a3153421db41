"""What a model is made of: blocks with bytes, parameters, KV and, where somebody measured them, seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_serializer, model_validator

from profiles.document import Document, Noun, SchemaOne
from profiles.units import ByteCount, Seconds, Share

Kind = Literal["gpu", "cpu"]
TimePoints = dict[str, dict[Annotated[int, Field(ge=1, le=10**9)], Annotated[Seconds, Field(gt=0)]]]


class KindBytes(Noun):
    """Bytes of the same weights on each kind of device (Marlin on a GPU and Q8 on the CPU weigh differently).

    A single number means the same on both kinds, in files and in Python.

    >>> KindBytes.model_validate(7).on("cpu")
    7
    """

    gpu: ByteCount
    cpu: ByteCount

    @model_validator(mode="before")
    @classmethod
    def _from_one_number(cls, value: object) -> object:
        return value if isinstance(value, (dict, KindBytes)) else {"gpu": value, "cpu": value}

    @model_serializer
    def _to_one_number(self) -> int | dict[str, int]:
        return self.gpu if self.gpu == self.cpu else {"gpu": self.gpu, "cpu": self.cpu}

    def on(self, kind: Kind) -> int:
        return self.gpu if kind == "gpu" else self.cpu


class Workspace(Noun):
    """Bytes a block needs at one moment while it runs and gives back afterwards, per sequence of the batch.

    `per_token` counts tokens of one prefill chunk; `per_context_token` the tokens the cache is reserved for, of which a
    layer with a window counts those it keeps; `per_token_pair` every token of the chunk with every token of the context
    (masks, scores), `per_window_pair` with every one that the layer's window keeps, `per_chunk_pair` with every one of
    the chunk; `per_sequence` none of these.
    A moment `after_first_chunk` comes only where a chunk may meet a cache that is not empty. Of this moment and its
    `other_moments` the largest counts. A single number means `per_token`.
    """

    per_token: ByteCount = 0
    per_context_token: ByteCount = 0
    per_token_pair: ByteCount = 0
    per_window_pair: ByteCount = 0
    per_chunk_pair: ByteCount = 0
    per_sequence: ByteCount = 0
    after_first_chunk: bool = False
    other_moments: tuple[Workspace, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _from_one_number(cls, value: object) -> object:
        return value if isinstance(value, (dict, Workspace)) else {"per_token": value}

    @model_serializer(mode="wrap")
    def _say_what_matters(self, default: Callable[[Self], dict[str, Any]]) -> dict[str, Any]:
        plain = ("per_token", "per_context_token", "per_sequence")
        return {key: value for key, value in default(self).items() if value or key in plain}

    @property
    def moments(self) -> tuple[Workspace, ...]:
        """This moment and the others."""
        return (self, *self.other_moments)


class Block(Noun):
    """A unit of placement. Unknown `params` and `workspace_bytes` are estimated by the cost model, which says how.

    `weight_bytes` are as stored; `unpacked_bytes` what a runtime holds that unpacks the profile's format (`packed_by`)
    to the model's own type when it loads (`cost_models/held.py`).
    `workspace_by_target` is what a runtime needs that works in another way than transformers ("llama.cpp").
    `measured_seconds` maps a device kind, a device's model or its name to {tokens in the step: seconds}; a measured
    time beats the formula.
    """

    weight_bytes: KindBytes
    unpacked_bytes: ByteCount | None = None
    params: Annotated[int, Field(ge=0, le=10**18, strict=True)] | None = None
    workspace_bytes: Workspace | None = None
    workspace_by_target: dict[str, Workspace] | None = None
    measured_seconds: TimePoints | None = None

    @model_validator(mode="after")
    def _measured_points_exist(self) -> Self:
        for place, points in (self.measured_seconds or {}).items():
            if not points:
                raise ValueError(f"measured_seconds of {place!r} is empty; give {{tokens: seconds}} or leave it out")
        return self


class Attention(Block):
    """All of a decoder layer that is not routed experts: attention, norms, router, shared experts, a dense FFN.

    The KV cache lives with it: `kv_bytes_per_token` for each cached token, of which a layer with a sliding or chunked
    window keeps at most `kv_window_tokens`; `state_bytes` is what a sequence needs whatever its length (linear
    attention). `flops_per_token_pair` are the score and value FLOPs for one new token and one cached token. `latent`
    says that a latent is cached instead of keys and values (multi-head latent attention).
    """

    latent: bool = False
    kv_bytes_per_token: ByteCount = 0
    kv_window_tokens: Annotated[int, Field(ge=1, le=10**9, strict=True)] | None = None
    state_bytes: ByteCount = 0
    flops_per_token_pair: Annotated[int, Field(ge=0, le=10**12, strict=True)] = 0


class Experts(Block):
    """The routed experts of one layer. `weight_bytes` and `params` are of all `count` of them together.

    `expert_weight_bytes` (one number an expert, as on a GPU) and `frequencies` (probability that a token uses
    expert i) are given where known; otherwise experts are equal, and each is used with probability active / count.
    `projection_bytes` divides the bytes on a GPU by projection (gate, up, down), where a file shows them.
    """

    count: Annotated[int, Field(ge=1, le=100_000, strict=True)]
    active: Annotated[int, Field(ge=1, strict=True)]
    expert_weight_bytes: tuple[ByteCount, ...] | None = None
    projection_bytes: dict[str, ByteCount] | None = None
    frequencies: tuple[Annotated[Share, Field(ge=0, le=1)], ...] | None = None

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        if self.active > self.count:
            raise ValueError(f"active {self.active} is more than count {self.count}; a token cannot use that many")
        for name in ("expert_weight_bytes", "frequencies"):
            values = getattr(self, name)
            if values is not None and len(values) != self.count:
                raise ValueError(f"{name} has {len(values)} entries for {self.count} experts; give one an expert")
        if self.expert_weight_bytes is not None and sum(self.expert_weight_bytes) != self.weight_bytes.gpu:
            raise ValueError(f"expert_weight_bytes sum to {sum(self.expert_weight_bytes)}, not to weight_bytes")
        if self.projection_bytes is not None and sum(self.projection_bytes.values()) != self.weight_bytes.gpu:
            raise ValueError(f"projection_bytes sum to {sum(self.projection_bytes.values())}, not to weight_bytes")
        return self


class Layer(Noun):
    """One decoder layer; `experts` is None for a dense one, whose FFN belongs to `attention`."""

    attention: Attention
    experts: Experts | None = None

    @model_serializer(mode="wrap")
    def _say_null(self, default: Callable[[Self], dict[str, Any]]) -> dict[str, Any]:
        return {"experts": None, **default(self)} if self.experts is None else default(self)


class ModelProfile(Document):
    """Bytes, parameters, KV and measured times of every block of a model: the profile document, schema 1.

    `tied_bytes` are bytes of the head that are the embedding's own tensor: on one device they are held once.
    `architecture` is Hugging Face's `model_type` where known; exporters need it. `kv_quant` and `mla` say how the cache
    is kept where that was chosen. `mtp` are multi-token-prediction layers: in the file, not loaded for plain decoding;
    `mtp_layers` is how many of them a GGUF file counts with its layers. `packed_by` is the method that packed
    weights in a way that runtimes may undo, as transformers calls it ("fp8", "mxfp4").

    >>> block = {"weight_bytes": "1 GB"}
    >>> tiny = ModelProfile(model="tiny", source="example", hidden_size=64, embedding=block, head=block,
    ...                     layers=[{"attention": block, "experts": {"weight_bytes": "4 GB", "count": 8, "active": 2}}])
    >>> tiny.weight_bytes
    7000000000
    """

    schema_: Annotated[SchemaOne, Field(alias="schema")] = 1
    model: Annotated[str, Field(min_length=1)]
    architecture: str | None = None
    quant: str | None = None
    packed_by: str | None = None
    kv_quant: str | None = None
    mla: str | None = None
    source: Annotated[str, Field(min_length=1)]
    notes: tuple[str, ...] = ()
    hidden_size: Annotated[int, Field(ge=1, le=10**7, strict=True)]
    activation_bytes: Annotated[int, Field(ge=1, le=8, strict=True)] = 2
    tied_bytes: ByteCount = 0
    embedding: Block
    head: Block
    layers: Annotated[tuple[Layer, ...], Field(min_length=1, max_length=10_000)]
    mtp: Block | None = None
    mtp_layers: Annotated[int, Field(ge=0, le=10_000, strict=True)] | None = None

    @model_validator(mode="after")
    def _tied_bytes_exist(self) -> Self:
        if self.tied_bytes > min(self.embedding.weight_bytes.gpu, self.head.weight_bytes.gpu):
            raise ValueError(f"tied_bytes {self.tied_bytes} is more than the embedding or the head weighs; lower it")
        return self

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Every block: the embedding, each layer's attention and experts, the head."""
        inner = [b for layer in self.layers for b in (layer.attention, layer.experts) if b is not None]
        return (self.embedding, *inner, self.head)

    @property
    def layer_class(self) -> tuple[int, ...]:
        """For each layer the index of the first layer equal to it: a model has few kinds of layers."""
        first: dict[str, int] = {}
        return tuple(first.setdefault(layer.model_dump_json(), i) for i, layer in enumerate(self.layers))

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights on one GPU."""
        return sum(block.weight_bytes.gpu for block in self.blocks) - self.tied_bytes

    @property
    def params(self) -> int | None:
        """Parameters of all blocks, a tied head's once; None where some block's are not known."""
        return self._params(lambda experts: experts.params or 0)

    @property
    def active_params(self) -> int | None:
        """Parameters that one token uses: as `params`, with a layer's active experts only.

        Of the embedding as many as the head has, as model cards count: tables beside it are looked up by the row.
        """
        found = self._params(lambda experts: (experts.params or 0) * experts.active // experts.count)
        beside = max(0, (self.embedding.params or 0) - (self.head.params or 0))
        return None if found is None else found - beside

    def _params(self, of_experts: Callable[[Experts], int]) -> int | None:
        if any(block.params is None for block in self.blocks):
            return None
        around = [self.embedding, *(layer.attention for layer in self.layers)]
        total = sum(block.params or 0 for block in around) + (self.head.params or 0)
        total += sum(of_experts(layer.experts) for layer in self.layers if layer.experts)
        return total - (self.embedding.params or 0 if self.tied_bytes else 0)

    @property
    def file_bytes(self) -> int:
        """Bytes of all tensors in the model's file: `weight_bytes`, and those of layers that are not loaded."""
        return self.weight_bytes + (self.mtp.weight_bytes.gpu if self.mtp else 0)
