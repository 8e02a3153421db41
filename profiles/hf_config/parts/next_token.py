"""Layers that predict further tokens (MTP): checkpoints hold them, transformers does not load them."""

from __future__ import annotations

from dataclasses import replace

from profiles.hf_config.fields import MAX_LAYERS, Fields
from profiles.hf_config.parts.basic import linear, norm
from profiles.tensors import ModelTensors, Tensors, under

KEYS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")


def next_token_layers(fields: Fields) -> int:
    """How many there are, by any of the names that configs have for it; null counts as none."""
    given = [key for key in KEYS if fields.config.get(key) is not None]
    return fields.count("|".join(given), most=MAX_LAYERS) if given else 0


def with_mtp(model: ModelTensors, fields: Fields, layer: Tensors) -> ModelTensors:
    """`model` and its checkpoint's `mtp.*`, as Qwen names them: one projection of embedding and hidden state, each with
    a norm, layers of `layer`'s tensors, a last norm. Embedding and head are the model's own.
    """
    extra, hidden = next_token_layers(fields), model.hidden_size
    if not extra:
        return model
    tensors = linear("fc", hidden, 2 * hidden) + norm("norm", hidden)
    tensors += norm("pre_fc_norm_embedding", hidden) + norm("pre_fc_norm_hidden", hidden)
    tensors += tuple(tensor for index in range(extra) for tensor in under(f"layers.{index}.", layer))
    note = f"{extra} multi-token-prediction layer(s) of the checkpoint are left out, as transformers does"
    return replace(model, mtp=under("mtp.", tensors), notes=(*model.notes, note))


def uncounted_mtp(fields: Fields) -> tuple[str, ...]:
    """A note where a file says that there are such layers, of a model whose code for them is not known."""
    extra = next_token_layers(fields)
    note = f"{extra} multi-token-prediction layer(s) of the checkpoint are neither loaded nor counted in its file"
    return (note,) if extra else ()
