"""From tensors to a profile: bytes, parameters, cache and workspace of every block under one weight format.

All readers of shapes (a built-in family, transformers, files of tensors) end here, so they count alike.
"""

from __future__ import annotations

from pydantic import ValidationError

from profiles.document import first_problem
from profiles.errors import ProfileError
from profiles.model import Attention, Block, Experts, KindBytes, Layer, ModelProfile
from profiles.quant import check_fits_model, tensors_bytes, value_bytes
from profiles.tensors import LayerTensors, ModelTensors, params
from profiles.workspace import attention_workspace, embedding_workspace, experts_workspace, head_workspace

FP32_BYTES = 4


def profile_of(model: ModelTensors, name: str, quant: str, source: str, notes: tuple[str, ...] = ()) -> ModelProfile:
    """The profile of `model` with its weights in `quant`; `notes` are the reader's, before those about shapes.

    Raises ProfileError where a block would not be a possible one.
    """
    check_fits_model(quant, model)
    try:
        return _profile(model, name, quant, source, notes)
    except ValidationError as problem:
        raise ProfileError(f"config.json: {first_problem(problem, ModelProfile)}; mend it") from None


def _profile(model: ModelTensors, name: str, quant: str, source: str, notes: tuple[str, ...]) -> ModelProfile:
    value = value_bytes(quant)
    embedding = Block(
        weight_bytes=_bytes(tensors_bytes(model.embedding, quant)),
        params=params(model.embedding),
        workspace_bytes=embedding_workspace(model.hidden_size, value),
    )
    head = Block(
        weight_bytes=_bytes(tensors_bytes(model.head, quant)),
        params=params(model.head),
        workspace_bytes=head_workspace(model.hidden_size, model.vocab_size, value),
    )
    return ModelProfile(
        model=name,
        architecture=model.architecture,
        quant=quant,
        source=source,
        notes=notes + model.notes,
        hidden_size=model.hidden_size,
        activation_bytes=value,
        tied_bytes=tensors_bytes(model.embedding[:1], quant) if model.tied else 0,
        embedding=embedding,
        head=head,
        layers=[_layer(layer, model.hidden_size, quant, value) for layer in model.layers],
    )


def _bytes(number: int) -> KindBytes:
    return KindBytes(gpu=number, cpu=number)


def _layer(layer: LayerTensors, hidden: int, quant: str, value: int) -> Layer:
    attention = Attention(
        weight_bytes=_bytes(tensors_bytes(layer.attention, quant)),
        params=params(layer.attention),
        workspace_bytes=attention_workspace(layer.attention, layer.cache, hidden, value),
        kv_bytes_per_token=layer.cache.values_per_token * value,
        kv_window_tokens=layer.cache.window_tokens,
        state_bytes=layer.cache.state_values * value + layer.cache.state_fp32_values * FP32_BYTES,
        flops_per_token_pair=layer.cache.flops_per_token_pair,
    )
    if layer.experts is None:
        return Layer(attention=attention)
    experts = Experts(
        weight_bytes=_bytes(tensors_bytes(layer.experts.tensors, quant, experts=True)),
        params=params(layer.experts.tensors),
        workspace_bytes=experts_workspace(layer.experts, hidden, value),
        count=layer.experts.count,
        active=layer.experts.active,
    )
    return Layer(attention=attention, experts=experts)
