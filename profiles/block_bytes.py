"""From tensors to a profile: bytes, parameters, cache and workspace of every block.

All readers of shapes (a built-in family, transformers, files of tensors) end here, so they count alike.
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic import ValidationError

from profiles.document import first_problem
from profiles.errors import ProfileError
from profiles.formats.by_shape import tensors_bytes
from profiles.formats.kv_cache import KvFormat, keeps_latent, kv_bytes_per_token
from profiles.formats.stored import Stored, StoredExperts, same
from profiles.llama_cpp_buffers import attention_buffer, embedding_buffer, experts_buffer, head_buffer
from profiles.model import Attention, Block, Experts, KindBytes, Layer, ModelProfile
from profiles.tensors import LayerTensors, ModelTensors, Tensors, params
from profiles.workspace import (
    Surroundings,
    attention_workspace,
    embedding_workspace,
    experts_workspace,
    head_workspace,
    surroundings,
)

FP32_BYTES = 4
UNPACKED = "bf16"
"""What packed weights become where a runtime unpacks them: transformers takes the model's type, which is of 16 bits."""
LLAMA_CPP = "llama.cpp"


def profile_of(
    model: ModelTensors,
    stored: Stored,
    name: str,
    source: str,
    notes: tuple[str, ...] = (),
    kv: KvFormat | None = None,
) -> ModelProfile:
    """The profile of `model` with its weights as `stored`; `notes` are the reader's, before those about shapes.

    Raises ProfileError where a block would not be a possible one, or the cache cannot be kept in `kv`.
    """
    try:
        return _profile(model, stored, name, source, notes, kv or KvFormat())
    except ValidationError as problem:
        found = first_problem(problem, ModelProfile)
        raise ProfileError(f"its shapes make no model: {found}; mend or download it again") from None


def _profile(
    model: ModelTensors, stored: Stored, name: str, source: str, notes: tuple[str, ...], kv: KvFormat
) -> ModelProfile:
    value = stored.value_bytes
    around = surroundings(model, value)
    unpacked = _unpacked if stored.packed_by else _nothing
    parts = zip(model.layers, stored.attention, stored.experts, strict=True)
    return ModelProfile(
        model=name,
        architecture=model.architecture,
        quant=stored.quant,
        packed_by=stored.packed_by,
        kv_quant=kv.type,
        mla=kv.mla,
        source=source,
        notes=notes + model.notes + stored.notes,
        hidden_size=model.hidden_size,
        activation_bytes=value,
        tied_bytes=stored.tied_bytes,
        embedding=Block(
            weight_bytes=stored.embedding,
            unpacked_bytes=unpacked(model.embedding),
            params=params(model.embedding),
            workspace_bytes=embedding_workspace(around),
            workspace_by_target={LLAMA_CPP: embedding_buffer(model)},
        ),
        head=Block(
            weight_bytes=stored.head,
            unpacked_bytes=unpacked(model.head),
            params=params(model.head),
            workspace_bytes=head_workspace(around),
            workspace_by_target={LLAMA_CPP: head_buffer(model)},
        ),
        layers=[_layer(layer, weight, experts, around, kv, unpacked) for layer, weight, experts in parts],
        mtp=Block(weight_bytes=same(stored.mtp_bytes)) if stored.mtp_bytes else None,
        mtp_layers=stored.mtp_layers,
    )


def _unpacked(tensors: Tensors) -> int | None:
    """Bytes of the tensors in the type that runtimes unpack to."""
    return tensors_bytes(tensors, UNPACKED)


def _nothing(tensors: Tensors) -> int | None:
    """For formats that no runtime unpacks."""
    return None


def _layer(
    layer: LayerTensors,
    weight: KindBytes,
    stored: StoredExperts | None,
    around: Surroundings,
    kv: KvFormat,
    unpacked: Callable[[Tensors], int | None],
) -> Layer:
    value = around.value
    attention = Attention(
        weight_bytes=weight,
        unpacked_bytes=unpacked(layer.attention),
        params=params(layer.attention),
        workspace_bytes=attention_workspace(layer, around),
        workspace_by_target={LLAMA_CPP: attention_buffer(layer, around.hidden)},
        latent=keeps_latent(layer.cache, kv),
        kv_bytes_per_token=kv_bytes_per_token(layer.cache, kv, value),
        kv_window_tokens=layer.cache.window_tokens,
        state_bytes=layer.cache.state_values * value + layer.cache.state_fp32_values * FP32_BYTES,
        flops_per_token_pair=layer.cache.flops_per_token_pair,
    )
    if layer.experts is None or stored is None:
        return Layer(attention=attention)
    experts = Experts(
        weight_bytes=stored.total,
        unpacked_bytes=unpacked(layer.experts.tensors),
        params=params(layer.experts.tensors),
        workspace_bytes=experts_workspace(layer.experts, around),
        workspace_by_target={LLAMA_CPP: experts_buffer(layer.experts, around.hidden)},
        count=layer.experts.count,
        active=layer.experts.active,
        expert_weight_bytes=stored.each,
        projection_bytes=dict(stored.projections) if stored.projections else None,
    )
    return Layer(attention=attention, experts=experts)
