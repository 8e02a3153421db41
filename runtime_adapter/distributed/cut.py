"""A causal LM reduced to one stage of a plan: what is left keeps its names to be loaded, then its layers close up."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from profiles.errors import ApplyError
from runtime_adapter.anatomy import anatomy_of
from runtime_adapter.distributed.stages import Stage

SENT = (
    *("self", "args", "kwargs", "hidden_states", "attention_mask", "position_ids", "position_embeddings"),
    *("cache_position", "past_key_values", "use_cache", "output_attentions", "output_router_logits"),
)
"""What a layer may be given in a stage: hidden states, and what each stage makes of token counts and mask by itself."""


class Elsewhere(nn.Module):
    """Stands where a module of another stage was; has no weights and is never called."""


def cut(model: nn.Module, stage: Stage) -> None:
    """Take out of `model`, loaded or on the meta device, all modules that other stages compute.

    The others keep their names. Loaders that ask the model which tensors it can do without leave out those of what is
    gone. The norm goes with the head. A tied embedding stays with the head, too. Raises ApplyError for an architecture
    whose layers hand each other more than hidden states.
    """
    anatomy, causal = anatomy_of(model), _any(model)
    names = {id(module): name for name, module in model.named_modules()}
    tied = bool(getattr(_any(anatomy.base).config, "tie_word_embeddings", False))
    if not (stage.embedding and stage.head):
        _check_layers(anatomy.layers)
    gone: list[nn.Module] = [layer for i, layer in enumerate(anatomy.layers) if i not in stage.layers]
    if not stage.embedding and not (stage.head and tied):
        gone.append(anatomy.embedding)
    if not stage.head:
        gone += [anatomy.norm, anatomy.head]
    for module in gone:
        name = names[id(module)]
        owner, _, key = name.rpartition(".")
        # The base model calls its norm whatever stage it is; all else that is gone is not called.
        setattr(model.get_submodule(owner), key, nn.Identity() if module is anatomy.norm else Elsewhere())
    patterns = {rf"^{re.escape(names[id(module)])}\." for module in gone}
    causal._keys_to_ignore_on_load_unexpected = set(causal._keys_to_ignore_on_load_unexpected or ()) | patterns
    left = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    ties = causal.all_tied_weights_keys
    causal.all_tied_weights_keys = {name: source for name, source in ties.items() if {name, source} <= left}


class StageModel(nn.Module):
    """A stage as the pipeline calls it: ids or hidden states in, hidden states or the last token's logits out.

    `model` is what `cut` left of a causal LM, loaded, with a plan applied or not; its layers are renumbered from 0, so
    it is of no other use afterwards. Its KV cache holds its own layers. Tensors come and go on `link`. `device_map`
    says where its modules live, if a plan was carried out. Raises ApplyError for an architecture that cannot be cut.
    """

    def __init__(self, model: nn.Module, stage: Stage, link: torch.device) -> None:
        super().__init__()
        anatomy = anatomy_of(model)
        self.model, self.base = _any(model), _any(anatomy.base)
        self.stage, self.link = stage, link
        self.whole = copy.deepcopy(self.base.config)
        self.dtype: torch.dtype = self.base.dtype
        self.cache: Any = None
        self.failure: BaseException | None = None
        self.trace: TracebackType | None = None
        applied = getattr(model, "plan_applied", None)
        self.device_map = {
            name: device
            for name, device in ({} if applied is None else applied.device_map).items()
            if not isinstance(model.get_submodule(name), (Elsewhere, nn.Identity))
        }
        _close_up(self.base, stage)
        if not (stage.embedding and stage.head):
            _check_passes_through(self.base)

    def shapes(self, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        """What `forward` takes and returns for [rows, tokens], on the meta device."""
        hidden = torch.empty(rows, tokens, self.whole.hidden_size, dtype=self.dtype, device="meta")
        ids = torch.empty(rows, tokens, dtype=torch.int64, device="meta")
        if not self.stage.head:
            return ids if self.stage.embedding else hidden, hidden
        logits = torch.empty(rows, self.model.get_output_embeddings().weight.shape[0], device="meta")
        return ids if self.stage.embedding else hidden, logits

    def start(self) -> None:
        """Forget the last sequence."""
        from transformers import DynamicCache

        self.failure = None
        self.cache = DynamicCache(config=self.whole)
        self.cache.layers = self.cache.layers[self.stage.layers.start : self.stage.layers.stop]

    def stop(self) -> None:
        """Free the KV cache."""
        self.cache = None

    def forward(self, given: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """`given` is ids [B, T] in the first stage, else hidden states [B, T, H]; the mask covers all tokens so far.

        Returns hidden states [B, T, H], or float32 logits [B, vocabulary] in the last stage. What goes wrong is kept in
        `failure`, because the pipeline wraps what it catches.
        """
        try:
            return self._computed(given, attention_mask, position_ids)
        except BaseException as problem:
            self.failure, self.trace = problem, problem.__traceback__
            raise

    def _computed(self, given: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        inputs: dict[str, Any] = {"input_ids" if self.stage.embedding else "inputs_embeds": given, "use_cache": False}
        if self.stage.layers:
            inputs |= {"attention_mask": attention_mask, "position_ids": position_ids}
            inputs |= {"past_key_values": self.cache, "use_cache": True}
        if self.stage.head:
            logits: Tensor = self.model(**inputs, logits_to_keep=1).logits
            return logits[:, -1].float().to(self.link).contiguous()
        hidden: Tensor = self.base(**inputs).last_hidden_state
        if hidden.dtype != self.dtype:
            raise ApplyError(
                f"{self.stage}: makes {hidden.dtype} of {self.dtype} weights; this checkpoint cannot be cut"
            )
        return hidden.to(self.link).contiguous()


def _close_up(base: Any, stage: Stage) -> None:
    """Leave only the stage's layers in `base`, counted from 0, as the KV cache and the per-layer settings are."""
    count = len(base.layers)
    base.layers = nn.ModuleList(base.layers[i] for i in stage.layers)
    for module in base.layers.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            setattr(module, "layer_idx", _any(module).layer_idx - stage.layers.start)  # noqa: B010 -- not declared
    config = base.config
    for key, value in list(vars(config).items()):
        if "layer" in key and isinstance(value, (list, tuple)) and len(value) == count:
            setattr(config, key, value[stage.layers.start : stage.layers.stop])
    config.num_hidden_layers = len(stage.layers)


def _check_layers(layers: Sequence[nn.Module]) -> None:
    """Refuse layers that are given what another stage has: ids, or what an earlier layer shares with them."""
    for i, layer in enumerate(layers):
        kind = type(layer).__name__
        if any(getattr(module, "layer_idx", i) != i for module in layer.modules()):
            raise ApplyError(f"{kind}: has more than one KV cache, or another one's; this architecture cannot be cut")
        extra = [name for name in inspect.signature(type(layer).forward).parameters if name not in SENT]
        if extra:
            raise ApplyError(f"{kind}: takes {extra[0]}, which stages do not send; this architecture cannot be cut")


@torch.no_grad()
def _check_passes_through(base: Any) -> None:
    """Refuse a model that does more to hidden states outside its layers than its embedding and its norm do.

    Scaled embeddings and several residual streams are of that kind: cut, they would be scaled or spread in every stage.
    """
    layers, norm, config = base.layers, base.norm, base.config
    given = torch.linspace(-1, 1, config.hidden_size).to(base.dtype).reshape(1, 1, -1)
    try:
        base.layers, base.norm = nn.ModuleList(), nn.Identity()
        hidden = base(inputs_embeds=given, use_cache=False).last_hidden_state.to("cpu")
    finally:
        base.layers, base.norm = layers, norm
    if not torch.equal(hidden, given):
        kind = type(base).__name__
        raise ApplyError(f"{kind}: changes hidden states outside its layers; this architecture cannot be cut")


def _any(module: nn.Module) -> Any:
    """The same, for what torch does not declare of transformers' models."""
    return module
